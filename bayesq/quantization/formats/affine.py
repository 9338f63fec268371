"""Integers: a step and a zero point for each row."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesq.cells import Cell
from bayesq.quantization.formats.base import (
    SCALE_MIN,
    Format,
    Parameters,
    Range,
    half,
    importance_of,
    rows_of,
    whole_range,
)
from bayesq.quantization.packing import packed, unpacked
from bayesq.quantizers import Lattice, StraightThrough


@dataclass(frozen=True, eq=False)
class ClippedLattice:
    """``step · (k − zero)``, k from 0 to 2^bits − 1; what lies beyond is coded as the first or last.

    Attributes:
        step: ``(G, 1)``, positive. Values are split into G rows, in their order in memory.
        zero: ``(G, 1)`` integers, the code of 0.
        width: Bits of a code.
    """

    step: Tensor
    zero: Tensor
    width: int

    def _rows(self, value: Tensor) -> Tensor:
        return value.reshape(len(self.step), -1)

    def index(self, value: Tensor) -> Tensor:
        codes = torch.round(self._rows(value.detach()) / self.step) + self.zero
        return codes.clamp(0, 2**self.width - 1).to(torch.int32).view(value.shape)

    def value(self, index: Tensor) -> Tensor:
        return ((self._rows(index) - self.zero) * self.step).view(index.shape)

    def cell(self, index: Tensor) -> Cell:
        centre = self.value(index)
        return Cell(centre, self.step.expand_as(self._rows(centre)).reshape(centre.shape))

    def straight_through(self, value: Tensor) -> Tensor:
        return StraightThrough.apply(self.value(self.index(value)), value)

    def dither(self, value: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return Lattice(self.cell(self.index(value)).width).dither(value, generator)

    def pack(self, index: Tensor) -> Tensor:
        return packed(index, 2**self.width)

    def unpack(self, data: Tensor, shape: tuple[int, ...]) -> Tensor:
        return unpacked(data, 2**self.width, math.prod(shape)).view(shape).int()


@dataclass(frozen=True)
class Affine(Format):
    """Integers of 2 to 16 bits.

    Attributes:
        width: Bits.
        group: Weights that share a step, see ``row_count``.
        symmetric: Without a stored zero point: 0 is the middle code.
    """

    width: int = 8
    group: int | None = 0
    symmetric: bool = True

    def __post_init__(self) -> None:
        if not 2 <= self.width <= 16:
            raise ValueError(f"integers have 2 to 16 bits, not {self.width}")

    @property
    def bits(self) -> float:
        return self.width

    def fit(self, weight: Tensor, importance: Tensor | None = None, span: Range = whole_range) -> Parameters:
        rows = rows_of(weight, self.group)
        top = 2**self.width - 1
        if self.symmetric:
            high = rows.abs().amax(1, keepdim=True)
            low = -high * (top + 1) / (top - 1)  # the middle code is one nearer to the last than to the first
        else:
            low, high = rows.amin(1, keepdim=True).clamp_max(0), rows.amax(1, keepdim=True).clamp_min(0)

        def scaled(share: Tensor) -> Parameters:
            step = half(((high - low) * share / top).clamp_min(SCALE_MIN))
            if self.symmetric:
                return {"scale": step}
            zero = torch.round(-low * share / step).clamp(0, top)
            return {"scale": step, "zero": zero.to(torch.uint8 if self.width <= 8 else torch.int32)}

        def quantised(share: Tensor) -> Tensor:
            return self.grid(scaled(share)).straight_through(rows)

        return scaled(span(rows, importance_of(rows, importance), quantised))

    def grid(self, parameters: Parameters) -> ClippedLattice:
        step = parameters["scale"]
        zero = parameters["zero"].float() if "zero" in parameters else torch.full_like(step, 2.0 ** (self.width - 1))
        return ClippedLattice(step, zero, self.width)
