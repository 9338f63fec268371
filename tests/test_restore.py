"""Restoration of small pictures with a codec at its analytic start."""

import math
from dataclasses import replace
from functools import partial

import deepinv.physics as dinv
import pytest
import torch
from deepinv.utils import TensorList

from bayesq import operators
from bayesq.errors import BayesqError, ImageError, ModelError, OperatorError
from bayesq.inference import DAPS, VBLE, MAPz, REDDiff, ScoreDVI
from bayesq.metrics import psnr
from bayesq.resources import data_dir
from bayesq.restore import restore
from bayesq.training.data import Crops

SIZE, NOISE = (64, 64), dinv.GaussianNoise(0.1)
BOX = torch.full((1, 1, 3, 3), 1 / 9)
FOREIGN = {
    "valid blur": lambda: dinv.Blur(BOX, noise_model=NOISE),
    "circular blur": lambda: dinv.Blur(BOX, padding="circular", noise_model=NOISE),
    "blur by FFT": lambda: dinv.BlurFFT((3, *SIZE), BOX, noise_model=NOISE),
    "circular reduction": lambda: dinv.Downsampling((3, *SIZE), filter="bicubic", factor=2, noise_model=NOISE),
    "random projections": lambda: dinv.CompressedSensing(m=200, img_size=(3, *SIZE), noise_model=NOISE),
    "colours to grey": lambda: dinv.Decolorize(noise_model=NOISE),
    "photons": lambda: dinv.Denoising(dinv.PoissonNoise(0.05)),
    "photons and noise": lambda: dinv.Denoising(dinv.PoissonGaussianNoise(0.05, 0.05)),
    "a sensor": lambda: operators.demosaic(SIZE, 0.1),
    "few measurements": lambda: operators.compress(0.5, SIZE, 0.05),
    "JPEG": lambda: operators.JPEG(SIZE, [torch.full((8, 8), 40.0)] * 3, [(1, 1), (2, 2), (2, 2)]),
    "even kernel": lambda: operators.blur(torch.ones(4, 2), SIZE, 0.1),
    "no noise": lambda: operators.denoise(SIZE, 0.0),
}
TASKS = {
    "denoise": lambda size: operators.denoise(size, 0.1),
    "deblur": lambda size: operators.blur("gaussian:0.3", size, 0.1),
    "superres": lambda size: operators.downsample(min(2, *size), size, 0.1),
    "inpaint": lambda size: operators.inpaint(torch.ones(size), size, 0.1),
}


@pytest.fixture(scope="module")
def codec(tiny_codec):
    return tiny_codec.exported()


