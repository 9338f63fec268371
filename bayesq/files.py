"""Pictures to ``.bq`` bytes and back: colours through a codec, everything else (alpha, metadata) without loss.

Large pictures are coded tile by tile, so that beside the 8-bit picture and the file little memory is needed.
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
from bayesq.errors import BitstreamError, ForeignModelError, ImageError
from bayesq.io import normalized, to_image, to_tensor
from bayesq.quality import level_of, quality_of
from bayesq.tiling import Mosaic, Transform, surroundings, tile_side

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Generator, Tensor

_EXIF_PREFIX = b"Exif\0\0"


_GREY = 128
_T = TypeVar("_T")


class TileCodec(Transform, Protocol):
    """What a file needs of a codec."""

    @property
    def model_id(self) -> bytes:
        """The first 8 bytes of the SHA-256 of the weights file."""

    def compress(self, x: Tensor, level: int, window: Box) -> bytes:
        """Codes that window of x, (1, 3, H, W) in [0, 1], at one of 256 quality levels; the rest of x is context."""

    def latents(self, payload: bytes, height: int, width: int, level: int) -> Tensor:
        """The coded latents, (1, M, h, w), of a picture or tile of that size, padded."""

    def synthesize(self, z: Tensor, level: int) -> Tensor:
        """Pictures of latents, (B, 3, H, W) in [0, 1]."""


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
class Damage:
    """A part of a file that could not be read."""

    part: str
    """``tile 3`` (they are counted from 0, row by row) or ``chunk ALPH``."""
    box: Box | None
    """The place of a tile: left, top, right and bottom, pixels."""
    reason: str

    def __str__(self) -> str:
        place = "" if self.box is None else " at {},{},{},{}".format(*self.box)
        return f"{self.part}{place}: {self.reason}"


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


def encode(image: Image.Image, codec: TileCodec, quality: float, effort: int = 1, *, progress: bool = False) -> bytes:
    """The bytes of a ``.bq`` file.

    Grey pictures stay grey, alpha is kept without loss, as are the ICC profile, EXIF and XMP found in ``image.info``.

    Args:
        image: a picture with 8 bits a sample; palettes and CMYK are coded as RGB.
        codec: the model.
        quality: 0 (smallest) to 100 (best).
        effort: 1 codes in one pass; 2 to 9 look for a better file at that quality, in 4, 8, 16 … 512 steps that take
            about twice as long each.
        progress: show a progress bar on stderr where that takes long.

    Raises:
        ImageError: the picture has more than 8 bits a sample, no pixels, or more than `MAX_PIXELS`.
        ModelError: the quality or the effort is not in its range.
    """
    level = level_of(quality)
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(f"{image.width} × {image.height} pixels exceed the limit of {MAX_PIXELS}")
    pixels = normalized(image)
    width, height = pixels.size
    chunks = _metadata(image)
    if pixels.mode.endswith("A"):
        strips = ((0, top, width, min(top + STRIP, height)) for top in range(0, height, STRIP))
        chunks[ALPHA] = bitstream.pack_plane(pixels.crop(strip).getchannel("A").tobytes() for strip in strips)
    mode = Mode.RGB if pixels.mode.startswith("RGB") else Mode.GREY
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
        precisions.append(_precision(codec, pixels.crop(box), level))
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
    reader = _opened(data, on_damage)
    header = reader.head.header
    box = _checked(region, header)
    if codec is None:
        from bayesq import zoo

        codec = zoo.shared(zoo.find(header.model_id))
    _check_model(header, codec)
    tiles = _Tiles(reader, codec, on_damage)
    size, grey = (box[2] - box[0], box[3] - box[1]), (_GREY,) * len(_colours(header))
    picture = None
    for part in Mosaic(header, codec).parts(box, tiles.latents):
        x = tiles.decoder(part.tile).synthesize(part.z, header.level)[part.crop]
        picture = picture or Image.new(_colours(header), size, grey)  # not before a payload has proved sound
        picture.paste(to_image(_in_mode(x, header)), (part.box[0] - box[0], part.box[1] - box[1]))
    if picture is None:
        raise BitstreamError("the file is damaged: none of the tiles can be read")
    if ALPHA in reader.head.chunks:
        picture.putalpha(_salvaged(lambda: _alpha(reader, box), f"chunk {ALPHA}", None, on_damage) or 255)
    picture.info |= _info(reader, on_damage)
    return picture


def deviation(
    data: bytes | IO[bytes], codec: SamplingCodec, samples: int, generator: Generator, *, region: Box | None = None
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

    Returns:
        (1, 1, H, W), the root mean square over the colours, in units of images in [0, 1].

    Raises:
        BitstreamError: the file is damaged, foreign, or needs a newer bayesq.
        ForeignModelError: the file needs another model.
        ImageError: the region is empty or not inside the picture.
    """
    import torch

    from bayesq.calibration import of_model

    reader = _opened(data)
    header = reader.head.header
    _check_model(header, codec)
    x, y, right, bottom = box = _checked(region, header)
    result = torch.empty(1, 1, bottom - y, right - x)
    tiles = _Tiles(reader, codec)
    for part in Mosaic(header, codec).parts(box, tiles.latents):
        z = part.z.repeat(samples, 1, 1, 1)
        coded = reader.tile(part.tile), *tiles.size(part.tile), header.level
        z[part.own] = codec.sample_latents(*coded, samples, generator)[part.own_part]
        draws = _in_mode(tiles.decoder(part.tile).synthesize(z, header.level)[part.crop], header)
        left, top, right, bottom = part.box
        result[..., top - y : bottom - y, left - x : right - x] = draws.var(0).mean(0).sqrt()
    calibration = of_model(codec)
    return result * calibration.file_scale(header.level) if calibration else result


