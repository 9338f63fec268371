import dataclasses
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from bayesq import bitstream, files, tiling
from bayesq.bitstream import Box, File, Header, Mode
from bayesq.errors import BayesqError, BitstreamError, ImageError, ModelError
from bayesq.io import normalized, read_image, to_tensor

GENERATOR = np.random.default_rng(0)
EXIF = Image.Exif()
EXIF[0x0112] = 6
METADATA = {"icc_profile": b"profile" * 20, "exif": EXIF.tobytes(), "xmp": b"<x:xmpmeta/>"}
SIZES = [(1, 1), (1, 9), (8, 1), (13, 7)]


class ZlibCodec:
    """A lossy codec without a model: 8-bit samples on a grid that gets coarser as the level falls."""

    model_id = b"zlibtest"
    folder = None
    reduction = multiple = 1
    margin = context = 0

    @staticmethod
    def step(level: int) -> int:
        return 1 + (255 - level) // 32

    def compress(self, x: torch.Tensor, level: int, window: Box) -> bytes:
        left, top, right, bottom = window
        samples = (x[..., top:bottom, left:right] * 255 / self.step(level)).round().to(torch.uint8)
        return zlib.compress(samples.numpy().tobytes())

    def latents(self, payload: bytes, height: int, width: int, level: int) -> torch.Tensor:
        samples = np.frombuffer(zlib.decompress(payload), np.uint8).reshape(1, 3, height, width)
        return torch.from_numpy(samples.astype(np.float32))

    def sample_latents(
        self, payload: bytes, height: int, width: int, level: int, n: int, generator: torch.Generator
    ) -> torch.Tensor:
        centre = self.latents(payload, height, width, level)
        return centre + torch.rand(n, *centre.shape[1:], generator=generator) - 0.5

    def synthesize(self, z: torch.Tensor, level: int) -> torch.Tensor:
        return z * self.step(level) / 255


CODEC = ZlibCodec()


def noise(mode: str, width: int, height: int) -> Image.Image:
    bands = len(mode)
    samples = GENERATOR.integers(0, 256, width * height * bands, dtype=np.uint8)
    return Image.frombytes(mode, (width, height), samples.tobytes())


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
@pytest.mark.parametrize("size", SIZES)
def test_pictures_come_back_in_their_mode(mode, size):
    image = noise(mode, *size)
    result = files.decode(files.encode(image, CODEC, 100), CODEC)
    assert (result.mode, result.size) == (mode, size)
    assert result.tobytes() == image.tobytes()


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_alpha_is_lossless_at_any_quality(mode):
    image = noise(mode, 13, 7)
    result = files.decode(files.encode(image, CODEC, 0), CODEC)
    assert result.getchannel("A").tobytes() == image.getchannel("A").tobytes()
    assert result.tobytes() != image.tobytes()


@pytest.mark.parametrize("size", [(9, 6), (40, 20)])
@pytest.mark.parametrize("mode", ["1", "P", "PA", "CMYK", "YCbCr", "HSV", "RGBa"])
def test_other_modes_come_back_as_normalized(mode, size, monkeypatch):
    monkeypatch.setattr(tiling, "TILE", 16)
    alpha = mode in ("PA", "RGBa")
    image = noise("RGBA" if alpha else "RGB", *size).convert(mode)
    result = files.decode(files.encode(image, CODEC, 100), CODEC)
    assert result.mode == ("L" if mode == "1" else "RGBA" if alpha else "RGB")
    assert result.tobytes() == normalized(image).tobytes()


def test_a_transparent_palette_entry_comes_back_as_alpha():
    image = noise("L", 9, 6).convert("P")
    image.info["transparency"] = image.getpixel((0, 0))
    result = files.decode(files.encode(image, CODEC, 100), CODEC)
    assert result.mode == "RGBA" and result.tobytes() == image.convert("RGBA").tobytes()
    assert result.getpixel((0, 0))[3] == 0


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_metadata_comes_back_and_is_not_applied(mode):
    image = noise(mode, 5, 3)
    image.info |= METADATA | {"dpi": (72, 72)}
    result = files.decode(files.encode(image, CODEC, 50), CODEC)
    assert result.info == METADATA
    assert result.size == (5, 3)
    assert result.getexif()[0x0112] == 6


