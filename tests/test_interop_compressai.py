"""CompressAI's models, imported, give CompressAI's own numbers."""

import copy

import pytest
import torch
from compressai.models import (
    Cheng2020Anchor,
    Cheng2020Attention,
    FactorizedPrior,
    JointAutoregressiveHierarchicalPriors,
    MeanScaleHyperprior,
    ScaleHyperprior,
    ScaleHyperpriorVbr,
)

from bayesq.codec import Codec
from bayesq.errors import BitstreamError, ModelError
from bayesq.prior import drive

CODABLE = {
    "factorized": lambda: FactorizedPrior(8, 12),
    "scale": lambda: ScaleHyperprior(8, 12),
    "mean and scale": lambda: MeanScaleHyperprior(8, 12),
}
CONTEXT = {
    "joint": lambda: JointAutoregressiveHierarchicalPriors(6, 6),
    "cheng anchor": lambda: Cheng2020Anchor(6),
    "cheng attention": lambda: Cheng2020Attention(6),
}
MODELS = CODABLE | CONTEXT
LEVEL = torch.zeros(1, dtype=torch.int64)


def build(name, dtype=torch.float64):
    """A model with random weights whose densities and scales vary."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = MODELS[name]().eval()
        with torch.no_grad():
            model.entropy_bottleneck.quantiles[:, 0, 1].uniform_(-0.5, 0.5)
            for factor in model.entropy_bottleneck.factors:
                factor.normal_()
            list(model.g_a.parameters())[-2].mul_(20)
            if name != "factorized":
                laws = list((model.entropy_parameters if name in CONTEXT else model.h_s).parameters())
                laws[-2].mul_(8)
                laws[-1][: model.M] += 3
    return model.to(dtype)


@pytest.fixture(scope="module", params=MODELS)
def pair(request):
    model = build(request.param)
    return model, Codec.from_compressai(model)


@pytest.fixture(scope="module", params=CODABLE)
def coder(request):
    model = build(request.param, torch.float32)
    return model, Codec.from_compressai(model)


def latents(model, codec):
    """Values of a walk, far from any lattice and a few steps wide."""
    z = 2 * torch.randn((1, model.M, 4, 8), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return [value.mul(5) if n == 0 else value for n, value in enumerate(codec.prior.targets(z, LEVEL))]


def their_likelihoods(model, values):
    """What CompressAI's layers give these very values, their rounding switched off."""
    model = copy.deepcopy(model)
    for layer in (model.entropy_bottleneck, getattr(model, "gaussian_conditional", None)):
        if layer is not None:
            layer.quantize = lambda inputs, mode, means=None: inputs
    likelihoods = [model.entropy_bottleneck(values[0])[1]]
    if len(values) == 2:
        features = model.h_s(values[0])
        if hasattr(model, "context_prediction"):
            features = model.entropy_parameters(torch.cat([features, model.context_prediction(values[1])], 1))
        scale, mean = (features, None) if type(model) is ScaleHyperprior else features.chunk(2, 1)
        likelihoods.append(model.gaussian_conditional(values[1], scale, means=mean)[1])
    return likelihoods


def our_log_densities(codec, values):
    densities = []

    def answer(n, conditional):
        densities.append(conditional.log_density(values[n]))
        return values[n]

    drive(codec.prior.walk((1, 4, 8), LEVEL), answer)
    return densities


def picture(height, width, dtype=torch.float32):
    return torch.rand((1, 3, height, width), generator=torch.Generator().manual_seed(2), dtype=dtype)


def test_densities_are_theirs(pair):
    model, codec = pair
    values = latents(model, codec)
    with torch.no_grad():
        theirs = their_likelihoods(model, values)
    for ours, likelihood in zip(our_log_densities(codec, values), theirs, strict=True):
        sure = likelihood > 1e-7
        assert sure.double().mean() > 0.2
        assert torch.allclose(ours[sure], likelihood[sure].log(), atol=1e-4)


