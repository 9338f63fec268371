import io
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bayesq.bitstream import (
    MAX_PIXELS,
    MAX_TILE_SIDE,
    MAX_TILES,
    STRIP,
    VERSION,
    File,
    Header,
    Mode,
    number,
    pack,
    pack_plane,
    read_head,
    read_header,
    unpack,
    unpack_plane,
)
from bayesq.errors import BitstreamError

GOLDEN = Path(__file__).parent / "golden"
ID = bytes(range(8))
SMALL = File(Header(3, 2, Mode.GREY, 128, ID, 3, 2), (b"payload",))
RICH = File(
    Header(5, 4, Mode.RGB, 255, ID[::-1], 3, 2),
    (b"first", b"", b"third", b"\0" * 9),
    {"ALPH": b"alpha plane", "EXIF": b"MM\0*", "zzz9": b""},
)
FILES = {"grey": SMALL, "grid": RICH}
TAGS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=4, max_size=4)


@st.composite
def files(draw):
    width, height = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    tile = draw(st.integers(1, width)), draw(st.integers(1, height))
    mode, level = draw(st.sampled_from(Mode)), draw(st.integers(0, 255))
    header = Header(width, height, mode, level, draw(st.binary(min_size=8, max_size=8)), *tile)
    count = header.columns * header.rows
    payloads = draw(st.lists(st.binary(max_size=9), min_size=min(count, 3), max_size=min(count, 3)))
    tiles = tuple(payloads[i % len(payloads)] for i in range(count))
    return File(header, tiles, draw(st.dictionaries(TAGS, st.binary(max_size=9), max_size=4)))


def hostile(*fields: int | bytes, mode=0, chunks=0, version=VERSION) -> bytes:
    """A file of `SMALL`'s payload whose head is made of these fields, sizes and lengths, and has the right checksum."""
    head = struct.pack("<4s4B8s", b"\x89BQ\n", version, mode, 128, chunks, ID)
    head += b"".join(number(field) if isinstance(field, int) else field for field in fields)
    head += struct.pack("<I", zlib.crc32(b"payload"))
    return head + struct.pack("<I", zlib.crc32(head)) + b"payload"


def refuse(data: bytes) -> str:
    with pytest.raises(BitstreamError) as caught:
        unpack(data)
    message = str(caught.value)
    assert message and "\n" not in message and len(message) < 120
    return message


@given(files())
def test_files_come_back(file):
    data = pack(file)
    assert unpack(data) == file
    assert read_header(io.BytesIO(data)) == file.header


@given(files())
def test_tiles_cover_the_picture_once(file):
    boxes = file.header.boxes()
    assert len(boxes) == len(file.tiles)
    pixels = [(x, y) for left, top, right, bottom in boxes for y in range(top, bottom) for x in range(left, right)]
    assert len(pixels) == len(set(pixels)) == file.header.width * file.header.height


@pytest.mark.parametrize("name", FILES)
def test_bytes_do_not_drift(name):
    data = (GOLDEN / f"container_{name}.bq").read_bytes()
    assert pack(FILES[name]) == data
    assert unpack(data) == FILES[name]


@pytest.mark.parametrize("name", FILES)
def test_every_truncation_is_refused(name):
    data = pack(FILES[name])
    for size in range(len(data)):
        refuse(data[:size])
    assert refuse(b"") == "the file is empty"
    assert "cut off" in refuse(data[:-1])


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_is_refused(name):
    data = pack(FILES[name])
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        refuse(bytes(flipped))


@given(files(), st.binary(min_size=1, max_size=20))
def test_trailing_bytes_are_refused(file, rest):
    assert "follow" in refuse(pack(file) + rest)