def test_textual_xmp_is_kept():
    image = noise("L", 2, 2)
    image.info["XML:com.adobe.xmp"] = "<x:é/>"
    assert files.decode(files.encode(image, CODEC, 50), CODEC).info["xmp"].decode() == "<x:é/>"


def test_a_tiff_is_coded_upright(tmp_path):
    noise("RGB", 5, 3).save(tmp_path / "a.tif", exif=EXIF)
    result = files.decode(files.encode(read_image(tmp_path / "a.tif"), CODEC, 50), CODEC)
    assert result.size == (3, 5) and 0x0112 not in result.getexif()


def test_a_profile_of_other_colours_is_dropped():
    image = Image.new("CMYK", (2, 2))
    image.info["icc_profile"] = b"inks"
    assert "icc_profile" not in files.decode(files.encode(image, CODEC, 50), CODEC).info


def test_plain_pictures_carry_no_chunks():
    assert files.describe(files.encode(noise("RGB", 4, 4), CODEC, 50)).chunks == {}


@pytest.mark.parametrize(("quality", "level"), [(0, 0), (50, 128), (99.9, 255), (100, 255), (0.1, 0)])
def test_quality_becomes_a_level(quality, level):
    assert files.describe(files.encode(noise("L", 2, 2), CODEC, quality)).level == level


@pytest.mark.parametrize("quality", [-1, 100.1, float("nan"), float("inf")])
def test_impossible_qualities_are_refused(quality):
    with pytest.raises(BayesqError, match="between 0 and 100"):
        files.encode(noise("L", 2, 2), CODEC, quality)


@pytest.mark.parametrize(
    ("image", "reason"),
    [(Image.new("I;16", (2, 2)), "8 bits"), (Image.new("F", (2, 2)), "8 bits"), (Image.new("L", (0, 2)), "no pixels")],
)
def test_pictures_that_cannot_be_coded_are_refused(image, reason):
    with pytest.raises(ImageError, match=reason):
        files.encode(image, CODEC, 50)


def test_too_large_pictures_are_refused(monkeypatch):
    monkeypatch.setattr(files, "MAX_PIXELS", 15)
    with pytest.raises(ImageError, match="limit"):
        files.encode(noise("L", 4, 4), CODEC, 50)


def test_a_grid_of_tiles_is_put_together():
    image = noise("RGB", 13, 7)
    header = Header(13, 7, Mode.RGB, 255, CODEC.model_id, 5, 4)
    tiles = [files.encode(image.crop(box), CODEC, 100) for box in header.boxes()]
    data = bitstream.pack(File(header, tuple(bitstream.unpack(tile).tiles[0] for tile in tiles)))
    assert files.decode(data, CODEC).tobytes() == image.tobytes()
    assert files.describe(data).tile_grid == (3, 2)


def test_another_model_is_refused():
    data = files.encode(noise("L", 2, 2), CODEC, 50)
    other = ZlibCodec()
    other.model_id = b"another!"
    with pytest.raises(ModelError, match=CODEC.model_id.hex()):
        files.decode(data, other)
    with pytest.raises(ModelError, match=CODEC.model_id.hex()):
        files.decode(data)


def test_an_alpha_plane_of_another_size_is_refused():
    file = bitstream.unpack(files.encode(noise("LA", 4, 3), CODEC, 50))
    for plane in (bytes(11), bytes(13), bytes(10**6)):
        bomb = dataclasses.replace(file, chunks={"ALPH": bitstream.pack_plane([plane])})
        with pytest.raises(BitstreamError, match="alpha plane"):
            files.decode(bitstream.pack(bomb), CODEC)


def test_damage_is_refused_and_described():
    data = files.encode(noise("RGBA", 4, 3), CODEC, 50)
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1
        with pytest.raises(BitstreamError):
            files.decode(bytes(damaged), CODEC)
    assert files.describe(data).intact
    assert not files.describe(data[:-1]).intact
    assert not files.describe(bytes(damaged)).intact
    with pytest.raises(BitstreamError):
        files.describe(data[:20])


