"""Powers of a base: products become shifts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bayesq.quantization.formats.base import Scaled


@dataclass(frozen=True)
class Powers(Scaled):
    """0 and ±2^(−k / root), k = 0, 1, …: powers of two, or of √2 (POST, arXiv 2504.17263).

    Attributes:
        width: Bits.
        root: 1 for powers of two, 2 for those of √2.
        group: Weights that share a scale, see ``row_count``.
    """

    width: int = 4
    root: int = 1
    group: int | None = 0

    def levels(self) -> Tensor:
        positive = 2.0 ** (-torch.arange(2 ** (self.width - 1) - 1) / self.root)
        return torch.cat([-positive, torch.zeros(1), positive.flip(0)])


@dataclass(frozen=True)
class Log2(Scaled):
    """2^(−k / root), k = 0, 1, …, for what is never negative: the format of attention and of scales.

    Values are coded as the nearest level, not as the one whose logarithm is nearest.

    Attributes: As those of ``Powers``.
    """

    width: int = 4
    root: int = 1
    group: int | None = 0

    def levels(self) -> Tensor:
        return 2.0 ** (-torch.arange(2**self.width).flip(0) / self.root)
