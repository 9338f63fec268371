"""Pictures of any number of channels, by a prior for three."""

import pytest
import torch

from bayesq import operators
from bayesq.channels import restore_channels
from bayesq.errors import OperatorError
from bayesq.metrics import psnr
from bayesq.resources import data_dir
from bayesq.restore import restore
from bayesq.training.data import Crops

SIZE = (32, 32)
QUICK = {"quality": 30, "steps": 12, "samples": 4, "grids": 1}


@pytest.fixture(scope="module")
def codec(tiny_codec):
    return tiny_codec.exported()


@pytest.fixture(scope="module")
def measured():
    x = Crops([data_dir() / "astronaut.png"]).draw(2, 32, torch.Generator().manual_seed(2))
    physics = operators.denoise(SIZE, 0.1)
    bands = torch.cat([x, x.flip(-1)], 1)
    noise = 0.1 * torch.randn(bands.shape, generator=torch.Generator().manual_seed(0))
    return bands, bands + noise, physics


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6])
def test_any_number_of_channels_comes_back_better(count, codec, measured):
    x, y, physics = (v[:, :count] if isinstance(v, torch.Tensor) else v for v in measured)
    found = restore_channels(y, physics, codec=codec, **QUICK)
    assert found.mean.shape == found.std.shape == x.shape and found.samples.shape == (4, *x.shape)
    assert (psnr(found.mean, x) > psnr(y, x) + 2).all()
    torch.testing.assert_close(found.mean, found.samples.mean(0))
    assert (found.std > 0).any() and len(found.trace) == 12 * -(-count // 3)


def test_three_channels_are_a_colour_picture(codec, measured):
    _, y, physics = measured
    found, plain = (f(y[:, :3], physics, codec=codec, **QUICK) for f in (restore_channels, restore))
    assert torch.equal(found.samples, plain.samples)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 0, 32, 32)])
def test_other_shapes_are_refused(shape, codec, measured):
    with pytest.raises(OperatorError, match="four dimensions"):
        restore_channels(torch.zeros(shape), measured[2], codec=codec)