def describe(data: bytes | IO[bytes]) -> Description:
    """What a file says of itself; needs neither its model nor torch.

    Args:
        data: the whole file, or a stream of it that can seek.

    Raises:
        BitstreamError: not even the head of the file is intact.
    """
    reader = Reader(_stream(data))
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
    return _colours(head.header) + ("A" if ALPHA in head.chunks else "")


def read_info(reader: Reader) -> dict[Any, bytes]:
    """The metadata of a file as Pillow's ``info``, without reading the pixels.

    Raises:
        BitstreamError: the metadata is damaged or cut off.
    """
    return _info(reader)


class _Tiles:
    """The tiles of a file through a codec."""

    def __init__(self, reader: Reader, codec: TileCodec, on_damage: Callable[[Damage], None] | None = None) -> None:
        self._reader, self._codec, self._on_damage = reader, codec, on_damage
        self._boxes = reader.head.header.boxes()

    def size(self, tile: int) -> tuple[int, int]:
        """Height and width."""
        left, top, right, bottom = self._boxes[tile]
        return bottom - top, right - left

    def latents(self, tile: int) -> Tensor | None:
        """What the codec reads from a tile; None if it is damaged, and that has been told."""
        read = partial(self._read, tile)
        return _salvaged(read, f"tile {tile}", self._boxes[tile], self._on_damage)

    def decoder(self, tile: int) -> TileCodec:
        """The codec in the precision that the file asks for."""
        from bayesq.codec import Codec

        return self._codec.at(self._precisions[tile]) if isinstance(self._codec, Codec) else self._codec

    @cached_property
    def _precisions(self) -> bytes:
        count = len(self._reader.head.tiles)
        if PRECISION not in self._reader.head.chunks:
            return bytes(count)
        read = partial(self._reader.chunk, PRECISION)
        return (_salvaged(read, f"chunk {PRECISION}", None, self._on_damage) or b"").ljust(count, b"\0")

    def _read(self, tile: int) -> Tensor:
        level = self._reader.head.header.level
        return self._codec.latents(self._reader.tile(tile), *self.size(tile), level)


def _precision(codec: TileCodec, tile: Image.Image, level: int) -> int:
    """Which of the codec's precisions a tile should be decoded in."""
    from bayesq.codec import Codec

    selector = codec.selector if isinstance(codec, Codec) else None
    return 0 if selector is None else selector.choose(to_tensor(tile), level)


def _salvaged(
    read: Callable[[], _T], part: str, box: Box | None, on_damage: Callable[[Damage], None] | None
) -> _T | None:
    """What is read, or None and a word about the damage if someone listens."""
    try:
        return read()
    except BitstreamError as error:
        if on_damage is None:
            raise
        on_damage(Damage(part, box, str(error)))
        return None


def _stream(data: bytes | IO[bytes]) -> IO[bytes]:
    return io.BytesIO(data) if isinstance(data, bytes) else data


def _opened(data: bytes | IO[bytes], on_damage: Callable[[Damage], None] | None = None) -> Reader:
    reader = Reader(_stream(data))
    if on_damage is None:
        reader.check_length()
    return reader


def _is_sound(read: Callable[[_T], bytes], part: _T) -> bool:
    try:
        read(part)
    except BitstreamError:
        return False
    return True


def _checked(region: Box | None, header: Header) -> Box:
    if region is None:
        return 0, 0, header.width, header.height
    left, top, right, bottom = region
    if not (0 <= left < right <= header.width and 0 <= top < bottom <= header.height):
        raise ImageError(
            f"no region of {right - left} × {bottom - top} pixels at {left},{top} "
            f"is in a picture of {header.width} × {header.height}"
        )
    return region


def _check_model(header: Header, codec: TileCodec) -> None:
    if codec.model_id != header.model_id:
        raise ForeignModelError(f"the file needs model {header.model_id.hex()}, not {codec.model_id.hex()}")


def _in_mode(x: Tensor, header: Header) -> Tensor:
    return x.mean(-3, keepdim=True) if header.mode == Mode.GREY else x


def _colours(header: Header) -> str:
    return "RGB" if header.mode == Mode.RGB else "L"


def _alpha(reader: Reader, region: Box) -> Image.Image:
    header = reader.head.header
    left, top, right, bottom = region
    alpha = Image.new("L", (right - left, bottom - top))
    strips = bitstream.unpack_plane(reader.chunk(ALPHA), header.width, header.height)
    for strip, y in zip(strips, range(0, header.height, STRIP), strict=True):
        size = header.width, len(strip) // header.width
        alpha.paste(Image.frombytes("L", size, strip), (-left, y - top))
    return alpha


def _info(reader: Reader, on_damage: Callable[[Damage], None] | None = None) -> dict[Any, bytes]:
    info = {}
    for tag, key, prefix in ((ICC, "icc_profile", b""), (EXIF, "exif", _EXIF_PREFIX), (XMP, "xmp", b"")):
        if tag in reader.head.chunks:
            data = _salvaged(partial(reader.chunk, tag), f"chunk {tag}", None, on_damage)
            if data is not None:
                info[key] = prefix + data
    return info


def _metadata(image: Image.Image) -> dict[str, bytes]:
    info = image.info
    xmp = info.get("xmp") or info.get("XML:com.adobe.xmp") or b""
    chunks = {
        ICC: b"" if image.mode in ("CMYK", "LAB") else info.get("icc_profile") or b"",  # a profile of other colours
        EXIF: (info.get("exif") or b"").removeprefix(_EXIF_PREFIX),
        XMP: xmp.encode() if isinstance(xmp, str) else xmp,
    }
    return {tag: data for tag, data in chunks.items() if data}
