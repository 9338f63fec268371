"""Files taken for measurements."""

import io

import pytest
import torch
from PIL import Image

from bayesq import operators, tasks
from bayesq.errors import ImageError, OperatorError
from bayesq.io import to_image, to_tensor
from bayesq.likelihoods import Cells, Gaussian, Poisson, PoissonGaussian, UnknownGaussian, weighted
from bayesq.resources import data_dir


@pytest.fixture(scope="module")
def picture():
    with Image.open(data_dir() / "chelsea.png") as image:
        return image.convert("RGB").crop((60, 20, 256, 212))


def noisy(picture, sigma=20 / 255):
    x = to_tensor(picture)
    return to_image(x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))


def coded(picture, form, **options):
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("task", ["denoise", "demosaic", "colorize", "inpaint", "auto"])
def test_noise_is_measured_where_it_is(task, picture):
    image = noisy(picture)
    setting = [torch.ones(192, 196)] if task == "inpaint" else []
    if task in tasks.COLOURED:  # what such a sensor gives
        physics = operators.TASKS[task]((192, 196), 20 / 255)
        y = operators.degrade(to_tensor(picture), physics, torch.Generator().manual_seed(0))
        image = to_image(y.sum(1, keepdim=True))
    found = tasks.take(task, image, coded(image, "PNG"), setting)
    assert found.sigma == pytest.approx(20 / 255, rel=0.12)
    assert isinstance(found.likelihood, Gaussian) and not found.grey
    assert found.physics.A(to_tensor(picture)).shape == found.y.shape
    assert found.task == ("denoise" if task == "auto" else task)


def test_noise_given_is_taken(picture):
    found = tasks.take("superres", picture, b"", [2], "0.03")
    assert found.sigma == 0.03 and float(found.likelihood.sigma) == pytest.approx(0.03)
    assert found.physics.A(torch.zeros(1, 3, 384, 392)).shape == found.y.shape
    assert isinstance(tasks.take("denoise", picture, b"", [], "infer").likelihood, UnknownGaussian)


@pytest.mark.parametrize("noise", ["auto", "0.02"])
def test_photons_are_counted(picture, noise):
    found = tasks.take("denoise", picture, b"", [], noise, 200)
    assert type(found.likelihood) is (Poisson if noise == "auto" else PoissonGaussian)
    assert float(found.likelihood.gain) == pytest.approx(1 / 200) and found.sigma > 0.049
    grey = tasks.take("denoise", picture.convert("L"), b"", [], noise, 200)
    assert grey.grey and grey.likelihood.num_observed(grey.y) == 192 * 196


def test_auto_finds_jpeg_files(picture):
    found = tasks.take("auto", picture, coded(picture, "JPEG", quality=30), [])
    assert found.task == "jpeg" and isinstance(found.likelihood, Cells)
    assert found.sigma < 3 / 255 and "rounding in steps of" in found.summary
    assert isinstance(tasks.take("auto", picture, coded(picture, "PNG"), [], "infer").likelihood, UnknownGaussian)
    other = coded(picture.convert("CMYK"), "JPEG")  # whose coefficients are not read
    assert tasks.take("auto", picture, other, []).task == "denoise"


def test_noise_before_coding_is_measured(picture):
    data = coded(noisy(picture), "JPEG", quality=95)
    with Image.open(io.BytesIO(data)) as image:
        assert tasks.take("auto", image, data, []).sigma == pytest.approx(15 / 255, rel=0.4)


def test_grey_values_count_once(picture):
    grey = picture.convert("L")
    x = to_tensor(picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM).convert("L"))
    z = x.roll(1, -1)
    found = tasks.take("denoise", grey, b"", [], "0.1")
    law, alone = found.likelihood, Gaussian(found.physics, 0.1)
    y = found.y
    ratio = alone.log_prob(y[:, :1], x[:, :1]) - alone.log_prob(y[:, :1], z[:, :1])
    torch.testing.assert_close(law.log_prob(y, x) - law.log_prob(y, z), ratio, rtol=1e-4, atol=0.01)
    unknown, single = weighted(UnknownGaussian(found.physics), 1 / 3), UnknownGaussian(found.physics)
    torch.testing.assert_close(unknown.log_prob(y, x), single.log_prob(y[:, :1], x[:, :1]), rtol=1e-4, atol=0.01)
    assert found.grey and unknown.num_observed(y) == 192 * 196


def test_what_cannot_be_taken(picture):
    with pytest.raises(ImageError, match="not a JPEG"):
        tasks.take("jpeg", picture, coded(picture, "PNG"), [])
    with pytest.raises(OperatorError, match="not inferred"):
        tasks.take("jpeg", picture, coded(picture, "JPEG"), [], "infer")
    for task, noise, count in [("jpeg", "auto", 50), ("denoise", "infer", 50), ("denoise", "auto", 0)]:
        with pytest.raises(OperatorError, match="photons"):
            tasks.take(task, picture, b"", [], noise, count)
