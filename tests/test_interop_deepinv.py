"""bayesq as deepinv's reconstructor and denoiser."""

import deepinv
import pytest
import torch

from bayesq import operators
from bayesq.architecture import Architecture
from bayesq.codec import Codec
from bayesq.interop.deepinv import CodecDenoiser, CodingDenoiser, PosteriorReconstructor
from bayesq.restore import restore

TINY = Architecture(8, 4, (8, 8), (1, 1), 8, 4)


@pytest.fixture(scope="module")
def codec() -> Codec:
    torch.manual_seed(0)
    return Codec.build(TINY).exported()


@pytest.fixture
def measured() -> tuple[torch.Tensor, deepinv.physics.Physics]:
    generator = torch.Generator().manual_seed(0)
    physics = operators.denoise((32, 32), 0.1)
    return operators.degrade(torch.rand(1, 3, 32, 32, generator=generator), physics, generator), physics


def test_reconstructor_is_the_posterior_mean(codec, measured):
    model = PosteriorReconstructor(codec, steps=3)
    with torch.no_grad():
        mean = model(*measured, seed=4)
    expected = restore(*measured, codec=codec, steps=3, generator=torch.Generator().manual_seed(4)).mean
    assert isinstance(model, deepinv.models.Reconstructor)
    assert torch.equal(mean, expected)


def test_sampling_gives_mean_and_variance(codec, measured):
    mean, variance = PosteriorReconstructor(codec, steps=3).sample(*measured, n=5)
    assert mean.shape == variance.shape == measured[0].shape
    assert (variance > 0).any()


def test_denoiser_takes_one_level_or_one_for_each_picture(codec, measured):
    model = CodecDenoiser(codec, steps=2)
    assert isinstance(model, deepinv.models.Denoiser)
    assert torch.equal(model(measured[0], 0.1), model(measured[0], torch.tensor([0.1])))


def test_coding_denoiser_serves_plug_and_play(codec, measured):
    y, physics = measured
    model = CodingDenoiser(codec)
    assert torch.equal(model(y, 0.1), model(y, torch.tensor([0.1])))
    solver = deepinv.optim.PGD(
        data_fidelity=deepinv.optim.L2(), prior=deepinv.optim.PnP(model), sigma_denoiser=0.1, stepsize=1.0, max_iter=2
    )
    with torch.no_grad():
        assert solver(y, physics).shape == y.shape
