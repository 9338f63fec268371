"""A file in tiles, written once and kept: it must always decode to the same picture, and be written the same.

Its codec has no learned parts, so that the container, the grid of tiles and the entropy coder are what is tested.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bayesq import bitstream, files, tiling
from bayesq.coder import Decoder, Encoder, Tables

GOLDEN = Path(__file__).parent / "golden" / "tiles.bq"
COUNTS = [0, 1 << 10, 1 << 20, 1 << 23, 1 << 20, 1 << 10, (1 << 23) - (1 << 21) - (1 << 11)]
TABLES = Tables(np.cumsum([COUNTS], 1, np.int32))
PHOTO = Image.fromarray(np.add.outer(np.arange(21) ** 2, 3 * np.arange(30)).astype(np.uint8)).convert("RGB")


def sums(samples: np.ndarray) -> np.ndarray:
    """Of the 2×2 blocks of the last two axes."""
    return samples[..., ::2, ::2] + samples[..., 1::2, ::2] + samples[..., ::2, 1::2] + samples[..., 1::2, 1::2]


def rounded(four: np.ndarray, step: int) -> np.ndarray:
    """A quarter of it, less 128, in steps."""
    return (four - 512 + 2 * step) // (4 * step)


class Averages:
    """Codes the average of every 2×2 block, less 128, in steps of 16 (level 0) to 1 (level 255)."""

    model_id = b"averages"
    reduction, multiple, margin, context = 2, 4, 1, 1

    @staticmethod
    def step(level: int) -> int:
        return 16 - level // 17

    def compress(self, x: torch.Tensor, level: int, window: bitstream.Box) -> bytes:
        left, top, right, bottom = window
        x = x[..., top:bottom, left:right]
        x = torch.nn.functional.pad(x, (0, -x.shape[-1] % 4, 0, -x.shape[-2] % 4), mode="replicate")
        symbols = rounded(sums((x * 255).round().int().numpy()), self.step(level)).ravel()
        encoder = Encoder()
        encoder.put(symbols, np.zeros_like(symbols), TABLES)
        return encoder.finish()

    def latents(self, payload: bytes, height: int, width: int, level: int) -> torch.Tensor:
        shape = 1, 3, -(-height // 4) * 2, -(-width // 4) * 2
        decoder = Decoder(payload)
        symbols = decoder.get(np.zeros(np.prod(shape), np.int32), TABLES)
        decoder.check()
        return torch.from_numpy(symbols).view(shape).float() * self.step(level)

    def synthesize(self, z: torch.Tensor, level: int) -> torch.Tensor:
        return (z.repeat_interleave(2, -1).repeat_interleave(2, -2) + 128) / 255


@pytest.fixture
def picture():
    image = PHOTO.copy()
    image.putalpha(Image.fromarray(np.full((21, 30), 9, np.uint8)))
    image.info |= {"icc_profile": b"profile", "xmp": b"<x/>"}
    return image


def test_it_is_written_the_same(picture, monkeypatch):
    monkeypatch.setattr(tiling, "TILE", 12)
    written, golden = bitstream.unpack(files.encode(picture, Averages(), 80)), bitstream.unpack(GOLDEN.read_bytes())
    assert written.header == golden.header and written.tiles == golden.tiles
    assert {**written.chunks, "ALPH": b""} == {**golden.chunks, "ALPH": b""}  # zlib may deflate otherwise some day


def test_it_is_read_the_same(picture):
    decoded = files.decode(GOLDEN.read_bytes(), Averages())
    assert files.describe(GOLDEN.read_bytes()).tile_grid == (3, 2)
    assert decoded.info == picture.info
    assert decoded.getchannel("A").tobytes() == picture.getchannel("A").tobytes()
    colours = np.asarray(PHOTO.convert("L"), dtype=np.int32)[:20]
    expected = np.clip(rounded(sums(colours), 4) * 4 + 128, 0, 255).repeat(2, 0).repeat(2, 1)
    assert (np.asarray(decoded)[:20, :, :3] == expected[..., None]).all()
