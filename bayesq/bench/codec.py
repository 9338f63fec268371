"""Rate and distortion of lossy image formats, measured on the bytes of the whole file.

CompressAI's ``eval_model`` counts the coder's strings alone; here, as in its ``bench``, headers count too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from bayesq import metrics
from bayesq.bench import table
from bayesq.bench.curves import Curve, bd_rate
from bayesq.bench.formats import Format

KEYS = ["psnr-rgb", "ms-ssim-rgb", "bpp", "encoding_time", "decoding_time"]


def measure(
    form: Format, paths: Sequence[Path], qualities: Sequence[float] | None = None, progress: bool = False
) -> Curve:
    """Encodes and decodes every picture at every quality.

    Args:
        form: the format.
        paths: picture files; read as RGB.
        qualities: the format's own ones where None.
        progress: show a bar on standard error where it is a terminal.

    Returns:
        The means over the pictures, in order of the qualities.
    """
    qualities = form.qualities if qualities is None else qualities
    values = np.empty((len(paths), len(qualities), len(KEYS)))
    bar = tqdm(total=values[..., 0].size, desc=form.name, disable=None if progress else True, leave=False)
    with bar:
        for i, path in enumerate(paths):
            with Image.open(path) as file:
                image = file.convert("RGB")
            for j, quality in enumerate(qualities):
                values[i, j] = _once(form, image, quality)
                bar.update()
    means = values.mean(axis=0)
    return Curve(form.name, form.description, {key: means[:, k].tolist() for k, key in enumerate(KEYS)})


def _once(form: Format, image: Image.Image, quality: float) -> list[float]:
    start = perf_counter()
    data = form.encode(image, quality)
    encoded = perf_counter()
    decoded = form.decode(data)
    end = perf_counter()
    x, x_hat = _tensor(image), _tensor(decoded)
    bpp = 8 * len(data) / (image.width * image.height)
    return [metrics.psnr(x_hat, x).item(), metrics.ms_ssim(x_hat, x).item(), bpp, encoded - start, end - encoded]


def _tensor(image: Image.Image) -> torch.Tensor:
    """(1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.array(image, dtype=np.float32) / 255).permute(2, 0, 1)[None]


def report(curve: Curve, qualities: Sequence[float], measured: Sequence[Curve], published: Sequence[Curve]) -> str:
    """Markdown tables: the curve's points, and its BD-rate (PCHIP) against curves of this run and published ones."""
    points = table(
        ["quality", "bpp", "PSNR dB", "MS-SSIM", "encode s", "decode s"],
        [
            [f"{quality:g}", f"{bpp:.3f}", f"{psnr:.2f}", f"{ms_ssim:.4f}", f"{encode:.3f}", f"{decode:.3f}"]
            for quality, psnr, ms_ssim, bpp, encode, decode in zip(
                qualities, *(curve.results[key] for key in KEYS), strict=True
            )
        ],
    )
    anchors = [(one, "this run") for one in measured] + [(one, "published") for one in published]
    rates = [(anchor.name, origin, bd_rate(anchor, curve)) for anchor, origin in anchors]
    comparison = table(
        [f"{curve.name} against", "points", "BD-rate %"],
        [[name, origin, "no overlap" if np.isnan(rate) else f"{rate:+.1f}"] for name, origin, rate in rates],
    )
    return f"{points}\n\n{comparison}" if anchors else points
