"""Annealed sampling on pixels, against posteriors that are known where the prior is Gaussian."""

import math

import pytest
import torch
from deepinv.physics import GaussianNoise, LinearPhysics, PoissonNoise

from bayesq import operators, restore, zoo
from bayesq.channels import restore_channels
from bayesq.errors import OperatorError
from bayesq.inference import DAPS, VBLE, Posterior
from bayesq.io import read_image, to_tensor
from bayesq.likelihoods import Cells, Gaussian, Impulse, Mixture, Poisson, UnknownGaussian, from_physics
from bayesq.metrics import psnr
from bayesq.resources import data_dir
from bayesq.restore import default_algorithm

SIZE, SIGMA, SPREAD = (8, 8), 0.05, 0.1


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class GaussianPrior:
    """The exact denoiser of pictures whose values are N(½, SPREAD²), independent."""

    def moments(self, x, sigma):
        kept = SPREAD**2 / (SPREAD**2 + sigma**2)
        return 0.5 + kept * (x - 0.5), torch.full_like(x[:, :1], sigma * math.sqrt(kept))

    def __call__(self, x, sigma):
        return self.moments(x, sigma)[0]


def posterior(physics, y, sigma=SIGMA):
    return Posterior(y, from_physics(physics), None, torch.zeros(len(y)), SIZE)


@pytest.fixture
def photo():
    return to_tensor(read_image(data_dir() / "coffee.png").crop((240, 120, 304, 184)))


@pytest.mark.parametrize("noise_alone", [True, False])
def test_samples_follow_a_posterior_that_is_known(noise_alone):
    """Noise alone, or half of the pixels lost: each pixel is of its own."""
    mask = torch.ones(SIZE, dtype=torch.bool) if noise_alone else torch.rand(SIZE, generator=generator(1)) < 0.5
    physics = operators.denoise(SIZE, SIGMA) if noise_alone else operators.inpaint(mask, SIZE, SIGMA)
    truth = 0.5 + SPREAD * torch.randn(1, 3, *SIZE, generator=generator(2))
    y = operators.degrade(truth, physics, generator(3))
    search = DAPS(posterior(physics, y), 10, GaussianPrior(), last=0.001, weight=1, breadth=50, doubt=1)
    state = search.init(torch.full_like(truth, 0.5))
    for _ in range(10):
        state, info = search.step(state, generator())
    draws = search.sample(state, 600, generator())
    precision = 1 / SPREAD**2 + mask / SIGMA**2
    mean, std = 0.5 + (y - 0.5) * mask / SIGMA**2 / precision, precision**-0.5
    z = (draws - mean) / std
    assert z.mean(0).abs().mean() < 0.15 and abs(z.mean()) < 0.05
    assert 0.95 < z.std(0).mean() < 1.05
    assert math.isnan(info.elbo) and math.isfinite(info.log_likelihood)
    assert search.cells(state) == []


@pytest.mark.parametrize("count", [6, 7])
def test_samples_behind_an_operator_are_mirrored_at_the_estimate(photo, count):
    physics = operators.blur("gaussian:1.5", photo.shape[-2:], 0.01)
    y = operators.degrade(photo.clamp(0.3, 0.7), physics, generator())
    search = DAPS(Posterior(y, from_physics(physics), None, torch.zeros(1), tuple(photo.shape[-2:])), 2)
    state, _ = search.step(search.init(y.clamp(0, 1)), generator())
    draws = search.sample(state, count, generator())
    assert len(draws) == count
    torch.testing.assert_close(draws.mean(0), state.picture)
    away = draws - draws.mean(0)
    if count % 2 == 0:
        torch.testing.assert_close(away[::2], -away[1::2], atol=1e-5, rtol=0)
    assert away[0].std() > 0.003 and (away[0] * away[2]).mean().abs() < 0.3 * away.var()


def test_the_search_fits_the_measurement_and_the_samples_differ(photo):
    physics = operators.blur("gaussian:1.5", photo.shape[-2:], 0.01)
    y = operators.degrade(photo, physics, generator())
    found, again = (restore(y, physics, algorithm=DAPS, samples=6, calibrated=False) for _ in range(2))
    assert found.cells == [] and found.quality is None and len(found.trace) == DAPS.default_steps(physics)
    assert psnr(found.mean, photo) > psnr(y, photo) + 2
    assert all(psnr(found.mean, photo) > psnr(sample, photo) for sample in found.samples)
    assert (physics.A(found.mean) - y).square().mean().sqrt() < 0.015
    assert torch.equal(found.samples, again.samples)


@pytest.mark.parametrize("task", ["blur", "reduction", "holes"])
def test_a_measurement_without_noise_is_fitted_to_less_than_a_step_of_eight_bits(photo, task):
    size = (64, 64)
    mask = torch.rand(size, generator=generator(1)) < 0.5
    physics = {
        "blur": operators.blur("gaussian:1", size, 0.0),
        "reduction": operators.downsample(2, size, 0.0),
        "holes": operators.inpaint(mask, size, 0.0),
    }[task]
    y = operators.degrade(photo, physics, generator())
    restoration = restore(y, physics, samples=2)
    assert (physics.A(restoration.mean) - y)[y > 0].abs().median() < 0.15 / 255  # means are clipped here and there


