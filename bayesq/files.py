"""Pictures to ``.bq`` bytes and back: colours through a codec, everything else (alpha, metadata) without loss.

Large pictures are coded tile by tile, so that little memory is needed beside the file and the picture, which may stay
on disk (``bayesq.streams``).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import IO, TYPE_CHECKING, Any, Protocol, TypeVar

from PIL import Image

from bayesq import bitstream
from bayesq.bitstream import ALPHA, EXIF, ICC, MAX_PIXELS, PRECISION, STRIP, XMP, Box, File, Head, Header, Mode, Reader
from bayesq.decoding import EXIF_PREFIX, Damage, Decoding, colours_of
from bayesq.errors import BitstreamError, ImageError
from bayesq.io import normalized, to_tensor
from bayesq.quality import level_of, quality_of
from bayesq.tiling import Part, TileCodec, surroundings, tile_side

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Generator, Tensor

_T = TypeVar("_T")


class Picture(Protocol):
    """What is coded: a Pillow image, or what stands for one in mode L, LA, RGB or RGBA."""

    @property
    def mode(self) -> str:
        """Pillow's name of the mode."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, pixels."""

    @property
    def info(self) -> Mapping[Any, Any]:
        """Metadata, as Pillow keeps it."""

    def crop(self, box: Box, /) -> Image.Image:
        """A copy of a part: left, top, right and bottom, pixels."""


@dataclass(frozen=True)
class Normalized:
    """A Pillow image in the mode that `bayesq.io.normalized` gives it, converted part by part: it is held once.

    Raises:
        ImageError: the picture has more than 8 bits a sample, or no pixels.
    """

    image: Image.Image

    @cached_property
    def mode(self) -> str:
        width, height = self.size
        return normalized(self.image.crop((0, 0, min(width, 1), min(height, 1)))).mode

    @property
    def size(self) -> tuple[int, int]:
        return self.image.size

    @property
    def info(self) -> Mapping[Any, Any]:
        return self.image.info

    def crop(self, box: Box) -> Image.Image:
        return normalized(self.image.crop(box))


class SamplingCodec(TileCodec, Protocol):
    """A codec that can also draw from the cells of a payload."""

    @property
    def folder(self) -> Path | None:
        """Where its weights are, and its calibration may be."""

    def sample_latents(
        self, payload: bytes, height: int, width: int, level: int, n: int, generator: Generator
    ) -> Tensor:
        """Draws of the coded latents, (n, M, h, w)."""


@dataclass(frozen=True)
class Description:
    """What a file says of itself."""

    format_version: int
    width: int
    height: int
    mode: str
    """L, LA, RGB or RGBA."""
    model_id: str
    """16 hexadecimal digits."""
    level: int
    """0 to 255."""
    quality: float
    """0 to 100."""
    bytes: int
    bits_per_pixel: float
    """Of the whole file."""
    tile_grid: tuple[int, int]
    """Columns and rows."""
    tile_size: tuple[int, int]
    """Width and height of a tile, pixels; the picture's border cuts off those on the right and at the bottom."""
    chunks: Mapping[str, int]
    """Bytes of each chunk, by tag."""
    intact: bool
    """Whether all bytes are there, and no more, and all checksums right."""
    damaged: tuple[str, ...]
    """Which tiles and chunks are damaged: ``tile 3``, ``chunk ALPH``."""


