"""Damaged and hostile files by the hundred thousand: each must be decoded, or refused with ``BitstreamError``.

Most mutations end at a checksum. So that what lies behind is reached too, half of the files get their checksums
repaired after the mutation, and some are packed anew around mutated payloads and chunks.
"""

from __future__ import annotations

import io
import random
import re
import resource
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING

from PIL import Image

from bayesq import bitstream, files, tiling
from bayesq.bitstream import ALPHA, File, Header, Mode
from bayesq.errors import BitstreamError

if TYPE_CHECKING:
    from bayesq.codec import Codec

CAP = 512 << 20
"""Bytes that decoding a file may allocate: enough for one tile of the largest size."""
PATIENCE = 20.0
"""Seconds of processor time that a file may take."""
_EXTREMES = (0, 1, 2, 31, 32, 33, 255, 1 << 11, (1 << 11) + 1, 1 << 14, 1 << 28, (1 << 31) - 1, (1 << 32) - 1)
_NUMBER = re.compile(rb"[\x80-\xff]{0,4}[\x00-\x7f]")
_MODEL_ID = slice(8, 16)


@dataclass(frozen=True)
class Failure:
    """A file that was neither decoded nor refused as it should."""

    number: int
    mutation: str
    reason: str
    data: bytes


@dataclass(frozen=True)
class Report:
    """What became of the files."""

    files: int
    decoded: int
    refusals: dict[str, int]
    """How many were refused for which reason, the most frequent first; figures are left out of the reasons."""
    by_mutation: dict[str, tuple[int, int]]
    """Files and, of them, those decoded."""
    seconds: float
    slowest: float
    """Seconds of processor time."""
    memory: int
    """Bytes by which the process grew at most."""
    failures: tuple[Failure, ...]


def tiny_codec() -> Codec:
    """A codec as small as can be, not trained; the same in every run."""
    import torch

    from bayesq.architecture import Architecture
    from bayesq.codec import Codec

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Codec.build(Architecture(8, 4, (8, 8), (1, 1), 8, 4)).exported()


def run(
    codecs: Sequence[tuple[Codec, float]],
    count: int,
    seed: int = 0,
    progress: Callable[[range], Iterable[int]] = iter,
) -> Report:
    """Decodes mutated files.

    Args:
        codecs: Codecs and their shares of the files.
        count: Number of files.
        seed: Of all that is random.
        progress: Wraps the numbers of the files, to show how far it is.
    """
    pools = [seeds(codec) for codec, _ in codecs]
    shares = [share for _, share in codecs]
    for (codec, _), pool in zip(codecs, pools, strict=True):
        for data in pool:
            files.decode(data, codec)
    decoded, refusals, slowest = 0, Counter[str](), 0.0
    tried, survived, failures = Counter[str](), Counter[str](), []
    before, start = _peak(), time.perf_counter()
    with _capped():
        for number in progress(range(count)):
            rng = random.Random(f"{seed}/{number}")
            which = rng.choices(range(len(codecs)), shares)[0]
            mutation, data = mutated(pools[which], rng)
            began = time.process_time()
            outcome = _attempt(data, codecs[which][0], rng)
            took = time.process_time() - began
            slowest = max(slowest, took)
            if took > PATIENCE:
                outcome = RuntimeError(f"took {took:.1f} s")
            tried[mutation] += 1
            if outcome is None:
                decoded += 1
                survived[mutation] += 1
            elif isinstance(outcome, BitstreamError):
                refusals[_kind(outcome)] += 1
            else:
                failures.append(Failure(number, mutation, f"{type(outcome).__name__}: {outcome}", data))
    return Report(
        files=count,
        decoded=decoded,
        refusals=dict(refusals.most_common()),
        by_mutation={name: (tried[name], survived[name]) for name in sorted(tried)},
        seconds=time.perf_counter() - start,
        slowest=slowest,
        memory=_peak() - before,
        failures=tuple(failures),
    )


def _attempt(data: bytes, codec: Codec, rng: random.Random) -> Exception | None:
    """Describes and decodes a file: all of it, a region, or what is left of it. Returns what that raised."""
    try:
        header = bitstream.Reader(io.BytesIO(data)).head.header
        files.describe(data)
        way = rng.randrange(4)
        if way == 0:
            files.decode(data, codec, on_damage=lambda _: None)
        elif way == 1:
            left, top = rng.randrange(header.width), rng.randrange(header.height)
            files.decode(data, codec, region=(left, top, min(left + 40, header.width), min(top + 40, header.height)))
        else:
            files.decode(data, codec)
    except Exception as error:
        return error
    return None


