"""``.bq`` files as pictures among Pillow's."""

import copy
import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, UnidentifiedImageError

import bayesq.pil
from bayesq import files, zoo
from bayesq.errors import BitstreamError

EXIF = Image.Exif()
EXIF[0x0112] = 6
METADATA = {"icc_profile": b"profile" * 20, "exif": EXIF.tobytes(), "xmp": b"<x:xmpmeta/>"}


@pytest.fixture(autouse=True)
def own_model(small_codec_path, monkeypatch):
    monkeypatch.setenv("BAYESQ_MODELS", small_codec_path)


@pytest.fixture
def model(small_codec_path) -> str:
    return Path(small_codec_path).parent.name


def picture(mode: str, size: tuple[int, int] = (40, 24)) -> Image.Image:
    width, height = size
    y, x = np.mgrid[:height, :width]
    planes = [(6 * x + 3 * i * y + 20 * i).astype(np.uint8) for i in range(len(mode))]
    return (
        Image.merge(mode, [Image.fromarray(plane) for plane in planes]) if len(mode) > 1 else Image.fromarray(planes[0])
    )


@pytest.fixture(params=["L", "LA", "RGB", "RGBA"])
def saved(request, model, tmp_path):
    image = picture(request.param)
    image.info |= METADATA
    image.save(tmp_path / "a.bq", quality=60, model=model)
    return image, tmp_path / "a.bq"


def test_what_is_saved_is_opened(saved, model):
    image, path = saved
    with Image.open(path) as opened:
        assert (opened.format, opened.mode, opened.size) == ("BQ", image.mode, image.size)
        assert opened.get_format_mimetype() == "image/x-bayesq"
        assert METADATA.items() <= opened.info.items()
        assert opened.info["quality"] == pytest.approx(60, abs=0.2)
        assert opened.info["model_id"] == zoo.sha256(model)[:16]
        assert opened.getexif()[0x0112] == 6
        assert opened.tobytes() == files.decode(files.encode(image, zoo.shared(model), 60)).tobytes()
        if image.mode.endswith("A"):
            assert opened.getchannel("A").tobytes() == image.getchannel("A").tobytes()


def test_the_head_is_read_without_torch(saved):
    image, path = saved
    code = (
        "import json, sys; from PIL import Image; import bayesq.pil\n"
        "with Image.open(sys.argv[1]) as image: print(json.dumps([image.mode, image.size, sorted(image.info)]))\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [
        image.mode, list(image.size), ["exif", "icc_profile", "model_id", "quality", "xmp"]
    ]  # fmt: skip


def test_files_open_from_streams_and_piece_by_piece(saved):
    _, path = saved
    parser = ImageFile.Parser()
    data = path.read_bytes()
    for start in range(0, len(data), 100):
        parser.feed(data[start : start + 100])
    assert parser.close().tobytes() == Image.open(io.BytesIO(data)).tobytes()


def test_metadata_can_be_given_and_dropped(model):
    image = picture("RGB")
    image.info |= METADATA
    before = dict(image.info)
    stream = io.BytesIO()
    image.save(stream, "BQ", model=model, icc_profile=None, exif=Image.Exif(), xmp=b"other")
    with Image.open(stream) as opened:
        assert opened.info["xmp"] == b"other"
        assert "icc_profile" not in opened.info
        assert 0x0112 not in opened.getexif()
    assert image.info == before


def test_effort_reaches_the_encoder(model):
    written = []
    for options in ({}, {"effort": 1}, {"effort": 2}):
        stream = io.BytesIO()
        picture("RGB").save(stream, "BQ", model=model, **options)
        written.append(stream.getvalue())
    assert written[0] == written[1] != written[2]


def test_quality_is_what_costs(model):
    sizes = []
    for quality in (10, 75, 100):
        stream = io.BytesIO()
        picture("RGB").save(stream, "BQ", quality=quality, model=model)
        sizes.append(stream.tell())
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]


@pytest.mark.parametrize(
    ("image", "options", "error"),
    [
        (Image.new("I;16", (8, 8)), {}, OSError),
        (Image.new("RGB", (8, 8)), {"quality": 101}, ValueError),
        (Image.new("RGB", (8, 8)), {"quality": "75"}, ValueError),
        (Image.new("RGB", (8, 8)), {"quality": None}, ValueError),
        (Image.new("RGB", (8, 8)), {"effort": 0}, ValueError),
        (Image.new("RGB", (8, 8)), {"model": "nonsense"}, ValueError),
        (Image.new("RGB", (8, 8)), {"model": None}, ValueError),
    ],
)
def test_what_cannot_be_saved_leaves_no_file(image, options, error, model, tmp_path):
    with pytest.raises(error):
        image.save(tmp_path / "a.bq", **{"model": model} | options)
    assert not (tmp_path / "a.bq").exists()


def test_damage_is_an_oserror_that_says_so(saved):
    _, path = saved
    data = path.read_bytes()
    for position in (6, len(data) // 2, len(data) - 1):  # head, pixels, metadata
        damaged = bytearray(data)
        damaged[position] ^= 1
        with pytest.raises(OSError, match="damaged") as caught, Image.open(io.BytesIO(damaged)) as opened:
            opened.load()
        assert isinstance(caught.value, BitstreamError)
    with pytest.raises(BitstreamError, match="cut off"), Image.open(io.BytesIO(data[:-1])) as opened:
        opened.load()


def test_damage_is_found_without_decoding(saved):
    _, path = saved
    data = bytearray(path.read_bytes())
    Image.open(io.BytesIO(data)).verify()
    data[len(data) // 2] ^= 1
    with pytest.raises(BitstreamError):
        Image.open(io.BytesIO(data)).verify()


def test_foreign_files_stay_foreign():
    with pytest.raises(UnidentifiedImageError):
        Image.open(io.BytesIO(b"\x89BQ?" + bytes(60)))


def test_an_absent_model_is_an_oserror(saved, monkeypatch):
    monkeypatch.delenv("BAYESQ_MODELS")
    with Image.open(saved[1]) as opened, pytest.raises(OSError, match="no model with id"):
        opened.load()


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda image: pickle.loads(pickle.dumps(image))])
def test_copies_hold_the_same_pixels(saved, copied, loaded):
    with Image.open(saved[1]) as opened:
        if loaded:
            opened.load()
        twin = copied(opened)
        assert twin.tobytes() == opened.tobytes()
        assert (twin.mode, twin.size, twin.info) == (opened.mode, opened.size, opened.info)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_forked_processes_read_what_their_parent_has_read_before(saved, model):
    code = (
        "import multiprocessing, os, sys; from PIL import Image; import torch; import bayesq.pil\n"
        "torch.set_num_threads(2)\n"
        "read = lambda: Image.open(sys.argv[1]).tobytes()\n"
        "torch.ones(1 << 20).exp()\n"  # with both threads
        "expected, end = read(), multiprocessing.get_context('fork').Pipe()\n"
        "child = os.fork()\n"
        "if child == 0: torch.ones(1); end[1].send_bytes(read()); os._exit(0)\n"
        "sys.exit(not (end[0].poll(60) and end[0].recv_bytes() == expected))"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(saved[1])], check=True)


def test_registering_twice_is_registering_once():
    before = list(Image.ID)
    bayesq.pil.register()
    assert before == Image.ID and Image.ID.count("BQ") == 1
