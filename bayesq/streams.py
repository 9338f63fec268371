"""Large pictures from disk and to disk: read by the tile and written by the band, never held whole.

Files whose pixels are not compressed (TIFF, BMP, PPM) are read where a tile lies; of other formats Pillow must decode
all, at up to four bytes a pixel. PNG and PPM are written row after row. Whatever else there is goes the plain way,
through a picture in memory.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO

import numpy as np
from PIL import Image

from bayesq.bitstream import ALPHA, Box
from bayesq.decoding import EXIF_PREFIX, Damage, Decoding, colours_of
from bayesq.errors import ImageError
from bayesq.io import PIPE, atomic_open, read_image, tell_of_frames, unlimited_open, write_image

if TYPE_CHECKING:
    from bayesq.tiling import TileCodec

_READ_IN_PLACE = frozenset({"BMP", "PPM", "TIFF"})
_SAMPLES = {"L": 1, "LA": 2, "RGB": 3, "BGR": 3, "RGBA": 4, "BGRA": 4}
"""Bytes a pixel of the layouts that are read in place, by Pillow's names."""
_ORIENTATION = 0x0112
_PAETH = 4
_FILTERED = 1 << 20
"""Bytes of a band that are filtered at a time."""


@dataclass(frozen=True)
class Block:
    """Where the rows of a rectangle of pixels are in a file."""

    box: Box
    offset: int
    """Of the first row, bytes."""
    layout: str
    """Pillow's name."""
    stride: int
    """Bytes from a row to the next one in the file."""
    upwards: bool
    """Whether the first row in the file is the lowest."""

    def row(self, y: int) -> int:
        """Where the row y of the picture begins."""
        return self.offset + self.stride * (self.box[3] - 1 - y if self.upwards else y - self.box[1])


@dataclass(frozen=True)
class StoredPicture:
    """A picture whose pixels stay in its file until a part is asked for; what ``bayesq.encode`` needs of an image."""

    file: IO[bytes]
    mode: str
    """L, LA, RGB or RGBA."""
    size: tuple[int, int]
    info: dict[Any, Any]
    blocks: Sequence[Block]

    def crop(self, box: Box) -> Image.Image:
        """The pixels of a box inside the picture.

        Raises:
            ImageError: the file has become shorter.
        """
        result = Image.new(self.mode, (box[2] - box[0], box[3] - box[1]))
        for block in self.blocks:
            left, top = max(block.box[0], box[0]), max(block.box[1], box[1])
            right, bottom = min(block.box[2], box[2]), min(block.box[3], box[3])
            if left < right and top < bottom:
                each = _SAMPLES[block.layout]
                skipped, length = (left - block.box[0]) * each, (right - left) * each
                data = b"".join(self._read(block.row(y) + skipped, length) for y in range(top, bottom))
                part = Image.frombytes(self.mode, (right - left, bottom - top), data, "raw", block.layout)
                result.paste(part, (left - box[0], top - box[1]))
        return result

    def _read(self, start: int, length: int) -> bytes:
        self.file.seek(start)
        data = self.file.read(length)
        if len(data) < length:
            raise ImageError("the picture's file is cut off")
        return data


@contextmanager
def open_image(path: str | Path) -> Iterator[Image.Image | StoredPicture]:
    """A picture to encode, whose pixels stay in its file as long as the context where that can be.

    Raises:
        ImageError: as ``bayesq.io.read_image``.
    """
    if str(path) != PIPE and os.path.isfile(path):
        with open(path, "rb", buffering=0) as file:
            stored = _stored(file)
            if stored is not None:
                yield stored
                return
    yield read_image(path)


def decode_to(
    path: str | Path,
    data: bytes | IO[bytes],
    codec: TileCodec | None = None,
    *,
    region: Box | None = None,
    on_damage: Callable[[Damage], None] | None = None,
) -> tuple[tuple[int, int], str]:
    """Decodes a ``.bq`` file as ``bayesq.decode`` does, and writes the picture in the format of the path's extension.

    Large pictures without alpha are written to PNG and PPM files in bands.

    Returns:
        The picture's size and mode.

    Raises:
        BitstreamError: the file is damaged, foreign, or needs a newer bayesq.
        ForeignModelError: the file needs another model than that given, or than those installed.
        ImageError: the region is not inside the picture.
        OutputError: the format is unknown or cannot hold the picture, or the file cannot be written.
    """
    decoding = Decoding(data, codec, region, on_damage)
    form = _FORMATS.get("" if str(path) == PIPE else Path(path).suffix.lower())
    if form is None or decoding.header.rows == 1 or ALPHA in decoding.reader.head.chunks:
        picture = decoding.picture()
        write_image(picture, path)
        return picture.size, picture.mode
    mode = colours_of(decoding.header)
    with atomic_open(path) as file:
        form(file, decoding.size, mode, decoding.info(), decoding.bands())
    return decoding.size, mode


