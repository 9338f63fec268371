"""Inference algorithms against a posterior that is known in closed form: a linear decoder and Gaussian laws."""

import inspect
import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from deepinv.physics import LinearPhysics
from torch import Tensor, nn

from bayesq import operators
from bayesq.codec import Codec
from bayesq.conditionals import GaussianCells, index_of
from bayesq.inference import VBLE, Algorithm, MAPz, Posterior
from bayesq.likelihoods import from_physics

ALGORITHMS = [VBLE, MAPz]
SIDE, BLOCK, STEP, SCALE, SIGMA = 8, 4, 0.02, 3.0, 0.05
VARIANCE = SCALE**2 + 1 / 12  # of the Gaussian smoothed by the unit cell
OPERATORS = {
    "denoise": lambda: operators.denoise((SIDE, SIDE), SIGMA),
    "inpaint": lambda: operators.inpaint(torch.arange(SIDE**2).view(SIDE, SIDE) % 3 > 0, (SIDE, SIDE), SIGMA),
    "deblur": lambda: operators.blur("gaussian:0.7", (SIDE, SIDE), SIGMA),
}


def rotation() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.linalg.qr(torch.randn(3 * BLOCK**2, 3 * BLOCK**2, generator=generator)).Q


class Blocks(nn.Module):
    """z: an orthonormal transform of 4x4 blocks, in steps of the quantiser."""

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        return torch.einsum("ij,bjhw->bihw", rotation(), F.pixel_unshuffle(x - 0.5, BLOCK)) / STEP


class Unblocks(nn.Module):
    def forward(self, z: Tensor, level: Tensor) -> Tensor:
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


@dataclass(frozen=True)
class Exact:
    """The posterior N(mean, precision⁻¹) of the flattened latents, and log p(y)."""

    mean: Tensor
    precision: Tensor
    log_evidence: float


