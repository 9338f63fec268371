"""Laws of the next latent given the past: p(v | past), smoothed by the unit cell.

Both laws follow Ballé et al. 2018 ("Variational image compression with a scale hyperprior"): the density of a
latent is the mass that an underlying law puts on the unit cell around it, ``p(v) = F(v + ½) − F(v − ½)``, which is
at the same time the probability of the code when ``v`` is the centre of a coded cell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayesq.cells import Cell
from bayesq.coder import Tables
from bayesq.quantizers import DeadZone, Lattice, Quantizer

SCALE_MIN, SCALE_MAX, SCALE_COUNT = 0.11, 256.0, 64
DISTORTION_PRICE = 12.0
BREAK_EVEN_ITERATIONS = 5
TAIL = 10.0
"""Deviate beyond which masses are computed by their logarithms."""
EVERYTHING = 2.0**15
"""As good as infinity for half the width of a cell, whose mass then has gradients, all of them 0."""
LEAST_SHARE = 1e-6
"""Of the mass beyond its near edge that a cell is taken to have at least; rounding would leave narrow ones none."""
SCALE_STEP = math.log(SCALE_MAX / SCALE_MIN) / (SCALE_COUNT - 1)


def scale_of(index: Tensor) -> Tensor:
    """Standard deviation of each table index: log-spaced from 0.11 to 256 in 64 steps, as in CompressAI."""
    return SCALE_MIN * torch.exp(SCALE_STEP * index)


def index_of(scale: Tensor) -> Tensor:
    """Real-valued table index of a standard deviation, the inverse of ``scale_of``."""
    return torch.log(scale / SCALE_MIN) / SCALE_STEP


def dead_zones(scale: Tensor) -> Tensor:
    """How far the cell of code 0 should reach for Gaussians of a standard deviation, in cells: in [½, 0.98].

    Where a squared error of 1 is worth 12 nats (the best on held-out photographs; 6 at high rate, by theory), the
    codes 0 and 1 break even at this distance from the mean, given what they cost by the very cells that it makes.
    """
    zone = torch.full_like(scale, 0.5)
    for _ in range(BREAK_EVEN_ITERATIONS):
        edges = torch.stack([zone, torch.full_like(zone, 1.5)], 1) / scale[:, None]
        inner, outer = torch.special.log_ndtr(-edges).unbind(1)
        gain = torch.log(torch.erf(edges[:, 0] / 2**0.5)) - log_difference(inner, outer)
        zone = (0.5 + gain / (2 * DISTORTION_PRICE)).clamp(0.5, 0.98)
    return zone


class Conditional(Protocol):
    """p(next latent | past), known to encoder and decoder alike."""

    def log_density(self, value: Tensor) -> Tensor:
        """Log of the unit-cell-smoothed density at ``value``, nats, elementwise and differentiable."""
        ...

    def log_mass(self, cell: Cell) -> Tensor:
        """log ∫_cell p, nats, elementwise; p is the underlying law, before smoothing."""
        ...

    def quantizer(self) -> Quantizer:
        """The lattice on which the latent is coded."""
        ...

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """One draw of the latent from the smoothed density."""
        ...

    def sample_within(self, cell: Cell, generator: torch.Generator | None = None) -> Tensor:
        """One draw from the underlying law restricted to the cell: the latent, once its code is known."""
        ...

    def tables(self) -> tuple[Tensor, Tables]:
        """Row of the CDF tables for each element, of the latent's shape, and the tables; −1 where only 0 is coded."""
        ...


def log_difference(upper: Tensor, lower: Tensor) -> Tensor:
    """log(exp(upper) − exp(lower)) without cancellation, for upper ≥ lower."""
    gap = (lower - upper).clamp_max(-LEAST_SHARE)
    return upper + torch.log(-torch.expm1(gap))


def log_normal_mass(near: Tensor, far: Tensor) -> Tensor:
    """log(Φ(−near) − Φ(−far)) for standard deviates near < far, differentiable and finite however far out.

    Φ is taken through erfc, which is fast, and in the tail, where that underflows, through its logarithm.
    """
    tail = near > TAIL
    outside = bool(tail.any())
    inner = near.masked_fill(tail, 0.0) if outside else near
    outer = far.masked_fill(tail, 1.0) if outside else far
    upper, lower = (torch.erfc(deviate * 0.5**0.5) for deviate in (inner, outer))
    result = torch.log(torch.maximum(upper - lower, LEAST_SHARE * upper) / 2)
    if not outside:
        return result
    upper, lower = (torch.special.log_ndtr(-deviate[tail]) for deviate in (near, far))
    return result.masked_scatter(tail, log_difference(upper, lower))


