"""Vectors of integers with a given sum of magnitudes: directions without a stored codebook."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from bayesq.cells import Cell
from bayesq.errors import ModelError
from bayesq.quantization.formats.base import SCALE_MIN, Format, Parameters, Range, half, rows_of, whole_range
from bayesq.quantization.packing import packed, unpacked
from bayesq.quantizers import Lattice, StraightThrough


@lru_cache(maxsize=16)
def _offsets(size: int, pulses: int) -> np.ndarray:
    """Where, in the order of all points, those begin whose next coordinate has magnitude m.

    Element (r, k, m), with r more coordinates to come and k pulses left, counts the points of smaller magnitude; both
    signs of a magnitude m > 0 follow one another. The last, m = k + 1, is the count of all. Raises ValueError if they
    do not fit 62 bits.
    """
    count = [[int(k == 0) for k in range(pulses + 1)]]
    for r in range(1, size):
        count.append([count[r - 1][k] + 2 * sum(count[r - 1][:k]) for k in range(pulses + 1)])
    table = np.zeros((size, pulses + 1, pulses + 2), np.int64)
    for r in range(size):
        for k in range(pulses + 1):
            steps = [0] + [(1 + (m > 0)) * count[r][k - m] for m in range(k + 1)]
            totals = [sum(steps[: m + 1]) for m in range(len(steps))]
            if totals[-1] >= 1 << 62:
                raise ValueError(f"a pyramid of {size} numbers and {pulses} pulses has too many points")
            table[r, k, : k + 2] = totals
            table[r, k, k + 2 :] = totals[-1]
    return table


def rank(points: np.ndarray, pulses: int) -> np.ndarray:
    """The place of each point ``(G, n)`` of the pyramid in the order of all of them, int64 ``(G,)``."""
    size = points.shape[1]
    table, left = _offsets(size, pulses), np.full(len(points), pulses)
    place = np.zeros(len(points), np.int64)
    for i in range(size):
        r, m = size - 1 - i, np.abs(points[:, i])
        begin, end = table[r, left, m], table[r, left, m + 1]
        place += begin + np.where(points[:, i] < 0, (end - begin) // 2, 0)
        left = left - m
    return place


def unrank(place: np.ndarray, size: int, pulses: int) -> np.ndarray:
    """The points ``(G, n)`` at these places, the inverse of ``rank``."""
    table, left, place = _offsets(size, pulses), np.full(len(place), pulses), place.copy()
    points = np.zeros((len(place), size), np.int64)
    for i in range(size):
        rows = table[size - 1 - i, left]
        m = np.minimum((rows[:, 1:] <= place[:, None]).sum(1), left)
        begin, end = (rows[np.arange(len(m)), k] for k in (m, m + 1))
        place -= begin
        negative = (m > 0) & (place >= (end - begin) // 2)
        place -= np.where(negative, (end - begin) // 2, 0)
        points[:, i], left = np.where(negative, -m, m), left - m
    return points


@dataclass(frozen=True, eq=False)
class PyramidGrid:
    """``amplitude · y / ‖y‖``, y integers with Σ|y| = pulses; a code holds one coordinate of y.

    Its cells are those of the cubic lattice that holds the pyramid: one pulse wide.

    Attributes:
        amplitude: ``(G, 1)``, Euclidean norms. Values are split into G vectors, in their order in memory.
        pulses: Σ|y|.
    """

    amplitude: Tensor
    pulses: int

    def index(self, value: Tensor) -> Tensor:
        rows = value.detach().reshape(len(self.amplitude), -1).double()
        sums = rows.abs().sum(1, keepdim=True)
        real = torch.where(sums > 0, rows.abs() / sums.clamp_min(1e-300), 1 / rows.shape[1]) * self.pulses
        whole = torch.floor(real)
        missing = self.pulses - whole.sum(1, keepdim=True)
        order = (real - whole).argsort(dim=1, descending=True, stable=True).argsort(1)
        return torch.where(rows < 0, -1, 1).mul(whole + (order < missing)).int().view(value.shape)

    def _unit(self, index: Tensor) -> Tensor:
        rows = index.reshape(len(self.amplitude), -1).float()
        return self.amplitude / rows.norm(dim=1, keepdim=True).clamp_min(1)

    def value(self, index: Tensor) -> Tensor:
        return (index.reshape(len(self.amplitude), -1) * self._unit(index)).view(index.shape)

    def cell(self, index: Tensor) -> Cell:
        width = self._unit(index).expand(-1, index.numel() // len(self.amplitude))
        return Cell(self.value(index), width.reshape(index.shape))

    def straight_through(self, value: Tensor) -> Tensor:
        return StraightThrough.apply(self.value(self.index(value)), value)

    def dither(self, value: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return Lattice(self.cell(self.index(value)).width).dither(value, generator)

    def pack(self, index: Tensor) -> Tensor:
        rows = index.reshape(len(self.amplitude), -1).numpy()
        return packed(torch.from_numpy(rank(rows, self.pulses)), self._count(rows.shape[1]))

    def unpack(self, data: Tensor, shape: tuple[int, ...]) -> Tensor:
        if math.prod(shape) % len(self.amplitude):
            raise ModelError("vectors do not fill the weight")
        size = math.prod(shape) // len(self.amplitude)
        places = unpacked(data, self._count(size), len(self.amplitude)).numpy()
        return torch.from_numpy(unrank(places, size, self.pulses)).int().view(shape)

    def _count(self, size: int) -> int:
        return int(_offsets(size, self.pulses)[-1, -1, -1])


@dataclass(frozen=True)
class Pyramid(Format):
    """Pyramid vector quantisation (Fischer 1986; for networks arXiv 2410.16926): an amplitude and a point a vector.

    The amplitude has eight bits, in units of the largest of the tensor over 255.

    Attributes:
        size: Coordinates of a vector; where it does not divide a channel, the greatest common divisor.
        pulses: Σ|y|; with ``size`` few enough that points can be counted in 62 bits.
    """

    size: int = 16
    pulses: int = 16

    @property
    def bits(self) -> float:
        points = int(_offsets(self.size, self.pulses)[-1, -1, -1])
        return ((points - 1).bit_length() + 8) / self.size

    def fit(self, weight: Tensor, importance: Tensor | None = None, span: Range = whole_range) -> Parameters:
        rows = rows_of(weight, self.size)
        direction = PyramidGrid(torch.ones(len(rows), 1), self.pulses).straight_through(rows)
        gain = (rows * direction).sum(1, keepdim=True).clamp_min(0)
        scale = half((gain.max() / 255).clamp_min(SCALE_MIN))
        return {"amplitude": torch.round(gain / scale).clamp(0, 255).to(torch.uint8), "scale": scale.view(1)}

    def grid(self, parameters: Parameters) -> PyramidGrid:
        return PyramidGrid(parameters["amplitude"].float() * parameters["scale"], self.pulses)
