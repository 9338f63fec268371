"""What number formats share: rows of weights, grids of values, and the search for their range.

A *format* is a dozen bytes of data: affine with 4 bits, NF4, pyramids of 16. Fitted to a weight it gives *parameters*,
the few tensors that are stored beside the codes, and these make a *grid*: the ``Quantizer`` of that weight. Weights are
seen as rows that share a scale: the whole tensor, one row an output channel, or some in a row of a channel.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from bayesq.cells import Cell
from bayesq.quantization.packing import bits_per_code, packed, unpacked
from bayesq.quantizers import Quantizer, StraightThrough

Parameters = dict[str, Tensor]
SCALE_MIN = 2.0**-14
"""The smallest normal number in half precision, in which scales are stored."""


class Grid(Quantizer, Protocol):
    """The quantizer of one weight, whose codes can be stored."""

    def pack(self, index: Tensor) -> Tensor:
        """The codes as bytes, uint8 ``(n,)``."""
        ...

    def unpack(self, data: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The codes of a weight of that shape. Raises ModelError if these bytes hold no such codes."""
        ...


class Range(Protocol):
    """A rule for how much of a row's span its grid covers."""

    def __call__(self, rows: Tensor, importance: Tensor, quantised: Callable[[Tensor], Tensor]) -> Tensor:
        """The share of the span, in (0, 1], of each row ``(G, 1)``.

        Args:
            rows: ``(G, n)`` values, measured from the middle of their span.
            importance: ``(G, n)`` weights of their squared errors.
            quantised: The rows as they are decoded if the grid covers the shares given ``(G, 1)``.
        """
        ...


def whole_range(rows: Tensor, importance: Tensor, quantised: Callable[[Tensor], Tensor]) -> Tensor:
    """Everything, outliers and all."""
    return torch.ones_like(rows[:, :1])


class Format(ABC):
    """A number format; concrete ones are frozen dataclasses of numbers."""

    @property
    @abstractmethod
    def bits(self) -> float:
        """Of one code, as stored, without the parameters."""

    @property
    def factor(self) -> float:
        """Bits of a code, or of what it stands for, as the factor of a product."""
        return self.bits

    @abstractmethod
    def fit(self, weight: Tensor, importance: Tensor | None = None, span: Range = whole_range) -> Parameters:
        """Parameters for a weight, rounded as they are stored.

        Args:
            weight: Any shape, output channels first.
            importance: Weights of the squared errors, of the same shape; all alike by default.
            span: How much of the weights' span is covered.

        Returns:
            Tensors by name; all that is decoded grows in proportion to the one called ``scale``.
        """

    @abstractmethod
    def grid(self, parameters: Parameters) -> Grid:
        """The quantizer with these parameters."""


def row_count(weight: Tensor, group: int | None) -> int:
    """How many rows share a scale: one for None, the output channels for 0, else channels in parts of ``group``.

    Where ``group`` does not divide a channel, the greatest common divisor takes its place.
    """
    if group is None:
        return 1
    channels = weight.shape[0]
    size = weight.numel() // channels
    return channels * (size // math.gcd(size, group) if group else 1)


def rows_of(weight: Tensor, group: int | None) -> Tensor:
    """A weight as rows ``(G, n)`` that share a scale."""
    return weight.detach().reshape(row_count(weight, group), -1)


def half(x: Tensor) -> Tensor:
    """x as half precision stores it."""
    return x.half().float()


def importance_of(rows: Tensor, importance: Tensor | None) -> Tensor:
    """Importances in the shape of the rows, ones by default."""
    return torch.ones_like(rows) if importance is None else importance.reshape(rows.shape)


def fitted_scale(rows: Tensor, importance: Tensor, span: Range, grid: Callable[[Tensor], Grid]) -> Tensor:
    """The scale ``(G, 1)`` at which a grid covers that much of the rows' span, rounded as it is stored.

    Args:
        rows, importance, span: As for ``Format.fit``.
        grid: The grid with a scale, of values up to the scale.
    """
    reach = rows.abs().amax(1, keepdim=True)

    def scale(share: Tensor) -> Tensor:
        return half((reach * share).clamp_min(SCALE_MIN))

    return scale(span(rows, importance, lambda share: grid(scale(share)).straight_through(rows)))


@dataclass(frozen=True, eq=False)
class LevelGrid:
    """Levels times a scale for each row; a value is coded as the nearest level.

    Attributes:
        levels: ``(K,)``, or ``(G, K)`` for each row its own; rising.
        scale: ``(G, 1)``, positive. Values are split into G rows, in their order in memory.
    """

    levels: Tensor
    scale: Tensor

    @property
    def _boundaries(self) -> Tensor:
        return (self.levels[..., 1:] + self.levels[..., :-1]) / 2

    def index(self, value: Tensor) -> Tensor:
        rows = (value.detach().reshape(len(self.scale), -1) / self.scale).contiguous()
        return torch.searchsorted(self._boundaries, rows).int().view(value.shape)

    def _lookup(self, table: Tensor, index: Tensor) -> Tensor:
        rows = index.reshape(len(self.scale), -1).long()
        found = table[rows] if table.dim() == 1 else table.gather(1, rows)
        return (found * self.scale).view(index.shape)

    def value(self, index: Tensor) -> Tensor:
        return self._lookup(self.levels, index)

    def cell(self, index: Tensor) -> Cell:
        inner, levels = self._boundaries, self.levels
        ends = torch.cat([2 * levels[..., :1] - inner[..., :1], inner, 2 * levels[..., -1:] - inner[..., -1:]], -1)
        lower, upper = self._lookup(ends[..., :-1], index), self._lookup(ends[..., 1:], index)
        return Cell((lower + upper) / 2, upper - lower, self.value(index))

    def straight_through(self, value: Tensor) -> Tensor:
        return StraightThrough.apply(self.value(self.index(value)), value)

    def dither(self, value: Tensor, generator: torch.Generator | None = None) -> Tensor:
        noise = torch.rand(value.shape, generator=generator, device=value.device, dtype=value.dtype)
        return value + (noise - 0.5) * self.cell(self.index(value)).width

    def pack(self, index: Tensor) -> Tensor:
        return packed(index, self.levels.shape[-1])

    def unpack(self, data: Tensor, shape: tuple[int, ...]) -> Tensor:
        return unpacked(data, self.levels.shape[-1], math.prod(shape)).view(shape).int()


class Scaled(Format):
    """Formats whose levels are a fixed table, in [−1, 1], times one stored scale a row."""

    group: int | None

    @abstractmethod
    def levels(self) -> Tensor:
        """``(K,)``, rising, of magnitude at most 1."""

    @property
    def bits(self) -> float:
        return bits_per_code(len(self.levels()))

    def fit(self, weight: Tensor, importance: Tensor | None = None, span: Range = whole_range) -> Parameters:
        rows, levels = rows_of(weight, self.group), self.levels()
        return {"scale": fitted_scale(rows, importance_of(rows, importance), span, partial(LevelGrid, levels))}

    def grid(self, parameters: Parameters) -> Grid:
        return LevelGrid(self.levels(), parameters["scale"])