@pytest.fixture(scope="module")
def picture():
    return Crops([data_dir() / "astronaut.png"]).draw(2, 64, torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def measured(picture):
    physics = operators.denoise(SIZE, 0.1)
    return operators.degrade(picture, physics, torch.Generator().manual_seed(0)), physics


@pytest.mark.parametrize("algorithm", [VBLE, MAPz])
def test_denoises_and_says_how_well(algorithm, codec, picture, measured):
    y, physics = measured
    result = restore(y, physics, codec=codec, quality=30, algorithm=algorithm, steps=20, samples=8, grids=1)
    assert (psnr(result.mean, picture) > psnr(y, picture) + 2).all()
    assert result.samples.shape == (8, *y.shape)
    assert result.mean.min() >= 0 and result.mean.max() <= 1
    torch.testing.assert_close(result.mean, result.samples.mean(0))
    torch.testing.assert_close(result.std, result.samples.std(0))
    assert (result.std > 0).any() == (algorithm is VBLE)
    assert len(result.trace) == 20 and result.trace[-1].elbo > result.trace[0].elbo
    assert [cell.centre.shape[0] for cell in result.cells] == [2] * 10
    assert not any(cell.centre.requires_grad or cell.width.requires_grad for cell in result.cells)
    assert result.quality == pytest.approx(30, abs=0.2) and result.seconds > 0


def test_quality_follows_the_noise_unless_given(codec, measured):
    results = [restore(*measured, codec=codec, quality=q, steps=1, samples=2) for q in (None, 0, 100)]
    assert 0 <= results[0].quality <= 100
    assert [result.quality for result in results[1:]] == [0, 100]


def test_generator_settles_everything(codec, measured):
    def mean(seed: int | None) -> torch.Tensor:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return restore(*measured, codec=codec, steps=3, samples=2, generator=generator).mean

    assert torch.equal(mean(4), mean(4))
    assert torch.equal(mean(None), mean(0))
    assert not torch.equal(mean(4), mean(5))


@pytest.mark.parametrize(("kind", "grids"), [(VBLE, 4), (MAPz, 4), (REDDiff, 1), (ScoreDVI, 1), (DAPS, 1)])
def test_pixels_have_one_grid_and_a_partial_is_what_it_is_of(kind, grids, codec, measured):
    results = [
        restore(*measured, codec=codec, algorithm=algorithm, steps=5, samples=4) for algorithm in (kind, partial(kind))
    ]
    for result in results:
        assert len(result.trace) == 5 + (grids - 1) * 2
        assert (result.quality is None) == (grids == 1)
    assert torch.equal(results[0].samples, results[1].samples)


@pytest.mark.parametrize("name", FOREIGN)
def test_any_operator_of_deepinv(name, codec, picture):
    physics = FOREIGN[name]()
    with torch.no_grad():
        y = physics(picture[:1])
    result = restore(y, physics, codec=codec, quality=30, steps=10, samples=2, grids=1)
    assert result.mean.shape == picture[:1].shape and result.mean.isfinite().all()
    assert result.trace[-1].elbo > result.trace[0].elbo


@pytest.mark.parametrize("size", [(1, 1), (1, 37), (33, 1), (2, 3), (31, 65)])
@pytest.mark.parametrize("task", TASKS)
def test_any_size(task, size, codec):
    x = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1))
    try:
        physics = TASKS[task](size)
    except OperatorError as error:  # the kernel is larger than the picture
        assert task == "deblur" and min(size) < 3 and "\n" not in str(error)
        return
    y = operators.degrade(x, physics, torch.Generator().manual_seed(0))
    result = restore(y, physics, codec=codec, steps=2, samples=2)
    assert result.mean.shape == x.shape and result.mean.isfinite().all() and result.std.isfinite().all()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"y": torch.full((1, 3, *SIZE), math.nan)}, ImageError),
        ({"y": torch.zeros(1, 3, *SIZE, dtype=torch.uint8)}, ImageError),
        ({"y": TensorList([torch.zeros(1, 3, *SIZE)] * 2)}, OperatorError),
        ({"physics": dinv.Physics(A=lambda x, **_: x**2, noise_model=NOISE)}, OperatorError),
        ({"quality": -1}, ModelError),
        ({"quality": 101}, ModelError),
        ({"quality": math.nan}, ModelError),
        ({"samples": 1}, OperatorError),
        ({"steps": 0}, OperatorError),
        ({"prior_weight": math.nan}, OperatorError),
        ({"prior_weight": -1.0}, OperatorError),
        ({"y": torch.zeros(1, 1, *SIZE)}, OperatorError),
        ({"y": torch.zeros(1, 4, *SIZE)}, OperatorError),
        ({"y": torch.zeros(3, *SIZE)}, OperatorError),
        ({"y": torch.zeros(0, 3, *SIZE)}, OperatorError),
        ({"physics": operators.downsample(2, SIZE, 0.1)}, OperatorError),
        ({"physics": operators.inpaint(torch.ones(32, 32), (32, 32), 0.1)}, OperatorError),
        ({"physics": dinv.Denoising(dinv.ZeroNoise())}, OperatorError),
        ({"physics": dinv.Inpainting((3, *SIZE), mask=torch.zeros(1, 1, *SIZE), noise_model=NOISE)}, OperatorError),
        ({"physics": dinv.Blur(BOX * math.nan, padding="replicate", noise_model=NOISE)}, OperatorError),
        ({"physics": dinv.Denoising(dinv.GaussianNoise(math.nan))}, OperatorError),
        ({"physics": dinv.Denoising(dinv.LaplaceNoise(0.1))}, OperatorError),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(change, error, codec, measured):
    y, physics = measured
    with pytest.raises(error) as caught:
        restore(**{"y": y, "physics": physics, "codec": codec, "steps": 1, **change})
    assert isinstance(caught.value, BayesqError) and "\n" not in str(caught.value)