def _kind(error: BitstreamError) -> str:
    return " ".join("…" if any(c.isdigit() for c in word) else word for word in str(error).split())


# Files to begin with ---------------------------------------------------------------------------------------------


def seeds(codec: Codec) -> list[bytes]:
    """Sound files of small pictures: of one tile and of several, grey and coloured, plain and with all extras."""
    return [
        _coded("RGB", (37, 29), codec, 30),
        _coded("L", (5, 3), codec, 100),
        _coded("RGBA", (40, 20), codec, 60, tile=codec.multiple, extras=True),
        _coded("LA", (9, 64), codec, 0, tile=codec.multiple),
        _wild(codec),
    ]


def _coded(
    mode: str, size: tuple[int, int], codec: Codec, quality: float, tile: int = tiling.TILE, extras: bool = False
) -> bytes:
    noise = random.Random(repr((mode, size))).randbytes(len(mode) * size[0] * size[1])
    image = Image.frombytes(mode, size, noise)
    if mode.endswith("A"):
        image.putalpha(Image.linear_gradient("L").resize(size))
    if extras:
        image.info |= {"icc_profile": b"profile" * 9, "exif": b"Exif\0\0MM\0*", "xmp": b"<x:xmpmeta/>"}
    file = bitstream.unpack(files.encode(image, codec, quality))
    header = replace(file.header, tile_width=min(tile, size[0]), tile_height=min(tile, size[1]))
    return bitstream.pack(File(header, tuple(_tiles(image, header, codec)), file.chunks))


def _tiles(image: Image.Image, header: Header, codec: Codec) -> Iterator[bytes]:
    from bayesq.io import to_tensor

    for box in header.boxes():
        yield codec.compress(to_tensor(image.crop(box)), header.level)


def _wild(codec: Codec) -> bytes:
    """A file of latents that no picture has, up to the largest codes there are."""
    import torch

    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 1e6
    header = Header(32, 32, Mode.RGB, 255, codec.model_id, 32, 32)
    return bitstream.pack(File(header, (codec.compress(x, 255),)))


# Mutations -------------------------------------------------------------------------------------------------------


def mutated(pool: Sequence[bytes], rng: random.Random) -> tuple[str, bytes]:
    """One mutation of one of the files, and its name."""
    (name,) = rng.choices(list(MUTATIONS), _WEIGHTS)
    data = MUTATIONS[name](pool, rng)
    if name in _ON_BYTES and rng.random() < 0.5:
        return f"{name}, repaired", repaired(data)
    return name, data


def repaired(data: bytes) -> bytes:
    """The data with right checksums, as far as its head says where they are."""
    try:
        head, _, _ = bitstream.parse_head(io.BytesIO(data))
    except BitstreamError:
        return data
    lengths = [entry.length for entry in (*head.tiles, *head.chunks.values())]
    starts = accumulate(lengths, initial=head.size)
    crcs = [zlib.crc32(data[start : start + length]) for start, length in zip(starts, lengths, strict=False)]
    fields = data[: head.size - 4 * len(crcs) - 4] + struct.pack(f"<{len(crcs)}I", *crcs)
    return fields + struct.pack("<I", zlib.crc32(fields)) + data[head.size :]


def _flip(pool: Sequence[bytes], rng: random.Random) -> bytes:
    data = bytearray(rng.choice(pool))
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def _truncate(pool: Sequence[bytes], rng: random.Random) -> bytes:
    data = rng.choice(pool)
    return data[: rng.randrange(len(data))]


def _splice(pool: Sequence[bytes], rng: random.Random) -> bytes:
    head, tail = rng.choice(pool), rng.choice(pool)
    return head[: rng.randrange(len(head))] + tail[rng.randrange(len(tail)) :]


def _repeat(pool: Sequence[bytes], rng: random.Random) -> bytes:
    data = rng.choice(pool)
    start, end = sorted(rng.randrange(len(data)) for _ in "ab")
    return data[:end] + data[start:end] * rng.randint(1, 3) + data[end:]