def encode(image: Picture, codec: TileCodec, quality: float, effort: int = 1, *, progress: bool = False) -> bytes:
    """The bytes of a ``.bq`` file.

    Grey pictures stay grey, alpha is kept without loss, as are the ICC profile, EXIF and XMP found in ``image.info``.

    Args:
        image: a Pillow image with 8 bits a sample, of which palettes and CMYK are coded as RGB, or a picture that
            reads its pixels when asked (``bayesq.streams``).
        codec: the model.
        quality: 0 (smallest) to 100 (best).
        effort: 1 codes in one pass; 2 to 9 look for a better file at that quality, in 2, 4, 8 … 256 steps, each of
            which takes about three times as long as one pass.
        progress: show a progress bar on stderr where that takes long.

    Raises:
        ImageError: the picture has more than 8 bits a sample, no pixels, or more than `MAX_PIXELS`.
        ModelError: the quality or the effort is not in its range.
    """
    level = level_of(quality)
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"{width} × {height} pixels exceed the limit of {MAX_PIXELS}")
    pixels = Normalized(image) if isinstance(image, Image.Image) else image
    mode = Mode.RGB if pixels.mode.startswith("RGB") else Mode.GREY
    chunks = _metadata(image)
    if pixels.mode.endswith("A"):
        strips = ((0, top, width, min(top + STRIP, height)) for top in range(0, height, STRIP))
        chunks[ALPHA] = bitstream.pack_plane(pixels.crop(strip).getchannel("A").tobytes() for strip in strips)
    sides = (tile_side(side, codec.multiple) for side in pixels.size)
    header = Header(width, height, mode, level, codec.model_id, *sides)
    compress = codec.compress
    if effort != 1:
        from bayesq.inference import refine

        compress = partial(refine.compress, codec, effort, progress=progress)
    tiles, precisions = [], []
    for box in header.boxes():
        around, window = surroundings(box, header, codec)
        tiles.append(compress(to_tensor(pixels.crop(around)), level, window))
        precisions.append(_precision(codec, partial(pixels.crop, box), level))
    if any(precisions):
        chunks[PRECISION] = bytes(precisions)
    return bitstream.pack(File(header, tuple(tiles), chunks))


def decode(
    data: bytes | IO[bytes],
    codec: TileCodec | None = None,
    *,
    region: Box | None = None,
    on_damage: Callable[[Damage], None] | None = None,
) -> Image.Image:
    """The picture in a ``.bq`` file, in mode L, LA, RGB or RGBA, with its metadata in ``info``.

    Args:
        data: the whole file, or a stream of it that can seek, of which no more than needed is read.
        codec: the model that wrote it; looked up by its id among the installed ones if not given.
        region: the part of the picture to decode: left, top, right and bottom, pixels; all of it if not given.
        on_damage: is told what cannot be read, while the rest is decoded: damaged tiles become grey, a damaged alpha
            plane opaque, damaged metadata nothing. If not given, any damage is an error.

    Raises:
        BitstreamError: the file is damaged, foreign, or needs a newer bayesq.
        ForeignModelError: the file needs another model than that given, or than those installed.
        ImageError: the region is empty or not inside the picture.
    """
    return Decoding(data, codec, region, on_damage).picture()


def deviation(
    data: bytes | IO[bytes],
    codec: SamplingCodec,
    samples: int,
    generator: Generator,
    *,
    region: Box | None = None,
    on_damage: Callable[[Damage], None] | None = None,
) -> Tensor:
    """What a file leaves open: the standard deviation, pixel by pixel, of pictures drawn from its cells.

    Of large pictures each tile is drawn by itself, its neighbours' latents being what the file says. The calibration
    of the model (``bayesq.calibration``), where there is one, scales it to the errors that such files have.

    Args:
        data: the whole file, or a stream of it that can seek.
        codec: the model that wrote it.
        samples: number of draws, at least 2.
        generator: source of the randomness.
        region: as for ``decode``.
        on_damage: as for ``decode``.

    Returns:
        (1, 1, H, W), the root mean square over the colours, in units of images in [0, 1]; infinite where tiles are
        damaged.

    Raises:
        BitstreamError: the file is damaged, foreign, or needs a newer bayesq.
        ForeignModelError: the file needs another model.
        ImageError: the region is empty or not inside the picture.
        ValueError: fewer than 2 draws are asked for.
    """
    import torch

    from bayesq.calibration import of_model

    if samples < 2:
        raise ValueError(f"a deviation takes at least 2 samples, not {samples}")
    decoding = Decoding(data, codec, region, on_damage)
    (x, y, _, _), (width, height), level = decoding.box, decoding.size, decoding.header.level
    result = torch.full((1, 1, height, width), torch.inf)
    for part in decoding.parts():
        left, top, right, bottom = part.box
        draws = decoding.synthesize(part, _draws(decoding, codec, samples, generator, part))
        result[..., top - y : bottom - y, left - x : right - x] = draws.var(0).mean(0).sqrt()
    calibration = of_model(codec)
    return result * calibration.file_scale(level) if calibration else result


