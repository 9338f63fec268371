"""What tests of quantisation share: a small codec, pictures, and what its layers see."""

import pytest
import torch
import torch.nn.functional as F

from bayesq import zoo
from bayesq.quantization import Calibration
from bayesq.quantization.calibration import convolutions, observe
from bayesq.quantization.draft import Draft
from bayesq.resources import data_dir


@pytest.fixture(scope="module")
def base(small_codec_path):
    return zoo.load(small_codec_path)


@pytest.fixture(scope="module")
def data():
    return Calibration.of([data_dir()], count=4, side=64)


@pytest.fixture(scope="module")
def drafts(base, data):
    convs = convolutions(base, ["analysis", "synthesis"])
    seen = observe(base, list(convs), data.batch())
    return {name: Draft.of(conv, seen[name]) for name, conv in convs.items()}


@pytest.fixture(scope="module")
def picture(data):
    return data.batch().pictures[:1]


@pytest.fixture(scope="module")
def draft():
    """A layer with outliers among its inputs' channels, and correlated inputs."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(16, 16, generator=generator) / 3
    inputs = torch.einsum("nchw,cd->ndhw", torch.randn(8, 16, 10, 10, generator=generator), mix) + 0.5
    inputs[:, 3] *= 20
    weight = torch.randn(12, 16, 3, 3, generator=generator) / 12
    padded = F.pad(inputs, (1, 1, 1, 1))
    return Draft(weight, torch.zeros(12), (1, 1), padded, torch.ones_like(padded), torch.ones_like(weight), 1.0)
