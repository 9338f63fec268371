import io
import os
import struct
import threading
import zlib
from base64 import b64decode

import numpy as np
import pytest
import torch
from PIL import Image

import bayesq.bench.codec
import bayesq.bench.restore
import bayesq.bench.speed
import bayesq.io
from bayesq import bench
from bayesq.bench.formats import RIVALS
from bayesq.errors import ImageError, OutputError
from bayesq.io import (
    atomic_open,
    atomic_write,
    like,
    normalized,
    read_image,
    read_size,
    to_image,
    to_tensor,
    write_image,
)
from bayesq.streams import open_image
from bayesq.training.data import Crops, read_rgb

FRAMES = {"gif": {}, "webp": {"lossless": True}, "png": {}, "tif": {}, "tiff": {"compression": "packbits"}}
GENERATOR = np.random.default_rng(0)
MODES = {
    "1": "L",
    "L": "L",
    "LA": "LA",
    "La": "LA",
    "P": "RGB",
    "PA": "RGBA",
    "RGB": "RGB",
    "RGBA": "RGBA",
    "RGBX": "RGB",
    "CMYK": "RGB",
    "YCbCr": "RGB",
    "HSV": "RGB",
}
EXIF = Image.Exif()
EXIF[0x0112] = 6
METADATA = {"icc_profile": b"profile" * 20, "exif": EXIF.tobytes(), "xmp": b"<x:xmpmeta/>"}


def noise(mode: str, width: int = 5, height: int = 4) -> Image.Image:
    """A picture of random samples."""
    if mode in ("P", "PA", "1"):
        return noise("RGB" if mode == "P" else "LA" if mode == "PA" else "L", width, height).convert(mode)
    bands = len(Image.new(mode, (1, 1)).getbands())
    samples = GENERATOR.integers(0, 256, width * height * bands, dtype=np.uint8)
    return Image.frombytes(mode, (width, height), samples.tobytes())


def saved(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png_of_16_bit_colours() -> bytes:
    def chunk(tag: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))

    head = struct.pack(">2I5B", 2, 1, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(13))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


DEEP = {
    "png": png_of_16_bit_colours(),
    "grey.png": saved(Image.new("I;16", (2, 1)), "PNG"),
    "tif": saved(Image.new("I", (2, 1)), "TIFF"),
    "float.tif": saved(Image.new("F", (2, 1)), "TIFF"),
    "ppm": b"P6 2 1 65535\n" + bytes(12),
    "10.ppm": b"P6 2 1 1023\n" + bytes(12),
    "text.ppm": b"P3 2 1 1023\n 0 0 0 0 0 1023",
    "pgm": b"P5 2 1 1023\n" + bytes(4),
    "grey.jp2": saved(Image.new("I;16", (64, 64)), "JPEG2000"),
    "jp2": b64decode(
        "AAAADGpQICANCocKAAAAFGZ0eXBqcDIgAAAAAGpwMiAAAAAtanAyaAAAABZpaGRyAAAAAQAAAAEAAw8HAAAAAAAPY29scgEAAAAAABAAAACZ"
        "anAyY/9P/1EALwAAAAAAAQAAAAEAAAAAAAAAAAAAAAEAAAABAAAAAAAAAAAAAw8BAQ8BAQ8BAf9SAAwAAAABAQAEBAAB/1wABECA/2QAJQAB"
        "Q3JlYXRlZCBieSBPcGVuSlBFRyB2ZXJzaW9uIDIuNS40/5AACgAAAAAAIQAB/5PP/DAMCePPwD8wIARDwD8wIAbz/9k="
    ),
    "avif": b64decode(
        "AAAAIGZ0eXBhdmlmAAAAAGF2aWZtaWYxbWlhZk1BMUEAAADrbWV0YQAAAAAAAAAhaGRscgAAAAAAAAAAcGljdAAAAAAAAAAAAAAAAAAAAAAO"
        "cGl0bQAAAAAAAQAAAB5pbG9jAAAAAEQAAAEAAQAAAAEAAAETAAAAIQAAAChpaW5mAAAAAAABAAAAGmluZmUCAAAAAAEAAGF2MDFDb2xvcgAA"
        "AABqaXBycAAAAEtpcGNvAAAAFGlzcGUAAAAAAAAAAQAAAAEAAAAQcGl4aQAAAAADCgoKAAAADGF2MUOBIEAAAAAAE2NvbHJuY2x4AAIAAgAA"
        "gAAAABdpcG1hAAAAAAAAAAEAAQQBAoMEAAAAKW1kYXQSAAoHOAAOcCAgCTIUEAAAAA/6Pg/nOMeo1tfpSoRWa1k="
    ),
}
"""Pictures of more than 8 bits a sample, 10 of them the AVIF, by a name that ends in their suffix."""
Image.init()
READABLE = [name for name in DEEP if name != "avif" or "AVIF" in Image.OPEN]  # Pillow's since 11.3
READERS = {
    "pixels": read_image,
    "size": read_size,
    "training": read_rgb,
    "crops": lambda path: Crops([path]),
    "rates": lambda path: bench.codec.measure(RIVALS["jpeg"], [path]),
    "coverage": lambda path: bench.codec.coverage(None, [path], [50]),
    "restoration": bench.restore.read,
    "speed": lambda path: bench.speed.run([], [path]),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(1, 1), (5, 4)])
