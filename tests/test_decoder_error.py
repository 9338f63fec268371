"""The likelihood of an erring decoder, against dense linear algebra, and the start by splitting."""

import numpy as np
import pytest
import torch

from bayesq import operators, zoo
from bayesq.errors import OperatorError
from bayesq.inference.splitting import split
from bayesq.likelihoods import DecoderError, Gaussian, Poisson, weighted
from bayesq.metrics import psnr
from bayesq.resources import data_dir
from bayesq.training.data import Crops

SIZE, SIGMA, GAMMA = (6, 6), 0.1, 0.2
PHYSICS = {
    "denoise": operators.denoise(SIZE, SIGMA),
    "blur": operators.blur("gaussian:0.6", SIZE, SIGMA),
    "downsample": operators.downsample(2, SIZE, SIGMA),
    "inpaint": operators.inpaint(np.indices(SIZE).sum(0) % 3 > 0, SIZE, SIGMA),
    "demosaic": operators.demosaic(SIZE, SIGMA),
    "colorize": operators.colorize(SIZE, SIGMA),
}


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture(params=PHYSICS)
def problem(request, generator):
    """Operator, its matrix (float64), a measurement and a decoded picture."""
    physics = PHYSICS[request.param]
    decoded = torch.rand(1, 3, *SIZE, generator=generator)
    basis = torch.eye(decoded.numel()).view(-1, 3, *SIZE)
    matrix = physics.A(basis).flatten(1).T.double()
    return physics, matrix, operators.degrade(decoded.roll(1, 3), physics, generator), decoded


def test_the_picture_is_integrated_out(problem):
    physics, matrix, y, decoded = problem
    covariance = SIGMA**2 * torch.eye(len(matrix)) + GAMMA**2 * matrix @ matrix.T
    law = DecoderError(Gaussian(physics, SIGMA), GAMMA)

    def exact(x):
        residual = y.flatten().double() - matrix @ x.flatten().double()
        return -residual @ torch.linalg.solve(covariance, residual) / 2

    other = decoded.flip(2)
    torch.testing.assert_close(
        (law.log_prob(y, decoded) - law.log_prob(y, other)).double(),
        (exact(decoded) - exact(other))[None],
        rtol=1e-3,
        atol=1e-2,
    )
    x = decoded.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(law.log_prob(y, x).sum(), x)
    (expected,) = torch.autograd.grad(exact(x), x)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=2e-2)


def test_completions_are_the_gaussian_of_the_picture_given_both(problem, generator):
    physics, matrix, y, decoded = problem
    law = DecoderError(Gaussian(physics, SIGMA), GAMMA)
    precision = matrix.T @ matrix / SIGMA**2 + torch.eye(matrix.shape[1]) / GAMMA**2
    pull = matrix.T @ y.flatten().double() / SIGMA**2 + decoded.flatten().double() / GAMMA**2
    mean, covariance = torch.linalg.solve(precision, pull), torch.linalg.inv(precision)
    torch.testing.assert_close(law.complete(y, decoded).flatten().double(), mean, rtol=0, atol=2e-4)

    n = 4000
    many = y.expand(n, *y.shape[1:]), decoded.expand(n, *decoded.shape[1:])
    draws = law.complete(*many, generator).flatten(1).double()
    deviation = covariance.diag().sqrt()
    assert ((draws.mean(0) - mean).abs() < 5 * deviation / n**0.5).all()
    error = (torch.cov(draws.T) - covariance) / (deviation[:, None] * deviation)
    assert error.abs().max() < 6 * (2 / n) ** 0.5


@pytest.mark.parametrize("name", PHYSICS)
def test_no_error_is_the_gaussian_itself(name, generator):
    physics = PHYSICS[name]
    x = torch.rand(2, 3, *SIZE, generator=generator)
    y = operators.degrade(x, physics, generator)
    plain = Gaussian(physics, SIGMA)
    torch.testing.assert_close(DecoderError(plain, 1e-5).log_prob(y, x), plain.log_prob(y, x), rtol=1e-3, atol=1e-2)
    assert DecoderError(plain, 1e-5).num_observed(y) == plain.num_observed(y)


@pytest.mark.parametrize(
    "likelihood",
    [
        Poisson(PHYSICS["denoise"], 0.1),
        Gaussian(PHYSICS["denoise"], torch.tensor([0.1, 0.2])),
        weighted(Gaussian(PHYSICS["denoise"], 0.1), 1 / 3),
    ],
)
def test_takes_white_noise_alone(likelihood):
    assert not DecoderError.takes(likelihood)
    with pytest.raises(OperatorError, match="white Gaussian"):
        DecoderError(likelihood, 0.1)


def test_an_error_is_positive():
    with pytest.raises(OperatorError, match="positive"):
        DecoderError(Gaussian(PHYSICS["denoise"], 0.1), 0)


def test_splitting_inverts_a_blur_better_than_a_linear_inverse(generator):
    x = Crops([data_dir() / "astronaut.png"]).draw(1, 128, generator)
    physics = operators.blur("gaussian:1.6", (128, 128), 2.55 / 255)
    y = operators.degrade(x, physics, generator)
    start = operators.initial_image(y, physics)
    assert psnr(split(y, physics, 2.55 / 255, zoo.load(), start), x) > psnr(start, x) + 0.5
