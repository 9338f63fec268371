"""Errors are drawn with the spectra that they are said to have, and the shipped denoiser's have them."""

import pytest
import torch

from bayesq import zoo
from bayesq.inference.texture import CHROMA, LUMA, error_field
from bayesq.io import read_image, to_tensor
from bayesq.resources import data_dir

LEVELS = [5 / 255, 25 / 255, 0.4]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def covariance(z):
    """Of the channels of values (…, 3, H, W)."""
    rows = z.movedim(-3, 0).flatten(1)
    return rows @ rows.T / rows.shape[1]


def neighbours(z):
    """Correlation of values with those next to them."""
    return ((z[..., 1:] * z[..., :-1]).mean() + (z[..., 1:, :] * z[..., :-1, :]).mean()) / 2 / z.square().mean()


def parts(z):
    luma = z.mean(-3, keepdim=True)
    return luma, z - luma


@pytest.mark.parametrize("sigma", LEVELS)
def test_fields_are_of_variance_one_and_coloured_as_channels_are(sigma):
    z = error_field((60, 3, 90, 61), sigma, generator())
    assert z.shape == (60, 3, 90, 61) and abs(z.mean()) < 0.03
    expected = torch.full((3, 3), (LUMA - CHROMA) / 3) + CHROMA * torch.eye(3)
    torch.testing.assert_close(covariance(z), expected, atol=0.05, rtol=0)
    assert torch.equal(z, error_field((60, 3, 90, 61), sigma, generator()))


def test_the_stronger_the_noise_the_coarser_are_errors_and_chroma_most():
    fields = [parts(error_field((20, 3, 64, 64), sigma, generator())) for sigma in LEVELS]
    luma, chroma = ([float(neighbours(field[k])) for field in fields] for k in (0, 1))
    assert luma == sorted(luma) and chroma == sorted(chroma)
    assert all(fine < coarse for fine, coarse in zip(luma, chroma, strict=True))


def test_borders_do_not_touch_on_the_other_side():
    z = error_field((200, 3, 32, 32), 0.1, generator())
    assert (z[..., 0] * z[..., 1]).mean() > 0.4
    assert abs((z[..., 0] * z[..., -1]).mean()) < 0.1


@pytest.mark.parametrize("sigma", [10 / 255, 50 / 255])
def test_the_shipped_denoiser_errs_like_that(sigma):
    names = ("astronaut", "chelsea", "coffee")
    x = torch.cat([to_tensor(read_image(data_dir() / f"{name}.png"))[..., 40:200, 40:200] for name in names])
    mean, std = zoo.denoiser().moments(x + sigma * torch.randn(x.shape, generator=generator()), sigma)
    found, drawn = (x - mean) / std, error_field(x.shape, sigma, generator(1))
    assert 0.8 < found.std() < 1.2
    for ours, theirs in zip(parts(found), parts(drawn), strict=True):
        assert neighbours(ours) == pytest.approx(float(neighbours(theirs)), abs=0.2)
        assert ours.std() == pytest.approx(float(theirs.std()), rel=0.25)
