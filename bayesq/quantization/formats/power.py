"""Integers seen through a power: finer near zero, coarser far from it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bayesq.quantization.formats.base import (
    Format,
    LevelGrid,
    Parameters,
    Range,
    fitted_scale,
    importance_of,
    rows_of,
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
        rows = rows_of(weight, self.group)
        importance = importance_of(rows, importance)

        def fitted(power: Tensor) -> Parameters:
            scale = fitted_scale(rows, importance, span, lambda scale: self.grid({"scale": scale, "power": power}))
            return {"scale": scale, "power": power}

        def error(parameters: Parameters) -> float:
            return float((importance * (self.grid(parameters).straight_through(rows) - rows).square()).sum())

        return min((fitted(torch.tensor([power])) for power in EXPONENTS), key=error)

    def grid(self, parameters: Parameters) -> LevelGrid:
        positive = torch.linspace(0, 1, 2 ** (self.width - 1))[1:] ** parameters["power"]
        return LevelGrid(torch.cat([-positive.flip(0), torch.zeros(1), positive]), parameters["scale"])