def test_modes_become_four(mode, size):
    image = noise(mode, *size)
    result = normalized(image)
    assert (result.mode, result.size) == (MODES[mode], size)
    if mode == result.mode:
        assert result.tobytes() == image.tobytes()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_a_transparent_colour_becomes_alpha(mode):
    image = Image.new(mode, (2, 1))
    image.info["transparency"] = (0, 0, 0) if mode == "RGB" else 0
    assert list(normalized(image).getchannel("A").tobytes()) == [0, 0]


@pytest.mark.parametrize("mode", ["I", "F", "I;16", "I;16B"])
def test_deep_pictures_are_refused(mode):
    with pytest.raises(ImageError, match="8 bits"):
        normalized(Image.new(mode, (2, 2)))
    with pytest.raises(ImageError, match="8 bits"):
        to_tensor(Image.new(mode, (2, 2)))


@pytest.mark.parametrize("name", READABLE)
@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_files_of_deep_pictures_are_refused(tmp_path, name, read):
    (tmp_path / f"deep.{name}").write_bytes(DEEP[name])
    with pytest.raises(ImageError, match=rf"deep\.{name}: has more than 8 bits"):
        read(tmp_path / f"deep.{name}")


@pytest.mark.parametrize(
    "data",
    [
        *(
            saved(noise("RGB", 64, 48), form)
            for form in ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "WEBP")
            if form in Image.SAVE
        ),
        saved(noise("RGB", 64, 48), "TIFF", compression="jpeg"),
        saved(noise("L", 64, 48), "JPEG2000"),
        saved(noise("RGBA", 64, 48), "JPEG2000", no_jp2=True),
        b"P6 64 48 100\n" + bytes(64 * 48 * 3),
        b"P1 64 48\n" + b"1 " * 64 * 48,
        b"BM" + struct.pack("<IHHI", 70 + 6144, 0, 0, 70)
        + struct.pack("<IiiHHIIiiII4I", 56, 64, 48, 1, 16, 3, 6144, 0, 0, 0, 0, 0xF800, 0x7E0, 0x1F, 0) + bytes(6144),
    ],
    ids=lambda data: data[:12].hex(),
)  # fmt: skip
def test_others_are_not(tmp_path, data):
    (tmp_path / "a").write_bytes(data)
    assert read_size(tmp_path / "a") == read_image(tmp_path / "a").size == (64, 48)


def test_a_picture_without_pixels_is_refused():
    with pytest.raises(ImageError, match="no pixels"):
        normalized(Image.new("RGB", (0, 3)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 4)])
