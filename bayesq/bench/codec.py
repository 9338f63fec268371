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

from bayesq import files, metrics
from bayesq.bench import table
from bayesq.bench.curves import Curve, bd_rate
from bayesq.bench.formats import Format
from bayesq.codec import Codec
from bayesq.io import read_image, to_tensor

KEYS = ["psnr-rgb", "ms-ssim-rgb", "bpp", "encoding_time", "decoding_time"]
MS_SSIM_SIDE = 161
"""The shortest side, in pixels, that its five scales take."""


def measure(
    form: Format, paths: Sequence[Path], qualities: Sequence[float] | None = None, progress: bool = False
) -> Curve:
    """Encodes and decodes every picture at every quality, and before that one of them, for what is only done once.

    Args:
        form: the format.
        paths: picture files; read as RGB, without their metadata, which only some formats would keep.
        qualities: the format's own ones where None.
        progress: show a bar on standard error where it is a terminal.

    Returns:
        The means over the pictures, in order of the qualities; without MS-SSIM if one is too small for it.
    """
    qualities = form.qualities if qualities is None else qualities
    values = np.empty((len(paths), len(qualities), len(KEYS)))
    bar = tqdm(total=values[..., 0].size, desc=form.name, disable=None if progress else True, leave=False)
    with bar:
        for i, path in enumerate(paths):
            image = read_image(path).convert("RGB")
            image.info.clear()
            if i == 0:
                _once(form, image, qualities[0])
            for j, quality in enumerate(qualities):
                values[i, j] = _once(form, image, quality)
                bar.update()
    means = dict(zip(KEYS, values.mean(axis=0).T, strict=True))
    results = {key: mean.tolist() for key, mean in means.items() if not np.isnan(mean).any()}
    return Curve(form.name, form.description, results)


def coverage(
    codec: Codec, paths: Sequence[Path], qualities: Sequence[float], samples: int = 16, progress: bool = False
) -> str:
    """A Markdown table: how many of the errors of files lie within the intervals that their deviations promise.

    Args:
        codec: the model that writes them.
        paths: picture files; read as RGB.
        qualities: of the files.
        samples: draws from a file.
        progress: show a bar on standard error where it is a terminal.
    """
    rows = []
    generator = torch.Generator().manual_seed(0)
    for quality in tqdm(qualities, desc="coverage", disable=None if progress else True, leave=False):
        shares, rmse, promised = [], [], []
        for path in paths:
            image = read_image(path).convert("RGB")
            data = files.encode(image, codec, quality)
            x, decoded = to_tensor(image), to_tensor(files.decode(data, codec))
            deviation = files.deviation(data, codec, samples, generator).expand_as(x)
            shares.append(metrics.gaussian_coverage(decoded, deviation, x))
            rmse.append((decoded - x).square().mean())
            promised.append(deviation.square().mean())
        means = [255 * float(torch.stack(squares).mean().sqrt()) for squares in (rmse, promised)]
        rows.append([f"{quality:g}", *(f"{each:.2f}" for each in means)])
        rows[-1] += [f"{100 * share:.1f}" for share in torch.stack(shares).mean(0).tolist()]
    heads = [f"within {level:.0%}" for level in metrics.LEVELS]
    return table(["quality", "error /255", "promised /255", *heads], rows)


def _once(form: Format, image: Image.Image, quality: float) -> list[float]:
    start = perf_counter()
    data = form.encode(image, quality)
    encoded = perf_counter()
    decoded = form.decode(data)
    end = perf_counter()
    x, x_hat = to_tensor(image), to_tensor(decoded)
    ms_ssim = metrics.ms_ssim(x_hat, x).item() if min(image.size) >= MS_SSIM_SIDE else np.nan
    bpp = 8 * len(data) / (image.width * image.height)
    return [metrics.psnr(x_hat, x).item(), ms_ssim, bpp, encoded - start, end - encoded]


def report(curve: Curve, qualities: Sequence[float], measured: Sequence[Curve], published: Sequence[Curve]) -> str:
    """Markdown tables: the curve's points, and its BD-rate (PCHIP) against curves of this run and published ones."""
    formats = {"bpp": ".3f", "psnr-rgb": ".2f", "ms-ssim-rgb": ".4f", "encoding_time": ".3f", "decoding_time": ".3f"}
    missing = [np.nan] * len(qualities)
    columns = [[_cell(v, form) for v in curve.results.get(key, missing)] for key, form in formats.items()]
    points = table(
        ["quality", "bpp", "PSNR dB", "MS-SSIM", "encode s", "decode s"],
        [list(row) for row in zip([f"{quality:g}" for quality in qualities], *columns, strict=True)],
    )
    anchors = [(one, "this run") for one in measured] + [(one, "published") for one in published]
    rates = [(anchor.name, origin, bd_rate(anchor, curve)) for anchor, origin in anchors]
    comparison = table(
        [f"{curve.name} against", "points", "BD-rate %"],
        [[name, origin, _cell(rate, "+.1f")] for name, origin, rate in rates],
    )
    return f"{points}\n\n{comparison}" if anchors else points


def _cell(value: float, form: str) -> str:
    return "–" if np.isnan(value) else format(value, form)
