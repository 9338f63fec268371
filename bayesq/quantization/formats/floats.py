"""Floating point in a few bits, and the four bits that normal weights like best."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bayesq.quantization.formats.base import Scaled


@dataclass(frozen=True)
class Minifloat(Scaled):
    """A sign, an exponent and a mantissa, with subnormal numbers, without infinities; E2M1 is FP4.

    The scale of each row takes the part of the exponent's bias (LLM-FP4, arXiv 2310.16836).

    Attributes:
        exponent, mantissa: Bits.
        group: Weights that share a scale, see ``row_count``.
    """

    exponent: int = 2
    mantissa: int = 1
    group: int | None = 0

    def levels(self) -> Tensor:
        fraction = torch.arange(2**self.mantissa) / 2**self.mantissa
        normal = 2.0 ** torch.arange(2**self.exponent - 1)[:, None] * (1 + fraction)
        positive = torch.cat([fraction[1:], normal.flatten()])
        positive = positive / positive[-1]
        return torch.cat([-positive.flip(0), torch.zeros(1), positive])


@dataclass(frozen=True)
class NormalFloat(Scaled):
    """NF4 and its kin: quantiles of a normal law, 0 among them (QLoRA, arXiv 2305.14314).

    Attributes:
        width: Bits; half of the levels are positive, and one fewer negative.
        group: Weights that share a scale, see ``row_count``.
    """

    width: int = 4
    group: int | None = 0

    def levels(self) -> Tensor:
        side = 2 ** (self.width - 1)
        last = 1 - (1 / (4 * side) + 1 / (4 * side - 2)) / 2  # the outermost quantile: half a level's mass beyond it
        positive = torch.special.ndtri(torch.linspace(0.5, last, side + 1))[1:]
        negative = torch.special.ndtri(torch.linspace(0.5, last, side))[1:]
        return torch.cat([-negative.flip(0), torch.zeros(1), positive]) / positive[-1]
