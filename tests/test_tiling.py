"""Tiles: they cover, they show no seams, and each reads as if it were alone."""

import io
import resource
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from skimage.data import astronaut

from bayesq import bitstream, files, tiling, zoo
from bayesq.bitstream import File, Header, Mode
from bayesq.errors import BitstreamError, ImageError
from bayesq.io import to_image, to_tensor
from bayesq.tiling import Mosaic, surroundings, tile_side

PHOTO = Image.fromarray(astronaut()).crop((0, 30, 230, 200))
QUALITY, TILE = 40, 96


@pytest.fixture(scope="module")
def codec(tiny_codec):
    """A codec whose networks look far around: their deep branches are those of a random start, not scaled down."""
    codec = tiny_codec.exported()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        head = codec.synthesis.head.weight
        head.copy_(0.1 * torch.randn(head.shape, generator=generator))
    return codec


@pytest.fixture(scope="module")
def tiled(codec):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiling, "TILE", TILE)
        return files.encode(PHOTO, codec, QUALITY)


def pixels(image):
    return np.asarray(image, dtype=int)


class Grid:
    """The grid of a codec, without its networks."""

    reduction, multiple, margin, context = 4, 8, 3, 3


@st.composite
def headers(draw):
    width, height = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    sides = [draw(st.sampled_from([length, *range(8, length, 8)])) for length in (width, height)]
    return Header(width, height, Mode.RGB, 0, bytes(8), *sides)


@st.composite
def regions(draw, header):
    left, top = draw(st.integers(0, header.width - 1)), draw(st.integers(0, header.height - 1))
    return left, top, draw(st.integers(left + 1, header.width)), draw(st.integers(top + 1, header.height))


