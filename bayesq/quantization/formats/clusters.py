"""Levels found by clustering, and the few weights that are kept as they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bayesq.cells import Cell
from bayesq.quantization.formats.base import (
    SCALE_MIN,
    Format,
    Grid,
    LevelGrid,
    Parameters,
    Range,
    half,
    importance_of,
    rows_of,
    whole_range,
)
from bayesq.quantizers import StraightThrough

ITERATIONS = 100


def weighted_means(values: Tensor, importance: Tensor, count: int) -> Tensor:
    """``(count,)`` rising levels of least weighted squared error: Lloyd's iteration from equally full clusters."""
    values, order = values.flatten().sort()
    mass = importance.flatten()[order].double().clamp_min(1e-30)
    total = torch.cat([mass.new_zeros(1), mass.cumsum(0)])
    moment = torch.cat([mass.new_zeros(1), (mass * values).cumsum(0)])
    ends = torch.searchsorted(total, total[-1] * torch.arange(1, count) / count)
    levels = values.new_zeros(count)
    for _ in range(ITERATIONS):
        borders = torch.cat([ends.new_zeros(1), ends, ends.new_full((1,), len(values))])
        inside = total[borders].diff()
        means = (moment[borders].diff() / inside.clamp_min(1e-30)).float()
        levels = torch.where(inside > 0, means, levels).sort().values
        ends = torch.searchsorted(values, (levels[1:] + levels[:-1]) / 2)
    return levels


@dataclass(frozen=True)
class Clusters(Format):
    """Levels of the whole tensor from k-means on weights over their row's scale (SqueezeLLM, arXiv 2306.07629).

    With squared gradients as importance the levels gather where the loss is most sensitive.

    Attributes:
        width: Bits.
        group: Weights that share a scale, see ``row_count``.
    """

    width: int = 4
    group: int | None = 0

    @property
    def bits(self) -> float:
        return self.width

    def fit(self, weight: Tensor, importance: Tensor | None = None, span: Range = whole_range) -> Parameters:
        rows = rows_of(weight, self.group)
        scale = half(rows.abs().amax(1, keepdim=True).clamp_min(SCALE_MIN))
        levels = weighted_means(rows / scale, importance_of(rows, importance) * scale.square(), 2**self.width)
        return {"levels": half(levels).sort().values, "scale": scale}

    def grid(self, parameters: Parameters) -> LevelGrid:
        return LevelGrid(parameters["levels"], parameters["scale"])


@dataclass(frozen=True, eq=False)
class SparseGrid:
    """A grid for all weights but a few, which have values of their own.

    Attributes:
        dense: The grid of the others.
        places: ``(n,)`` where the few are, in the order of memory.
        values: ``(n,)``.
    """

    dense: Grid
    places: Tensor
    values: Tensor

    def _with(self, x: Tensor, few: Tensor | float) -> Tensor:
        flat = x.flatten()
        flat[self.places.long()] = few
        return flat.view(x.shape)

    def index(self, value: Tensor) -> Tensor:
        return self.dense.index(self._with(value.detach().clone(), 0.0))

    def value(self, index: Tensor) -> Tensor:
        return self._with(self.dense.value(index), self.values)

    def cell(self, index: Tensor) -> Cell:
        cell = self.dense.cell(index)
        return Cell(self._with(cell.centre, self.values), self._with(cell.width, 0.0), self.value(index))

    def straight_through(self, value: Tensor) -> Tensor:
        return StraightThrough.apply(self.value(self.index(value)), value)

    def dither(self, value: Tensor, generator: torch.Generator | None = None) -> Tensor:
        noise = self.dense.dither(value, generator) - value
        return value + self._with(noise.clone(), 0.0)

    def pack(self, index: Tensor) -> Tensor:
        return self.dense.pack(index)

    def unpack(self, data: Tensor, shape: tuple[int, ...]) -> Tensor:
        return self.dense.unpack(data, shape)


@dataclass(frozen=True)
class Sparse(Format):
    """Another format for most weights, half precision for those of largest importance · value² (SpQR, SqueezeLLM).

    Attributes:
        dense: The format of most weights.
        share: Of the weights that are kept apart.
    """

    dense: Format = Clusters()
    share: float = 0.005

    @property
    def bits(self) -> float:
        return self.dense.bits

    def fit(self, weight: Tensor, importance: Tensor | None = None, span: Range = whole_range) -> Parameters:
        weight = weight.detach()
        salience = weight.square() if importance is None else importance.reshape(weight.shape) * weight.square()
        places = salience.flatten().topk(max(1, round(self.share * weight.numel()))).indices.sort().values
        others = weight.flatten().clone()
        others[places] = 0
        inner = self.dense.fit(others.view(weight.shape), importance, span)
        return {**inner, "places": places.int(), "values": half(weight.flatten()[places])}

    def grid(self, parameters: Parameters) -> SparseGrid:
        inner = {name: value for name, value in parameters.items() if name not in ("places", "values")}
        return SparseGrid(self.dense.grid(inner), parameters["places"], parameters["values"])