def test_grids_share_out_samples_and_gain(codec, picture, measured):
    """The mixture over positions on the grid has all its samples, and a better mean than one position."""
    y, physics = measured
    one, four = (restore(y, physics, codec=codec, quality=30, steps=20, samples=8, grids=n) for n in (1, 4))
    assert four.samples.shape == one.samples.shape and len(four.trace) == 20 + 3 * 8 and len(one.trace) == 20
    assert (psnr(four.mean, picture) > psnr(one.mean, picture)).all()
    with pytest.raises(OperatorError):
        restore(y, physics, codec=codec, grids=5)


@pytest.fixture(scope="module")
def spread(codec, measured):
    return restore(*measured, codec=codec, quality=30, steps=4, samples=6)


def test_components_share_out_the_variance(spread):
    """Orthogonal, the longest first, brightening; squared they add up to the variance of every value."""
    found = spread.components(5)
    assert found.shape == (5, *spread.mean.shape)
    torch.testing.assert_close(found.square().sum(0), spread.samples.var(0), rtol=1e-3, atol=1e-7)
    for each in found.flatten(2).transpose(0, 1):
        gram = each @ each.T
        lengths = gram.diagonal()
        assert (gram - lengths.diag()).abs().max() < 1e-4 * lengths.max() and (lengths.diff() <= 0).all()
        assert (each.sum(1) >= -1e-4).all()
    torch.testing.assert_close(spread.components(2), found[:2])


def test_a_single_direction_is_found(spread):
    """Of pictures along a line, the first component is the line, as long as their deviation."""
    direction = spread.components(1)[0]
    along = torch.tensor([-1.0, 0.0, 1.0]).view(-1, 1, 1, 1, 1)
    pictures = replace(spread, samples=spread.mean + 3 * along * direction)
    torch.testing.assert_close(pictures.components(1)[0], 3 * direction, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("level", [0.0, 1.0, 1.5, math.nan])
def test_intervals_have_a_probability(level, spread):
    with pytest.raises(OperatorError, match="probability"):
        spread.interval(level)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("algorithm", [VBLE, DAPS])
def test_gradients_may_be_off_around_it(algorithm, mode, codec, measured):
    y, physics = measured
    with mode():
        inside = restore(y + 0, physics, codec=codec, algorithm=algorithm, steps=2, samples=2, grids=1)
    outside = restore(y, physics, codec=codec, algorithm=algorithm, steps=2, samples=2, grids=1)
    assert torch.equal(inside.samples, outside.samples)


@pytest.mark.parametrize("n", [0, 6])
def test_components_are_fewer_than_samples(n, spread):
    with pytest.raises(OperatorError, match="6 samples have 1 to 5 components"):
        spread.components(n)


def test_grey_averages_the_channels(spread):
    grey = spread.grey()
    torch.testing.assert_close(grey.mean, grey.samples.mean(0))
    torch.testing.assert_close(grey.std, grey.samples.std(0))
    torch.testing.assert_close(grey.samples[..., 0, :, :], spread.samples.mean(2))


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_interval_reaches_as_far_as_said(level, spread):
    wide = replace(spread, mean=torch.full_like(spread.mean, 0.5), std=torch.full_like(spread.std, 0.01))
    low, high = wide.interval(level)
    torch.testing.assert_close(high - low, 0.02 * wide.reach(level) * torch.ones_like(low))
