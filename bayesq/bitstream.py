"""The ``.bq`` container: what a file holds, and nothing about how pictures are coded. Standard library only.

A file is a head, then the bodies it announces, then nothing. Integers are unsigned; those marked v are written seven
bits a byte, lowest first, all bytes but the last with their high bit set, in as few bytes as that takes (LEB128); the
others are little-endian. A single tile without chunks has a head of 30 bytes or so, which matters in files of 2 kB.

====================  ==========  ======================================================================
field                 bytes       meaning
====================  ==========  ======================================================================
magic                 4           89 42 51 0A ("\\x89BQ\\n")
version               1           3
mode                  1           0: grey, 1: RGB; 2 more where the sizes of tiles follow
level                 1           quality level, 0 (smallest file) … 255 (best picture)
chunk count           1           C
model id              8           first 8 bytes of the SHA-256 of the weights file
width, height         v, v        pixels, at least 1; width × height ≤ `MAX_PIXELS`
tile width, height    v, v        only where the mode says so, otherwise one tile is the picture; pixels, at least
                                  1, at most the picture's and `MAX_TILE_SIDE`; tiles on the right and bottom edges
                                  are cut off by the picture's border; T ≤ `MAX_TILES` tiles; where there are
                                  several side by side (on top of one another), the width (height) is a multiple of
                                  the size that the model pads pictures to
tile lengths          v each      of the T payloads, row by row
chunks                4 + v each  tag (printable ASCII), length
CRCs                  4 each      CRC-32 of each payload, then of each chunk's data, then of all the above
tile payloads         Σ lengths   in the order of the lengths
chunk data            Σ lengths   in the order of the lengths
====================  ==========  ======================================================================

A tile's payload holds the codes of its own latents and can be read alone; for the picture, the synthesis is given the
tile's latents with those of its neighbours around them.

CRC-32 is zlib's. Lengths stand in front, so that a damaged payload cannot hide where the next one begins, and what a
file is can be told without reading it all. Readers keep chunks with unknown tags and ignore them. The tags:

========  =========================================================================================
``ALPH``  alpha plane: zlib stream of height × width bytes, row by row
``ICCP``  ICC profile
``EXIF``  EXIF data: a TIFF structure, without the "Exif\\0\\0" of JPEG files
``XMP_``  XMP packet
``PREC``  precision of the model's synthesis, one byte a tile, 0 being the full one; models that have none of
          a number, and readers that ignore the chunk, decode in full precision
========  =========================================================================================
"""

import io
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import accumulate
from typing import IO

from bayesq.errors import BitstreamError