def test_gradients_are_finite_and_reach_everything(pair):
    model, codec = pair
    values = [value.detach().mul(30).requires_grad_() for value in latents(model, codec)]
    sum(density.sum() for density in our_log_densities(codec, values)).backward()
    for value in values:
        assert torch.isfinite(value.grad).all() and value.grad.abs().max() > 0


def test_synthesis_is_theirs(pair):
    model, codec = pair
    z = codec.prior.image_latent(latents(model, codec))
    assert torch.equal(codec.synthesis(z, LEVEL), model.g_s(z))


def test_the_model_is_copied(pair):
    model, codec = pair
    x = picture(64, 64, torch.float64)
    codec.reconstruct(x, 0)
    assert all(parameter.requires_grad for parameter in model.parameters())
    ours = {parameter.data_ptr() for parameter in codec.parameters()}
    assert ours.isdisjoint(parameter.data_ptr() for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in codec.parameters())


def test_reconstructions_are_theirs(pair):
    model, codec = pair
    x = picture(64, 128, torch.float64)
    with torch.no_grad():
        theirs = model(x)
    ours, bits = codec.reconstruct(x, 0)
    assert torch.allclose(ours, theirs["x_hat"].clamp(0, 1), atol=1e-9)
    if not hasattr(model, "context_prediction"):  # those price codes on another lattice than they decode
        expected = -sum(float(part.log2().sum()) for part in theirs["likelihoods"].values())
        assert bits == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (64, 64), (70, 45)])
def test_files_come_back(coder, size):
    _, codec = coder
    x = picture(*size)
    payload = codec.compress(x, 0)
    expected, bits = codec.reconstruct(x, 0)
    assert torch.equal(codec.decompress(payload, *size, 0), expected)
    assert abs(8 * len(payload) - bits) < 0.02 * bits + 96
    assert codec.compress(x, 200) == payload


def test_a_damaged_file_is_refused(coder):
    _, codec = coder
    payload = bytearray(codec.compress(picture(64, 64), 0))
    payload[len(payload) // 2] ^= 64
    with pytest.raises(BitstreamError):
        codec.decompress(bytes(payload), 64, 64, 0)


@pytest.mark.parametrize("name", CONTEXT)
def test_autoregressive_models_refuse_to_code(name):
    codec = Codec.from_compressai(build(name))
    with pytest.raises(ModelError, match="autoregressive"):
        codec.compress(picture(64, 64, torch.float64), 0)


@pytest.mark.parametrize("name", CONTEXT)
def test_the_context_looks_back_only(name):
    codec = Codec.from_compressai(build(name))
    walk = codec.prior.walk((1, 4, 4), LEVEL)
    next(walk)
    law = walk.send(torch.ones(1, 6, 1, 1, dtype=torch.float64))
    value = torch.zeros(1, 6, 4, 4, dtype=torch.float64)
    changed = value.clone()
    changed[..., 1, 2] = 5
    same = (law.given(value).mean == law.given(changed).mean)[0].all(0).flatten()
    assert same[:7].all() and not same[7:].all()


def test_scales_beyond_the_tables_are_coded():
    model = build("mean and scale", torch.float32)
    with torch.no_grad():
        model.h_s[-1].bias[:12] = 1e4
    codec = Codec.from_compressai(model)
    x = picture(64, 64)
    assert torch.equal(codec.decompress(codec.compress(x, 0), 64, 64, 0), codec.reconstruct(x, 0)[0])


def test_other_models_are_refused():
    with pytest.raises(ModelError, match="ScaleHyperpriorVbr") as error:
        Codec.from_compressai(ScaleHyperpriorVbr(4, 4))
    assert "\n" not in str(error.value)


def test_foreign_codecs_cannot_be_exported(coder, tmp_path):
    with pytest.raises(ModelError, match="own design"):
        coder[1].save(tmp_path / "weights.safetensors")
