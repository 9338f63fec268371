"""What is in a ``.bq`` file becomes pixels: all at once, in bands from top to bottom, or as far as damage allows."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import groupby
from typing import IO, TYPE_CHECKING, Any, TypeVar

from PIL import Image

from bayesq import bitstream
from bayesq.bitstream import ALPHA, EXIF, ICC, PRECISION, STRIP, XMP, Box, Header, Mode, Reader
from bayesq.errors import BitstreamError, ForeignModelError, ImageError
from bayesq.io import to_image
from bayesq.tiling import Mosaic, Part, TileCodec

if TYPE_CHECKING:
    from torch import Tensor

EXIF_PREFIX = b"Exif\0\0"
_GREY = 128
_T = TypeVar("_T")


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


class Decoding:
    """A region of a file and the codec that reads it.

    Attributes:
        reader: The file.
        codec: The model that wrote it.
        box: The region: left, top, right and bottom, pixels.

    Args:
        data: The whole file, or a stream of it that can seek, of which no more than needed is read.
        codec: Looked up by its id among the installed models if not given.
        region: The box; all of the picture if not given.
        on_damage: Is told what cannot be read, while the rest is decoded. If not given, any damage is an error.

    Raises:
        BitstreamError: the file's head is damaged, or its length wrong and no one told.
        ForeignModelError: the file needs another model than that given, or than those installed.
        ImageError: the region is empty or not inside the picture.
    """

    def __init__(
        self,
        data: bytes | IO[bytes],
        codec: TileCodec | None = None,
        region: Box | None = None,
        on_damage: Callable[[Damage], None] | None = None,
    ) -> None:
        self.reader = Reader(io.BytesIO(data) if isinstance(data, bytes) else data)
        if on_damage is None:
            self.reader.check_length()
        header = self.reader.head.header
        self.box = _checked(region, header)
        if codec is None:
            from bayesq import zoo

            codec = zoo.shared(zoo.find(header.model_id))
        if codec.model_id != header.model_id:
            raise ForeignModelError(f"the file needs model {header.model_id.hex()}, not {codec.model_id.hex()}")
        self.codec, self._on_damage = codec, on_damage
        self._boxes = header.boxes()

    @property
    def header(self) -> Header:
        """What the file says of its picture."""
        return self.reader.head.header

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the region."""
        left, top, right, bottom = self.box
        return right - left, bottom - top

    def picture(self) -> Image.Image:
        """The region in mode L, LA, RGB or RGBA, with the file's metadata in ``info``.

        Damaged tiles become grey, a damaged alpha plane opaque, damaged metadata nothing.

        Raises:
            BitstreamError: something is damaged and no one told, or nothing can be read.
        """
        return self.pictures(lambda part: part.z)[0]

    def pictures(self, latents: Callable[[Part], Tensor]) -> list[Image.Image]:
        """The region as ``picture`` gives it, of other latents than the file's: n of each part, (n, M, h, w).

        Raises:
            BitstreamError: as ``picture``.
        """
        pictures: list[Image.Image] = []
        for part in self.parts():
            xs = self.synthesize(part, latents(part)).split(1)
            pictures = pictures or [self._blank(self.size[1]) for _ in xs]  # not before a payload has proved sound
            for picture, x in zip(pictures, xs, strict=True):
                self._paste(x, part, picture, self.box[1])
        if not pictures:
            raise _nothing()
        alpha = None
        if ALPHA in self.reader.head.chunks:
            alpha = self._salvaged(self._alpha, f"chunk {ALPHA}") or 255
        info = self.info()
        for picture in pictures:
            if alpha is not None:
                picture.putalpha(alpha)
            picture.info |= info
        return pictures

    def bands(self) -> Iterator[Image.Image]:
        """The colours of the region, its rows of tiles from top to bottom, of which one is held at a time.

        Raises:
            BitstreamError: as ``picture``.
        """
        done = self.box[1]
        for (top, bottom), parts in groupby(self.parts(by_rows=True), lambda part: (part.box[1], part.box[3])):
            yield from self._lost(done, top)
            band = self._blank(bottom - top)
            for part in parts:
                self._paste(self.synthesize(part, part.z), part, band, top)
            yield band
            done = bottom
        if done == self.box[1]:
            raise _nothing()
        yield from self._lost(done, self.box[3])

    def parts(self, by_rows: bool = False) -> Iterator[Part]:
        """The latents of the region's sound tiles, as ``Mosaic.parts``."""
        return Mosaic(self.header, self.codec).parts(self.box, self._latents, by_rows)

    def tile_size(self, tile: int) -> tuple[int, int]:
        """Height and width of a tile."""
        left, top, right, bottom = self._boxes[tile]
        return bottom - top, right - left

    def synthesize(self, part: Part, z: Tensor) -> Tensor:
        """The pixels of a part, (B, 1 or 3, H, W) in [0, 1], if its latents are z, in the precision the file names."""
        from bayesq.codec import Codec

        codec = self.codec.at(self._precisions[part.tile]) if isinstance(self.codec, Codec) else self.codec
        x = codec.synthesize(z, self.header.level)[part.crop]
        return x.mean(-3, keepdim=True) if self.header.mode == Mode.GREY else x

    def info(self) -> dict[Any, bytes]:
        """The metadata as Pillow's ``info``."""
        return read_info(self.reader, self._on_damage)

    def _paste(self, x: Tensor, part: Part, picture: Image.Image, top: int) -> None:
        picture.paste(to_image(x), (part.box[0] - self.box[0], part.box[1] - top))

    def _blank(self, height: int) -> Image.Image:
        colours, size = colours_of(self.header), (self.size[0], height)
        try:
            return Image.new(colours, size, (_GREY,) * len(colours))
        except MemoryError:
            raise BitstreamError(
                f"a picture of {size[0]} × {size[1]} pixels does not fit into memory: decode a region, or to a PNG file"
            ) from None

    def _lost(self, top: int, bottom: int) -> Iterator[Image.Image]:
        step = self.header.tile_height
        return (self._blank(min(step, bottom - y)) for y in range(top, bottom, step))

    def _latents(self, tile: int) -> Tensor | None:
        """What the codec reads from a tile; None if it is damaged, and that has been told."""

        def read() -> Tensor:
            return self.codec.latents(self.reader.tile(tile), *self.tile_size(tile), self.header.level)

        return self._salvaged(read, f"tile {tile}", self._boxes[tile])

    @cached_property
    def _precisions(self) -> bytes:
        count = len(self.reader.head.tiles)
        if PRECISION not in self.reader.head.chunks:
            return bytes(count)
        read = partial(self.reader.chunk, PRECISION)
        return (self._salvaged(read, f"chunk {PRECISION}") or b"").ljust(count, b"\0")

    def _alpha(self) -> Image.Image:
        width, height = self.header.width, self.header.height
        alpha = Image.new("L", self.size)
        strips = bitstream.unpack_plane(self.reader.chunk(ALPHA), width, height)
        for strip, y in zip(strips, range(0, height, STRIP), strict=True):
            rows = Image.frombytes("L", (width, len(strip) // width), strip)
            alpha.paste(rows, (-self.box[0], y - self.box[1]))
        return alpha

    def _salvaged(self, read: Callable[[], _T], part: str, box: Box | None = None) -> _T | None:
        return _salvaged(read, part, box, self._on_damage)


def colours_of(header: Header) -> str:
    """L or RGB."""
    return "RGB" if header.mode == Mode.RGB else "L"


def read_info(reader: Reader, on_damage: Callable[[Damage], None] | None = None) -> dict[Any, bytes]:
    """The metadata of a file as Pillow's ``info``, without reading the pixels.

    Raises:
        BitstreamError: the metadata is damaged or cut off, and no one told.
    """
    info = {}
    for tag, key, prefix in ((ICC, "icc_profile", b""), (EXIF, "exif", EXIF_PREFIX), (XMP, "xmp", b"")):
        if tag in reader.head.chunks:
            data = _salvaged(partial(reader.chunk, tag), f"chunk {tag}", None, on_damage)
            if data is not None:
                info[key] = prefix + data
    return info


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


def _nothing() -> BitstreamError:
    return BitstreamError("the file is damaged: none of the tiles can be read")
