"""The demonstration: one photograph blurred and restored, then compressed and decompressed at three rates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

from bayesq import files, metrics
from bayesq.codec import Codec
from bayesq.io import atomic_write, read_image, to_image, to_tensor, write_image
from bayesq.operators import blur, degrade
from bayesq.plot import plot_contact_sheet
from bayesq.resources import data_dir
from bayesq.restore import restore

QUALITIES = (5, 35, 75)
CROP = (60, 0, 316, 256)
"""Left, top, right and bottom of the part of ``chelsea.png`` that is shown."""


@dataclass(frozen=True)
class Row:
    """How near a picture comes to the photograph."""

    picture: str
    file: str
    psnr: float
    """dB."""
    ssim: float
    bits_per_pixel: float | None = None
    """Of the whole file, for a compressed picture."""


@dataclass(frozen=True)
class Report:
    """What the demonstration found.

    Attributes:
        rows: The pictures it made, in order.
        coverage: Share of the restored pixels whose true value lies in their 90 % interval.
        sheet: Path of the figure.
        seconds: Time it all took.
    """

    rows: tuple[Row, ...]
    coverage: float
    sheet: str
    seconds: float


def run(folder: str | Path, codec: Codec, steps: int | None = None, seed: int = 0, progress: bool = False) -> Report:
    """Runs the demonstration on a photograph that bayesq carries, and writes its pictures and a contact sheet.

    Args:
        folder: Where to write; made if missing.
        codec: The compressor.
        steps: Iterations of the restoration; by default as many as ``restore`` takes.
        seed: Of noise and inference.
        progress: Show a progress bar on stderr.
    """
    began = perf_counter()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    image = read_image(data_dir() / "chelsea.png").crop(CROP)
    x = to_tensor(image)
    rows: list[Row] = []

    def show(picture: str, file: str, value: Tensor, rate: float | None = None) -> tuple[str, Tensor]:
        """Writes a version of the photograph, enters it in the table, and gives it back as a panel of the sheet."""
        value = value.clamp(0, 1)
        write_image(to_image(value), folder / file)
        row = Row(picture, file, metrics.psnr(value, x).item(), metrics.ssim(value, x).item(), rate)
        rows.append(row)
        return f"{picture}: " + ("" if rate is None else f"{rate:.2f} bpp, ") + f"{row.psnr:.1f} dB", value

    physics = blur(data_dir() / "motion.png", (image.height, image.width), 5 / 255)
    y = degrade(x, physics, generator)
    restored = restore(y, physics, steps=steps, generator=generator, progress=progress)
    restoring = [
        [
            ("Photograph", x),
            show("Blurred, noisy", "blurred.png", y),
            show("Restored", "restored.png", restored.mean),
            ("Its standard deviation", _spread(restored.std)),
        ],
        [
            *((f"Restored, sample {i}", draw) for i, draw in enumerate(restored.samples[:3], 1)),
            ("Its actual error", _spread(restored.mean - x)),
        ],
    ]
    coded = [files.encode(image, codec, quality) for quality in QUALITIES]
    coding = [
        *(
            show(f"Compressed {i}", f"compressed-{i}.png", to_tensor(files.decode(data, codec)), _rate(data))
            for i, data in enumerate(coded, 1)
        ),
        ("What file 1 leaves open", files.deviation(coded[0], codec, 16, generator)),
    ]

    write_image(image, folder / "photograph.png")
    for i, draw in enumerate(restored.samples[:3], 1):
        write_image(to_image(draw), folder / f"sample-{i}.png")
    for i, data in enumerate(coded, 1):
        atomic_write(folder / f"compressed-{i}.bq", data)
    for name, sheet in {"restore": restoring, "codec": [coding], "demo": [*restoring, coding]}.items():
        plot_contact_sheet(sheet).savefig(folder / f"{name}.png", dpi=100)
    coverage = metrics.coverage(restored.samples, x, [0.9]).item()
    return Report(tuple(rows), coverage, str(folder / "demo.png"), perf_counter() - began)


def _rate(data: bytes) -> float:
    return files.describe(data).bits_per_pixel


def _spread(deviation: Tensor) -> Tensor:
    """Root mean square over the colours, (B, 1, H, W)."""
    return deviation.square().mean(1, keepdim=True).sqrt()
