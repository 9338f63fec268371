"""Chunks of pixels as .bq files: by numcodecs alone, and in Zarr arrays of both formats."""

from pathlib import Path

import numcodecs
import numpy as np
import pytest
from PIL import Image

from bayesq import files
from bayesq.errors import BitstreamError, ImageError, ModelError
from bayesq.interop.numcodecs import Bq
from bayesq.resources import data_dir

zarr = pytest.importorskip("zarr", minversion="3.1")
from bayesq.interop.zarr import BqCodec  # noqa: E402

FLOOR = 20  # dB, of a codec at its analytic start; pixels out of place give less than 15
SHAPES = [(48, 40, 3), (1, 48, 40, 3), (1, 1, 48, 40, 3), (48, 40), (1, 48, 40)]


@pytest.fixture(autouse=True)
def model(small_codec_path, monkeypatch) -> str:
    monkeypatch.setenv("BAYESQ_MODELS", small_codec_path)
    return Path(small_codec_path).parent.name


def pixels(shape: tuple[int, ...]) -> np.ndarray:
    with Image.open(data_dir() / "coffee.png") as image:
        crop = image.convert("RGB" if shape[-1] == 3 else "L").crop((100, 100, 140, 148))
    return np.asarray(crop).reshape(shape)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_chunk_is_a_bq_file(shape, model):
    codec, chunk = Bq(90, model), pixels(shape)
    data = codec.encode(chunk)
    assert files.describe(data).intact and (files.describe(data).width, files.describe(data).height) == (40, 48)
    back = codec.decode(data)
    assert (back.dtype, back.size) == (np.uint8, chunk.size)
    assert psnr(chunk.reshape(back.shape), back) > FLOOR
    out = np.empty_like(chunk)
    codec.decode(np.frombuffer(data, np.uint8), out)
    assert np.array_equal(out.reshape(back.shape), back)


def create(form: int, shape: tuple[int, ...], chunks: tuple[int, ...], model: str, store, dtype="uint8"):
    coder = {"compressors": Bq(90, model)} if form == 2 else {"serializer": BqCodec(90, model), "compressors": None}
    return zarr.create_array(store, shape=shape, chunks=chunks, dtype=dtype, zarr_format=form, **coder)


@pytest.mark.parametrize("form", [2, 3])
@pytest.mark.parametrize("chunk", SHAPES)
def test_arrays_come_back_near_what_they_were(form, chunk, model, tmp_path):
    """Two chunks along the first axis, the second of them cut off by the array's end where it can be."""
    values = np.concatenate([pixels(chunk), pixels(chunk)[::-1]])
    values = values[: -16 if chunk[0] > 1 else None]
    create(form, values.shape, chunk, model, tmp_path / "a.zarr")[:] = values
    array = zarr.open_array(tmp_path / "a.zarr", mode="r")
    back = array[:]
    assert (back.shape, back.dtype) == (values.shape, values.dtype)
    assert psnr(values, back) > FLOOR
    assert array.nbytes_stored() < values.nbytes


@pytest.mark.parametrize("form", [2, 3])
def test_what_was_never_written_is_the_fill_value(form, model):
    array = create(form, (96, 40), (48, 40), model, {})
    array[:48] = pixels((48, 40))
    assert not array[48:].any()


@pytest.mark.parametrize("codec", [Bq(33.5, "other"), BqCodec(33.5, "other")])
def test_the_configuration_comes_back_by_name(codec):
    if isinstance(codec, Bq):
        assert numcodecs.get_codec({"id": "bayesq", "quality": 33.5, "model": "other"}) == codec
        assert codec.get_config() == {"id": "bayesq", "quality": 33.5, "model": "other"}
    else:
        assert zarr.registry.get_codec_class("bayesq").from_dict(codec.to_dict()) == codec


@pytest.mark.parametrize(
    ("chunk", "reason"),
    [
        (np.zeros((8, 8), np.uint16), "uint16"),
        (np.zeros((8, 8), np.float32), "float32"),
        (np.zeros(8, np.uint8), r"shape \(8,\)"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"shape \(2, 8, 8, 3\)"),
        (np.zeros((8, 8, 4), np.uint8), r"shape \(8, 8, 4\)"),
        (np.asfortranarray(np.zeros((8, 9), np.uint8)), "C order"),
    ],
)
def test_what_is_no_picture_is_refused(chunk, reason, model):
    with pytest.raises(ImageError, match=reason):
        Bq(model=model).encode(chunk)


@pytest.mark.parametrize("kind", [Bq, BqCodec])
@pytest.mark.parametrize(
    "options", [{"quality": 101}, {"quality": "75"}, {"model": "x/a.safetensors"}, {"model": None}]
)
def test_what_cannot_be_configured_is_refused(kind, options):
    with pytest.raises(ModelError):
        kind(**options)


def test_arrays_of_other_types_are_refused_when_created(model):
    with pytest.raises(ImageError, match="uint16"):
        create(3, (48, 40), (48, 40), model, {}, dtype="uint16")


@pytest.mark.parametrize("form", [2, 3])
def test_a_damaged_chunk_is_an_error(form, model, tmp_path):
    create(form, (48, 40), (48, 40), model, tmp_path / "a.zarr")[:] = pixels((48, 40))
    chunk = tmp_path / "a.zarr" / ("0.0" if form == 2 else "c/0/0")
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(BitstreamError, match="damaged"):
        zarr.open_array(tmp_path / "a.zarr", mode="r")[:]


@pytest.mark.parametrize("other", [(40, 40), (40, 48), (24, 80), (64, 10, 3)])
def test_a_chunk_of_another_shape_is_an_error(other, model, tmp_path):
    create(3, (48, 40), (48, 40), model, tmp_path / "a.zarr")[:] = pixels((48, 40))
    (tmp_path / "a.zarr" / "c" / "0" / "0").write_bytes(Bq(90, model).encode(np.zeros(other, np.uint8)))
    with pytest.raises(BitstreamError, match="stands where a chunk"):
        zarr.open_array(tmp_path / "a.zarr", mode="r")[:]


@pytest.mark.parametrize("options", [{"chunks": (33, 27, 3)}, {"chunks": (24, 20, 3), "shards": (48, 40, 3)}])
def test_parts_are_read_and_written_across_odd_chunks_and_within_shards(options, model):
    array = zarr.create_array(
        {}, shape=(48, 40, 3), dtype="uint8", serializer=BqCodec(90, model), compressors=None, fill_value=9, **options
    )
    values = pixels((48, 40, 3))
    array[:48, :40] = values
    assert psnr(values[10:40, 5:35], array[10:40, 5:35]) > FLOOR
    assert np.array_equal(array[10:40, 5:35], array[:][10:40, 5:35])


def test_colours_come_first_behind_a_filter(model):
    values = pixels((48, 40, 3)).transpose(2, 0, 1)
    last = zarr.codecs.TransposeCodec(order=(1, 2, 0))
    array = zarr.create_array(
        {}, data=values, chunks=(3, 48, 40), filters=last, serializer=BqCodec(90, model), compressors=None
    )
    assert psnr(values, array[:]) > FLOOR
