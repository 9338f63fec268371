"""A codec whose posteriors are known in closed form: a linear decoder, and a prior that is all but Gaussian."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from deepinv.physics import LinearPhysics
from torch import Tensor, nn

from bayesq import operators
from bayesq.codec import Codec
from bayesq.conditionals import GaussianCells, index_of
from bayesq.inference import Posterior
from bayesq.likelihoods import from_physics

SIDE, BLOCK, STEP, SCALE, SIGMA = 8, 4, 0.02, 3.0, 0.05
VARIANCE = SCALE**2 + 1 / 12  # of the Gaussian smoothed by the unit cell
BINOMIAL = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]) / 16
OPERATORS = {
    "denoise": lambda side=SIDE: operators.denoise((side, side), SIGMA),
    "inpaint": lambda side=SIDE: operators.inpaint(torch.arange(side**2).view(side, side) % 3 > 0, (side, side), SIGMA),
    "deblur": lambda side=SIDE: operators.blur(BINOMIAL, (side, side), SIGMA),
}


@cache
@torch.inference_mode(False)
def rotation() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.linalg.qr(torch.randn(3 * BLOCK**2, 3 * BLOCK**2, generator=generator)).Q


class Blocks(nn.Module):
    """z: an orthonormal transform of 4x4 blocks, in steps of the quantiser."""

    def forward(self, x: Tensor, level: Tensor | None) -> Tensor:
        return torch.einsum("ij,bjhw->bihw", rotation(), F.pixel_unshuffle(x - 0.5, BLOCK)) / STEP


class Unblocks(nn.Module):
    def forward(self, z: Tensor, level: Tensor | None) -> Tensor:
        return F.pixel_shuffle(torch.einsum("ji,bjhw->bihw", rotation(), z * STEP), BLOCK) + 0.5


class WhitePrior(nn.Module):
    """z ~ N(0, SCALE²), smoothed by the unit cell."""

    def walk(self, size, level):
        shape = size[0], 3 * BLOCK**2, *size[1:]
        yield GaussianCells(torch.zeros(shape), index_of(torch.full(shape, SCALE)))

    def targets(self, z, level):
        return [z]

    def image_latent(self, values):
        return values[0]


class ScalePrior(nn.Module):
    """A hyperprior, for which nothing is exact: h says how large each z is, z ~ N(0, (SCALE exp(h / 6))²)."""

    def walk(self, size, level):
        shape = size[0], 3 * BLOCK**2, *size[1:]
        h = yield GaussianCells(torch.zeros(shape), index_of(torch.full(shape, SCALE)))
        yield GaussianCells(torch.zeros(shape), index_of(SCALE * torch.exp(h / 6)))

    def targets(self, z, level):
        return [6 * (z.abs().clamp_min(1) / SCALE).log(), z]

    def image_latent(self, values):
        return values[1]


@dataclass(frozen=True)
class Exact:
    """The posterior N(mean, precision⁻¹) of the flattened latents, and log p(y)."""

    mean: Tensor
    precision: Tensor
    log_evidence: float

    @property
    def std(self) -> Tensor:
        """Deviation of each latent given all others."""
        return self.precision.diagonal().rsqrt()

    def whiten(self, z: Tensor) -> Tensor:
        """Latents ``(n, d)`` in coordinates in which the posterior is standard normal, the best known ones last."""
        values, vectors = torch.linalg.eigh(self.precision)
        return (z - self.mean) @ vectors * values.sqrt()


def prior_draws(side: int = SIDE, count: int = 1, seed: int = 0) -> Tensor:
    """z from the prior, ``(count, 48, side / 4, side / 4)``."""
    generator = torch.Generator().manual_seed(seed)
    return VARIANCE**0.5 * torch.randn(count, 3 * BLOCK**2, side // BLOCK, side // BLOCK, generator=generator)


def measure(physics: LinearPhysics, z: Tensor, seed: int = 1) -> Tensor:
    """Measurements of the pictures of z."""
    return operators.degrade(Unblocks()(z, None), physics, torch.Generator().manual_seed(seed))


def latents(pictures: Tensor) -> Tensor:
    """z of samples ``(n, B, 3, H, W)`` as ``(n, B, d)``."""
    return torch.stack([Blocks()(x, None).flatten(1) for x in pictures])


def posterior(physics: LinearPhysics, y: Tensor, side: int = SIDE, prior: nn.Module | None = None) -> Posterior:
    codec = Codec(Blocks(), Unblocks(), prior or WhitePrior(), reduction=BLOCK, multiple=BLOCK)
    return Posterior(y, from_physics(physics), codec, torch.zeros(len(y), dtype=torch.int64), (side, side))


def grey(count: int = 1, side: int = SIDE) -> Tensor:
    """Where a search may start."""
    return torch.full((count, 3, side, side), 0.5)


def exact(physics: LinearPhysics, y: Tensor, side: int = SIDE) -> Exact:
    """Linear Gaussian inference on the observed values, in double precision."""
    seen = physics.A(torch.ones(1, 3, side, side)).flatten() > 0
    basis = torch.eye(3 * side**2).view(-1, 3 * BLOCK**2, side // BLOCK, side // BLOCK)
    offset = physics.A(torch.full((1, 3, side, side), 0.5))
    matrix = (physics.A(Unblocks()(basis, None)) - offset).flatten(1).T[seen].double()
    residual = (y - offset).flatten()[seen].double()
    precision = matrix.T @ matrix / SIGMA**2 + torch.eye(matrix.shape[1]) / VARIANCE
    mean = torch.linalg.solve(precision, matrix.T @ residual) / SIGMA**2
    noise = SIGMA**2 * torch.eye(len(matrix), dtype=torch.float64)
    law = torch.distributions.MultivariateNormal(torch.zeros_like(residual), VARIANCE * matrix @ matrix.T + noise)
    return Exact(mean.float(), precision.float(), float(law.log_prob(residual)))


def run(algorithm, x0: Tensor, steps: int, seed: int = 0):
    """The loop that users write: the state after so many steps, the trace, and the generator."""
    generator = torch.Generator().manual_seed(seed)
    state, trace = algorithm.init(x0), []
    for _ in range(steps):
        state, info = algorithm.step(state, generator)
        trace.append(info)
    return state, trace, generator