@given(st.binary(max_size=120))
def test_noise_is_refused(data):
    refuse(data)
    refuse(pack(SMALL)[:5] + data)
    refuse(pack(SMALL)[:16] + data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x89PNG" + pack(SMALL)[4:], "not a .bq file"),
        (hostile(3, 2, 7, version=VERSION + 1), "needs a newer"),
        (hostile(3, 2, 7, version=1), "needs an older"),
        (hostile(3, 2, 7, mode=4), "damaged: mode"),
        (hostile(3, 2, 7, b"none", 0, chunks=1)[:30], "cut off"),
        (hostile(0, 2, 7), "impossible"),
        (hostile(2**32 - 1, 2**32 - 1, 7), "exceed"),
        (hostile(MAX_PIXELS, 2, 7), "exceed"),
        (hostile(3, 2, 0, 2, 7, mode=2), "do not fit"),
        (hostile(3, 2, 3, 3, 7, mode=2), "do not fit"),
        (hostile(3, 2, 3, 2, 7, mode=2), "whether it has tiles"),
        (hostile(MAX_TILES + 1, 1, 1, 1, 7, mode=2), "tiles exceed"),
        (hostile(MAX_TILE_SIDE + 1, 1, 7), "a side"),
        (hostile(3, 2, 2**32 - 1), "cut off"),
        (hostile(3, 2, 6), "follow"),
        (hostile(b"\x83\0", 2, 7), "a number"),
        (hostile(b"\xff" * 5, 2, 7), "a number"),
        (hostile(3, 2, 7)[:20], "cut off"),
    ],
)
def test_hostile_heads_are_refused(data, reason):
    assert reason in refuse(data)


def test_hostile_heads_would_be_read_without_their_fault():
    assert unpack(hostile(3, 2, 7)) == SMALL


def test_a_small_file_has_a_small_head():
    header = Header(768, 512, Mode.RGB, 0, ID, 768, 512)
    assert len(pack(File(header, (b"",)))) == 29


@given(st.integers(0, 2**35 - 1))
def test_numbers_take_as_few_bytes_as_they_can(value):
    data = number(value)
    assert len(data) == max(1, -(-value.bit_length() // 7))
    assert sum((byte & 127) << 7 * place for place, byte in enumerate(data)) == value
    assert [byte >> 7 for byte in data] == [1] * (len(data) - 1) + [0]


def test_chunks_need_distinct_printable_tags():
    for tag in ("abc", "abcde", "ab c", "ab\nc", "äbcd"):
        with pytest.raises(BitstreamError, match="tag"):
            File(SMALL.header, SMALL.tiles, {tag: b""})
    head = pack(File(SMALL.header, (b"",), {"same": b"", "sane": b""}))[:-4].replace(b"sane", b"same")
    assert "same tag" in refuse(head + struct.pack("<I", zlib.crc32(head)))


def test_files_are_checked_when_made():
    with pytest.raises(BitstreamError, match="payloads"):
        File(SMALL.header, ())
    with pytest.raises(BitstreamError, match="255 chunks"):
        File(SMALL.header, SMALL.tiles, {f"{i:04}": b"" for i in range(256)})
    with pytest.raises(BitstreamError, match="level"):
        Header(1, 1, Mode.GREY, 256, ID, 1, 1)
    with pytest.raises(BitstreamError, match="model id"):
        Header(1, 1, Mode.GREY, 0, ID[:7], 1, 1)


@given(files())
def test_the_head_is_read_and_no_more(file):
    stream = io.BytesIO(pack(file))
    head = read_head(stream)
    assert stream.tell() == head.size
    assert [entry.length for entry in head.tiles] == [len(tile) for tile in file.tiles]
    assert {tag: entry.length for tag, entry in head.chunks.items()} == {k: len(v) for k, v in file.chunks.items()}


def test_the_head_survives_damaged_payloads():
    assert read_header(io.BytesIO(pack(RICH)[:-30])) == RICH.header


@given(st.integers(1, 20), st.integers(1, 2 * STRIP + 1), st.data())
def test_planes_come_back(width, height, data):
    samples = data.draw(st.binary(min_size=width * height, max_size=width * height))
    cut = data.draw(st.integers(0, len(samples)))
    packed = pack_plane([samples[:cut], samples[cut:]])
    strips = list(unpack_plane(packed, width, height))
    assert b"".join(strips) == samples
    assert [len(strip) for strip in strips] == [width * min(STRIP, height - y) for y in range(0, height, STRIP)]
    for wrong in (
        packed[:-1],
        packed + b"\0",
        packed[1:],
        b"",
        pack_plane([samples[1:]]),
        pack_plane([samples, b"\0"]),
    ):
        with pytest.raises(BitstreamError, match="alpha plane"):
            list(unpack_plane(wrong, width, height))
