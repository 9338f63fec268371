"""Inference on pixels with a prior of which the denoiser is known: independent normal pixels."""

import inspect

import pytest
import torch
from deepinv.models import TVDenoiser
from linear_gaussian import OPERATORS, SIDE, SIGMA, grey, run
from torch import Tensor

from bayesq import operators
from bayesq.inference import Algorithm, Posterior, REDDiff, ScoreDVI
from bayesq.inference.score import denoise_by_coding
from bayesq.likelihoods import Gaussian, Likelihood, UnevenGaussian, from_physics
from bayesq.metrics import psnr
from bayesq.resources import data_dir
from bayesq.restore import restore
from bayesq.training.data import Crops

ALGORITHMS = [REDDiff, ScoreDVI]
MEAN, SPREAD = 0.5, 0.05


def shrink(x: Tensor, sigma: Tensor) -> Tensor:
    """The posterior mean of pixels from N(MEAN, SPREAD²) in noise."""
    noise = sigma.view(-1, 1, 1, 1) ** 2
    return (SPREAD**2 * x + noise * MEAN) / (SPREAD**2 + noise)


def problem(name: str, count: int = 2) -> tuple[Posterior, Tensor]:
    physics = OPERATORS[name]()
    generator = torch.Generator().manual_seed(0)
    x = MEAN + SPREAD * torch.randn(count, 3, SIDE, SIDE, generator=generator)
    y = operators.degrade(x, physics, generator)
    return Posterior(y, from_physics(physics), None, torch.zeros(count, dtype=torch.int64), (SIDE, SIDE)), y


def ridge(target: Posterior, variance: float) -> Tensor:
    """The posterior mean if pixels are independent with this variance."""
    physics = target.likelihood.physics
    basis = torch.eye(3 * SIDE**2).view(-1, 3, SIDE, SIDE)
    matrix = physics.A(basis).flatten(1).T
    residual = (target.y - physics.A(grey(len(target.y)))).flatten(1).T
    precision = matrix.T @ matrix / SIGMA**2 + torch.eye(len(basis)) / variance
    return MEAN + torch.linalg.solve(precision, matrix.T @ residual / SIGMA**2).T.view(-1, 3, SIDE, SIDE)


@pytest.mark.parametrize("name", OPERATORS)
def test_reddiff_ends_at_the_mode_under_the_smoothed_prior(name):
    target, _ = problem(name)
    algorithm = REDDiff(target, 300, shrink, coarsest=0.3, finest=0.1)
    state, _, generator = run(algorithm, grey(2), 300)
    expected = ridge(target, SPREAD**2 + algorithm.finest**2)
    assert (state.mean - expected).square().mean().sqrt() < 0.2 * SPREAD
    samples = algorithm.sample(state, 2, generator)
    assert torch.equal(samples[0], samples[1])


def test_scoredvi_settles_where_its_equations_say():
    """In white noise: 1/s² = 1/σ² + 1/(v + s²) − … solved: s⁴ + v s² = σ² v, and the mean weighs with v + s²."""
    target, _ = problem("denoise")
    state, _, _ = run(ScoreDVI(target, 600, shrink, draws=4), grey(2), 600)
    v, noise = SPREAD**2, SIGMA**2
    squared = ((v**2 + 4 * v * noise) ** 0.5 - v) / 2
    assert float(state.std.detach().mean()) == pytest.approx(squared**0.5, rel=0.05)
    torch.testing.assert_close(state.mean, ridge(target, v + squared), rtol=0, atol=0.02)


@pytest.mark.parametrize("block", [8, 1])
def test_scoredvi_finds_the_noise_along_with_the_picture(block):
    """Noise that is uneven, or has outliers, and of no known level, costs less than its known root mean square."""
    physics, generator = operators.denoise((32, 32), 0.0), torch.Generator().manual_seed(0)
    x = MEAN + SPREAD * torch.randn(1, 3, 32, 32, generator=generator)
    strong = torch.rand(1, 1, 32, 32, generator=generator) < 0.1 if block == 1 else torch.arange(32) >= 16
    sigma = torch.where(strong, 0.4, 0.02).expand(1, 1, 32, 32)
    y = x + sigma * torch.randn(x.shape, generator=generator)
    overall = float(sigma.square().mean().sqrt())

    def error(law: Likelihood) -> float:
        target = Posterior(y, law, None, torch.zeros(1, dtype=torch.int64), (32, 32))
        state, _, _ = run(ScoreDVI(target, 200, shrink), y.clamp(0, 1), 200)
        return float((state.mean.detach() - x).square().mean().sqrt())

    found = error(UnevenGaussian(physics, block, scale=SIGMA**2))
    assert found < 0.8 * error(Gaussian(physics, overall))
    assert found < 1.2 * error(Gaussian(physics, sigma))


@pytest.mark.parametrize("kind", ALGORITHMS)
def test_pixels_that_are_not_seen_come_from_the_prior(kind):
    target, y = problem("inpaint")
    state, _, _ = run(kind(target, 300, shrink), y, 300)
    hidden = target.likelihood.physics.mask.expand_as(state.mean) == 0
    assert (state.mean - MEAN)[hidden].abs().mean() < 0.5 * SPREAD
    if kind is ScoreDVI:
        assert state.std[hidden].mean() > 1.5 * state.std[~hidden].mean()


@pytest.mark.parametrize("kind", ALGORITHMS)
@pytest.mark.parametrize("method", ["init", "step", "cells", "sample"])
def test_signatures_agree(kind, method):
    expected, actual = (list(inspect.signature(getattr(c, method)).parameters) for c in (Algorithm, kind))
    assert actual == expected


@pytest.fixture(scope="module")
def picture() -> Tensor:
    return Crops([data_dir() / "astronaut.png"]).draw(2, 64, torch.Generator().manual_seed(2))


def test_coding_takes_noise_away(tiny_codec, picture):
    codec, sigma = tiny_codec.exported(), torch.tensor([0.1, 0.15])
    noise = sigma.view(-1, 1, 1, 1) * torch.randn(picture.shape, generator=torch.Generator().manual_seed(0))
    found = denoise_by_coding(codec, picture + noise, sigma)
    assert (psnr(found, picture) > psnr(picture + noise, picture) + 2).all()
    torch.testing.assert_close(found[1:], denoise_by_coding(codec, (picture + noise)[1:], sigma[1:]))


@pytest.mark.parametrize("denoise", [None, TVDenoiser(n_it_max=20)], ids=["codec", "deepinv"])
@pytest.mark.parametrize("kind", ALGORITHMS)
def test_restores_with_any_denoiser(kind, denoise, tiny_codec, picture):
    physics = operators.denoise((64, 64), 0.1)
    y = operators.degrade(picture, physics, torch.Generator().manual_seed(0))

    def algorithm(posterior: Posterior, steps: int) -> Algorithm:
        return kind(posterior, steps, denoise)

    result = restore(y, physics, codec=tiny_codec.exported(), algorithm=algorithm, steps=25, samples=8, grids=1)
    assert (psnr(result.mean, picture) > psnr(y, picture) + 2).all()
    assert result.cells == [] and (result.std > 0).any() == (kind is ScoreDVI)
