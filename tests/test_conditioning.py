"""Gaussian laws of pictures given a measurement, against dense linear algebra."""

import pytest
import torch

from bayesq import operators
from bayesq.operators.conditioning import condition

SIZE, SIGMA = (7, 8), 0.05
MASK = torch.rand(SIZE, generator=torch.Generator().manual_seed(1)) < 0.6
OPERATORS = {
    "denoise": operators.denoise(SIZE, SIGMA),
    "deblur": operators.blur("gaussian:1", SIZE, SIGMA),
    "inpaint": operators.inpaint(MASK, SIZE, SIGMA),
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def dense(physics, like):
    """The operator as a matrix for pictures of a shape (1, 3, H, W)."""
    unit = torch.eye(like.numel()).unflatten(1, like.shape[1:])
    return physics.A(unit).flatten(1).T


def posed(physics):
    """Mean, deviations and measurement, and the exact mean and covariance of the posterior."""
    mean, truth = (torch.rand(1, 3, *SIZE, generator=generator(seed)) for seed in (2, 3))
    std = 0.02 + 0.2 * torch.rand(1, 1, *SIZE, generator=generator(4))
    y = physics.A(truth) + SIGMA * torch.randn(physics.A(truth).shape, generator=generator(5))
    a, variance = dense(physics, mean).double(), std.expand_as(mean).flatten().double() ** 2
    covariance = torch.linalg.inv(a.T @ a / SIGMA**2 + torch.diag(1 / variance))
    pull = a.T @ (y - physics.A(mean)).flatten().double() / SIGMA**2
    return mean, std, y, mean.flatten() + covariance @ pull, covariance


@pytest.mark.parametrize("name", OPERATORS)
def test_the_mean_is_exact(name):
    physics = OPERATORS[name]
    mean, std, y, exact, covariance = posed(physics)
    found = condition(mean, std, y, physics, SIGMA, tolerance=1e-5).flatten()
    assert ((found - exact) / covariance.diagonal().sqrt()).abs().max() < 1e-3


@pytest.mark.parametrize("tolerance", [0.3, 0.05, 0.005])
@pytest.mark.parametrize("name", OPERATORS)
def test_the_tolerance_bounds_the_error(name, tolerance):
    physics = OPERATORS[name]
    mean, std, y, exact, covariance = posed(physics)
    off = condition(mean, std, y, physics, SIGMA, tolerance=tolerance).flatten() - exact
    assert (off @ torch.linalg.solve(covariance, off) / len(off)).sqrt() < 2 * tolerance


@pytest.mark.parametrize("name", OPERATORS)
def test_draws_have_the_mean_and_the_covariance(name):
    physics, n = OPERATORS[name], 4000
    mean, std, y, exact, covariance = posed(physics)
    many = [v.expand(n, *v.shape[1:]) for v in (mean, y)]
    draws = condition(many[0], std, many[1], physics, SIGMA, generator(), tolerance=1e-4).flatten(1).double()
    whiten = torch.linalg.cholesky(torch.linalg.inv(covariance)).T
    white = (draws - exact) @ whiten.T
    assert white.mean(0).abs().max() < 4.5 / n**0.5 + 0.01
    assert (white.T @ white / n - torch.eye(len(exact))).abs().max() < 6 * 2**0.5 / n**0.5


def test_what_is_not_measured_keeps_its_law():
    physics = operators.inpaint(torch.zeros(SIZE).index_fill(1, torch.tensor([0]), 1), SIZE, SIGMA)
    mean = torch.rand(1, 3, *SIZE, generator=generator())
    found = condition(mean, torch.tensor(0.1), torch.zeros_like(mean), physics, SIGMA)
    assert torch.equal(found[..., 1:], mean[..., 1:]) and (found[..., 0] < mean[..., 0]).all()
