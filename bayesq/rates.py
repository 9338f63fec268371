"""Where the bits of a file went."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from bayesq import bitstream
from bayesq.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor


class PricingCodec(Protocol):
    """A codec that knows what the parts of a payload cost."""

    @property
    def model_id(self) -> bytes:
        """The first 8 bytes of the SHA-256 of the weights file."""

    def bit_map(self, payload: bytes, height: int, width: int, level: int) -> Tensor:
        """Bits by pixel, (1, 1, height, width)."""


def bit_map(data: bytes, codec: PricingCodec) -> Tensor:
    """What the colours of a file cost, pixel by pixel; alpha, metadata and the head are not in it.

    Args:
        data: the whole file.
        codec: the model that wrote it.

    Returns:
        (1, 1, H, W) bits per pixel; their sum is the size of the tiles but for a few words of 32 bits each.

    Raises:
        BitstreamError: the file is damaged, foreign, or needs a newer bayesq.
        ModelError: the file needs another model.
    """
    import torch

    file = bitstream.unpack(data)
    header = file.header
    if codec.model_id != header.model_id:
        raise ModelError(f"the file needs model {header.model_id.hex()}, not {codec.model_id.hex()}")
    result = torch.empty(1, 1, header.height, header.width)
    for (left, top, right, bottom), payload in zip(header.boxes(), file.tiles, strict=True):
        result[..., top:bottom, left:right] = codec.bit_map(payload, bottom - top, right - left, header.level)
    return result