def measure(physics: LinearPhysics, count: int = 1) -> Tensor:
    """Measurements of draws from the prior."""
    generator = torch.Generator().manual_seed(0)
    z = VARIANCE**0.5 * torch.randn(count, 3 * BLOCK**2, SIDE // BLOCK, SIDE // BLOCK, generator=generator)
    return operators.degrade(Unblocks()(z, None), physics, generator)


def posterior(physics: LinearPhysics, y: Tensor) -> Posterior:
    codec = Codec(Blocks(), Unblocks(), WhitePrior(), reduction=BLOCK, multiple=BLOCK)
    return Posterior(y, from_physics(physics), codec, torch.zeros(len(y), dtype=torch.int64), (SIDE, SIDE))


def exact(physics: LinearPhysics, y: Tensor) -> Exact:
    """Linear Gaussian inference on the observed values, in double precision."""
    seen = physics.A(torch.ones(1, 3, SIDE, SIDE)).flatten() > 0
    latents = torch.eye(3 * SIDE**2).view(-1, 3 * BLOCK**2, SIDE // BLOCK, SIDE // BLOCK)
    offset = physics.A(torch.full((1, 3, SIDE, SIDE), 0.5))
    matrix = (physics.A(Unblocks()(latents, None)) - offset).flatten(1).T[seen].double()
    residual = (y - offset).flatten()[seen].double()
    precision = matrix.T @ matrix / SIGMA**2 + torch.eye(matrix.shape[1]) / VARIANCE
    mean = torch.linalg.solve(precision, matrix.T @ residual) / SIGMA**2
    noise = SIGMA**2 * torch.eye(len(matrix), dtype=torch.float64)
    law = torch.distributions.MultivariateNormal(torch.zeros_like(residual), VARIANCE * matrix @ matrix.T + noise)
    return Exact(mean.float(), precision.float(), float(law.log_prob(residual)))


def run(algorithm: Algorithm, x0: Tensor, steps: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    state, trace = algorithm.init(x0), []
    for _ in range(steps):
        state, info = algorithm.step(state, generator)
        trace.append(info)
    return state, trace, generator


@pytest.fixture(scope="module", params=OPERATORS)
def problem(request):
    physics = OPERATORS[request.param]()
    y = measure(physics)
    return posterior(physics, y), torch.full((1, 3, SIDE, SIDE), 0.5), exact(physics, y)


def test_vble_finds_the_best_cells(problem):
    """The uniform laws nearest to a Gaussian have its mean, and the variance that each latent has given all others."""
    target, x0, known = problem
    algorithm = VBLE(target, 500)
    state, trace, _ = run(algorithm, x0, 500)
    (cell,) = algorithm.cells(state)
    std = known.precision.diagonal().rsqrt()
    assert ((cell.centre.flatten() - known.mean) / std).square().mean().sqrt() < 0.2
    ratio = (cell.width.flatten() / 12**0.5 / std).log()
    assert ratio.mean().abs() < 0.03 and ratio.std() < 0.12

    elbo = torch.tensor([info.elbo for info in trace])
    logdet = known.precision.double().logdet() - known.precision.diagonal().double().log().sum()
    gap = len(std) * (1 + math.log(math.pi / 6)) / 2 - float(logdet) / 2  # KL from the best cells to the posterior
    assert known.log_evidence - gap - 5 < elbo[-100:].mean() < min(known.log_evidence, known.log_evidence - gap + 5)


def test_map_is_the_mode(problem):
    target, x0, known = problem
    algorithm = MAPz(target, 400)
    state, trace, generator = run(algorithm, x0, 400)
    (cell,) = algorithm.cells(state)
    std = known.precision.diagonal().rsqrt()
    assert ((cell.centre.flatten() - known.mean) / std).abs().max() < 0.1
    assert (cell.width == 0).all()
    assert trace[-1].elbo > max(info.elbo for info in trace) - 0.01
    for info in trace:
        assert info.elbo == pytest.approx(info.log_likelihood - info.bits * math.log(2), abs=0.01)
    assert algorithm.sample(state, 3, generator).std(0).eq(0).all()


@pytest.mark.parametrize("kind", ALGORITHMS)
def test_bound_rises(kind, problem):
    target, x0, _ = problem
    _, trace, _ = run(kind(target, 100), x0, 100)
    bounds = torch.tensor([info.elbo for info in trace]).view(4, 25).mean(1)
    assert (bounds.diff() > 0).all()


@pytest.mark.parametrize("kind", ALGORITHMS)
def test_seed_settles_everything(kind, problem):
    target, x0, _ = problem

    def pictures(seed: int) -> Tensor:
        algorithm = kind(target, 5)
        state, _, generator = run(algorithm, x0, 5, seed)
        return algorithm.sample(state, 2, generator)

    assert torch.equal(pictures(7), pictures(7))
    assert torch.equal(pictures(7), pictures(8)) == (kind is MAPz)


@pytest.mark.parametrize("kind", ALGORITHMS)
@pytest.mark.parametrize("count", [1, 2])
def test_samples_are_pictures(kind, count):
    physics = operators.denoise((SIDE, SIDE), SIGMA)
    y = measure(physics, count)
    algorithm = kind(posterior(physics, y), 2)
    state, _, generator = run(algorithm, y, 2)
    pictures = algorithm.sample(state, 3, generator)
    assert pictures.shape == (3, count, 3, SIDE, SIDE) and not pictures.requires_grad
    assert pictures.min() >= 0 and pictures.max() <= 1


@pytest.mark.parametrize("kind", ALGORITHMS)
@pytest.mark.parametrize("method", ["init", "step", "cells", "sample"])
def test_signatures_agree(kind, method):
    expected, actual = (list(inspect.signature(getattr(c, method)).parameters) for c in (Algorithm, kind))
    assert actual == expected


def test_batch_is_as_good_as_one_by_one():
    physics = operators.denoise((SIDE, SIDE), SIGMA)
    y = measure(physics, 2)

    def centre(y: Tensor) -> Tensor:
        algorithm = MAPz(posterior(physics, y), 30)
        return algorithm.cells(run(algorithm, y, 30)[0])[0].centre

    torch.testing.assert_close(centre(y), torch.cat([centre(y[:1]), centre(y[1:])]), rtol=1e-4, atol=1e-3)


def test_weight_tempers_the_prior():
    """With weight w the cells' entropy counts w times too: every width is that of noise and prior both tempered."""
    physics = operators.denoise((SIDE, SIDE), SIGMA)
    y = measure(physics)
    base = posterior(physics, y)
    tempered = Posterior(base.y, base.likelihood, base.codec, base.level, base.size, prior_weight=4.0)
    algorithm = VBLE(tempered, 300)
    (cell,) = algorithm.cells(run(algorithm, y, 300)[0])
    std = (STEP**2 / (4 * SIGMA**2) + 1 / VARIANCE) ** -0.5
    assert abs((cell.width / 12**0.5 / std).log().mean()) < 0.03
