"""The demonstration: one photograph blurred and restored, made noisy and denoised, compressed and decompressed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

from bayesq import files, metrics
from bayesq.codec import Codec
from bayesq.io import atomic_write, read_image, to_image, to_tensor, write_image
from bayesq.operators import blur, degrade, denoise
from bayesq.plot import plot_contact_sheet
from bayesq.resources import data_dir
from bayesq.restore import restore

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


def run(
    folder: str | Path, codec: Codec, steps: int = 80, quality: float = 40, seed: int = 0, progress: bool = False
) -> Report:
    """Runs the demonstration on a photograph that bayesq carries, and writes its pictures and a contact sheet.

    Args:
        folder: Where to write; made if missing.
        codec: The prior and the compressor.
        steps: Iterations of each restoration.
        quality: Quality of the compressed file, 0 to 100.
        seed: Of noise and inference.
        progress: Show progress bars on stderr.
    """
    began = perf_counter()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    image = read_image(data_dir() / "chelsea.png").crop(CROP)
    x = to_tensor(image)
    size = (image.height, image.width)
    rows: list[Row] = []

    def show(picture: str, file: str, value: Tensor, rate: float | None = None) -> tuple[str, Tensor]:
        """Writes a version of the photograph, enters it in the table, and gives it back as a panel of the sheet."""
        value = value.clamp(0, 1)
        write_image(to_image(value), folder / file)
        rows.append(Row(picture, file, metrics.psnr(value, x).item(), metrics.ssim(value, x).item(), rate))
        size = "" if rate is None else f"{rate:.2f} bpp, "
        return f"{picture}: {size}{rows[-1].psnr:.1f} dB", value

    blurring = blur(data_dir() / "motion.png", size, 5 / 255)
    blurred = degrade(x, blurring, generator)
    restored = restore(blurred, blurring, codec=codec, steps=steps, generator=generator, progress=progress)
    noising = denoise(size, 25 / 255)
    noisy = degrade(x, noising, generator)
    denoised = restore(noisy, noising, codec=codec, steps=steps, generator=generator, progress=progress)
    data = files.encode(image, codec, quality)
    rate = files.describe(data).bits_per_pixel
    open_ = files.deviation(data, codec, 16, generator)

    atomic_write(folder / "compressed.bq", data)
    sheet = [
        [
            ("Photograph", x),
            show("Blurred, noisy", "blurred.png", blurred),
            show("Restored", "restored.png", restored.mean),
            ("Its standard deviation", _spread(restored.std)),
        ],
        [
            *((f"Restored, sample {i}", draw) for i, draw in enumerate(restored.samples[:3], 1)),
            ("Its actual error", _spread(restored.mean - x)),
        ],
        [
            show("Noisy", "noisy.png", noisy),
            show("Denoised", "denoised.png", denoised.mean),
            show("Compressed", "decompressed.png", to_tensor(files.decode(data, codec)), rate),
            ("What the file leaves open", open_),
        ],
    ]
    write_image(image, folder / "photograph.png")
    for i, draw in enumerate(restored.samples[:3], 1):
        write_image(to_image(draw), folder / f"sample-{i}.png")
    plot_contact_sheet(sheet).savefig(folder / "demo.png", dpi=130)
    coverage = metrics.coverage(restored.samples, x, [0.9]).item()
    return Report(tuple(rows), coverage, str(folder / "demo.png"), perf_counter() - began)


def _spread(deviation: Tensor) -> Tensor:
    """Root mean square over the colours, (B, 1, H, W)."""
    return deviation.square().mean(1, keepdim=True).sqrt()
