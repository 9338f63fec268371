import math

import numpy as np
import pytest
import torch
from deepinv.physics import Denoising, GaussianNoise, LinearPhysics, PoissonNoise, UniformNoise, ZeroNoise

from bayesq import operators
from bayesq.errors import OperatorError
from bayesq.likelihoods import RATE_FLOOR, SIGMA_FLOOR, Gaussian, Poisson, from_physics

SIZE = (12, 16)
PHYSICS = {
    "denoise": operators.denoise(SIZE, 0.1),
    "blur": operators.blur("gaussian:1", SIZE, 0.1),
    "downsample": operators.downsample(2, SIZE, 0.1),
    "inpaint": operators.inpaint(np.indices(SIZE).sum(0) % 3 > 0, SIZE, 0.1),
}


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def pair(physics, generator):
    x = 0.1 + 0.8 * torch.rand(2, 3, *SIZE, generator=generator)
    return operators.degrade(x, physics, generator), x


def observed(name, y):
    return PHYSICS[name].mask.bool().expand_as(y) if name == "inpaint" else torch.ones_like(y, dtype=torch.bool)


@pytest.mark.parametrize("sigma", [0.05, torch.tensor([0.05, 0.2])])
@pytest.mark.parametrize("name", PHYSICS)
def test_gaussian_agrees_with_torch_on_the_observed_pixels(name, sigma, generator):
    physics = PHYSICS[name]
    y, x = pair(physics, generator)
    level = torch.as_tensor(sigma).reshape(-1, 1, 1, 1)
    terms = torch.distributions.Normal(physics.A(x), level).log_prob(y) * observed(name, y)
    actual = Gaussian(physics, sigma).log_prob(y, x)
    assert actual.shape == (2,)
    torch.testing.assert_close(actual, terms.sum((1, 2, 3)), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", PHYSICS)
def test_gaussian_gradient_is_the_back_projected_residual(name, generator):
    physics = PHYSICS[name]
    y, x = pair(physics, generator)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(Gaussian(physics, 0.1).log_prob(y, x).sum(), x)
    with torch.no_grad():
        torch.testing.assert_close(gradient, physics.A_adjoint(y - physics.A(x)) / 0.1**2, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", PHYSICS)
def test_poisson_agrees_with_torch_on_the_observed_pixels(name, generator):
    physics = PHYSICS[name]
    _, x = pair(physics, generator)
    gain = torch.tensor([0.02, 0.1])
    rate = physics.A(x) / gain.reshape(-1, 1, 1, 1)
    counts = torch.poisson(rate, generator=generator)
    seen = observed(name, counts)
    expected = (torch.distributions.Poisson(rate.clamp_min(1e-6)).log_prob(counts) * seen).sum((1, 2, 3))
    y = counts * gain.reshape(-1, 1, 1, 1)
    torch.testing.assert_close(Poisson(physics, gain).log_prob(y, x), expected, rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(
        Poisson(physics, gain, normalize=False).log_prob(counts, x), expected, rtol=1e-4, atol=1e-2
    )


@pytest.mark.parametrize("sigma", [0.0, SIGMA_FLOOR, 0.3])
def test_gaussian_integrates_to_one(sigma):
    y = torch.linspace(-2, 3, 20001).reshape(-1, 1, 1, 1)
    density = Gaussian(Denoising(), sigma).log_prob(y, torch.full_like(y, 0.4)).exp()
    assert torch.trapezoid(density, y.flatten()) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("gain", [0.03, 0.5])
@pytest.mark.parametrize("value", [0.01, 0.4])
def test_poisson_sums_to_one(gain, value):
    y = gain * torch.arange(100.0).reshape(-1, 1, 1, 1)
    assert Poisson(Denoising(), gain).log_prob(y, torch.full_like(y, value)).exp().sum() == pytest.approx(1, abs=1e-4)


def test_poisson_gradient_leads_out_of_negative_rates():
    for value in (-0.1, 0.0, RATE_FLOOR / 2):
        x = torch.full((1, 1, 1, 1), value, requires_grad=True)
        (gradient,) = torch.autograd.grad(Poisson(Denoising(), 1.0).log_prob(torch.ones(1, 1, 1, 1), x).sum(), x)
        assert gradient.item() == pytest.approx(1 / RATE_FLOOR - 1)


@pytest.mark.parametrize("name", PHYSICS)
def test_blanked_pixels_say_nothing(name, generator):
    y, x = pair(PHYSICS[name], generator)
    seen = observed(name, y)
    for likelihood in (Gaussian(PHYSICS[name], 0.1), Poisson(PHYSICS[name], 0.1)):
        assert likelihood.num_observed(y) == seen[0].sum()
        altered = torch.where(seen, y.abs(), 5.0)
        torch.testing.assert_close(
            likelihood.log_prob(altered, x), likelihood.log_prob(torch.where(seen, y.abs(), 0), x)
        )


def test_the_noise_of_the_operator_is_the_likelihood(generator):
    physics = operators.denoise(SIZE, "25/255")
    y, x = pair(physics, generator)
    torch.testing.assert_close(from_physics(physics).log_prob(y, x), Gaussian(physics, 25 / 255).log_prob(y, x))
    physics = Denoising(PoissonNoise(gain=0.1, normalize=False))
    y, x = pair(physics, generator)
    torch.testing.assert_close(from_physics(physics).log_prob(y, x), Poisson(physics, 0.1, False).log_prob(y, x))


def test_noiseless_gaussian_has_the_documented_floor(generator):
    physics = operators.downsample(2, SIZE, 0)
    y, x = pair(physics, generator)
    n = y[0].numel()
    torch.testing.assert_close(
        from_physics(physics).log_prob(y, x), torch.full((2,), -n * math.log(SIGMA_FLOOR * math.sqrt(2 * math.pi)))
    )


@pytest.mark.parametrize("noise", [ZeroNoise(), UniformNoise(0.1)])
def test_other_noise_is_refused(noise):
    with pytest.raises(OperatorError, match="GaussianNoise"):
        from_physics(LinearPhysics(A=lambda x: x, A_adjoint=lambda y: y, noise_model=noise))


@pytest.mark.parametrize("level", [-0.1, math.nan, math.inf])
def test_bad_levels_are_refused(level):
    for family in (Gaussian, Poisson):
        with pytest.raises(OperatorError, match=r"^[^\n]+$"):
            family(Denoising(GaussianNoise(0.1)), level)
