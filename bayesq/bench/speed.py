"""Time to encode and decode, in one run with that of CompressAI's ``mbt2018-mean`` and of Pillow's formats."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from bayesq.bench import table
from bayesq.bench.formats import Bayesq, Format, Pillow
from bayesq.coder import Decoder, Encoder, Tables
from bayesq.io import read_image, to_image, to_tensor
from bayesq.networks.integer import exact_arithmetic
from bayesq.prior import drive, read, write
from bayesq.quality import level_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from bayesq.codec import Codec

Clock = Callable[[], float]
STAGES = ["g_a and h_a", "prior, encoding", "entropy encoding", "prior, decoding", "entropy decoding", "g_s"]


class CompressAI:
    """CompressAI's ``mbt2018-mean``, N = 128 and M = 192, with random weights: as fast as trained ones but for the
    few symbols other than zero, which its coder finds easier."""

    name = "mbt2018-mean"
    description = "CompressAI, N = 128, M = 192, random weights"
    qualities = (0.0,)

    def __init__(self) -> None:
        from compressai.models import MeanScaleHyperprior

        with torch.random.fork_rng():
            torch.manual_seed(0)
            self._model = MeanScaleHyperprior(128, 192).eval().requires_grad_(False)
        self._model.update()

    @torch.inference_mode()
    def encode(self, image: Image.Image, quality: float) -> bytes:
        x = to_tensor(image)
        width, height = image.size
        y, z = self._model.compress(F.pad(x, (0, -width % 64, 0, -height % 64), mode="replicate"))["strings"]
        sizes = (width, height, len(y[0]))
        return b"".join(size.to_bytes(4, "little") for size in sizes) + y[0] + z[0]

    @torch.inference_mode()
    def decode(self, data: bytes) -> Image.Image:
        width, height, size = (int.from_bytes(data[at : at + 4], "little") for at in (0, 4, 8))
        strings = [[data[12 : 12 + size]], [data[12 + size :]]]
        x = self._model.decompress(strings, (-(-height // 64), -(-width // 64)))["x_hat"]
        return to_image(x[..., :height, :width])


RIVALS: list[Callable[[], Format]] = [
    CompressAI,
    lambda: Pillow("jpeg", "Pillow's defaults", "JPEG", [{}]),
    lambda: Pillow("webp", "Pillow's defaults", "WEBP", [{}]),
    lambda: Pillow("avif", "Pillow's defaults", "AVIF", [{}]),
]


@dataclass(frozen=True)
class Timing:
    """Of one format: means over pictures of medians over repeats.

    Attributes:
        name, description: The format's.
        encode, decode: Seconds per megapixel.
        bits_per_pixel: Of the files.
    """

    name: str
    description: str
    encode: float
    decode: float
    bits_per_pixel: float


@dataclass(frozen=True)
class Report:
    """What was measured.

    Attributes:
        threads: Of torch.
        runtimes: What ran the transforms of bayesq's models, by the names of their timings.
        timings: The formats, bayesq's first.
        stages: Seconds per megapixel of the parts of bayesq's coding, by name of the timing, then of the part.
    """

    threads: int
    runtimes: dict[str, str]
    timings: list[Timing]
    stages: dict[str, dict[str, float]] = field(default_factory=dict)

    def text(self) -> str:
        """Markdown tables."""
        reference = self.timings[len(self.runtimes)]
        rows = [
            [
                it.name,
                f"{it.bits_per_pixel:.2f}",
                f"{it.encode:.3f}",
                f"{it.decode:.3f}",
                f"{reference.encode / it.encode:.2f}",
                f"{reference.decode / it.decode:.2f}",
            ]
            for it in self.timings
        ]
        head = ["", "bpp", "encode s/MP", "decode s/MP", f"encode: {reference.name} = 1", "decode"]
        stages = [[part, *(f"{parts[part]:.3f}" for parts in self.stages.values())] for part in STAGES]
        runtimes = ", ".join(f"{name} by {runtime}" for name, runtime in self.runtimes.items())
        return "\n\n".join(
            [
                f"{self.threads} threads, g_a and g_s of {runtimes}; the higher the ratio, the faster.",
                table(head, rows),
                table(["stages, s/MP", *self.stages], stages),
            ]
        )


def run(
    codecs: Sequence[Codec],
    paths: Sequence[Path],
    quality: float = 50,
    repeats: int = 5,
    clock: Clock = perf_counter,
    progress: Callable[[range], Iterable[int]] = iter,
) -> Report:
    """Times all formats in turn, several times over, so that what else the machine does meets all alike.

    Args:
        codecs: bayesq's, one or more.
        paths: Picture files, read as RGB.
        quality: 0 to 100, of every format that has one.
        repeats: Of everything; a first round is not counted.
        clock: Tells seconds, such as ``time.process_time`` on a busy machine.
        progress: Wraps the numbers of the rounds.
    """
    images = [_rgb(path) for path in paths]
    ours = [Bayesq(codec) for codec in codecs]
    forms: list[Format] = [*ours, *(rival() for rival in RIVALS)]
    times: dict[tuple[str, str, int], list[float]] = {}
    sizes: dict[tuple[str, int], int] = {}
    for number in progress(range(repeats + 1)):
        for at, image in enumerate(images):
            for form in forms:
                with _timed(times, (form.name, "encode", at), clock):
                    data = form.encode(image, quality)
                with _timed(times, (form.name, "decode", at), clock):
                    form.decode(data).load()
                sizes[form.name, at] = len(data)
            for own in ours:
                for stage, seconds in stages(own.codec, to_tensor(image), level_of(quality), clock).items():
                    times.setdefault((own.name, stage, at), []).append(seconds)
        if not number:
            times.clear()

    def per_megapixel(name: str, what: str) -> float:
        rates = [
            statistics.median(times[name, what, at]) / (image.width * image.height / 1e6)
            for at, image in enumerate(images)
        ]
        return statistics.mean(rates)

    def bits_per_pixel(name: str) -> float:
        rates = [8 * sizes[name, at] / (image.width * image.height) for at, image in enumerate(images)]
        return statistics.mean(rates)

    timings = [
        Timing(
            form.name,
            form.description,
            per_megapixel(form.name, "encode"),
            per_megapixel(form.name, "decode"),
            bits_per_pixel(form.name),
        )
        for form in forms
    ]
    parts = {own.name: {stage: per_megapixel(own.name, stage) for stage in STAGES} for own in ours}
    return Report(torch.get_num_threads(), {own.name: own.codec.runtime.name for own in ours}, timings, parts)


@torch.inference_mode()
def stages(codec: Codec, x: Tensor, level: int, clock: Clock = perf_counter) -> dict[str, float]:
    """Seconds that the parts of coding a picture ``(1, 3, H, W)`` take, by the names in ``STAGES``.

    What is left of a whole encoding or decoding is spent on Pillow's pictures and on the file.
    """
    times: dict[str, list[float]] = {stage: [] for stage in STAGES}
    levels = torch.tensor([level])
    height, width = x.shape[-2:]

    class TimedEncoder(Encoder):
        def put(self, symbols: np.ndarray, rows: np.ndarray, tables: Tables) -> None:
            with _timed(times, STAGES[2], clock):
                super().put(symbols, rows, tables)

    class TimedDecoder(Decoder):
        def get(self, rows: np.ndarray, tables: Tables) -> np.ndarray:
            with _timed(times, STAGES[4], clock):
                return super().get(rows, tables)

    encoder = TimedEncoder()
    with exact_arithmetic():
        with _timed(times, STAGES[0], clock):
            targets = codec.targets(x, levels)
        with _timed(times, STAGES[1], clock):
            drive(codec.walk(1, height, width, levels), lambda n, law: write(law, targets[n], encoder))
        decoder = TimedDecoder(encoder.finish())
        with _timed(times, STAGES[3], clock):
            values = drive(codec.walk(1, height, width, levels), lambda _, law: read(law, decoder))
    with _timed(times, STAGES[5], clock):
        codec.synthesize(codec.prior.image_latent(values), level)
    total = {stage: sum(spent) for stage, spent in times.items()}
    for walk, coder in ((STAGES[1], STAGES[2]), (STAGES[3], STAGES[4])):
        total[walk] -= total[coder]
    return total


def _rgb(path: Path) -> Image.Image:
    image = read_image(path).convert("RGB")
    image.info.clear()
    return image


@contextmanager
def _timed(times: dict[Any, list[float]], key: Any, clock: Clock) -> Iterator[None]:
    start = clock()
    yield
    times.setdefault(key, []).append(clock() - start)