def test_the_mean_of_noise_alone_is_the_denoisers_over_all_symmetries_of_the_square(photo):
    photo = photo[..., :48]
    physics = operators.denoise(photo.shape[-2:], 0.1)
    y = operators.degrade(photo, physics, generator())
    found = restore(y, physics, samples=4)
    denoiser = zoo.denoiser()
    mirrored = [y, y.flip(2), y.flip(3), y.flip(2, 3)]
    means = [denoiser(x, 0.1) for x in mirrored], [denoiser(x.mT.contiguous(), 0.1).mT for x in mirrored]
    a, b, c, d = (torch.stack(pair).mean(0) for pair in zip(*means, strict=True))
    assert (found.mean - (a + b.flip(2) + c.flip(3) + d.flip(2, 3)) / 4).abs().mean() < 1e-3
    assert psnr(found.mean, photo) > psnr(denoiser(y, 0.1), photo) > psnr(y, photo) + 8 and found.quality is None


def test_turned_pictures_are_restored_alike(photo):
    """A symmetric operator, and steps as many times as there are symmetries: only the noise's bits differ."""
    physics = operators.blur("gaussian:1", photo.shape[-2:], 0.02)
    y = operators.degrade(photo, physics, generator())
    found, turned = (
        restore(measured, physics, algorithm=DAPS, samples=2, calibrated=False).mean for measured in (y, y.mT)
    )
    assert psnr(found, turned.mT) > psnr(found, photo) + 6


def test_a_codec_or_a_quality_asks_for_vble(photo, tiny_codec):
    physics = operators.denoise(photo.shape[-2:], 0.1)
    y = operators.degrade(photo, physics, generator())
    found = restore(y, physics, codec=tiny_codec, samples=4, steps=1, grids=1)
    assert found.cells and found.quality is not None


MAP = torch.linspace(0.02, 0.15, 64).view(1, 1, 1, 64)
NOISES = {
    "photons": (lambda physics: Poisson(physics, 0.02), None),
    "unknown": (UnknownGaussian, 0.06),
    "a map": (lambda physics: Gaussian(physics, MAP), MAP),
    "outliers": (lambda physics: Mixture(physics, [Gaussian(physics, 0.05), Impulse(physics)], [0.9, 0.1]), 0.05),
}


@pytest.mark.parametrize("name", NOISES)
def test_noise_that_is_nearly_gaussian_is_removed(photo, name):
    build, sigma = NOISES[name]
    physics = operators.denoise(photo.shape[-2:], 0.05)
    if sigma is None:
        physics.noise_model = PoissonNoise(gain=0.02)
        y = operators.degrade(photo, physics, generator())
    else:
        y = photo + sigma * torch.randn(photo.shape, generator=generator())
    if name == "outliers":
        hit, wild = (torch.rand(y.shape, generator=generator(seed)) for seed in (1, 2))
        y = torch.where(hit < 0.1, wild, y)
    likelihood = build(physics)
    assert default_algorithm(likelihood) is DAPS
    found = restore(y, physics, likelihood=likelihood, samples=6)
    assert psnr(found.mean, photo) > psnr(y, photo) + 6.5 and found.quality is None
    if name == "unknown":
        assert likelihood.sigma(y, found.samples, generator()).mean() == pytest.approx(sigma, rel=0.1)


def test_the_default_depends_on_the_noise(photo):
    size = photo.shape[-2:]
    plain, blur = operators.denoise(size, 0.1), operators.blur("gaussian:1", size, 0.1)
    rounded = Cells(plain, 0.1, 0.01)
    assert default_algorithm(from_physics(plain)) is DAPS and default_algorithm(from_physics(blur)) is DAPS
    assert default_algorithm(rounded) is VBLE
    assert default_algorithm(Mixture(plain, [Gaussian(plain, 0.1), rounded], [0.5, 0.5])) is VBLE


def test_other_noise_is_refused(photo):
    physics = operators.denoise(photo.shape[-2:], 0.1)
    with pytest.raises(OperatorError, match="nearly Gaussian"):
        restore(photo, physics, likelihood=Cells(physics, 0.1, 0.01), algorithm=DAPS)


@pytest.mark.parametrize("task", ["denoise", "deblur"])
def test_grey_pictures_are_restored_as_well_as_others(photo, task):
    size, sigma = photo.shape[-2:], 0.1
    physics = operators.denoise(size, sigma) if task == "denoise" else operators.blur("gaussian:1", size, sigma)
    grey = photo.mean(1, keepdim=True)
    y = operators.degrade(grey.expand(-1, 3, -1, -1), physics, generator())[:, :1]
    found = restore_channels(y, physics, samples=4)
    coloured = restore(operators.degrade(photo, physics, generator()), physics, samples=4)
    assert psnr(found.mean, grey) > psnr(y, grey) + 4
    assert psnr(found.mean, grey) > psnr(coloured.mean, photo) - 2.5


def test_what_an_operator_of_ones_own_does_not_see_is_filled(photo):
    seen = torch.ones(64)
    seen[5::9] = 0
    noise = GaussianNoise(5 / 255)
    physics = LinearPhysics(A=lambda x, **_: seen * x, A_adjoint=lambda y, **_: seen * y, noise_model=noise)
    found = restore(operators.degrade(photo, physics, generator()), physics, samples=2)
    error = (found.mean - photo).square().mean((0, 1, 2)).sqrt()
    assert error[5::9].max() < 0.1