def _overwrite(pool: Sequence[bytes], rng: random.Random) -> bytes:
    data = bytearray(rng.choice(pool))
    start = rng.randrange(len(data))
    span = min(rng.randint(1, 40), len(data) - start)
    data[start : start + span] = rng.choice([rng.randbytes(span), bytes(span), b"\xff" * span])
    return bytes(data)


def _noise(pool: Sequence[bytes], rng: random.Random) -> bytes:
    return rng.choice([b"", bitstream.MAGIC, rng.choice(pool)[:40]]) + rng.randbytes(rng.randrange(64))


def _header(pool: Sequence[bytes], rng: random.Random) -> bytes:
    """Fields of the head with extreme values, or near the true ones; the model stays."""
    data = rng.choice(pool)
    for _ in range(rng.randint(1, 4)):
        if rng.random() < 0.3:
            place = rng.randrange(4, 8)
            data = data[:place] + rng.randbytes(1) + data[place + 1 :]
        else:
            numbers = list(_NUMBER.finditer(data, 16, 120))
            field = rng.choice(numbers)
            value = sum((byte & 127) << 7 * n for n, byte in enumerate(field[0]))
            value = rng.choice([rng.choice(_EXTREMES), abs(value + rng.randint(-9, 9))])
            data = data[: field.start()] + bitstream.number(value) + data[field.end() :]
    return data


def _bodies(pool: Sequence[bytes], rng: random.Random) -> bytes:
    """A file packed anew with one of its payloads or chunks mutated."""
    file, other = bitstream.unpack(rng.choice(pool)), bitstream.unpack(rng.choice(pool))
    bodies = [body for body in (*file.tiles, *other.tiles, *file.chunks.values()) if body]
    mutate = rng.choice([_flip, _truncate, _splice, _repeat, _overwrite])
    words = mutate(bodies, rng)
    if rng.random() < 0.7:
        words = words[: len(words) // 4 * 4]  # a stream is whole words
    if file.chunks and rng.random() < 0.4:
        return bitstream.pack(replace(file, chunks=dict(file.chunks) | {rng.choice(list(file.chunks)): words}))
    tiles = list(file.tiles)
    tiles[rng.randrange(len(tiles))] = words
    return bitstream.pack(replace(file, tiles=tuple(tiles)))


def _exchanged(pool: Sequence[bytes], rng: random.Random) -> bytes:
    """A payload under another level, mode, size or grid than it was made for."""
    file = bitstream.unpack(rng.choice(pool))
    h = file.header
    width, height = (rng.choice([side, max(1, side + rng.randint(-40, 40))]) for side in (h.width, h.height))
    tile = rng.choice([32, 64, bitstream.MAX_TILE_SIDE])
    level, mode = rng.choice([h.level, rng.randrange(256)]), rng.choice(list(Mode))
    header = Header(width, height, mode, level, h.model_id, min(tile, width), min(tile, height))
    return bitstream.pack(File(header, (file.tiles * 64)[: header.columns * header.rows], file.chunks))


def _huge(pool: Sequence[bytes], rng: random.Random) -> bytes:
    """A small file that announces a picture as large as the format allows."""
    file = bitstream.unpack(rng.choice(pool))
    side = 1 << 14
    header = Header(side, side, Mode.RGB, rng.randrange(256), file.header.model_id, *[bitstream.MAX_TILE_SIDE] * 2)
    payload = rng.choice([b"", bytes(4), rng.randbytes(64), file.tiles[0]])
    chunks = rng.choice([{}, {ALPHA: bitstream.pack_plane([bytes(1 << 16)])}])
    return bitstream.pack(File(header, (payload,) * (header.columns * header.rows), chunks))


_ON_BYTES: dict[str, Callable[[Sequence[bytes], random.Random], bytes]] = {
    "bits flipped": _flip,
    "truncated": _truncate,
    "two files spliced": _splice,
    "a piece repeated": _repeat,
    "a piece overwritten": _overwrite,
    "noise": _noise,
    "hostile header": _header,
}
MUTATIONS = _ON_BYTES | {
    "a payload or chunk mutated": _bodies,
    "payloads of another picture": _exchanged,
    "huge and empty": _huge,
}
_WEIGHTS = [1.0] * (len(MUTATIONS) - 1) + [0.005]


# Limits ----------------------------------------------------------------------------------------------------------


@contextmanager
def _capped() -> Iterator[None]:
    """Makes allocations beyond `CAP` fail, on systems that can tell what is allocated now."""
    try:
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        yield
        return
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + CAP, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def _peak() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
