"""A small U-Net that is told a noise level: at 1/2, 1/4 and 1/8 of the picture's size.

      x ─► fold 2 ─► blocks ────────────── + ─► blocks ─► unfold 2
                       └─► fold 2 ─► … ─► ─┘

Without normalisation, as DRUNet is (Zhang et al., "Plug-and-play image restoration with deep denoiser prior", 2021);
the noise level scales and shifts the channels inside every block instead of being one more input, and so does how
much of the picture's doubt is noise. Without the shift the network would be homogeneous, and could not tell faint
texture from noise by its strength.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayesq.networks.rate import Interpolated
from bayesq.networks.transforms import fold, leaky_relu, precisely, unfold


class Block(nn.Module):
    """Residual block of two 3×3 convolutions, modulated between them.

    Its units leak: without a slope those at 1/4 and 1/8 of the size all die in training.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.scale, self.shift = Interpolated(channels, 1.0), Interpolated(channels)
        self.share_scale, self.share_shift = Interpolated(channels), Interpolated(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        deviation = (2 / (9 * channels)) ** 0.5
        nn.init.normal_(self.first.weight, std=deviation)
        nn.init.normal_(self.second.weight, std=0.2 * deviation)

    def forward(self, x: Tensor, level: Tensor, share: Tensor) -> Tensor:
        shift, scale = self.shift(level) + self.share_shift(share), self.scale(level) + self.share_scale(share)
        return x + self.second(leaky_relu(torch.addcmul(shift, self.first(x), scale)))


class Blocks(nn.ModuleList):
    """Blocks in sequence."""

    def forward(self, x: Tensor, level: Tensor, share: Tensor) -> Tensor:
        for block in self:
            x = block(x, level, share)
        return x


class UNet(nn.Module):
    """Pictures ``(B, 3, H, W)``, H and W multiples of ``multiple``, to ``outputs`` maps of the same size.

    Args:
        outputs: Channels of the result.
        widths: Channels at 1/2, 1/4, … of the size.
        depth: Blocks on each way, down and up, at every size but the smallest.
        middle: Blocks at the smallest size.
    """

    def __init__(self, outputs: int, widths: tuple[int, ...], depth: int, middle: int) -> None:
        super().__init__()
        self.multiple = 2 ** len(widths)
        self.stem = nn.Conv2d(3 * 4, widths[0], 3, padding=1, bias=False)
        self.down = nn.ModuleList(Blocks(Block(width) for _ in range(depth)) for width in widths[:-1])
        self.shrink = nn.ModuleList(nn.Conv2d(4 * fine, coarse, 1, bias=False) for fine, coarse in pairwise(widths))
        self.middle = Blocks(Block(widths[-1]) for _ in range(middle))
        self.grow = nn.ModuleList(nn.Conv2d(coarse, 4 * fine, 1, bias=False) for fine, coarse in pairwise(widths))
        self.up = nn.ModuleList(Blocks(Block(width) for _ in range(depth)) for width in widths[:-1])
        self.head = nn.Conv2d(widths[0], 4 * outputs, 3, padding=1, bias=False)

    def halvings(self, name: str) -> int:
        """How often the maps that a parameter works on have been halved, after the first time."""
        part, place, *_ = name.split(".")
        if part in ("stem", "head"):
            return 0
        return len(self.down) if part == "middle" else int(place) + (part in ("shrink", "grow"))

    def forward(self, x: Tensor, level: Tensor, share: Tensor) -> Tensor:
        """Maps for pictures at levels and shares of noise in 0…255, between which modulations are interpolated.

        Levels are ``(B,)``, or ``(B, 1, H, W)`` where they vary over the picture; shares are ``(B,)``.
        """
        x, level = precisely(self.stem, fold(x, 2)), _halved(level)
        skips = []
        for blocks, shrink in zip(self.down, self.shrink, strict=True):
            x = blocks(x, level, share)
            skips.append((x, level))
            x, level = shrink(fold(x, 2)), _halved(level)
        x = self.middle(x, level, share)
        for blocks, grow in zip(reversed(self.up), reversed(self.grow), strict=True):
            skip, level = skips.pop()
            x = blocks(unfold(grow(x), 2) + skip, level, share)
        return F.pixel_shuffle(self.head(x), 2)


def _halved(level: Tensor) -> Tensor:
    return F.avg_pool2d(level, 2) if level.ndim == 4 else level