@given(st.integers(1, 10**6), st.sampled_from([1, 16, 32, 64]))
def test_tiles_are_of_equal_size_on_the_grid(length, multiple):
    side = tile_side(length, multiple)
    count = -(-length // side)
    assert side <= tiling.TILE and count == -(-length // tiling.TILE)
    assert count == 1 or (side % multiple == 0 and (length - (count - 1) * side) > side - count * multiple)


@given(headers(), st.data())
def test_parts_cover_a_region_once_with_all_latents_that_bear_on_it(header, data):
    """Latents that say where they are: what a part is given is what lies there in the picture."""
    region = data.draw(regions(header))
    mosaic = Mosaic(header, Grid)
    width, height = (-(-side // 8) * 2 for side in (header.width, header.height))
    whole = torch.arange(1.0, 1 + width * height).view(1, 1, height, width)
    asked = []

    def latents(tile):
        asked.append(tile)
        left, top, right, bottom = header.boxes()[tile]
        right, bottom = (-(-side // 8) * 8 for side in (right, bottom))
        return whole[..., top // 4 : bottom // 4, left // 4 : right // 4]

    seen = torch.zeros(header.height, header.width)
    for part in mosaic.parts(region, latents):
        left, top, right, bottom = part.box
        seen[top:bottom, left:right] += 1
        first, last = max(left // 4 - 3, 0), min(-(-right // 4) + 3, width)
        upper, lower = max(top // 4 - 3, 0), min(-(-bottom // 4) + 3, height)
        assert torch.equal(part.z, whole[..., upper:lower, first:last])
        assert torch.equal(part.z[part.own], latents(part.tile)[part.own_part])
        asked.pop()
        assert part.crop == (
            ...,
            slice(top - 4 * upper, bottom - 4 * upper),
            slice(left - 4 * first, right - 4 * first),
        )
    assert len(asked) == len(set(asked))
    expected = torch.zeros_like(seen)
    expected[region[1] : region[3], region[0] : region[2]] = 1
    assert torch.equal(seen, expected)


@given(headers())
def test_surroundings_are_on_the_grid_and_hold_the_tile(header):
    for box in header.boxes():
        (left, top, right, bottom), window = surroundings(box, header, Grid)
        assert (left + window[0], top + window[1], left + window[2], top + window[3]) == box
        assert left % 8 == top % 8 == 0
        assert right % 8 == 0 or right == header.width
        assert bottom % 8 == 0 or bottom == header.height
        assert min(box[0], 12) <= box[0] - left <= 16 and min(header.width - box[2], 12) <= right - box[2] <= 16


@pytest.mark.parametrize("size", [(64, 800), (800, 64), (160, 160)])
def test_at_most_two_rows_of_latents_are_held(size):
    header = Header(*size, Mode.RGB, 0, bytes(8), 16, 16)
    alive = []

    def latents(tile):
        z = torch.zeros(1, 1, 4, 4)
        alive.append(weakref.ref(z))
        return z

    for _ in Mosaic(header, Grid).parts((0, 0, *size), latents):
        assert sum(ref() is not None for ref in alive) <= 2 * min(header.columns, header.rows) + 3
    assert len(alive) == header.columns * header.rows


def test_tiles_off_the_grid_are_refused():
    Mosaic(Header(50, 12, Mode.RGB, 0, bytes(8), 16, 12), Grid)
    with pytest.raises(BitstreamError, match="do not fit the model"):
        Mosaic(Header(50, 50, Mode.RGB, 0, bytes(8), 16, 12), Grid)


def whole(codec, data):
    """The latents of all tiles side by side, and what the synthesis makes of them at once."""
    file = bitstream.unpack(data)
    header = file.header
    tiles = [
        codec.latents(payload, bottom - top, right - left, header.level)
        for payload, (left, top, right, bottom) in zip(file.tiles, header.boxes(), strict=True)
    ]
    rows = [torch.cat(tiles[n : n + header.columns], -1) for n in range(0, len(tiles), header.columns)]
    z = torch.cat(rows, -2)
    return z, to_image(codec.synthesize(z, header.level)[..., : header.height, : header.width])


def test_tiles_are_synthesised_as_one_picture(codec, tiled, monkeypatch):
    assert files.describe(tiled).tile_grid == (3, 2)
    expected = pixels(whole(codec, tiled)[1])
    assert np.abs(pixels(files.decode(tiled, codec)) - expected).max() <= 1
    monkeypatch.setattr(codec, "margin", 0)
    assert np.abs(pixels(files.decode(tiled, codec)) - expected).max() > 5


def test_tiles_are_analysed_as_one_picture(codec, tiled, monkeypatch):
    header, x, level = bitstream.unpack(tiled).header, to_tensor(PHOTO), torch.tensor([100])
    expected = codec.prior.image_latent(codec.targets(x, level))

    def furthest():
        """How far the latents of a tile are from those of the whole picture, at most."""
        found = []
        for box in header.boxes():
            (left, top, right, bottom), place = surroundings(box, header, codec)
            z = codec.prior.image_latent(codec.targets(x[..., top:bottom, left:right], level, place))
            row, column = box[1] // codec.reduction, box[0] // codec.reduction
            found.append((z - expected[..., row : row + z.shape[-2], column : column + z.shape[-1]]).abs().max())
        return max(found)

    assert furthest() < 1e-3
    monkeypatch.setattr(codec, "context", 0)
    assert furthest() > 1


@pytest.mark.parametrize("quality", [0, 50])
def test_no_seams_show(quality, monkeypatch):
    """Steps of the error across borders of tiles are no larger than those across borders of other 16×16 blocks."""
    codec, photo = zoo.shared("base"), Image.fromarray(astronaut()).crop((100, 0, 356, 256))
    monkeypatch.setattr(tiling, "TILE", 128)
    data = files.encode(photo, codec, quality)
    error = pixels(files.decode(data, codec)) - pixels(photo)
    border, elsewhere = [], []
    for rows in (error, error.swapaxes(0, 1)):
        steps = np.abs(np.diff(rows, axis=0)).mean((1, 2))[15::16]
        border.append(steps[7])
        elsewhere.append(np.delete(steps, 7))
    assert files.describe(data).tile_grid == (2, 2)
    assert np.mean(border) < 1.15 * np.mean(elsewhere)


REGIONS = [(0, 0, 230, 170), (0, 0, 1, 1), (229, 169, 230, 170), (90, 70, 140, 110), (3, 5, 9, 99)]


@pytest.mark.parametrize("region", REGIONS)
def test_a_region_is_cut_from_the_picture(codec, tiled, region):
    part = files.decode(tiled, codec, region=region)
    expected = files.decode(tiled, codec).crop(region)
    assert (part.mode, part.size) == (expected.mode, expected.size)
    assert np.abs(pixels(part) - pixels(expected)).max() <= 1


class Counting(io.BytesIO):
    """A file that knows how much of it was read."""

    count = 0

    def read(self, size=-1):
        data = super().read(size)
        self.count += len(data)
        return data


def test_a_region_is_read_without_the_rest(codec, tiled):
    stream, head = Counting(tiled), bitstream.read_head(io.BytesIO(tiled))
    files.decode(stream, codec, region=(4, 4, 20, 20))
    assert stream.count == head.size + head.tiles[0].length


@pytest.mark.parametrize("region", [(0, 0, 231, 10), (0, 0, 0, 10), (-1, 0, 5, 5), (9, 9, 5, 20)])
def test_regions_outside_are_refused(codec, tiled, region):
    with pytest.raises(ImageError, match="no region of"):
        files.decode(tiled, codec, region=region)


def damage(data, tile):
    head = bitstream.read_head(io.BytesIO(data))
    place = head.size + sum(entry.length for entry in head.tiles[:tile]) + 5
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize("tile", range(6))
def test_one_damaged_tile_leaves_the_others(codec, tiled, tile):
    damaged, told = damage(tiled, tile), []
    with pytest.raises(BitstreamError, match=f"tile {tile}"):
        files.decode(damaged, codec)
    picture = files.decode(damaged, codec, on_damage=told.append)
    left, top, right, bottom = box = bitstream.unpack(tiled).header.boxes()[tile]
    assert [(it.part, it.box) for it in told] == [(f"tile {tile}", box)]
    assert picture.crop(box).getextrema() == ((128, 128),) * 3
    near = codec.margin * codec.reduction
    far = np.abs(pixels(picture) - pixels(files.decode(tiled, codec)))
    far[max(top - near, 0) : bottom + near, max(left - near, 0) : right + near] = 0
    assert far.max() <= 1
    assert files.describe(damaged).damaged == (f"tile {tile}",)


def test_a_file_cut_off_leaves_what_is_there(codec, tiled):
    head, told = bitstream.read_head(io.BytesIO(tiled)), []
    cut = tiled[: head.size + head.tiles[0].length + 3]
    picture = files.decode(cut, codec, on_damage=told.append)
    assert [it.part for it in told] == [f"tile {n}" for n in (1, 3, 4, 2, 5)]
    assert np.abs(pixels(picture) - pixels(files.decode(tiled, codec)))[:32, :32].max() <= 1


def test_damaged_alpha_and_metadata_leave_the_colours(codec):
    photo = PHOTO.crop((0, 0, 40, 30))
    photo.putalpha(7)
    photo.info |= {"icc_profile": b"profile", "xmp": b"<x/>"}
    data = files.encode(photo, codec, 50)
    expected, told = files.decode(data, codec), []
    assert expected.getextrema()[3] == (7, 7)
    broken = data.replace(b"profile", b"profane")
    place = bitstream.Reader(io.BytesIO(data)).head.size + len(bitstream.unpack(data).tiles[0])
    assert expected.info.keys() == {"icc_profile", "xmp"}
    alpha = data.index(bitstream.unpack(data).chunks["ALPH"], place)
    broken = broken[: alpha + 2] + b"??" + broken[alpha + 4 :]
    picture = files.decode(broken, codec, on_damage=told.append)
    assert [str(it).split(":")[0] for it in told] == ["chunk ALPH", "chunk ICCP"]
    assert picture.info == {"xmp": b"<x/>"} and picture.getextrema()[3] == (255, 255)
    assert np.array_equal(pixels(picture)[..., :3], pixels(expected)[..., :3])


def test_alpha_and_grey_survive_tiling(codec, monkeypatch):
    monkeypatch.setattr(tiling, "TILE", TILE)
    photo = PHOTO.convert("LA")
    photo.putalpha(Image.fromarray(np.arange(PHOTO.width * PHOTO.height, dtype=np.uint8).reshape(PHOTO.size[::-1])))
    decoded = files.decode(files.encode(photo, codec, 50), codec)
    assert decoded.mode == "LA" and decoded.getchannel("A").tobytes() == photo.getchannel("A").tobytes()
    region = 30, 50, 200, 160
    part = files.decode(files.encode(photo, codec, 50), codec, region=region)
    assert part.getchannel("A").tobytes() == photo.crop(region).getchannel("A").tobytes()


def test_the_deviation_of_tiles_is_that_of_the_picture(codec, tiled):
    one = files.deviation(files.encode(PHOTO, codec, QUALITY), codec, 16, torch.Generator().manual_seed(0))
    many = files.deviation(tiled, codec, 16, torch.Generator().manual_seed(0))
    assert many.shape == one.shape == (1, 1, 170, 230)
    border = many[..., 96 - 8 : 96 + 8].mean() / one[..., 96 - 8 : 96 + 8].mean()
    assert 0.8 < border < 1.1 and 0.95 < many.mean() / one.mean() < 1.05


def test_a_huge_empty_file_is_refused_before_anything_large_is_allocated(codec):
    header = Header(1 << 14, 1 << 14, Mode.RGB, 255, codec.model_id, 2048, 2048)
    data = bitstream.pack(File(header, (b"",) * 64))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BitstreamError):
        files.decode(data, codec)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 18
