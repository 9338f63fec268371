"""Integers seen through a power: finer near zero, coarser far from it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bayesq.quantization.formats.base import (
    SCALE_MIN,
    Format,
    LevelGrid,
    Parameters,
    Range,
    half,
    importance_of,
    row_count,
    whole_range,
)

EXPONENTS = [1.0, 1.125, 1.25, 1.375, 1.5, 1.75, 2.0]


@dataclass(frozen=True)
class PowerExponent(Format):
    """``scale · sign(k) · |k / n|^p``, with the p that fits the tensor best (NUPES, arXiv 2308.05600).

    Attributes:
        width: Bits; n = 2^(width − 1) − 1.
        group: Weights that share a scale, see ``row_count``.
    """

    width: int = 4
    group: int | None = 0

    @property
    def bits(self) -> float:
        return self.width

    def fit(self, weight: Tensor, importance: Tensor | None = None, span: Range = whole_range) -> Parameters:
        rows = weight.detach().reshape(row_count(weight, self.group), -1)
        importance = importance_of(rows, importance)
        reach = rows.abs().amax(1, keepdim=True)

        def fitted(power: Tensor) -> Parameters:
            def scaled(share: Tensor) -> Parameters:
                return {"scale": half((reach * share).clamp_min(SCALE_MIN)), "power": power}

            return scaled(span(rows, importance, lambda share: self.grid(scaled(share)).straight_through(rows)))

        def error(parameters: Parameters) -> float:
            return float((importance * (self.grid(parameters).straight_through(rows) - rows).square()).sum())

        return min((fitted(torch.tensor([power])) for power in EXPONENTS), key=error)

    def grid(self, parameters: Parameters) -> LevelGrid:
        positive = torch.linspace(0, 1, 2 ** (self.width - 1))[1:] ** parameters["power"]
        return LevelGrid(torch.cat([-positive.flip(0), torch.zeros(1), positive]), parameters["scale"])