MAGIC = b"\x89BQ\n"
VERSION = 3
MAX_PIXELS = 1 << 28
MAX_TILES = 1 << 16
MAX_TILE_SIDE = 1 << 11
STRIP = 64
ALPHA, ICC, EXIF, XMP, PRECISION = "ALPH", "ICCP", "EXIF", "XMP_", "PREC"

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels, right and bottom outside."""

_FIXED = struct.Struct("<4s4B8s")
_TILED = 2
_CRC = struct.Struct("<I")


class Mode(IntEnum):
    """What the tiles show; an alpha plane is a chunk beside either."""

    GREY = 0
    RGB = 1


@dataclass(frozen=True)
class Header:
    """What a decoder must know before it reads a tile; the fields are those of the module's table.

    Raises:
        BitstreamError: a field is out of its range.
    """

    width: int
    height: int
    mode: Mode
    level: int
    model_id: bytes
    tile_width: int
    tile_height: int

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise BitstreamError(f"a picture of {self.width} × {self.height} pixels is impossible")
        if self.width * self.height > MAX_PIXELS:
            raise BitstreamError(f"{self.width} × {self.height} pixels exceed the limit of {MAX_PIXELS}")
        if not (1 <= self.tile_width <= self.width and 1 <= self.tile_height <= self.height):
            raise BitstreamError(
                f"tiles of {self.tile_width} × {self.tile_height} do not fit {self.width} × {self.height} pixels"
            )
        if max(self.tile_width, self.tile_height) > MAX_TILE_SIDE:
            raise BitstreamError(
                f"tiles of {self.tile_width} × {self.tile_height} exceed the limit of {MAX_TILE_SIDE} pixels a side"
            )
        if self.columns * self.rows > MAX_TILES:
            raise BitstreamError(f"{self.columns * self.rows} tiles exceed the limit of {MAX_TILES}")
        if not 0 <= self.level <= 255:
            raise BitstreamError(f"quality level {self.level} is not in 0…255")
        if len(self.model_id) != 8:
            raise BitstreamError(f"a model id has 8 bytes, not {len(self.model_id)}")

    @property
    def tiled(self) -> bool:
        """Whether there are several tiles."""
        return self.columns * self.rows > 1

    @property
    def columns(self) -> int:
        """Number of tiles side by side."""
        return -(-self.width // self.tile_width)

    @property
    def rows(self) -> int:
        """Number of tiles on top of one another."""
        return -(-self.height // self.tile_height)

    def boxes(self) -> list[Box]:
        """The place of each tile, row by row."""
        return [
            (x, y, min(x + self.tile_width, self.width), min(y + self.tile_height, self.height))
            for y in range(0, self.height, self.tile_height)
            for x in range(0, self.width, self.tile_width)
        ]


@dataclass(frozen=True)
class File:
    """A whole file: one payload a tile, in the order of `Header.boxes`, and the chunks by tag."""

    header: Header
    tiles: tuple[bytes, ...]
    chunks: Mapping[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        expected = self.header.columns * self.header.rows
        if len(self.tiles) != expected:
            raise BitstreamError(f"a grid of {expected} tiles cannot hold {len(self.tiles)} payloads")
        if len(self.chunks) > 255:
            raise BitstreamError(f"a file holds at most 255 chunks, not {len(self.chunks)}")
        for tag in self.chunks:
            _check_tag(tag)


@dataclass(frozen=True)
class Entry:
    """The length in bytes and CRC-32 of a payload or chunk."""

    length: int
    crc: int


@dataclass(frozen=True)
class Head:
    """All that stands before the payloads; ``size`` is its own length in bytes."""

    header: Header
    tiles: tuple[Entry, ...]
    chunks: Mapping[str, Entry]
    size: int

    @property
    def announced(self) -> int:
        """Bytes of the whole file."""
        return self.size + sum(entry.length for entry in (*self.tiles, *self.chunks.values()))


def pack(file: File) -> bytes:
    """The bytes of a file.

    Raises:
        BitstreamError: a payload or chunk is longer than its 32-bit length can say.
    """
    h = file.header
    bodies = [*file.tiles, *file.chunks.values()]
    if any(len(body) >> 32 for body in bodies):
        raise BitstreamError("a payload exceeds 4 GiB")
    mode = h.mode + _TILED * h.tiled
    sizes = (h.width, h.height, h.tile_width, h.tile_height) if h.tiled else (h.width, h.height)
    head = _FIXED.pack(MAGIC, VERSION, mode, h.level, len(file.chunks), h.model_id)
    head += b"".join(map(number, [*sizes, *map(len, file.tiles)]))
    head += b"".join(tag.encode() + number(len(data)) for tag, data in file.chunks.items())
    head += b"".join(_CRC.pack(zlib.crc32(body)) for body in bodies)
    return b"".join([head, _CRC.pack(zlib.crc32(head)), *bodies])


def number(value: int) -> bytes:
    """An integer below 2³⁵ as the head writes those of no fixed length."""
    result = bytearray()
    while value > 127:
        result.append(value & 127 | 128)
        value >>= 7
    result.append(value)
    return bytes(result)


def unpack(data: bytes) -> File:
    """Reads and checks a whole file.

    Raises:
        BitstreamError: the data is anything else than what `pack` returns for some file.
    """
    reader = Reader(io.BytesIO(data))
    reader.check_length()
    head = reader.head
    return File(head.header, tuple(map(reader.tile, range(len(head.tiles)))), {t: reader.chunk(t) for t in head.chunks})


def read_header(stream: IO[bytes]) -> Header:
    """Reads the head of a file, checks it, and returns what it says of the picture.

    Raises:
        BitstreamError: the head is not that of an intact file.
    """
    return read_head(stream).header


def read_head(stream: IO[bytes]) -> Head:
    """Reads all that stands before the payloads, and not a byte more.

    Raises:
        BitstreamError: the stream does not begin with an intact head.
    """
    head, crc, expected = parse_head(stream)
    if crc != expected:
        raise BitstreamError("the file is damaged: wrong checksum of the header")
    return head


def parse_head(stream: IO[bytes]) -> tuple[Head, int, int]:
    """As `read_head`, with the head's CRC-32 and the one that it should have, whether or not they are the same."""
    fixed = stream.read(_FIXED.size)
    if not fixed:
        raise BitstreamError("the file is empty")
    if fixed[:4] != MAGIC[: len(fixed)]:
        raise BitstreamError("not a .bq file")
    if len(fixed) > 4 and fixed[4] != VERSION:
        reader = "a newer" if fixed[4] > VERSION else "an older"
        raise BitstreamError(f"format version {fixed[4]} needs {reader} bayesq")
    _check_length(fixed, _FIXED.size)
    _, _, mode, level, chunk_count, model_id = _FIXED.unpack(fixed)
    if mode & ~_TILED not in (Mode.GREY, Mode.RGB):
        raise BitstreamError(f"the file is damaged: mode {mode} does not exist")
    scan = _Scan(stream, fixed)
    width, height = scan.number(), scan.number()
    tile_width, tile_height = (scan.number(), scan.number()) if mode & _TILED else (width, height)
    header = Header(width, height, Mode(mode & ~_TILED), level, model_id, tile_width, tile_height)
    if header.tiled != bool(mode & _TILED):
        raise BitstreamError("the file is damaged: its mode does not tell whether it has tiles")

    tiles = [scan.number() for _ in range(header.columns * header.rows)]
    chunks = [(_check_tag(scan.take(4).decode("latin-1")), scan.number()) for _ in range(chunk_count)]
    if len(dict(chunks)) < chunk_count:
        raise BitstreamError("the file is damaged: two chunks have the same tag")
    crcs = scan.crcs(len(tiles) + chunk_count)
    tile_entries = tuple(map(Entry, tiles, crcs))
    chunk_entries = {tag: Entry(length, crc) for (tag, length), crc in zip(chunks, crcs[len(tiles) :], strict=True)}
    expected = zlib.crc32(scan.taken)
    (crc,) = scan.crcs(1)
    return Head(header, tile_entries, chunk_entries, len(scan.taken)), crc, expected


