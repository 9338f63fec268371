"""Codes as bytes: as many bits a code as the alphabet takes, five ternary codes to a byte."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bayesq.errors import ModelError

TRITS = 5


def bits_per_code(alphabet: int) -> float:
    """Bits that one of so many codes takes when packed."""
    return 8 / TRITS if alphabet == 3 else (alphabet - 1).bit_length()


def packed(codes: Tensor, alphabet: int) -> Tensor:
    """Codes 0…alphabet − 1 as bytes, uint8 ``(n,)``, the last one filled up with zeros."""
    array = codes.detach().cpu().numpy().ravel()
    if alphabet == 3:
        array = np.pad(array, (0, -len(array) % TRITS)).reshape(-1, TRITS)
        return torch.from_numpy((array @ 3 ** np.arange(TRITS)).astype(np.uint8))
    bits = array[:, None] >> np.arange((alphabet - 1).bit_length(), dtype=array.dtype) & 1
    return torch.from_numpy(np.packbits(bits.astype(np.uint8)))


def unpacked(data: Tensor, alphabet: int, count: int) -> Tensor:
    """So many codes, int64. Raises ModelError if the bytes hold more, fewer, or others than the alphabet has."""
    width = (alphabet - 1).bit_length()
    size = -(-count // TRITS) if alphabet == 3 else -(-count * width // 8)
    if data.dtype != torch.uint8 or data.shape != (size,):
        raise ModelError(f"{count} codes take {size} bytes, not {tuple(data.shape)} of {data.dtype}")
    if alphabet == 3:
        codes = (data.numpy()[:, None].astype(np.int64) // 3 ** np.arange(TRITS) % 3).ravel()[:count]
    else:
        bits = np.unpackbits(data.numpy(), count=count * width).reshape(count, width)
        codes = bits.astype(np.int64) @ (1 << np.arange(width))
    if (codes >= alphabet).any():
        raise ModelError(f"a code is not one of {alphabet}")
    return torch.from_numpy(codes)