def test_tensors_come_back(mode, size):
    image = noise(mode, *size)
    x = to_tensor(image)
    assert x.shape == (1, 3, size[1], size[0]) and x.dtype == torch.float32
    assert x.min() >= 0 and x.max() <= 1
    assert to_image(x).tobytes() == normalized(image).convert("RGB").tobytes()


def test_tensors_are_rounded_and_clamped():
    x = torch.tensor([-1.0, 0.4 / 255, 0.6 / 255, 254.6 / 255, 2.0]).reshape(1, 1, 1, 5)
    assert list(to_image(x).tobytes()) == [0, 0, 1, 255, 255]
    assert to_image(x).mode == "L"


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".tif", ".webp", ".bmp", ".ppm"])
def test_lossless_formats_give_the_pixels_back(tmp_path, suffix):
    image = noise("RGB", 9, 7)
    path = tmp_path / f"picture{suffix}"
    write_image(image, path)
    assert read_image(path).convert("RGB").tobytes() == image.tobytes()
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_metadata_goes_along_and_is_not_applied(tmp_path, suffix):
    image = noise("RGB", 9, 7)
    image.info |= METADATA
    write_image(image, tmp_path / f"picture{suffix}")
    result = read_image(tmp_path / f"picture{suffix}")
    assert result.size == (9, 7)
    assert result.info["icc_profile"] == METADATA["icc_profile"]
    assert result.getexif()[0x0112] == 6
    assert (result.info.get("xmp") or result.info["XML:com.adobe.xmp"].encode()) == METADATA["xmp"]


def test_the_first_frame_is_read(tmp_path):
    frames = [Image.new("RGB", (3, 2), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert normalized(read_image(tmp_path / "a.gif")).convert("RGB").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    "data", [b"", b"text", saved(noise("RGB", 50, 50), "PNG")[:-3000], saved(noise("L"), "PNG")[:40]]
)
def test_unreadable_files_are_named(tmp_path, data):
    path = tmp_path / "broken.png"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=r"broken\.png: ") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


