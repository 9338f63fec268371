"""Throughput and peak memory by the size of the picture, on which neither should depend much."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import torch

from bayesq import zoo
from bayesq.bench import table
from bayesq.bitstream import Box
from bayesq.files import describe, encode
from bayesq.io import read_image
from bayesq.streams import decode_to, open_image

if TYPE_CHECKING:
    from bayesq.codec import Codec

ENOUGH = 8.0
"""Megapixels that a picture is coded again and again for."""
_STEP = 96


@dataclass(frozen=True)
class Setting:
    """How is coded and measured.

    Attributes:
        model: A name or a weights file.
        quality: 0 to 100.
        repeats: Rounds through all sizes; the fastest counts, for a machine's own speed varies by more than the sizes'.
        threads: Of torch; None: as it likes.
        cpu: Whether processor time is counted.
    """

    model: str = "base"
    quality: float = 50
    repeats: int = 3
    threads: int | None = None
    cpu: bool = False


@dataclass(frozen=True)
class Cost:
    """What a process had to give.

    Attributes:
        seconds: Per megapixel, from disk to disk, in the fastest round; the start is not counted.
        mebibytes: The most memory that it held at any time, with Python, torch and the model.
    """

    seconds: float
    mebibytes: float


@dataclass(frozen=True)
class Row:
    """One size of picture."""

    width: int
    height: int
    tiles: int
    encode: Cost
    decode: Cost

    @property
    def megapixels(self) -> float:
        return self.width * self.height / 1e6


@dataclass(frozen=True)
class Report:
    """What was measured, in the order of the sizes."""

    rows: list[Row]

    def text(self) -> str:
        """A Markdown table and, below, by how much the dearest size exceeds the cheapest."""
        head = ["megapixels", "size", "tiles", "encode s/MP", "decode s/MP", "encode peak MiB", "decode peak MiB"]
        rows = [
            [
                f"{it.megapixels:.1f}",
                f"{it.width} × {it.height}",
                str(it.tiles),
                *(f"{cost.seconds:.3f}" for cost in (it.encode, it.decode)),
                *(f"{cost.mebibytes:.0f}" for cost in (it.encode, it.decode)),
            ]
            for it in self.rows
        ]
        encode, decode = _spread([it.encode for it in self.rows]), _spread([it.decode for it in self.rows])
        spread = f"The dearest megapixel takes {encode:.0%} longer than the cheapest to encode, {decode:.0%} to decode."
        return table(head, rows) + "\n\n" + spread


def run(
    photo: Path,
    sizes: Sequence[float],
    setting: Setting | None = None,
    progress: Callable[[Sequence[float]], Iterable[float]] = iter,
) -> Report:
    """Encodes a photograph, repeated to each size, from a PPM file, and decodes it to another.

    Each is done by a process of its own, whose memory is that of nothing else, in rounds: what slows the machine down
    for a while does not hit one size alone.

    Args:
        photo: Picture file.
        sizes: Megapixels.
        setting: How.
        progress: Wraps the sizes.
    """
    setting = setting or Setting()
    costs: dict[float, list[tuple[Cost, Cost]]] = {megapixels: [] for megapixels in sizes}
    with TemporaryDirectory() as folder:
        decoded = Path(folder, "decoded.ppm")
        for megapixels in progress([*costs] * setting.repeats):
            source, coded = (Path(folder, f"{megapixels}.{ending}") for ending in ("ppm", "bq"))
            if not source.exists():
                width = max(round((1.5e6 * megapixels) ** 0.5 / _STEP), 1) * _STEP
                write_repeated(photo, source, width, width * 2 // 3)
            ways = _alone(_encode, source, coded, setting), _alone(_decode, coded, decoded, setting)
            costs[megapixels].append(ways)
        return Report([_row(Path(folder, f"{megapixels}.bq"), rounds) for megapixels, rounds in costs.items()])


def _row(coded: Path, rounds: list[tuple[Cost, Cost]]) -> Row:
    facts = describe(coded.read_bytes())
    columns, lines = facts.tile_grid
    encode, decode = (
        Cost(min(cost.seconds for cost in costs), max(cost.mebibytes for cost in costs))
        for costs in zip(*rounds, strict=True)
    )
    return Row(facts.width, facts.height, columns * lines, encode, decode)


def write_repeated(photo: Path, target: Path, width: int, height: int) -> None:
    """Writes a photograph and its mirror images, side by side and on top of one another, as a PPM file."""
    pixels = np.asarray(read_image(photo).convert("RGB"))
    columns = _there_and_back(pixels.shape[1], width)
    with target.open("wb") as file:
        file.write(b"P6\n%d %d\n255\n" % (width, height))
        for row in _there_and_back(pixels.shape[0], height):
            file.write(pixels[row, columns].tobytes())


def _there_and_back(period: int, length: int) -> np.ndarray:
    place = np.arange(length) % (2 * period)
    return np.minimum(place, 2 * period - 1 - place)


def _alone(job: Callable[[Path, Path, Setting], Cost], source: Path, target: Path, setting: Setting) -> Cost:
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(job, (source, target, setting))


def _encode(source: Path, target: Path, setting: Setting) -> Cost:
    codec = _codec(setting)
    with open_image(source) as picture:
        encode(picture.crop((0, 0, _STEP, 64)), codec, setting.quality)

    def work() -> None:
        with open_image(source) as picture:
            target.write_bytes(encode(picture, codec, setting.quality))

    return _cost(work, picture.size, setting)


def _decode(source: Path, target: Path, setting: Setting) -> Cost:
    codec = _codec(setting)

    def work(region: Box | None = None) -> tuple[int, int]:
        with source.open("rb") as file:
            return decode_to(target, file, codec, region=region)[0]

    work((0, 0, _STEP, 64))
    description = describe(source.read_bytes())
    return _cost(work, (description.width, description.height), setting)


def _codec(setting: Setting) -> Codec:
    if setting.threads:
        torch.set_num_threads(setting.threads)
    return zoo.load(setting.model)


def _cost(work: Callable[[], object], size: tuple[int, int], setting: Setting) -> Cost:
    megapixels = size[0] * size[1] / 1e6
    clock = time.process_time if setting.cpu else time.perf_counter
    seconds = []
    for _ in range(max(round(ENOUGH / megapixels), 1)):
        start = clock()
        work()
        seconds.append(clock() - start)
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    return Cost(statistics.median(seconds) / megapixels, peak)


def _spread(costs: Sequence[Cost]) -> float:
    seconds = [cost.seconds for cost in costs]
    return max(seconds) / min(seconds) - 1
