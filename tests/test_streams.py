"""Pictures from and to disk in pieces are those that Pillow reads and writes whole."""

import io
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from bayesq import bitstream, files, streams, tiling
from bayesq.errors import BitstreamError, ImageError
from bayesq.io import read_image
from bayesq.resources import data_dir
from bayesq.streams import Block, StoredPicture, decode_to, open_image

METADATA = {"icc_profile": b"a profile", "exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0", "xmp": b"<x:xmpmeta/>"}
LAYOUTS = [("L", "L"), ("LA", "LA"), ("RGB", "RGB"), ("RGB", "BGR"), ("RGBA", "RGBA"), ("RGBA", "BGRA")]
IN_PLACE = [
    ("a.ppm", "RGB", {}),
    ("a.pgm", "L", {}),
    ("a.bmp", "RGB", {}),
    ("a.tif", "RGB", {"icc_profile": b"a profile", "tiffinfo": {700: b"<x/>"}}),
    ("a.tif", "RGBA", {"tiffinfo": {278: 7}}),
    ("a.tif", "LA", {}),
]
BY_PILLOW = [
    ("a.png", "RGB", {}),
    ("a.jpg", "RGB", {}),
    ("a.tif", "RGB", {"compression": "tiff_lzw"}),
    ("a.tif", "RGB", {"tiffinfo": {274: 6}}),
    ("a.tif", "CMYK", {}),
    ("a.bmp", "P", {}),
]
Image.init()
if "AVIF" in Image.SAVE:  # Pillow's since 11.3
    BY_PILLOW.append(("a.avif", "RGB", {"xmp": bytes(60000)}))  # longer than its pixels


def photo(mode="RGB", size=(150, 110)):
    with Image.open(data_dir() / "coffee.png") as image:
        image = image.crop((100, 60, 100 + size[0], 60 + size[1]))
    if mode.endswith("A"):
        image.putalpha(image.getchannel("G"))
    return image.convert(mode)


@st.composite
def boxes(draw, size):
    left, top = (draw(st.integers(0, side - 1)) for side in size)
    return left, top, draw(st.integers(left + 1, size[0])), draw(st.integers(top + 1, size[1]))


@given(st.sampled_from(LAYOUTS), st.booleans(), st.integers(0, 3), st.integers(0, 8), st.integers(0, 6), st.data())
def test_a_stored_picture_is_cropped_as_one_in_memory(layouts, upwards, slack, column, row, data):
    """Four blocks of rows that have ``slack`` bytes between them and meet at any point."""
    mode, layout = layouts
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, len(mode)), np.uint8)
    order = [mode.index(band) for band in layout]
    stored, blocks = b"head", []
    for top, bottom in ((0, row), (row, 6)):
        for left, right in ((0, column), (column, 8)):
            block = Block((left, top, right, bottom), len(stored), layout, (right - left) * len(mode) + slack, upwards)
            blocks.append(block)
            rows = pixels[top:bottom, left:right, order]
            stored += b"".join(line.tobytes() + bytes(slack) for line in (rows[::-1] if upwards else rows))
    box = data.draw(boxes((8, 6)))
    part = StoredPicture(io.BytesIO(stored), mode, (8, 6), {}, blocks).crop(box)
    expected = pixels[box[1] : box[3], box[0] : box[2]]
    assert part.mode == mode and np.array_equal(np.asarray(part).reshape(expected.shape), expected)


@pytest.mark.parametrize(("name", "mode", "options"), IN_PLACE)
def test_uncompressed_files_stay_on_disk(tmp_path, tiny_codec, name, mode, options):
    codec, path = tiny_codec.exported(), tmp_path / name
    photo(mode).save(path, **options)
    with open_image(path) as stored, pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiling, "TILE", 64)
        assert isinstance(stored, StoredPicture)
        assert files.encode(stored, codec, 50) == files.encode(read_image(path), codec, 50)


@pytest.mark.parametrize(("name", "mode", "options"), BY_PILLOW)
def test_other_files_are_read_by_pillow(tmp_path, name, mode, options):
    path = tmp_path / name
    photo("RGB").convert(mode).save(path, **options)
    with open_image(path) as image:
        assert isinstance(image, Image.Image)
        assert (image.mode, image.tobytes()) == (read_image(path).mode, read_image(path).tobytes())


def test_what_is_no_picture_or_cut_off_is_refused(tmp_path):
    path = tmp_path / "a.ppm"
    photo().save(path)
    with open_image(path) as stored, pytest.raises(ImageError, match="cut off"):
        path.write_bytes(path.read_bytes()[:-1])
        stored.crop((0, 0, *stored.size))
    with pytest.raises(ImageError, match="truncated"), open_image(path):
        pass
    with pytest.raises(ImageError, match="No such file"), open_image(tmp_path / "b.ppm"):
        pass


@given(arrays(np.uint8, st.tuples(st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 3]))), st.data())
@pytest.mark.parametrize("suffix", sorted(streams._FORMATS))
def test_bands_are_written_as_a_picture(suffix, pixels, data):
    cuts = sorted(data.draw(st.sets(st.integers(1, len(pixels)))) | {0, len(pixels)})
    image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
    bands = [image.crop((0, top, image.width, bottom)) for top, bottom in pairwise(cuts)]
    file = io.BytesIO()
    streams._FORMATS[suffix](file, image.size, image.mode, {}, bands)
    with Image.open(file) as written:
        assert (written.mode, written.tobytes()) == (image.mode, image.tobytes())


@pytest.fixture(scope="module")
def coded(tiny_codec):
    codec = tiny_codec.exported()
    image = photo()
    image.info |= METADATA
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiling, "TILE", 64)
        return codec, files.encode(image, codec, 50)


@pytest.mark.parametrize("region", [None, (10, 20, 140, 70)])
def test_a_large_picture_is_written_in_bands(tmp_path, coded, region):
    codec, data = coded
    expected, path = files.decode(data, codec, region=region), tmp_path / "a.png"
    assert decode_to(path, data, codec, region=region) == (expected.size, "RGB")
    with Image.open(path) as image:
        assert image.tobytes() == expected.tobytes()
        assert {key: image.info[key] for key in METADATA} == METADATA


def damaged(data, tiles):
    head = bitstream.read_head(io.BytesIO(data))
    ends = np.cumsum([head.size, *(entry.length for entry in head.tiles)])[1:]
    spoilt = bytearray(data)
    for tile in tiles:
        spoilt[ends[tile] - 1] ^= 1
    return bytes(spoilt)


@pytest.mark.parametrize("tiles", [[0, 1, 2], [1], [3, 4, 5]])
def test_damage_is_grey_in_bands_too(tmp_path, coded, tiles):
    codec, data = coded
    spoilt, told, path = damaged(data, tiles), [], tmp_path / "a.ppm"
    with pytest.raises(BitstreamError, match="checksum"):
        decode_to(path, spoilt, codec)
    assert not path.exists()
    decode_to(path, spoilt, codec, on_damage=told.append)
    assert sorted(it.part for it in told) == [f"tile {tile}" for tile in tiles]
    with Image.open(path) as image:
        assert image.tobytes() == files.decode(spoilt, codec, on_damage=told.append).tobytes()
    with pytest.raises(BitstreamError, match="none of the tiles"):
        decode_to(path, damaged(data, range(6)), codec, on_damage=told.append)