def test_a_description_says_what_the_file_holds():
    image = noise("LA", 13, 7)
    image.info |= METADATA
    data = files.encode(image, CODEC, 50)
    description = files.describe(data)
    assert dataclasses.asdict(description) == {
        "format_version": bitstream.VERSION,
        "width": 13,
        "height": 7,
        "mode": "LA",
        "model_id": CODEC.model_id.hex(),
        "level": 128,
        "quality": pytest.approx(50, abs=0.2),
        "bytes": len(data),
        "bits_per_pixel": 8 * len(data) / 91,
        "tile_grid": (1, 1),
        "tile_size": (13, 7),
        "chunks": description.chunks,
        "intact": True,
        "damaged": (),
    }
    assert set(description.chunks) == {"ICCP", "EXIF", "XMP_", "ALPH"}
    assert description.chunks["ICCP"] == len(METADATA["icc_profile"])


@pytest.mark.parametrize(("mode", "averaged"), [("L", 3), ("RGBA", 1)])
def test_the_deviation_is_that_of_the_cells(mode, averaged):
    data = files.encode(noise(mode, 13, 7), CODEC, 0)
    deviation = files.deviation(data, CODEC, 2000, torch.Generator().manual_seed(0))
    assert deviation.shape == (1, 1, 7, 13)
    cell = CODEC.step(0) / 255
    torch.testing.assert_close(deviation, torch.full_like(deviation, cell / (12 * averaged) ** 0.5), rtol=0.1, atol=0)


@pytest.mark.parametrize("samples", [1, 0])
def test_a_deviation_takes_two_samples(samples):
    data = files.encode(noise("L", 4, 4), CODEC, 50)
    with pytest.raises(ValueError, match=f"at least 2 samples, not {samples}"):
        files.deviation(data, CODEC, samples, torch.Generator())


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
@pytest.mark.parametrize("region", [None, (2, 1, 9, 7)])
def test_samples_spread_as_the_deviation_says(mode, region):
    image = noise(mode, 13, 7).point(lambda value: 64 + value // 2)  # draws stay inside [0, 1]
    image.info |= METADATA
    data = files.encode(image, CODEC, 0)
    decoded = files.decode(data, CODEC, region=region)
    drawn, spread = (
        draw(data, CODEC, 500, torch.Generator().manual_seed(0), region=region)
        for draw in (files.sample, files.deviation)
    )
    for picture in drawn:
        assert (picture.mode, picture.size, picture.info) == (decoded.mode, decoded.size, METADATA)
        assert mode[-1] != "A" or picture.getchannel("A").tobytes() == decoded.getchannel("A").tobytes()
    found = torch.cat([to_tensor(picture)[:, : 1 if mode[0] == "L" else 3] for picture in drawn])
    found = (found.var(0).mean(0) - 1 / (12 * 255**2)).sqrt()  # without that of rounding
    torch.testing.assert_close(spread[0, 0], found, rtol=0.05, atol=0)
    with pytest.raises(ValueError, match="at least 1 sample"):
        files.sample(data, CODEC, 0, torch.Generator())


def test_damage_is_drawn_grey_and_leaves_all_open(monkeypatch):
    monkeypatch.setattr(tiling, "TILE", 16)
    image = Image.new("RGB", (32, 16), (200, 100, 50))
    data = bytearray(files.encode(image, CODEC, 50))
    data[-1] ^= 1  # of the last tile
    lost = []
    options = {"samples": 3, "generator": torch.Generator().manual_seed(0), "on_damage": lost.append}
    spread = files.deviation(bytes(data), CODEC, **options)
    assert spread[..., :16].isfinite().all() and spread[..., 16:].isinf().all()
    for picture in files.sample(bytes(data), CODEC, **options):
        assert picture.crop((16, 0, 32, 16)).getcolors() == [(256, (128, 128, 128))]
        assert picture.crop((0, 0, 16, 16)).getpixel((8, 8)) != (128, 128, 128)
    assert {it.part for it in lost} == {"tile 1"}
    with pytest.raises(BitstreamError):
        files.sample(bytes(data), CODEC, 3, torch.Generator())


def test_describing_needs_no_torch():
    code = "import sys; from bayesq.files import describe; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
