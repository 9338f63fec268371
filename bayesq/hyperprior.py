"""The codec's own prior: a coarse hyper-latent h, then z in interleaved passes, its leading channels first.

      z ─► log-energies ─► h_a ─► h          (h at half the size of z)
      h so far ─► hyper network (integers) ─► p(next pass of h | passes before)
      h, codes so far ─► scale network (integers), mean network ─► p(next pass of z | h, passes before)

Scale and mean hyperprior after Minnen et al. 2018. h takes two or four passes, as do the leading channels of z, if any,
which hold most of what neighbours tell of each other; the others take two. The passes of a group share out its channels
and positions like the colours of a checkerboard (He et al. 2021; four colours: Li et al. 2023), so that all but the
first have coded neighbours in space and among channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayesq.coder import Tables, gaussian_tables
from bayesq.conditionals import SCALE_COUNT, GaussianCells, dead_zones, scale_of
from bayesq.networks.hyper import HyperNetwork, in_units
from bayesq.networks.integer import TrainableIntegerConv, convert_layers
from bayesq.networks.passes import merge, part, passes_over
from bayesq.networks.rate import Interpolated
from bayesq.networks.scale import HYPER_UNIT, MeanNetwork, ScaleNetwork, magnitude_code
from bayesq.networks.transforms import Pointwise, leaky_relu, precisely, quieten
from bayesq.prior import Walk

TABLE_RADIUS = 512
STRONGEST = 128
"""Channels of a group, at most, that means are foretold from; a multiple of 4."""


def log_energy(z: Tensor) -> Tensor:
    """log₂(1 + |z|): the size of a latent on the scale on which scales vary."""
    return torch.log2(1 + z.abs())


class HyperAnalysis(nn.Module):
    """h_a: log-energies of z to h, a linear branch in parallel with a convolutional one.

    Args:
        latents: M, channels of z.
        hyper: N, channels of h.
        width: Hidden channels.
    """

    def __init__(self, latents: int, hyper: int, width: int) -> None:
        super().__init__()
        self.linear = Pointwise(latents, hyper, bias=False)
        self.shift = Interpolated(hyper)
        self.inlet = Pointwise(2 * latents, width)
        self.down = Pointwise(4 * width, width)
        self.head = nn.Conv2d(width, hyper, 3, padding=1)
        nn.init.normal_(self.linear.weight, std=0.01)
        quieten(self.head, 0.02 / (9 * width) ** 0.5)

    def forward(self, z: Tensor, level: Tensor) -> Tensor:
        """Maps z ``(B, M, h, w)`` to h ``(B, N, h/2, w/2)``."""
        energy = log_energy(z)
        features = leaky_relu(self.inlet(torch.cat([energy, z.clamp(-4, 4)], 1)))
        features = leaky_relu(self.down(F.pixel_unshuffle(features, 2)))
        return precisely(self.linear, F.avg_pool2d(energy, 2)) + self.shift(level) + self.head(features)


class Hyperprior(nn.Module):
    """p(h₁) p(h₂ | h₁) … p(z₁ | h) p(z₂ | h, z₁) … for a continuous range of qualities; a ``LatentPrior``.

    h has Gaussian laws as z has, so that both latents are coded with one set of tables; a channel of h that does not
    pay at some quality costs nothing there.

    Args:
        latents: M, channels of z, even.
        leading: How many of them are coded first; a multiple of 4.
        hyper: N, channels of h.
        width: Hidden channels of all its networks.
        ways: Passes over h and over the leading channels.
        seen: Channels of a group, at most, whose codes later passes see.
        certain: At table indexes below this a code is 0 by definition.
    """

    stride = 2
    dead_zones: Tensor

    def __init__(self, latents: int, leading: int, hyper: int, width: int, ways: int, seen: int, certain: int) -> None:
        super().__init__()
        self.hyper = hyper
        first = passes_over(slice(0, leading), ways) if leading else []
        self.passes = [*first, *passes_over(slice(leading, latents), 2)]
        self.analysis = HyperAnalysis(latents, hyper, width)
        self.laws = HyperNetwork(hyper, ways)
        self.scales = ScaleNetwork(hyper, self.passes, width, seen)
        self.means = MeanNetwork(hyper, self.passes, width, min(seen, STRONGEST))
        self.log_in, self.log_out = Interpolated(latents), Interpolated(latents)
        self.tables: Tables | None = None
        zones = dead_zones(scale_of(torch.arange(SCALE_COUNT)))
        zones[:certain] = torch.inf
        self.register_buffer("dead_zones", zones, persistent=False)

    def export(self) -> None:
        """Replaces, in place, all that stands before the symbols by integers."""
        convert_layers(self, TrainableIntegerConv.export)
        if self.tables is None:  # those of a loaded model stay: another machine's may differ in a count
            scales = scale_of(torch.arange(SCALE_COUNT).double())
            self.tables = gaussian_tables(scales.numpy(), TABLE_RADIUS, dead_zones(scales).numpy())

    def blank(self, tables: Tables) -> None:
        """Makes room, in place, for what ``export`` wrote elsewhere; the tables are those that it wrote."""
        convert_layers(self, TrainableIntegerConv.blank)
        self.tables = tables

    def targets(self, z: Tensor, level: Tensor) -> list[Tensor]:
        h = self.analysis(z, level)
        latents = [*((h, p) for p in self.laws.passes), *((z, p) for p in self.passes)]
        return [part(x[:, p.group], p.ways, p.turn) for x, p in latents]

    def image_latent(self, values: Sequence[Tensor]) -> Tensor:
        groups = groupby(zip(self.passes, values[len(self.laws.passes) :], strict=True), lambda pair: pair[0].group)
        parts = [[value for _, value in pairs] for _, pairs in groups]
        merged = [merge(them, len(them)) for them in parts]
        return torch.cat(merged, 1) if len(merged) > 1 else merged[0]

    def walk(self, size: tuple[int, int, int], level: Tensor) -> Walk:
        batch, height, width = size
        shape = batch, self.hyper, height // self.stride, width // self.stride
        h, known = torch.zeros(shape, device=level.device), []
        for n, p in enumerate(self.laws.passes):
            known.append((yield self._law(*self.laws.law(n, h, level))))
            h = merge(known, p.ways)

        h = in_units(h) / HYPER_UNIT
        (f, h), features = self.scales.start(h, level), self.means.start(h)
        gain_in, gain_out = self.log_in(level).exp(), self.log_out(level).exp()
        for n, p in enumerate(self.passes):
            if p.turn == 0:
                magnitudes: list[Tensor] = []
                values: list[Tensor] = []
            mean = part(self.means.mean(n, features) * gain_out[:, p.group], p.ways, p.turn)
            value = yield self._law(mean, self.scales.index(n, f, h, level))
            if n + 1 < len(self.passes):
                codes = torch.round((value - mean).detach())[:, : self.scales.seen // p.ways]
                magnitudes.append(magnitude_code(codes))
                values.append(value[:, : self.means.seen // p.ways])
                f = self.scales.extend(n + 1, f, merge(magnitudes, p.ways), level)
                known = merge(values, p.ways) * gain_in[:, p.group][:, : self.means.seen]
                features = self.means.extend(n + 1, features, known)

    def _law(self, mean: Tensor, index: Tensor) -> GaussianCells:
        return GaussianCells(mean, index, self.tables, self.dead_zones)