def test_damaged_pictures_raise_nothing_else(tmp_path):
    image = noise("RGB", 8, 8)
    for form in ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"):
        data = saved(image, form)
        for position in range(0, len(data), max(1, len(data) // 25)):
            damaged = bytearray(data)
            damaged[position] ^= 0xFF
            (tmp_path / "damaged").write_bytes(damaged)
            try:
                read_image(tmp_path / "damaged")
            except ImageError as error:
                assert "\n" not in str(error)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ImageError, match=r"nowhere\.png: No such file"):
        read_image(tmp_path / "nowhere.png")


@pytest.mark.parametrize("name", ["picture", "picture.xyz", "picture.pdq"])
def test_unknown_formats_are_refused(tmp_path, name):
    with pytest.raises(OutputError, match="format"):
        write_image(noise("RGB"), tmp_path / name)


def test_a_format_that_cannot_hold_the_picture_is_refused(tmp_path):
    with pytest.raises(OutputError, match=r"a\.jpg: .*RGBA"):
        write_image(noise("RGBA"), tmp_path / "a.jpg")
    assert os.listdir(tmp_path) == []


class Pipe:
    def __init__(self, data: bytes = b"") -> None:
        self.buffer = io.BytesIO(data)


def test_pipes(monkeypatch):
    image, output = noise("RGBA"), Pipe()
    monkeypatch.setattr("sys.stdout", output)
    write_image(image, "-")
    monkeypatch.setattr("sys.stdin", Pipe(output.buffer.getvalue()))
    assert read_image("-").tobytes() == image.tobytes()
    with pytest.raises(ImageError, match="standard input: not a picture"):
        read_image("-")


def test_atomic_write_replaces_whole_files(tmp_path):
    target, link = tmp_path / "a.bin", tmp_path / "link"
    atomic_write(target, b"old")
    link.symlink_to(target)
    atomic_write(link, b"new")
    assert target.read_bytes() == b"new" and link.is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["a.bin", "link"]


def test_atomic_write_leaves_devices_alone():
    atomic_write(os.devnull, b"data")
    assert not os.path.isfile(os.devnull)


def test_atomic_write_leaves_nothing_on_failure(tmp_path):
    with pytest.raises(OutputError, match="missing"):
        atomic_write(tmp_path / "missing" / "a.bin", b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="folder"):
        atomic_write(tmp_path / "folder", b"")
    assert os.listdir(tmp_path) == ["folder"]


def test_threads_may_write_to_one_place(tmp_path):
    path, together = tmp_path / "a.bin", threading.Barrier(2, timeout=60)
    failed = []

    def write(content: bytes) -> None:
        try:
            with atomic_open(path) as file:
                together.wait()
                file.write(content)
        except Exception as error:
            failed.append(error)

    contents = [bytes([number]) * 99999 for number in range(2)]
    threads = [threading.Thread(target=write, args=[content]) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and path.read_bytes() in contents and list(tmp_path.iterdir()) == [path]


def test_files_may_be_read_by_whom_the_umask_lets(tmp_path):
    before = os.umask(0o026)
    try:
        atomic_write(tmp_path / "a.bin", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "a.bin").stat().st_mode & 0o777 == 0o640


def test_pillows_limit_does_not_count(tmp_path, monkeypatch):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    assert read_image(tmp_path / "a.png").size == (8, 8)
    assert Image.MAX_IMAGE_PIXELS == 20
    monkeypatch.setattr(bayesq.io, "MAX_PIXELS", 63)
    with pytest.raises(ImageError, match="8 × 8 pixels exceed the limit of 63"):
        read_image(tmp_path / "a.png")


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"before")
    with pytest.raises(ImageError):
        write_image(Image.new("RGBA", (2, 2)), path)
    with pytest.raises(RuntimeError), atomic_open(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_normal_pictures_are_not_copied(mode):
    image = Image.new(mode, (2, 2))
    assert normalized(image) is image


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_profile_goes_with_colours_like_its_own(mode, channels):
    image = noise(mode)
    image.info |= METADATA
    picture = like(torch.zeros(1, channels, 8, 10), image)
    assert picture.mode == ("L" if channels == 1 or mode[0] == "L" else "RGB") + ("A" if mode[-1] == "A" else "")
    alike = picture.mode == MODES[mode]
    assert picture.info == {key: value for key, value in METADATA.items() if alike or key != "icc_profile"}


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("read", ["read_image", "open_image"])
@pytest.mark.parametrize("suffix", FRAMES)
def test_frames_that_are_not_read_are_told_of(suffix, read, count, tmp_path, caplog):
    path = tmp_path / f"x.{suffix}"
    first, *others = (Image.new("RGB", (32, 24), colour) for colour in ("red", "lime", "blue")[:count])
    first.save(path, save_all=True, append_images=others, **FRAMES[suffix])
    if read == "read_image":
        picture = read_image(path)
        assert picture.convert("RGB").tobytes() == first.tobytes()
    else:
        with open_image(path) as picture:
            assert picture.crop((0, 0, 32, 24)).convert("RGB").tobytes() == first.tobytes()
    warnings = [record.message for record in caplog.records]
    assert warnings == [f"{path}: only the first of several frames or pages is read"] * (count > 1)


def test_damage_to_frames_that_are_not_read_does_not_matter(tmp_path):
    frames = [noise("RGB", 32, 24) for _ in range(2)]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    data, refused = (tmp_path / "x.gif").read_bytes(), 0
    for length in range(20, len(data)):
        try:
            Image.open(io.BytesIO(data[:length])).load()
        except OSError:
            refused += 1
        else:
            bayesq.io.parse_image(data[:length], "x.gif")
    assert 0 < refused < len(data) - 20


def test_an_open_pipe_can_be_named():
    reading, writing = os.pipe()
    atomic_write(f"/dev/fd/{writing}", b"bytes")
    os.close(writing)
    with open(reading, "rb") as pipe:
        assert pipe.read() == b"bytes"