@dataclass(frozen=True)
class GaussianCells:
    """Gaussian N(mean, scale²) smoothed by the unit cell, its scale given as a real index into the scale table.

    Attributes:
        mean: ``(B, C, h, w)``, latent units.
        index: Same shape (see ``scale_of``). Densities are those of the real index, codes use the nearest table; in
            portable files it is an integer, so that both agree on every machine.
        table: CDF tables, one row per integer index; None where nothing is coded.
        dead_zones: How far the cell of code 0 reaches at each integer index; None if no further than others. Infinite
            at the smallest indexes, if at all, where a code is 0 by definition and not written.
    """

    mean: Tensor
    index: Tensor
    table: Tables | None = None
    dead_zones: Tensor | None = None

    def log_mass(self, cell: Cell) -> Tensor:
        half = (cell.width / 2).clamp_max(EVERYTHING)
        distance, scale = (cell.centre - self.mean).abs(), scale_of(self.index)
        return log_normal_mass((distance - half) / scale, (distance + half) / scale)

    def log_density(self, value: Tensor) -> Tensor:
        return self.log_mass(Cell(value, torch.ones((), dtype=value.dtype, device=value.device)))

    def quantizer(self) -> Lattice | DeadZone:
        if self.dead_zones is None:
            return Lattice(1.0, self.mean)
        return DeadZone(self.dead_zones, self.index.detach().round().int(), self.mean)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        normal = torch.randn(self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype)
        return Lattice(1.0).dither(self.mean + scale_of(self.index) * normal, generator)

    @torch.no_grad()
    def sample_within(self, cell: Cell, generator: torch.Generator | None = None) -> Tensor:
        mean, scale = self.mean.double(), scale_of(self.index).double()
        side = torch.where(cell.centre > self.mean, -1.0, 1.0).double()  # mirrored below the mean, where Φ is precise
        centre, half = side * (cell.centre - mean) / scale, cell.width / 2 / scale
        low, high = torch.special.ndtr(centre - half), torch.special.ndtr(centre + half)
        uniform = torch.rand(low.shape, generator=generator, device=low.device, dtype=torch.float64)
        value = mean + side * scale * torch.special.ndtri(low + (high - low) * uniform)
        return torch.minimum(torch.maximum(value.to(self.mean), cell.lower), cell.upper)

    def tables(self) -> tuple[Tensor, Tables]:
        if self.table is None:
            raise ValueError("this conditional carries no CDF tables")
        rows = self.index.round().clamp_(0, len(self.table.cdf) - 1).to(torch.int16)
        if self.dead_zones is not None:
            rows.masked_fill_(rows < self.dead_zones.isinf().sum(), -1)
        return rows, self.table


class FactorizedDensity(nn.Module):
    """Learned law of each channel on its own, as a monotone network for its CDF (Ballé et al. 2018, appendix 6.1).

    The logit of the CDF is a chain of maps ``u → softplus(H) u + b`` with ``u + tanh(a) tanh(u)`` between them.

    Args:
        channels: Number of channels, each with a law of its own.
        widths: Hidden widths of the chain.
    """

    def __init__(self, channels: int, widths: tuple[int, ...] = (3, 3, 3, 3)) -> None:
        super().__init__()
        sizes = (1, *widths, 1)
        spread = 10 ** (1 / (len(widths) + 1))
        pairs = list(pairwise(sizes))
        self.matrices = nn.ParameterList(
            torch.full((channels, o, i), math.log(math.expm1(1 / spread / o))) for i, o in pairs
        )
        self.biases = nn.ParameterList(torch.empty(channels, o, 1).uniform_(-0.5, 0.5) for _, o in pairs)
        self.factors = nn.ParameterList(torch.zeros(channels, o, 1) for _, o in pairs[:-1])

    def logit_cdf(self, value: Tensor) -> Tensor:
        """Logit of the CDF at ``value`` of shape ``(C, 1, N)``, same shape."""
        for step, (matrix, bias) in enumerate(zip(self.matrices, self.biases, strict=True)):
            value = F.softplus(matrix) @ value + bias
            if step < len(self.factors):
                value = value + torch.tanh(self.factors[step]) * torch.tanh(value)
        return value


@dataclass(frozen=True)
class Factorized:
    """The learned factorised law of a latent of a given size.

    Attributes:
        density: The laws of the channels.
        shape: ``(B, C, h, w)`` of the latent.
        offset: ``(C,)`` where each channel's lattice is anchored, usually its median.
        table: CDF tables, one row per channel; None where nothing is coded.
    """

    density: FactorizedDensity
    shape: tuple[int, int, int, int]
    offset: Tensor
    table: Tables | None = None

    def _logit_cdf(self, value: Tensor) -> Tensor:
        channels_first = value.transpose(0, 1)
        logits = self.density.logit_cdf(channels_first.reshape(value.shape[1], 1, -1))
        return logits.reshape(channels_first.shape).transpose(0, 1)

    def log_mass(self, cell: Cell) -> Tensor:
        lower, upper = self._logit_cdf(cell.lower), self._logit_cdf(cell.upper)
        flip = -torch.sign(lower + upper).detach()
        flip = torch.where(flip == 0, torch.ones_like(flip), flip)
        low, high = F.logsigmoid(flip * lower), F.logsigmoid(flip * upper)
        return log_difference(torch.maximum(low, high), torch.minimum(low, high))

    def log_density(self, value: Tensor) -> Tensor:
        return self.log_mass(Cell(value, torch.ones((), dtype=value.dtype, device=value.device)))

    def quantizer(self) -> Lattice:
        return Lattice(1.0, self.offset.view(1, -1, 1, 1))

    @torch.no_grad()
    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        everywhere = torch.full(self.shape, 1e4, device=self.offset.device)
        uniform = torch.rand(self.shape, generator=generator, device=self.offset.device).clamp(1e-6, 1 - 1e-6)
        return Lattice(1.0).dither(self._quantile(uniform, -everywhere, everywhere), generator)

    @torch.no_grad()
    def sample_within(self, cell: Cell, generator: torch.Generator | None = None) -> Tensor:
        low, high = self._logit_cdf(cell.lower).sigmoid(), self._logit_cdf(cell.upper).sigmoid()
        uniform = torch.rand(self.shape, generator=generator, device=self.offset.device)
        return self._quantile(low + (high - low) * uniform, cell.lower, cell.upper)

    def _quantile(self, probability: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Where the CDF reaches a probability between two bounds, by bisection."""
        target = torch.logit(probability)
        for _ in range(48):
            middle = (low + high) / 2
            below = self._logit_cdf(middle) < target
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def tables(self) -> tuple[Tensor, Tables]:
        if self.table is None:
            raise ValueError("this conditional carries no CDF tables")
        channel = torch.arange(self.shape[1], device=self.offset.device).view(1, -1, 1, 1)
        return channel.expand(self.shape), self.table
