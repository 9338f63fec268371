"""JPEG files as measurements, against Pillow's encoder and decoder."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bayesq import jpegfile
from bayesq.errors import ImageError
from bayesq.io import to_tensor
from bayesq.likelihoods import from_physics
from bayesq.operators import degrade, open_jpeg
from bayesq.resources import data_dir

KINDS = {
    "4:4:4": {"quality": 30, "subsampling": "4:4:4"},
    "4:2:2": {"quality": 60, "subsampling": "4:2:2"},
    "4:2:0": {"quality": 30, "subsampling": "4:2:0", "optimize": True},
    "4:1:1": {"quality": 60, "subsampling": "4:1:1"},
    "progressive": {"quality": 60, "progressive": True},
    "progressive 4:4:4": {"quality": 95, "subsampling": "4:4:4", "progressive": True},
    "restarts": {"quality": 60, "restart_marker_blocks": 3},
    "restarts, progressive": {"quality": 60, "restart_marker_blocks": 3, "progressive": True},
}


@pytest.fixture(scope="module")
def picture():
    with Image.open(data_dir() / "chelsea.png") as image:
        return image.convert("RGB").crop((100, 20, 203, 97))


def coded(image, **options):
    buffer = io.BytesIO()
    if options.get("subsampling") == "4:1:1":  # which Pillow does not name
        options["subsampling"] = "4:2:0"
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", KINDS)
def test_coefficients_are_those_of_the_file(kind, picture):
    """Shown as a picture they are what Pillow shows, and those of the picture before coding lie in their cells."""
    data = coded(picture, **KINDS[kind])
    y, physics = open_jpeg(data)
    with Image.open(io.BytesIO(data)) as image:
        shown = to_tensor(image)
    assert (physics.A_dagger(y).clamp(0, 1) - shown).abs().mean() < 0.7 / 255
    outside = (physics.A(to_tensor(picture)) - y).abs() - physics.noise_model.step / 2
    assert outside.max() < 2 / 255 and outside.clamp_min(0).square().mean().sqrt() < 0.2 / 255


def test_grey_files(picture):
    grey = picture.convert("L")
    y, physics = open_jpeg(coded(grey, quality=50))
    with Image.open(io.BytesIO(coded(grey, quality=50))) as image:
        assert (physics.A_dagger(y).clamp(0, 1) - to_tensor(image)).abs().max() < 1.5 / 255
    assert ((physics.A(to_tensor(grey)) - y).abs() <= physics.noise_model.step / 2 + 2 / 255).all()


def test_the_truth_is_likelier_than_what_a_decoder_shows(picture):
    x = to_tensor(picture)
    y, physics = open_jpeg(coded(picture, quality=20))
    likelihood = from_physics(physics)
    assert likelihood.num_observed(y) == y.numel()
    best = likelihood.log_prob(y, x)
    assert best > -0.05 * y.numel()  # within all cells, but for what rounding did before
    assert best > likelihood.log_prob(y, x.roll(1, -1)) + 1000
    noisy, _ = open_jpeg(coded(picture, quality=20), sigma=0.1)
    assert torch.equal(noisy, y)


def test_noise_before_coding_widens_the_cells(picture):
    generator = torch.Generator().manual_seed(0)
    x = to_tensor(picture)
    _, physics = open_jpeg(coded(picture, quality=60, subsampling="4:2:0"), sigma=0.05)
    noise = physics.A(0.05 * torch.randn(x.shape, generator=generator))
    whiteness = (noise / physics.noise_model.smoothing).split([64 * rows * cols for rows, cols in physics.blocks], 1)
    assert all(abs(part.std() - 1) < 0.1 for part in whiteness)
    y = degrade(x, physics, generator)
    assert from_physics(physics).log_prob(y, x) > from_physics(open_jpeg(coded(picture, quality=60))[1]).log_prob(y, x)


@settings(max_examples=25)
@given(st.data())
def test_damaged_files_are_errors_or_pictures(picture, data):
    options = data.draw(st.sampled_from(list(KINDS.values())))
    file = bytearray(coded(picture.crop((0, 0, 20, 20)), **options))
    for _ in range(data.draw(st.integers(1, 3))):
        file[data.draw(st.integers(2, len(file) - 1))] = data.draw(st.integers(0, 255))
    file = file[: data.draw(st.integers(2, len(file)))]
    try:
        assert len(jpegfile.read(bytes(file)).planes) in (1, 3)
    except ImageError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("progressive", [False, True])
def test_bursts_of_damage_are_errors_or_pictures(picture, progressive):
    generator = np.random.default_rng(0)
    good = coded(picture.crop((0, 0, 64, 64)), quality=98, progressive=progressive)
    for _ in range(150):
        place, length = generator.integers(2, len(good) - 8), generator.integers(1, 9)
        try:
            jpegfile.read(good[:place] + generator.bytes(length) + good[place + length :])
        except ImageError as error:
            assert "\n" not in str(error)


def test_coefficients_beyond_16_bits_are_damage(picture):
    file = bytearray(coded(picture))
    table = file.index(b"\xff\xc4") + 5
    file[table + 16 : table + 16 + sum(file[table : table + 16])] = [15] * sum(file[table : table + 16])
    with pytest.raises(ImageError, match="damaged"):
        jpegfile.read(bytes(file))


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "not a JPEG"), (b"\x89PNG....", "not a JPEG"), (b"\xff\xd8\xff\xd9", "no picture")],
)
def test_what_is_no_picture(data, message):
    with pytest.raises(ImageError, match=message):
        jpegfile.read(data)


@pytest.mark.parametrize("factors", [0x00, 0x01, 0x10, 0x51])
@pytest.mark.parametrize("component", [0, 1, 2])
def test_sampling_factors_that_cannot_be_are_refused(picture, component, factors):
    file = bytearray(coded(picture))
    file[file.index(b"\xff\xc0") + 11 + 3 * component] = factors
    with pytest.raises(ImageError, match="sampling factors"):
        jpegfile.read(bytes(file))


def test_other_colours_are_refused(picture):
    with pytest.raises(ImageError, match="YCbCr"):
        jpegfile.read(coded(picture.convert("CMYK")))
