from io import BytesIO

import pytest
import torch
import torch.nn.functional as F
from skimage import data

from bayesq import operators
from bayesq.errors import ImageError
from bayesq.io import to_image
from bayesq.noise import estimate_coded_sigma, estimate_masked_sigma, estimate_sigma

PHOTOGRAPHS = ["astronaut", "chelsea", "coffee", "rocket"]


def photograph(name):
    return torch.from_numpy(getattr(data, name)()).permute(2, 0, 1)[None].float() / 255


def noise(like, sigma, seed=0):
    return sigma * torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("level", [5, 10, 25, 50])
@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_white_noise_on_photographs_is_measured(name, level):
    x = photograph(name)
    assert estimate_sigma(x + noise(x, level / 255)) == pytest.approx(level / 255, rel=0.15)


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_a_photograph_as_shot_has_little_noise(name):
    assert estimate_sigma(photograph(name)) < 2.5 / 255


@pytest.mark.parametrize("level", [2, 5, 25])
def test_the_noise_of_a_blurred_photograph_is_measured(level):
    x = photograph("astronaut")
    y = operators.degrade(
        x, operators.blur("motion:15,30", x.shape[-2:], level / 255), torch.Generator().manual_seed(0)
    )
    assert estimate_sigma(y) == pytest.approx(level / 255, rel=0.05)


def test_it_is_closer_than_the_median_of_haar_details():
    """The plain robust estimate: the finest diagonal Haar coefficients, over the normal law's 0.6745."""
    errors = []
    for name in PHOTOGRAPHS:
        y = photograph(name)
        y = y + noise(y, 5 / 255)
        haar = F.pixel_unshuffle(y[..., : y.shape[-2] // 2 * 2, : y.shape[-1] // 2 * 2], 2).unflatten(1, (3, 4))
        details = (haar[:, :, 0] - haar[:, :, 1] - haar[:, :, 2] + haar[:, :, 3]) / 2
        errors.append((abs(estimate_sigma(y) - 5 / 255), abs(float(details.abs().median()) / 0.6745 - 5 / 255)))
    ours, theirs = torch.tensor(errors).mean(0)
    assert ours < theirs / 2


def test_it_scales_with_the_picture():
    y = photograph("chelsea")
    y = y + noise(y, 0.05)
    assert estimate_sigma(3 * y - 1) == pytest.approx(3 * estimate_sigma(y), rel=1e-3)


def test_a_batch_of_one_level_and_grey_pictures_are_measured():
    x = torch.cat([photograph("astronaut")[..., :200, :200], photograph("coffee")[..., :200, :200]])
    assert estimate_sigma(x + noise(x, 0.05)) == pytest.approx(0.05, rel=0.05)
    grey = x.mean(1, keepdim=True)
    noisy = grey + noise(grey, 0.05)
    assert estimate_sigma(noisy.expand_as(x)) == pytest.approx(0.05, rel=0.15) == estimate_sigma(noisy)


@pytest.mark.parametrize("size", [48, 64, 127])
def test_small_pictures_are_measured(size):
    x = F.interpolate(photograph("astronaut"), size=(size, size), mode="area")
    assert estimate_sigma(x + noise(x, 0.1)) == pytest.approx(0.1, rel=0.2)


def test_a_constant_picture_has_no_noise():
    assert estimate_sigma(torch.full((1, 3, 64, 64), 0.3)) < 1e-4


@pytest.mark.parametrize("y", [torch.zeros(1, 3, 47, 90), torch.full((1, 3, 64, 64), torch.nan)])
def test_hopeless_pictures_are_refused(y):
    with pytest.raises(ImageError, match=r"^[^\n]+$"):
        estimate_sigma(y)


@pytest.mark.parametrize("share", [0.4, 1.0])
@pytest.mark.parametrize("sigma", [10 / 255, 40 / 255])
def test_noise_between_holes(share, sigma):
    generator = torch.Generator().manual_seed(0)
    ramp = torch.linspace(0, 1, 96)[:, None] * torch.linspace(0.2, 1, 80)
    observed = (torch.rand(1, 1, 96, 80, generator=generator) < share).float()
    y = observed * (ramp + sigma * torch.randn(1, 3, 96, 80, generator=generator))
    assert estimate_masked_sigma(y, observed) == pytest.approx(sigma, rel=0.12)


def test_noise_of_lone_pixels_is_unknown():
    observed = torch.zeros(1, 1, 96, 80)
    observed[..., ::2, ::2] = 1
    with pytest.raises(ImageError, match="so few neighbouring"):
        estimate_masked_sigma(torch.rand(1, 3, 96, 80), observed)


@pytest.mark.parametrize("name", PHOTOGRAPHS[:2])
def test_noise_before_a_jpeg_file_is_found(name):
    """Even where chroma is subsampled; what was rounded away counts as none."""

    def found(x, quality):
        buffer = BytesIO()
        to_image(x).save(buffer, "JPEG", quality=quality)
        return estimate_coded_sigma(*operators.open_jpeg(buffer.getvalue()))

    x = photograph(name)[..., :256, :256]
    y = x + noise(x, 20 / 255)
    assert found(y, 95) == pytest.approx(20 / 255, rel=0.1)
    assert found(y, 10) == 0.0
    assert found(x, 80) == 0.0 and found(x, 95) < 5 / 255
