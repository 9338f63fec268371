"""Integers under the range coder: fine where the loss minds, and no more bits than the weights have to tell.

At equal bits a fixed alphabet wastes twice: its step follows the largest weight of a row, and codes that hardly occur
are as long as all others. Here a row's step follows its importance, as is optimal for one price of bits in the whole
layer (D_r · importance equal over rows; Gersho & Gray 1992, § 8.3), and codes go through the entropy coder that
latents go through. What a code is likely to be depends on its row and its column alone: |k| has the mean
``2^((row + column) / 2)`` with one stored byte for each, and k a two-sided geometric law.

Weights are decoded before anything else, so laws must be the same on every machine: they come from additions, products,
divisions and square roots alone, which IEEE 754 rounds correctly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from bayesq.coder import Decoder, Encoder, Tables
from bayesq.errors import BitstreamError, ModelError
from bayesq.quantization.formats.affine import Affine, ClippedLattice
from bayesq.quantization.formats.base import SCALE_MIN, Parameters, Range, half, importance_of, rows_of, whole_range

RADIUS = 511
LAWS, ORIGIN = 40, 18
"""How many laws there are, and which of them has a mean magnitude of 1; one more means √2 times as much."""
SWEEPS = 8
GAUSSIAN = math.log2(math.sqrt(2 * math.pi * math.e))
"""Bits of a Gaussian of deviation 1 in steps of 1, were these small."""


@cache
def laws() -> Tables:
    """``P(k) ∝ t^|k|`` for each mean magnitude m, where t = (√(1 + m²) − 1) / m."""
    halves = np.arange(LAWS) - ORIGIN
    mean = np.ldexp(np.where(halves % 2, math.sqrt(2), 1.0), halves // 2)
    ratio = (np.sqrt(1 + mean * mean) - 1) / mean
    side = np.multiply.accumulate(np.repeat(ratio[:, None], RADIUS + 1, 1), 1)  # t, t², …, beyond the radius too
    return Tables.from_masses(np.hstack([side[:, -2::-1], np.ones((LAWS, 1)), side[:, :-1], side[:, -1:]]))


def law_indexes(magnitudes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bytes for rows and columns, whose sums are the laws' indexes, that fit magnitudes ``(O, C)`` of codes best."""
    magnitudes = magnitudes + 2.0 ** (-ORIGIN / 2)
    rows, columns = np.ones((len(magnitudes), 1)), np.ones((1, magnitudes.shape[1]))
    for _ in range(SWEEPS):
        rows = (magnitudes / columns).mean(1, keepdims=True)
        columns = (magnitudes / rows).mean(0, keepdims=True)
    least = 2 * np.log2(columns.min())
    down, across = 2 * np.log2(rows) + ORIGIN + least, 2 * np.log2(columns) - least
    return tuple(np.rint(x).clip(0, 255).astype(np.uint8).ravel() for x in (down, across))


def _rows_of_laws(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    sums = rows[:, None].astype(np.int32) + columns[None].astype(np.int32)
    return np.minimum(sums, LAWS - 1).ravel()


@dataclass(frozen=True, eq=False)
class CodedLattice(ClippedLattice):
    """The same lattice, its codes stored by the range coder: a byte a row, a byte a column, the stream."""

    def pack(self, index: Tensor) -> Tensor:
        codes = index.detach().cpu().numpy().reshape(len(index), -1) - 2 ** (self.width - 1)
        rows, columns = law_indexes(np.abs(codes))
        encoder = Encoder()
        encoder.put(codes.astype(np.int32).ravel(), _rows_of_laws(rows, columns), laws())
        data = rows.tobytes() + columns.tobytes() + encoder.finish()
        return torch.frombuffer(bytearray(data), dtype=torch.uint8)

    def unpack(self, data: Tensor, shape: tuple[int, ...]) -> Tensor:
        outputs, elements = shape[0], math.prod(shape[1:])
        if data.dtype != torch.uint8 or data.dim() != 1 or len(data) < outputs + elements:
            raise ModelError(f"{outputs} × {elements} coded weights cannot be {tuple(data.shape)} of {data.dtype}")
        rows, columns, stream = np.split(data.cpu().numpy(), [outputs, outputs + elements])
        try:
            decoder = Decoder(stream.tobytes())
            codes = decoder.get(_rows_of_laws(rows, columns), laws())
            decoder.check()
        except (BitstreamError, ValueError) as error:
            raise ModelError(f"coded weights are damaged ({error})") from error
        codes = codes.astype(np.int64) + 2 ** (self.width - 1)
        if ((codes < 0) | (codes >= 2**self.width)).any():
            raise ModelError(f"a code has more than {self.width} bits")
        return torch.from_numpy(codes).view(shape).int()


@dataclass(frozen=True)
class Coded(Affine):
    """Integers of a given width under the range coder.

    Attributes:
        rate: Bits a weight, about: what Gaussian weights would take. Others take less.
    """

    rate: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.symmetric or not 0 < self.rate <= 16:
            raise ValueError("coded integers are symmetric, of 0 to 16 bits")

    @property
    def bits(self) -> float:
        return self.rate

    @property
    def factor(self) -> float:
        return self.width

    def fit(self, weight: Tensor, importance: Tensor | None = None, span: Range = whole_range) -> Parameters:
        """As ``Format.fit``; all of the weights' span is covered, since rare codes cost little."""
        rows = rows_of(weight, self.group)
        price = importance_of(rows, importance).mean(1, keepdim=True).sqrt().clamp_min(1e-30)
        deviation = rows.square().mean(1, keepdim=True).sqrt()
        used = deviation > 0
        level = (deviation * price)[used].log2().mean() if used.any() else torch.zeros(())
        reach = rows.abs().amax(1, keepdim=True) / (2 ** (self.width - 1) - 1)
        step = torch.maximum(torch.exp2(level + GAUSSIAN - self.rate) / price, reach)
        return {"scale": half(step.clamp_min(SCALE_MIN))}

    def grid(self, parameters: Parameters) -> CodedLattice:
        plain = super().grid(parameters)
        return CodedLattice(plain.step, plain.zero, plain.width)
