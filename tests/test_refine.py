"""Higher efforts never lose by the codec's loss, mostly win, and write files like any other."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bayesq import files, zoo
from bayesq.cli import main
from bayesq.errors import ImageError, ModelError
from bayesq.inference import refine
from bayesq.io import to_tensor
from bayesq.networks.rate import rate_weight
from bayesq.prior import decode, drive, information
from bayesq.quantizers import Lattice, Levels
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
    losses = [loss(codec, refine.compress(codec, effort, x, level), x, level) for effort in (1, 2, 4)]
    assert losses[1] <= losses[0] + 1e-5
    assert losses[2] < 0.995 * losses[0]


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


def test_every_latent_feels_the_loss(codec, image):
    tile = refine._Tile.of(codec, to_tensor(image), 120, (0, 0, *image.size))
    targets = [target.clone().requires_grad_() for target in tile.start()]
    generator = torch.Generator().manual_seed(0)
    nats = []

    def answer(n, conditional):
        value = refine.soften(conditional.quantizer(), targets[n], 0.5, generator)
        nats.append(-conditional.log_density(value).sum())
        return value

    values = drive(codec.walk(1, *tile.size, tile.level), answer)
    for term in (torch.stack(nats).sum(), tile.loss(values, torch.zeros(()))):
        for gradient in torch.autograd.grad(term, targets, retain_graph=True):
            assert gradient.isfinite().all() and (gradient != 0).any()


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


def quantizers():
    return [Lattice(), Lattice(0.5, 0.2), Levels(torch.tensor([-2.0, -0.5, 0.0, 1.0, 3.0]))]


@pytest.mark.parametrize("quantizer", quantizers(), ids=repr)
@given(done=st.floats(0, 1), seed=st.integers(0, 99))
def test_soft_values_stay_within_a_cell_and_a_half(quantizer, done, seed):
    generator = torch.Generator().manual_seed(seed)
    value = 4 * torch.rand(100, generator=generator) - 1.9
    soft = refine.soften(quantizer, value, done, generator)
    cell = quantizer.cell(quantizer.index(value))
    assert ((soft - cell.centre).abs() <= 1.5 * cell.width.max() + 1e-5).all()


@given(done=st.floats(0, 1), step=st.floats(0.1, 5), offset=st.floats(-3, 3))
def test_softening_moves_and_scales_with_the_lattice(done, step, offset):
    unit = torch.linspace(-3.3, 3.3, 50)
    expected = offset + step * refine.soften(Lattice(), unit, done, torch.Generator().manual_seed(1))
    found = refine.soften(Lattice(step, offset), offset + step * unit, done, torch.Generator().manual_seed(1))
    assert torch.allclose(found, expected, atol=1e-3 * step)


def test_softening_hardens():
    value = torch.linspace(-3.3, 3.3, 2000)
    rounded = Lattice().straight_through(value)
    errors = []
    for done in (0, 0.25, 0.5, 0.75, 1):
        soft = refine.soften(Lattice(), value, done, torch.Generator().manual_seed(2))
        errors.append(float((soft - rounded).square().mean()))
    assert errors == sorted(errors, reverse=True) and errors[-1] < errors[0] / 2


def test_command(codec, image, small_codec_path, tmp_path, capsys):
    image.save(tmp_path / "a.png")
    argv = ["encode", str(tmp_path / "a.png"), "-m", small_codec_path, "-q", "40"]
    assert main([*argv, "-e", "2"]) == 0
    assert capsys.readouterr().err.startswith("Compressed to ")
    assert (tmp_path / "a.bq").read_bytes() == files.encode(image, codec, 40, 2)
    with pytest.raises(SystemExit, match="2"):
        main([*argv, "-e", "10"])
