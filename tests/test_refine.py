"""Higher efforts never lose by the codec's loss, mostly win, and write files like any other."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bayesq import files, zoo
from bayesq.cli import main
from bayesq.conditionals import GaussianCells
from bayesq.errors import ImageError, ModelError
from bayesq.inference import refine
from bayesq.io import to_tensor
from bayesq.networks.rate import rate_weight
from bayesq.prior import decode, information
from bayesq.resources import data_dir


@pytest.fixture(scope="module")
def codec(small_codec_path):
    return zoo.load(small_codec_path)


@pytest.fixture(scope="module")
def image():
    with Image.open(data_dir() / "astronaut.png") as image:
        return image.crop((60, 20, 150, 90)).convert("RGB")


def loss(codec, payload, x, level):
    """Rate and weighted distortion of what a payload decodes to, per pixel."""
    levels = torch.tensor([level])
    height, width = x.shape[-2:]
    cells = decode(codec.walk(1, height, width, levels), payload)
    bits = sum(float(part.sum()) for part in information(codec.walk(1, height, width, levels), cells)) / math.log(2)
    mse = float((codec.decompress(payload, height, width, level) - x).square().mean())
    return bits / (height * width) + float(rate_weight(levels)) * 255**2 * mse


@pytest.mark.parametrize("level", [40, 220])
def test_efforts_win(level, codec, image):
    x = to_tensor(image)
    losses = [loss(codec, refine.compress(codec, effort, x, level), x, level) for effort in (1, 2, 4, 6)]
    assert losses[1] <= losses[0] + 1e-5
    assert losses[3] < losses[2] < 0.99 * losses[0]


def test_effort_1_is_one_pass(codec, image):
    x = to_tensor(image)
    assert refine.compress(codec, 1, x, 100) == codec.compress(x, 100)


def test_the_same_file_every_time(codec, image):
    with torch.inference_mode():
        first = files.encode(image, codec, 50, effort=3)
    assert files.encode(image, codec, 50, effort=3) == first != files.encode(image, codec, 50)


def test_a_tile_is_refined_in_its_surroundings(codec, image):
    x, window, level = to_tensor(image), (32, 32, 90, 70), 150
    left, top, right, bottom = window
    size = bottom - top, right - left
    around = codec.analyse(x, torch.tensor([level]))

    def error(payload):
        z = around.clone()
        z[codec.place(window)] = codec.latents(payload, *size, level)
        return float((codec.synthesize(z, level)[..., : x.shape[-2], : x.shape[-1]] - x)[..., 32:, 32:].square().mean())

    def cost(payload):
        weight = float(rate_weight(torch.tensor(level)))
        return 8 * len(payload) / (size[0] * size[1]) + weight * 255**2 * error(payload)

    assert cost(refine.compress(codec, 4, x, level, window)) < cost(codec.compress(x, level, window))


def tile_of(codec, image, level=120):
    return refine._Tile.of(codec, to_tensor(image), level, (0, 0, *image.size))


def gradients(tile, bottoms):
    """Of the distortion, and of what latents tell of later ones."""
    prices = refine.prices_of(tile.codec.own_prior.tables)
    values, _, foretold = refine.visit(tile, bottoms, refine.nearest, prices)
    return [
        torch.autograd.grad(term, values, retain_graph=True, materialize_grads=True)
        for term in (tile.distortion(values), foretold)
    ]


def test_latents_feel_the_distortion_and_what_follows(codec, image):
    tile = tile_of(codec, image)
    distortion, foretold = gradients(tile, tile.start())
    assert all(gradient.isfinite().all() for gradient in (*distortion, *foretold))
    assert all((gradient != 0).any() for gradient in (*distortion[len(codec.prior.laws.passes) :], *foretold[:-1]))
    assert (foretold[-1] == 0).all()


def test_gradients_pass_exported_layers_as_trainable_ones(tiny_codec, image):
    exported = copy.deepcopy(tiny_codec)
    exported.own_prior.export()
    trainable = copy.deepcopy(tiny_codec)
    trainable.own_prior.tables = exported.own_prior.tables
    bottoms = tile_of(exported, image).start()
    found = [gradients(tile_of(codec, image), bottoms) for codec in (exported, trainable)]
    for mine, theirs in zip(*found, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            assert torch.allclose(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


def test_the_file_holds_what_the_search_found(codec, image):
    tile = tile_of(codec, image)
    values = refine.search(tile, 8)
    payload = refine.compress(codec, 4, tile.x, 120)
    assert torch.equal(codec.latents(payload, *tile.size, 120), codec.prior.image_latent(values))


def some_conditional(codec, index, count=1):
    shape = 1, count, 1, 1
    prior = codec.own_prior
    return GaussianCells(torch.full(shape, 0.3), torch.full(shape, float(index)), prior.tables, prior.dead_zones)


@given(index=st.integers(0, 40), bottom=st.floats(-30, 30))
def test_drawn_cold_codes_lose_least(index, bottom, codec):
    law, prices = some_conditional(codec, index), refine.prices_of(codec.own_prior.tables)
    drawn = int(refine.draw(law, torch.full((1, 1, 1, 1), bottom), prices, 0.0, torch.Generator()))

    def loss(code):
        values = law.quantizer().value(torch.full((1, 1, 1, 1), code))
        nats = float(information(iter_walk(law), [values])[0])
        return nats + refine.CURVATURE / 2 * (float(values) - bottom) ** 2

    if law.quantizer().threshold.isinf():
        assert drawn == 0
    else:
        middle = round(bottom - 0.3)
        assert loss(drawn) <= min(loss(code) for code in (middle - 1, middle, middle + 1)) + 1e-3


def iter_walk(law):
    yield law


def test_warm_codes_are_drawn_by_their_losses(codec):
    law, prices = some_conditional(codec, 25, 20000), refine.prices_of(codec.own_prior.tables)
    bottom, temperature = torch.full((1, 20000, 1, 1), 1.2), 3.0
    drawn = refine.draw(law, bottom, prices, temperature, torch.Generator().manual_seed(0))
    codes = torch.tensor([0, 1, 2], dtype=torch.int32).view(1, 3, 1, 1)
    price = refine.price_of(codes, some_conditional(codec, 25, 3), prices)
    loss = price + refine.CURVATURE / 2 * (codes + 0.3 - 1.2).square()
    shares = torch.softmax(-loss.flatten() / temperature, 0)
    assert shares.min() > 0.02
    for code, share in enumerate(shares):
        assert abs(float((drawn == code).float().mean()) - float(share)) < 0.015


@pytest.mark.parametrize("effort", [0, 10, -1])
def test_no_such_effort(effort, codec, image):
    with pytest.raises(ModelError, match="the effort must be 1 to 9"):
        files.encode(image, codec, 50, effort)


def test_efforts_double():
    steps = [refine.steps_of(effort) for effort in range(1, 10)]
    assert steps[0] == 0
    assert all(after == 2 * before for before, after in pairwise(steps[1:]))


def test_not_finite(codec):
    with pytest.raises(ImageError, match="not finite"):
        refine.compress(codec, 2, torch.full((1, 3, 32, 32), torch.nan), 0)


def test_command(codec, image, small_codec_path, tmp_path, capsys):
    image.save(tmp_path / "a.png")
    argv = ["encode", str(tmp_path / "a.png"), "-m", small_codec_path, "-q", "40"]
    assert main([*argv, "-e", "2"]) == 0
    assert capsys.readouterr().err.startswith("Compressed to ")
    assert (tmp_path / "a.bq").read_bytes() == files.encode(image, codec, 40, 2)
    with pytest.raises(SystemExit, match="2"):
        main([*argv, "-e", "10"])
