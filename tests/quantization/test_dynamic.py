"""Precisions of g_s: the encoder chooses by the picture, the file tells, and any reader of the file can do without."""

import dataclasses

import pytest
import torch
from PIL import Image

from bayesq import bitstream, files, zoo
from bayesq.codec import Codec
from bayesq.errors import ModelError
from bayesq.io import to_image
from bayesq.quantization import Calibration, Recipe, Tuning, quantize
from bayesq.quantization.cost import cost
from bayesq.quantization.dynamic import Selector
from bayesq.quantization.gradients import rounded
from bayesq.quantization.layers import quantized
from bayesq.quantization.recipes import A8, Dynamic
from bayesq.resources import data_dir

RECIPE = Recipe(parts=("synthesis",), inputs=A8, dynamic=Dynamic(means=(6.0, 4.5)))


@pytest.fixture(scope="module")
def base(small_codec_path):
    return zoo.load(small_codec_path)


@pytest.fixture(scope="module")
def data():
    return Calibration.of([data_dir()], count=6, side=64)


@pytest.fixture(scope="module")
def loaded(base, data, tmp_path_factory):
    path = tmp_path_factory.mktemp("dynamic") / "weights.safetensors"
    quantize(base, RECIPE, data).codec.save(path)
    return Codec.load(path)


@pytest.fixture(scope="module")
def photo(data):
    return to_image(data.batch().pictures[:1])


class Always:
    """A selector that has made up its mind."""

    precisions = 3

    def __init__(self, precision):
        self.precision = precision

    def choose(self, x, level):
        return self.precision


def with_choice(codec, precision):
    choosing = zoo.load(str(codec.folder / "weights.safetensors"))
    choosing._modules.pop("selector")
    choosing.__dict__["selector"] = Always(precision)
    return choosing


@pytest.mark.parametrize("sharpness", [None, 0.5, 1.0, 4.0])
def test_rounding_has_a_gradient_of_mean_one_that_grows_towards_borders(sharpness):
    x = torch.linspace(-2, 2, 4001, requires_grad=True)
    y = rounded(x, sharpness)
    y.sum().backward()
    assert torch.equal(y.detach(), x.detach().round())
    assert x.grad[:-1].mean() == pytest.approx(1, abs=2e-3)
    border, centre = x.grad[2500], x.grad[2001]
    assert border > centre if sharpness else border == centre == 1


def test_lower_precisions_cost_less_and_show_more(loaded, data):
    batch = data.batch()
    operations = [cost(loaded.at(precision)).operations for precision in range(3)]
    assert operations[0] > operations[1] > operations[2]
    z = loaded.analysis(batch.pictures, batch.levels).round()
    exact, *others = (loaded.at(precision).synthesis(z, batch.levels) for precision in range(3))
    errors = [float((other - exact).square().mean()) for other in others]
    assert 0 < errors[0] < errors[1] < 1e-3


def test_what_is_no_precision_is_the_full_one(loaded, base):
    assert loaded.at(0) is loaded and loaded.at(3) is loaded and base.at(1) is base
    assert loaded.at(1) is loaded.at(1) and loaded.at(1).at(1) is loaded.at(1)


@pytest.mark.parametrize("precision", [0, 1, 2])
def test_the_file_tells_the_precision_that_it_is_decoded_in(loaded, base, photo, precision):
    data = files.encode(photo, with_choice(loaded, precision), 60)
    plain = files.encode(photo, base, 60)
    chunks = bitstream.unpack(data).chunks
    assert chunks == ({"PREC": bytes([precision])} if precision else {})
    assert len(data) - len(plain) == (10 if precision else 0)
    expected = files.decode(plain, loaded.at(precision))
    assert files.decode(data, loaded).tobytes() == expected.tobytes()
    assert files.decode(data, base).tobytes() == files.decode(plain, base).tobytes()


def test_unknown_precisions_decode_in_full(loaded, photo):
    file = bitstream.unpack(files.encode(photo, loaded, 60))
    pictures = [
        files.decode(bitstream.pack(dataclasses.replace(file, chunks=chunks)), loaded).tobytes()
        for chunks in ({}, {"PREC": b""}, {"PREC": b"\xff"}, {"PREC": b"\x00" * 9})
    ]
    assert len(set(pictures)) == 1


def test_a_damaged_precision_can_be_done_without(loaded, photo):
    data = bytearray(files.encode(photo, with_choice(loaded, 2), 60))
    data[-1] ^= 1
    told = []
    picture = files.decode(bytes(data), loaded, on_damage=told.append)
    assert [damage.part for damage in told] == ["chunk PREC"] and picture.size == photo.size


def test_tiles_have_precisions_of_their_own(loaded):
    image = Image.new("RGB", (1600, 40), "grey")
    codec = with_choice(loaded, 1)
    chunks = bitstream.unpack(files.encode(image, codec, 10)).chunks
    assert chunks["PREC"] == b"\x01" * 3
    data = files.encode(image, codec, 10)
    whole, part = files.decode(data, codec), files.decode(data, codec, region=(700, 0, 900, 40))
    assert whole.crop((700, 0, 900, 40)).tobytes() == part.tobytes()


def test_selectors_weigh_harm_against_bits(base, data):
    batch = data.batch()

    def chosen(price):
        recipe = dataclasses.replace(RECIPE, dynamic=Dynamic(means=(6.0, 4.5), price=price))
        return quantize(base, recipe, data).codec.selector(batch.pictures, batch.levels).argmax(1).float()

    cheapest = chosen(10.0)
    assert (cheapest == 2).float().mean() >= 0.8 and chosen(0.0).mean() < cheapest.mean() - 0.5


@pytest.mark.parametrize("size", [(1, 1), (3, 7), (200, 100)])
def test_selectors_see_pictures_of_any_size(size):
    assert Selector(3)(torch.rand(2, 3, *size), torch.tensor([0, 255])).shape == (2, 3)


def test_scales_and_zero_points_are_trained(base, data):
    tuning = Tuning(steps=12, batch=2, crop=64, rate=0.02, sharpness=1.0, weights=False)
    recipe = dataclasses.replace(RECIPE, dynamic=Dynamic(means=(4.0,), bits=(4,)))
    plain, trained = (
        [layer for _, layer in quantized(quantize(base, dataclasses.replace(recipe, tuning=one), data).codec)]
        for one in (None, tuning)
    )
    pairs = [(a, b) for a, b in zip(plain, trained, strict=True) if b.steps is not None]
    assert all(torch.equal(a.codes, b.codes) and torch.equal(a.bias, b.bias) for a, b in pairs)
    assert sum(not torch.equal(a.step, b.step) for a, b in pairs) > len(pairs) / 2
    assert sum(not torch.equal(a.steps, b.steps) for a, b in pairs) > len(pairs) / 2
    assert all(b.spec.precisions == (4,) and b.zeros.dtype == torch.int32 for _, b in pairs) and pairs


def test_precisions_leave_the_full_one_as_it_is(base, data):
    tuning = Tuning(steps=6, batch=1, crop=64, rate=0.1, weights=False)
    alone = Recipe(inputs=A8, tuning=tuning)
    adapted = dataclasses.replace(alone, dynamic=Dynamic(means=(4.0,), bits=(4,)))
    before, after = (quantize(base, recipe, data).codec.state_dict() for recipe in (alone, adapted))
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_models_without_inputs_of_eight_bits_get_no_precisions(linear_codec, data):
    with pytest.raises(ModelError, match="no precisions"):
        quantize(linear_codec, RECIPE, data)