def sample(
    data: bytes | IO[bytes],
    codec: SamplingCodec,
    samples: int,
    generator: Generator,
    *,
    region: Box | None = None,
    on_damage: Callable[[Damage], None] | None = None,
) -> list[Image.Image]:
    """Pictures that a file could stand for: the draws of which ``deviation`` tells the spread, before calibration.

    Args:
        data, codec, generator, region, on_damage: as for ``deviation``.
        samples: number of draws, at least 1.

    Returns:
        Each as from ``decode``.

    Raises:
        BitstreamError, ForeignModelError, ImageError: as ``deviation``.
        ValueError: no draws are asked for.
    """
    if samples < 1:
        raise ValueError(f"draw at least 1 sample, not {samples}")
    decoding = Decoding(data, codec, region, on_damage)
    return decoding.pictures(partial(_draws, decoding, codec, samples, generator))


def _draws(decoding: Decoding, codec: SamplingCodec, samples: int, generator: Generator, part: Part) -> Tensor:
    """Latents (n, M, h, w) of a part, its own tile's drawn from their cells."""
    z = part.z.repeat(samples, 1, 1, 1)
    payload, size = decoding.reader.tile(part.tile), decoding.tile_size(part.tile)
    drawn = codec.sample_latents(payload, *size, decoding.header.level, samples, generator)
    z[part.own] = drawn[part.own_part]
    return z


def describe(data: bytes | IO[bytes]) -> Description:
    """What a file says of itself; needs neither its model nor torch.

    Args:
        data: the whole file, or a stream of it that can seek.

    Raises:
        BitstreamError: not even the head of the file is intact.
    """
    reader = Reader(io.BytesIO(data) if isinstance(data, bytes) else data)
    head, header, length = reader.head, reader.head.header, reader.length()
    damaged = [f"tile {n}" for n in range(len(head.tiles)) if not _is_sound(reader.tile, n)]
    damaged += [f"chunk {tag}" for tag in head.chunks if not _is_sound(reader.chunk, tag)]
    return Description(
        format_version=bitstream.VERSION,
        width=header.width,
        height=header.height,
        mode=mode_of(head),
        model_id=header.model_id.hex(),
        level=header.level,
        quality=quality_of(header.level),
        bytes=length,
        bits_per_pixel=8 * length / (header.width * header.height),
        tile_grid=(header.columns, header.rows),
        tile_size=(header.tile_width, header.tile_height),
        chunks={tag: entry.length for tag, entry in head.chunks.items()},
        intact=not damaged and length == head.announced,
        damaged=tuple(damaged),
    )


def mode_of(head: Head) -> str:
    """L, LA, RGB or RGBA."""
    return colours_of(head.header) + ("A" if ALPHA in head.chunks else "")


def _precision(codec: TileCodec, tile: Callable[[], Image.Image], level: int) -> int:
    """Which of the codec's precisions a tile should be decoded in."""
    from bayesq.codec import Codec

    selector = codec.selector if isinstance(codec, Codec) else None
    return 0 if selector is None else selector.choose(to_tensor(tile()), level)


def _is_sound(read: Callable[[_T], bytes], part: _T) -> bool:
    try:
        read(part)
    except BitstreamError:
        return False
    return True


def _metadata(image: Picture) -> dict[str, bytes]:
    info = image.info
    xmp = info.get("xmp") or info.get("XML:com.adobe.xmp") or b""
    chunks = {
        ICC: b"" if image.mode in ("CMYK", "LAB") else info.get("icc_profile") or b"",  # a profile of other colours
        EXIF: (info.get("exif") or b"").removeprefix(EXIF_PREFIX),
        XMP: xmp.encode() if isinstance(xmp, str) else xmp,
    }
    return {tag: data for tag, data in chunks.items() if data}