class _Scan:
    """A head that is read field by field.

    Attributes:
        taken: All of it so far.
    """

    def __init__(self, stream: IO[bytes], taken: bytes) -> None:
        self._stream, self.taken = stream, bytearray(taken)

    def take(self, size: int) -> bytes:
        data = self._stream.read(size)
        _check_length(data, size)
        self.taken += data
        return data

    def number(self) -> int:
        value = 0
        for shift in range(0, 35, 7):
            (byte,) = self.take(1)
            value |= (byte & 127) << shift
            if byte < 128:
                if shift and not byte:
                    break
                return value
        raise BitstreamError("the file is damaged: a number in its header is not written as it should")

    def crcs(self, count: int) -> list[int]:
        return [crc for (crc,) in _CRC.iter_unpack(self.take(count * _CRC.size))]


class Reader:
    """The parts of a file, each read and checked when it is asked for.

    Args:
        stream: begins with the file and can seek.

    Raises:
        BitstreamError: the stream does not begin with an intact head.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        stream.seek(0)
        self.head = read_head(stream)
        self._tile_starts = list(accumulate((entry.length for entry in self.head.tiles), initial=self.head.size))
        lengths = (entry.length for entry in self.head.chunks.values())
        self._chunk_starts = dict(
            zip(self.head.chunks, accumulate(lengths, initial=self._tile_starts[-1]), strict=False)
        )

    def length(self) -> int:
        """Bytes of the stream."""
        return self._stream.seek(0, io.SEEK_END)

    def check_length(self) -> None:
        """Raises BitstreamError unless the stream is as long as its head announces."""
        missing = self.head.announced - self.length()
        if missing > 0:
            raise BitstreamError(f"the file is cut off: {missing} bytes are missing")
        if missing < 0:
            raise BitstreamError(f"the file is damaged: {-missing} bytes follow its end")

    def tile(self, number: int) -> bytes:
        """The payload of one tile. Raises BitstreamError if it is damaged or cut off."""
        return self._body(f"tile {number}", self._tile_starts[number], self.head.tiles[number])

    def chunk(self, tag: str) -> bytes:
        """One of the chunks that the head lists. Raises BitstreamError if it is damaged or cut off."""
        return self._body(f"chunk {tag}", self._chunk_starts[tag], self.head.chunks[tag])

    def _body(self, name: str, start: int, entry: Entry) -> bytes:
        if start + entry.length > self.length():
            raise BitstreamError(f"the file is cut off before the end of {name}")
        self._stream.seek(start)
        body = self._stream.read(entry.length)
        if zlib.crc32(body) != entry.crc:
            raise BitstreamError(f"the file is damaged: wrong checksum of {name}")
        return body


def pack_plane(strips: Iterable[bytes]) -> bytes:
    """Compresses an 8-bit plane, given piece by piece, as the alpha chunk holds it."""
    deflate = zlib.compressobj(9)
    return b"".join([*map(deflate.compress, strips), deflate.flush()])


def unpack_plane(data: bytes, width: int, height: int) -> Iterator[bytes]:
    """The samples of a compressed plane in strips of `STRIP` rows, the last one of what is left.

    Raises:
        BitstreamError: the data is not a compressed plane of that size.
    """
    inflate = zlib.decompressobj()
    for top in range(0, height, STRIP):
        size = width * min(STRIP, height - top)
        strip = _inflated(inflate, data, size)
        if len(strip) < size:
            break
        yield strip
        data = inflate.unconsumed_tail
    if len(strip) < size or _inflated(inflate, data, 1) or not inflate.eof or inflate.unused_data:
        raise BitstreamError(f"the alpha plane does not hold {width} × {height} samples")


def _inflated(inflate: "zlib._Decompress", data: bytes, size: int) -> bytes:
    try:
        return inflate.decompress(data, size)
    except zlib.error as error:
        raise BitstreamError(f"the alpha plane is damaged ({error})") from error


def _check_length(data: bytes, size: int) -> None:
    if len(data) < size:
        raise BitstreamError("the file is cut off in its header")


def _check_tag(tag: str) -> str:
    if len(tag) != 4 or not all("!" <= character <= "~" for character in tag):
        raise BitstreamError("a chunk's tag must be 4 printable ASCII characters")
    return tag