def _stored(file: IO[bytes]) -> StoredPicture | None:
    """The picture in a file, unless Pillow is needed to make sense of its pixels or to say what is wrong with it."""
    try:
        image = unlimited_open(file)
        blocks = [_block(*tile) for tile in image.tile]
        turned = image.format == "TIFF" and image.getexif().get(_ORIENTATION, 1) != 1
    except Exception:  # as io.read_image, which comes next
        return None
    if image.format not in _READ_IN_PLACE:
        return None
    width, height = image.size
    whole = sum((right - left) * (bottom - top) for left, top, right, bottom in (it.box for it in blocks if it))
    if turned or whole != width * height or image.mode not in _SAMPLES or "transparency" in image.info:
        return None
    sound = [it for it in blocks if it and sorted(it.layout) == sorted(image.mode)]
    length = os.fstat(file.fileno()).st_size
    if len(sound) < len(blocks) or any(_end(it) > length for it in sound):
        return None
    tell_of_frames(image, file.name)
    return StoredPicture(file, image.mode, image.size, image.info, sound)


def _block(decoder: str, box: Box | None, offset: int, args: Any) -> Block | None:
    layout, stride, step = (args, 0, 1) if isinstance(args, str) else (*args, *(0, 1)[len(args) - 1 :])
    if decoder != "raw" or box is None or layout not in _SAMPLES:
        return None
    return Block(box, offset, layout, stride or (box[2] - box[0]) * _SAMPLES[layout], step < 0)


def _end(block: Block) -> int:
    width = (block.box[2] - block.box[0]) * _SAMPLES[block.layout]
    return max(block.row(block.box[1]), block.row(block.box[3] - 1)) + width


def _png(
    file: BinaryIO, size: tuple[int, int], mode: str, info: dict[Any, bytes], bands: Iterable[Image.Image]
) -> None:
    """PNG (ISO/IEC 15948), all rows with Paeth's filter, which is the best of the five for most photographs."""

    def chunk(tag: bytes, data: bytes) -> None:
        file.write(len(data).to_bytes(4, "big") + tag + data + zlib.crc32(tag + data).to_bytes(4, "big"))

    file.write(b"\x89PNG\r\n\x1a\n")
    chunk(b"IHDR", struct.pack(">2I5B", *size, 8, 2 if mode == "RGB" else 0, 0, 0, 0))
    if "icc_profile" in info:
        chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(info["icc_profile"]))
    if "exif" in info:
        chunk(b"eXIf", info["exif"].removeprefix(EXIF_PREFIX))
    if "xmp" in info:
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + info["xmp"].decode("utf-8", "replace").encode())
    deflate, each = zlib.compressobj(), len(mode)
    above = np.zeros((1, size[0] * each), np.uint8)
    for band in bands:
        rows = np.concatenate([above, np.asarray(band).reshape(band.height, -1)])
        count = max(_FILTERED // rows.shape[1], 1)
        for top in range(0, band.height, count):
            data = deflate.compress(_filtered(rows[top : top + count + 1], each).data)
            if data:
                chunk(b"IDAT", data)
        above = rows[-1:]
    chunk(b"IDAT", deflate.flush())
    chunk(b"IEND", b"")


def _filtered(rows: np.ndarray, each: int) -> np.ndarray:
    """Rows of samples (n + 1, width) as a PNG stores the last n of them, each byte less its best neighbour."""
    padded = np.pad(rows, ((0, 0), (each, 0))).astype(np.int16)
    corner, above = padded[:-1, :-each], padded[:-1, each:]
    left, here = padded[1:, :-each], rows[1:]
    rise, run = above - corner, left - corner
    to_left, to_above, to_corner = np.abs(rise), np.abs(run), np.abs(rise + run)
    nearest = np.where(to_above <= to_corner, above, corner)
    nearest = np.where((to_left <= to_above) & (to_left <= to_corner), left, nearest)
    result = np.empty((len(here), 1 + here.shape[1]), np.uint8)
    result[:, 0], result[:, 1:] = _PAETH, here - nearest.astype(np.uint8)
    return result


def _ppm(
    file: BinaryIO, size: tuple[int, int], mode: str, info: dict[Any, bytes], bands: Iterable[Image.Image]
) -> None:
    """PPM or PGM, binary; has no place for metadata."""
    file.write(b"P%d\n%d %d\n255\n" % (6 if mode == "RGB" else 5, *size))
    for band in bands:
        file.write(band.tobytes())


_FORMATS = {".png": _png, ".ppm": _ppm, ".pgm": _ppm}
