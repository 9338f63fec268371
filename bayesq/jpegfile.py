"""The quantised DCT coefficients of a JPEG file: what it says, before any decoder turns it into pixels.

Reads 8-bit Huffman-coded files, sequential and progressive (ITU-T T.81), with any chroma subsampling and with restart
markers. No pixels are made: that is Pillow's business.
"""

from __future__ import annotations

import re
import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import ceil

import numpy as np
from numpy.typing import NDArray

from bayesq.bitstream import MAX_PIXELS
from bayesq.errors import ImageError

_ORDER = sorted(range(64), key=lambda i: (i // 8 + i % 8, (i // 8 if (i // 8 + i % 8) % 2 else i % 8)))
ZIGZAG = np.array(_ORDER)
"""Place in a block, row by row, of each coefficient in the file's order."""


@dataclass(frozen=True)
class Plane:
    """One component of a picture.

    Attributes:
        codes: quantised coefficients (rows, columns, 8, 8) of its blocks, int16.
        table: their steps (8, 8), in 8-bit levels of an orthonormal DCT.
        sampling: pixels of the picture to a sample, down and across.
    """

    codes: NDArray[np.int16]
    table: NDArray[np.int64]
    sampling: tuple[int, int]


@dataclass(frozen=True)
class JPEGFile:
    """What a file says: grey, or Y, Cb and Cr.

    Attributes:
        height: of the picture, pixels.
        width: of the picture, pixels.
        planes: one or three.
    """

    height: int
    width: int
    planes: tuple[Plane, ...]


def read(data: bytes) -> JPEGFile:
    """Reads the coefficients of a file.

    Raises:
        ImageError: it is damaged, no JPEG, or of a kind that is not read: arithmetic coding, 12 bits, RGB or CMYK.
    """
    if not data.startswith(b"\xff\xd8"):
        raise ImageError("not a JPEG file")
    try:
        return _Reader(data).picture()
    except (IndexError, KeyError, OverflowError, struct.error, ValueError) as error:
        raise ImageError(f"the JPEG file is damaged ({error})") from error


@dataclass
class _Component:
    identity: int
    across: int
    down: int
    table: int
    rows: int = 0
    columns: int = 0
    stride: int = 0
    codes: array = field(default_factory=lambda: array("h"))


class _Bits:
    """Bits of an entropy-coded segment, most significant first, zeros after its end."""

    def __init__(self, data: bytes):
        self.data = data.replace(b"\xff\x00", b"\xff") + bytes(16)
        self.place = self.held = self.count = 0

    def _fill(self) -> None:
        if self.place > len(self.data):
            raise ValueError("it ends too early")
        self.held = (self.held & ((1 << self.count) - 1)) << 48 | int.from_bytes(
            self.data[self.place : self.place + 6].ljust(6, b"\0"), "big"
        )
        self.place += 6
        self.count += 48

    def take(self, count: int) -> int:
        if self.count < count:
            self._fill()
        self.count -= count
        return self.held >> self.count & ((1 << count) - 1)

    def signed(self, count: int) -> int:
        """A number of ``count`` bits, of which the first tells the sign."""
        value = self.take(count)
        return value if not count or value >> (count - 1) else value - (1 << count) + 1

    def symbol(self, table: list[int]) -> int:
        if self.count < 16:
            self._fill()
        entry = table[self.held >> (self.count - 16) & 0xFFFF]
        if not entry:
            raise ValueError("a code is not in its table")
        self.count -= entry >> 8
        return entry & 255


class _Reader:
    def __init__(self, data: bytes):
        self.data = data
        self.quantisation: dict[int, NDArray[np.int64]] = {}
        self.huffman: dict[int, list[int]] = {}
        self.components: dict[int, _Component] = {}
        self.restart = self.height = self.width = 0
        self.progressive = False
        self.transform = 1

    def picture(self) -> JPEGFile:
        for marker, body, end in self._segments():
            if marker == 0xDB:
                self._read_quantisation(body)
            elif marker == 0xC4:
                self._read_huffman(body)
            elif marker in (0xC0, 0xC1, 0xC2):
                self._read_frame(body, marker == 0xC2)
            elif 0xC0 <= marker <= 0xCF and marker != 0xC8:
                raise ImageError("only 8-bit Huffman-coded JPEG files are read")
            elif marker == 0xDD:
                (self.restart,) = struct.unpack(">H", body)
            elif marker == 0xEE and body.startswith(b"Adobe"):
                self.transform = body[11]
            elif marker == 0xDA:
                self._read_scan(body, end)
        if not self.components:
            raise ValueError("it holds no picture")
        return JPEGFile(self.height, self.width, tuple(self._plane(c) for c in self.components.values()))

    def _segments(self) -> Iterator[tuple[int, bytes, int]]:
        place = 2
        while (place := self.data.find(b"\xff", place)) >= 0 and place + 1 < len(self.data):
            marker = self.data[place + 1]
            place += 1 if marker == 0xFF else 2
            if marker == 0xD9:
                return
            if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD7:
                continue
            (length,) = struct.unpack(">H", self.data[place : place + 2])
            place += length
            if length < 2 or place > len(self.data):
                raise ValueError("it ends too early")
            yield marker, self.data[place - length + 2 : place], place

    def _read_quantisation(self, body: bytes) -> None:
        while body:
            size = 128 if body[0] >> 4 else 64
            steps = np.frombuffer(body[1 : 1 + size], ">u2" if size == 128 else "u1")
            table = np.zeros(64, np.int64)
            table[ZIGZAG] = steps
            if not table.all():
                raise ValueError("a quantisation step is zero")
            self.quantisation[body[0] & 15] = table.reshape(8, 8)
            body = body[1 + size :]

    def _read_huffman(self, body: bytes) -> None:
        """Makes of each code table a list by the next 16 bits: length of the code · 256 + symbol."""
        while body:
            counts, total = body[1:17], sum(body[1:17])
            table: list[int] = []
            symbols = iter(body[17 : 17 + total])
            if len(counts) < 16 or len(body) < 17 + total:
                raise ValueError("a code table is cut short")
            for length, count in enumerate(counts, 1):
                for _ in range(count):
                    table += [length << 8 | next(symbols)] * (1 << (16 - length))
            if len(table) > 1 << 16:
                raise ValueError("a code table is too long")
            self.huffman[body[0]] = table + [0] * ((1 << 16) - len(table))
            body = body[17 + total :]

    def _read_frame(self, body: bytes, progressive: bool) -> None:
        depth, self.height, self.width, count = struct.unpack(">BHHB", body[:6])
        if depth != 8 or self.components:
            raise ImageError("only 8-bit Huffman-coded JPEG files of one frame are read")
        if not 0 < self.height * self.width <= MAX_PIXELS:
            raise ImageError(f"a picture has 1 to {MAX_PIXELS} pixels, not {self.width} x {self.height}")
        if count not in (1, 3) or (count == 3 and not self.transform):
            raise ImageError("only grey and YCbCr JPEG files are read")
        self.progressive = progressive
        parts = [(body[i], body[i + 1] if count > 1 else 0x11, body[i + 2]) for i in range(6, 6 + 3 * count, 3)]
        if any(not 1 <= factor <= 4 for _, factors, _ in parts for factor in (factors >> 4, factors & 15)):
            raise ImageError("sampling factors of a JPEG file are 1 to 4")
        self.across, self.down = (max(op(f) for _, f, _ in parts) for op in (lambda f: f >> 4, lambda f: f & 15))
        self.units = (ceil(self.height / (8 * self.down)), ceil(self.width / (8 * self.across)))
        for identity, factors, table in parts:
            across, down = factors >> 4, factors & 15
            if self.across % across or self.down % down:
                raise ImageError("chroma sampled at other than a whole fraction of luma is not read")
            rows = ceil(ceil(self.height * down / self.down) / 8)
            columns = ceil(ceil(self.width * across / self.across) / 8)
            stride = self.units[1] * across
            codes = array("h", bytes(128 * self.units[0] * down * stride))
            self.components[identity] = _Component(identity, across, down, table, rows, columns, stride, codes)

    def _read_scan(self, body: bytes, start: int) -> None:
        count = body[0]
        parts = [(self.components[body[1 + 2 * i]], body[2 + 2 * i]) for i in range(count)]
        first, last, bits = body[1 + 2 * count : 4 + 2 * count]
        high, low = bits >> 4, bits & 15
        end = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]").search(self.data, start)
        segments = re.split(rb"\xff[\xd0-\xd7]", self.data[start : end.start() if end else len(self.data)])
        if count == 1:
            component = parts[0][0]
            units = [
                [(component, parts[0][1], 64 * (row * component.stride + column))]
                for row in range(component.rows)
                for column in range(component.columns)
            ]
        else:
            units = [
                [
                    (c, tables, 64 * ((row * c.down + i) * c.stride + column * c.across + j))
                    for c, tables in parts
                    for i in range(c.down)
                    for j in range(c.across)
                ]
                for row in range(self.units[0])
                for column in range(self.units[1])
            ]
        each = self.restart or len(units)
        for number, place in enumerate(range(0, len(units), each)):
            stretch = _Stretch(_Bits(segments[number]), self.huffman, first, last, low)
            decode = stretch.whole if not self.progressive else stretch.refine if high else stretch.begin
            for unit in units[place : place + each]:
                for component, tables, origin in unit:
                    decode(component, tables, origin)

    def _plane(self, component: _Component) -> Plane:
        flat = np.array(component.codes, np.int16).reshape(-1, component.stride, 64)
        codes = np.zeros((component.rows, component.columns, 64), np.int16)
        codes[..., ZIGZAG] = flat[: component.rows, : component.columns]
        sampling = (self.down // component.down, self.across // component.across)
        return Plane(codes.reshape(*codes.shape[:2], 8, 8), self.quantisation[component.table], sampling)


@dataclass
class _Stretch:
    """Decodes the blocks between two restarts; ``first`` … ``last`` is the band of the scan, ``low`` its lowest bit."""

    bits: _Bits
    huffman: dict[int, list[int]]
    first: int
    last: int
    low: int
    means: dict[int, int] = field(default_factory=dict)
    run: int = 0

    def _mean(self, component: _Component, tables: int) -> int:
        change = self.bits.signed(self.bits.symbol(self.huffman[tables >> 4]))
        self.means[component.identity] = mean = self.means.get(component.identity, 0) + change
        return mean

    def whole(self, component: _Component, tables: int, origin: int) -> None:
        """A block of a sequential file."""
        codes, bits, table = component.codes, self.bits, self.huffman[0x10 | tables & 15]
        codes[origin] = self._mean(component, tables)
        k = 1
        while k < 64:
            symbol = bits.symbol(table)
            size = symbol & 15
            if not size:
                if symbol != 0xF0:
                    return
                k += 16
                continue
            k += symbol >> 4
            if k > 63:
                raise ValueError("a block is too long")
            codes[origin + k] = bits.signed(size)
            k += 1

    def begin(self, component: _Component, tables: int, origin: int) -> None:
        """The upper bits of a band of a block of a progressive file."""
        codes, bits = component.codes, self.bits
        k = self.first
        if not k:
            codes[origin] = self._mean(component, tables) << self.low
            return
        if self.run:
            self.run -= 1
            return
        table = self.huffman[0x10 | tables & 15]
        while k <= self.last:
            symbol = bits.symbol(table)
            zeros, size = symbol >> 4, symbol & 15
            if not size:
                if zeros < 15:
                    self.run = (1 << zeros) - 1 + bits.take(zeros)
                    return
                k += 16
                continue
            k += zeros
            if k > self.last:
                raise ValueError("a block is too long")
            codes[origin + k] = bits.signed(size) << self.low
            k += 1

    def refine(self, component: _Component, tables: int, origin: int) -> None:
        """The next lower bit of a band of a block of a progressive file."""
        codes, bits, one = component.codes, self.bits, 1 << self.low
        k = self.first
        if not k:
            codes[origin] |= bits.take(1) << self.low
            return
        if not self.run:
            table = self.huffman[0x10 | tables & 15]
            while k <= self.last:
                symbol = bits.symbol(table)
                zeros, size = symbol >> 4, symbol & 15
                if not size and zeros < 15:
                    self.run = (1 << zeros) + bits.take(zeros)
                    break
                value = (one if bits.take(1) else -one) if size else 0
                k = self._correct(codes, origin, k, zeros)
                if value and k <= self.last:
                    codes[origin + k] = value
                k += 1
        if self.run:
            self._correct(codes, origin, k, 64)
            self.run -= 1

    def _correct(self, codes: array, origin: int, k: int, zeros: int) -> int:
        """Refines the coefficients from k on that are not zero, past so many that are. Returns where it stopped."""
        one = 1 << self.low
        while k <= self.last:
            code = codes[origin + k]
            if code:
                if self.bits.take(1) and not abs(code) & one:
                    codes[origin + k] = code + (one if code > 0 else -one)
            elif zeros:
                zeros -= 1
            else:
                return k
            k += 1
        return k
