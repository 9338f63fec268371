"""One and two bits: signs, signs and zero, and two signs."""

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
    Scaled,
    half,
    importance_of,
    rows_of,
    whole_range,
)

ITERATIONS = 12


class _LeastSquares(Scaled):
    """A table of levels whose scale is that of least weighted squared error, whatever the span."""

    def fit(self, weight: Tensor, importance: Tensor | None = None, span: Range = whole_range) -> Parameters:
        rows = rows_of(weight, self.group)
        importance, levels = importance_of(rows, importance), self.levels()
        mass = importance.sum(1, keepdim=True).clamp_min(1e-30)
        scale = ((importance * rows.abs()).sum(1, keepdim=True) / mass).clamp_min(SCALE_MIN)
        for _ in range(ITERATIONS):
            chosen = levels[LevelGrid(levels, scale).index(rows).long()]
            power = (importance * chosen.square()).sum(1, keepdim=True)
            best = (importance * chosen * rows).sum(1, keepdim=True) / power.clamp_min(1e-30)
            scale = torch.where(power > 0, best, scale).clamp_min(SCALE_MIN)
        return {"scale": half(scale)}


@dataclass(frozen=True)
class Binary(_LeastSquares):
    """±scale (XNOR-Net, arXiv 1603.05279).

    Attributes:
        group: Weights that share a scale, see ``row_count``.
    """

    group: int | None = 0

    def levels(self) -> Tensor:
        return torch.tensor([-1.0, 1.0])


@dataclass(frozen=True)
class Ternary(_LeastSquares):
    """−scale, 0 and scale, five to a byte (ternary weight networks, arXiv 1605.04711).

    Attributes:
        group: Weights that share a scale, see ``row_count``.
    """

    group: int | None = 0

    def levels(self) -> Tensor:
        return torch.tensor([-1.0, 0.0, 1.0])


@dataclass(frozen=True)
class DoubleBinary(Format):
    """±a ± b with two scales a row, two binary weights for one (DB-LLM, arXiv 2402.11960).

    Attributes:
        group: Weights that share the scales, see ``row_count``.
    """

    group: int | None = 0

    @property
    def bits(self) -> float:
        return 2

    def fit(self, weight: Tensor, importance: Tensor | None = None, span: Range = whole_range) -> Parameters:
        rows = rows_of(weight, self.group)
        importance = importance_of(rows, importance)
        mass = importance.sum(1, keepdim=True).clamp_min(1e-30)
        major = ((importance * rows.abs()).sum(1, keepdim=True) / mass).clamp_min(2 * SCALE_MIN)
        minor = major / 2
        for _ in range(ITERATIONS):
            codes = self.grid({"scale": major, "ratio": minor / major}).index(rows)
            signs = torch.stack([torch.where(codes >= 2, 1.0, -1.0), torch.where(codes % 2 == 1, 1.0, -1.0)], -1)
            gram = torch.einsum("gn,gni,gnj->gij", importance, signs, signs)
            gram = gram + 1e-4 * mass[:, :, None] * torch.eye(2)
            target = torch.einsum("gn,gni,gn->gi", importance, signs, rows) + 1e-4 * mass * torch.cat([major, minor], 1)
            major, minor = torch.linalg.solve(gram, target).abs().clamp_min(SCALE_MIN).split(1, 1)
            major, minor = torch.maximum(major, minor), torch.minimum(major, minor)
        return {"scale": half(major), "ratio": half(minor / major)}

    def grid(self, parameters: Parameters) -> LevelGrid:
        ratio = parameters["ratio"]
        return LevelGrid(torch.cat([-1 - ratio, ratio - 1, 1 - ratio, 1 + ratio], 1), parameters["scale"])
