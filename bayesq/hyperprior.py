"""The codec's own prior: a coarse hyper-latent h, then z in two interleaved passes.

      z ─► log-energies ─► h_a ─► h          (h at half the size of z)
      h ─► scale network (integers), mean network ─► p(z₁ | h), p(z₂ | h, z₁)

Scale and mean hyperprior after Minnen et al. 2018; the two passes share out channels and positions like the two
colours of a checkerboard (He et al. 2021, Li et al. 2023), so that every element of the second pass has coded
neighbours in space and among channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayesq.coder import Tables, gaussian_tables
from bayesq.conditionals import SCALE_COUNT, GaussianCells, scale_of
from bayesq.networks.integer import TrainableIntegerConv
from bayesq.networks.rate import LEVELS, Interpolated
from bayesq.networks.scale import INDEX_UNIT, MeanNetwork, ScaleNetwork
from bayesq.networks.transforms import leaky_relu
from bayesq.prior import Walk
from bayesq.quantizers import Clamp, StraightThrough

TABLE_RADIUS = 512


def _colour(height: int, width: int, device: torch.device) -> Tensor:
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    return ((rows[:, None] + columns) % 2).bool()


def split(z: Tensor) -> tuple[Tensor, Tensor]:
    """The two passes of z ``(B, M, h, w)``, each ``(B, M/2, h, w)``.

    The first holds even channels where row + column is even, and odd channels elsewhere.
    """
    even, odd = z[:, 0::2], z[:, 1::2]
    colour = _colour(z.shape[2], z.shape[3], z.device)
    return torch.where(colour, odd, even), torch.where(colour, even, odd)


def merge(first: Tensor, second: Tensor) -> Tensor:
    """The inverse of ``split``."""
    colour = _colour(first.shape[2], first.shape[3], first.device)
    even, odd = torch.where(colour, second, first), torch.where(colour, first, second)
    return torch.stack([even, odd], 2).flatten(1, 2)


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
        self.linear = nn.Conv2d(latents, hyper, 1, bias=False)
        self.shift = Interpolated(hyper)
        self.inlet = nn.Conv2d(2 * latents, width, 1)
        self.down = nn.Conv2d(4 * width, width, 1)
        self.head = nn.Conv2d(width, hyper, 3, padding=1)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.normal_(self.head.weight, std=0.02 / (9 * width) ** 0.5)
        nn.init.zeros_(self.head.bias)

    def forward(self, z: Tensor, level: Tensor) -> Tensor:
        """Maps z ``(B, M, h, w)`` to h ``(B, N, h/2, w/2)``."""
        energy = log_energy(z)
        features = leaky_relu(self.inlet(torch.cat([energy, z.clamp(-4, 4)], 1)))
        features = leaky_relu(self.down(F.pixel_unshuffle(features, 2)))
        return self.linear(F.avg_pool2d(energy, 2)) + self.shift(level) + self.head(features)


class Hyperprior(nn.Module):
    """p(h) p(z₁ | h) p(z₂ | h, z₁) for a continuous range of qualities; a ``LatentPrior``.

    h has a zero-mean Gaussian law whose scale is learned per channel and quality, so that both latents are coded
    with one set of tables, and a channel of h that does not pay at some quality costs nothing there.

    Args:
        latents: M, channels of z, even.
        hyper: N, channels of h.
        width: Hidden channels of all its networks.
    """

    stride = 2

    def __init__(self, latents: int, hyper: int, width: int) -> None:
        super().__init__()
        self.hyper = hyper
        self.analysis = HyperAnalysis(latents, hyper, width)
        self.scales = ScaleNetwork(hyper, latents, width)
        self.means = MeanNetwork(hyper, latents, width)
        self.hyper_index: HyperIndex | ExportedHyperIndex = HyperIndex(hyper)
        self.tables: Tables | None = None

    def export(self) -> None:
        """Replaces, in place, all that stands before the symbols by integers."""
        self.scales.export()
        if isinstance(self.hyper_index, HyperIndex):
            self.hyper_index = self.hyper_index.export()
        if self.tables is None:  # those of a loaded model stay: another machine's may differ in a count
            self.tables = gaussian_tables(scale_of(torch.arange(SCALE_COUNT).double()).numpy(), TABLE_RADIUS)

    def blank(self, tables: Tables) -> None:
        """Makes room, in place, for what ``export`` wrote elsewhere; the tables are those that it wrote."""
        self.scales.export(TrainableIntegerConv.blank)
        self.hyper_index, self.tables = ExportedHyperIndex(self.hyper), tables

    def targets(self, z: Tensor, level: Tensor) -> list[Tensor]:
        return [self.analysis(z, level), *split(z)]

    def image_latent(self, values: Sequence[Tensor]) -> Tensor:
        return merge(values[1], values[2])

    def walk(self, size: tuple[int, int, int], level: Tensor) -> Walk:
        batch, height, width = size
        shape = batch, self.hyper, height // self.stride, width // self.stride
        index = self.hyper_index(level)
        h = yield GaussianCells(index.new_zeros(shape), index.expand(shape), self.tables)

        h = StraightThrough.apply(torch.round(h.detach()), h)
        scale_features = self.scales.features(h, level)
        mean_features = self.means.features(h)
        indexes, _ = split(self.scales.first_pass(scale_features, level))
        means, _ = split(self.means.first_pass(mean_features, level))
        first = yield GaussianCells(means, indexes, self.tables)

        nothing = torch.zeros_like(first)
        symbols = merge(torch.round((first - means).detach()), nothing)
        _, indexes = split(self.scales.second_pass(scale_features, symbols, level))
        _, means = split(self.means.second_pass(mean_features, merge(first, nothing), level))
        yield GaussianCells(means, indexes, self.tables)


class HyperIndex(nn.Module):
    """Table index of each channel of h at each quality, rounded with a straight-through gradient."""

    def __init__(self, hyper: int) -> None:
        super().__init__()
        self.value = Interpolated(hyper)

    def forward(self, level: Tensor) -> Tensor:
        real = INDEX_UNIT * self.value(level)
        return Clamp.apply(StraightThrough.apply(torch.round(real.detach()), real), 0, SCALE_COUNT - 1)

    @torch.no_grad()
    def export(self) -> ExportedHyperIndex:
        exported = ExportedHyperIndex(self.value.anchors.shape[1])
        exported.table.copy_(self(torch.arange(LEVELS))[:, :, 0, 0])
        return exported


class ExportedHyperIndex(nn.Module):
    """The same, as a stored table of integers."""

    def __init__(self, hyper: int) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(LEVELS, hyper, dtype=torch.uint8))

    def forward(self, level: Tensor) -> Tensor:
        return self.table[level].float()[:, :, None, None]
