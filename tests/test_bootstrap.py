"""Restorations of restorations: what they measure, and what they find."""

import math
from functools import partial

import pytest
import torch
from deepinv.physics import Denoising, PoissonNoise

from bayesq import bootstrap, operators
from bayesq.calibration import FILE, Calibration, Problem
from bayesq.denoiser import Denoiser, Sizes
from bayesq.inference import DAPS
from bayesq.likelihoods import from_physics
from bayesq.restore import Restoration, restore

SIZE = (64, 64)
MASK = torch.arange(64).remainder(2).expand(SIZE)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    "physics",
    [
        operators.denoise(SIZE, 0.1),
        operators.blur("gaussian:1", SIZE, 0.05),
        operators.downsample(2, SIZE, 0.03),
        operators.inpaint(MASK, SIZE, 0.05),
        operators.demosaic(SIZE, 0.05),
        operators.colorize(SIZE, 0.05),
        operators.compress(0.5, SIZE, 0.05),
        Denoising(PoissonNoise(gain=0.01)),
    ],
    ids=lambda physics: type(physics).__name__,
)
def test_measurements_have_the_noise_of_the_first(physics, generator):
    x = torch.linspace(0.3, 0.7, 64).expand(1, 3, *SIZE) * torch.tensor([0.8, 1.0, 1.2]).view(1, 3, 1, 1)
    y = operators.degrade(x, physics, generator)
    noise = bootstrap.measure(x, x, y, from_physics(physics), generator) - physics.A(x)
    expected = y - physics.A(x)
    assert noise.shape == y.shape
    assert (noise == 0).float().mean() == pytest.approx((expected == 0).float().mean().item(), abs=0.02)
    assert noise.std() == pytest.approx(expected.std().item(), rel=0.06)
    assert abs((noise * expected).mean()) < 0.05 * expected.var()


def test_grey_measurements_stay_grey(generator):
    physics = operators.blur("gaussian:1", SIZE, 0.05)
    y = torch.rand(2, 1, *SIZE, generator=generator).expand(2, 3, *SIZE)
    x = torch.rand(2, 3, *SIZE, generator=generator)
    found = bootstrap.measure(x, x, y, from_physics(physics), generator)
    torch.testing.assert_close(found[:, :1].expand_as(found), found, rtol=0, atol=1e-6)


def test_the_excess_is_that_of_errors_over_deviations_nearby(generator):
    physics = operators.denoise(SIZE, 0.1)
    mean, std = 0.5 + 0.1 * torch.rand(2, 3, *SIZE, generator=generator), torch.full((2, 3, *SIZE), 0.02)
    times = torch.ones(2, 1, *SIZE)
    times[..., 32:], times[1] = 4.0, 2.0
    moved = torch.zeros(2, 3, *SIZE)

    def again(y):
        known = torch.cat([mean[..., :1, :], mean[..., :-1, :]], -2)
        known = torch.cat([known[..., :1], known[..., :-1]], -1)
        moved.copy_(known)
        return Restoration(
            known + times * std * torch.randn(mean.shape, generator=generator), std, mean[None], [], (), None, 0.0
        )

    restoration = Restoration(mean, std, mean[None], [], (), None, 0.0)
    found = bootstrap.excess(restoration, mean, from_physics(physics), again, generator)
    assert found.shape == (2, 1, *SIZE)
    normal = math.sqrt(2 / math.pi)
    for part, expected in ((found[0, ..., :8], 1), (found[0, ..., -8:], 4), (found[1], 2)):
        assert part.mean() == pytest.approx(expected * normal, rel=0.07)


def test_pictures_without_error_or_deviation_have_no_excess(generator):
    physics, mean = operators.denoise((1, 1), 0.1), torch.full((1, 3, 1, 1), 0.5)
    sure = Restoration(mean, torch.zeros_like(mean), mean[None], [], (), None, 0.0)
    found = bootstrap.excess(sure, mean, from_physics(physics), lambda y: sure, generator)
    torch.testing.assert_close(found, torch.ones(1, 1, 1, 1))


def test_restorations_are_spread_by_their_own_excess(tmp_path, generator):
    Denoiser(Sizes((8, 16), 1, 1)).save(tmp_path / "weights.safetensors")
    denoiser = Denoiser.load(tmp_path / "weights.safetensors")
    physics = operators.blur("gaussian:1", SIZE, 0.02)
    y = operators.degrade(0.4 + 0.2 * torch.rand(1, 3, *SIZE, generator=generator), physics, generator)

    def run(**options):
        return restore(y, physics, algorithm=partial(DAPS, denoiser=denoiser), steps=2, samples=8, **options)

    plain = run()
    problem = Problem.of(physics, SIZE)
    Calibration(denoiser.model_id.hex(), (problem,), (2.0,), (0.5,), bootstrapped=True).save(tmp_path / FILE)
    spread, again, narrow = run(), run(), run(calibrated=False)
    assert torch.equal(narrow.std, plain.std) and torch.equal(again.std, spread.std)
    assert torch.equal(spread.mean, plain.mean)
    squared = (spread.std / plain.std / 2).square().mean(1, keepdim=True)
    assert squared.std() > 0 and squared.min() > 0
    assert (squared[..., 1:] / squared[..., :-1]).log().abs().max() < 0.2
