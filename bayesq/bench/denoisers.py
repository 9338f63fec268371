"""Pretrained denoisers of the field as deepinv's, read from .npz files: for comparison, and not shipped.

A file holds the weights ``0.w, 0.b, 1.w, …`` of a chain of 3 × 3 convolutions with rectified units between them, batch
normalisation folded in, as KAIR's models are.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from deepinv.models import Denoiser
from torch import Tensor

from bayesq.errors import ModelError


class FFDNet(Denoiser):
    """FFDNet (Zhang et al., 2018): works at half the resolution, and is told the noise level.

    Args:
        path: the weights.

    Raises:
        ModelError: the file is missing, or holds other layers.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.layers = _layers(path, 13, 12)

    @torch.no_grad()
    def forward(self, x: Tensor, sigma: float | Tensor, **_: object) -> Tensor:
        """Denoises x (B, 3, H, W); sigma in image units, one for all or (B,)."""
        height, width = x.shape[-2:]
        x = F.pad(x, (0, width % 2, 0, height % 2), mode="replicate")
        parts = F.pixel_unshuffle(x.mT, 2).mT  # the row within a 2 × 2 block counts fastest
        level = torch.as_tensor(sigma, dtype=x.dtype).reshape(-1, 1, 1, 1)
        parts = _run(self.layers, torch.cat([parts, level.expand(len(x), 1, *parts.shape[-2:])], 1))
        return F.pixel_shuffle(parts.mT, 2).mT[..., :height, :width]


class DnCNN(Denoiser):
    """DnCNN (Zhang et al., 2017) for one noise level, whatever sigma says: subtracts the noise that it sees.

    Args:
        path: the weights.

    Raises:
        ModelError: the file is missing, or holds other layers.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.layers = _layers(path, 3, 3)

    @torch.no_grad()
    def forward(self, x: Tensor, sigma: float | Tensor, **_: object) -> Tensor:
        """Denoises x (B, 3, H, W)."""
        return x - _run(self.layers, x)


def _layers(path: Path, inputs: int, outputs: int) -> list[tuple[Tensor, Tensor]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            count = len(file.files) // 2
            layers = [tuple(torch.from_numpy(file[f"{i}.{part}"]).float() for part in "wb") for i in range(count)]
        sound = layers[0][0].shape[1] == inputs and layers[-1][0].shape[0] == outputs
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise ModelError(f"{path}: not the weights of a denoiser ({error})") from error
    if not sound:
        raise ModelError(f"{path}: not the weights of this denoiser: it maps other channels")
    return [(weight, bias) for weight, bias in layers]


def _run(layers: list[tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
    for weight, bias in layers[:-1]:
        x = F.relu(F.conv2d(x, weight, bias, padding=1))
    return F.conv2d(x, *layers[-1], padding=1)
