"""A restoration as one page of HTML, complete in itself: pictures, error bars, samples, and how far to trust them.

The page is the template ``report.html`` with a title and a JSON object put in. Pictures in it are PNG files of 8 bits a
value, as ``data:`` addresses; a deviation is stored as 255 · √(deviation / largest).
"""

from __future__ import annotations

import html
import json
import re
from base64 import b64encode
from collections.abc import Mapping
from importlib.resources import files
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from PIL import Image

from bayesq import metrics
from bayesq.errors import ImageError
from bayesq.io import to_image

if TYPE_CHECKING:
    from torch import Tensor

    from bayesq.restore import Restoration

BUDGET = 8_000_000
FEWEST = 4
"""Pixels that all samples in a page have together, and how many samples there are even if they have more."""

SHARES = tuple(k / 20 for k in range(1, 20))
CHANNELS = {1: ["grey"], 3: ["red", "green", "blue"]}


def render(
    restoration: Restoration,
    measurement: Tensor | None = None,
    truth: Tensor | None = None,
    *,
    title: str = "Restoration",
    facts: Mapping[str, str] | None = None,
) -> str:
    """Writes the page of the first picture of a restoration.

    Args:
        restoration: What ``bayesq.restore`` returned; grey if its pictures have one channel.
        measurement: The picture it was made of, ``(B, 1 or 3, h, w)`` of any size; left out if it is no picture.
        truth: The picture that was sought, of the restoration's shape: adds figures of merit and a calibration plot.
        title: Heading of the page.
        facts: What else to tell, by its name.

    Returns:
        The whole page. Above ``BUDGET`` pixels it holds only some of the samples, spread evenly over all.

    Raises:
        ImageError: The truth has another shape than the restoration.
    """
    mean, samples = restoration.mean[:1], restoration.samples[:, :1]
    if truth is not None and truth[:1].shape != mean.shape:
        raise ImageError(f"the truth has shape {tuple(truth.shape)}, the restoration {tuple(restoration.mean.shape)}")
    channels, height, width = mean.shape[1:]
    kept = min(len(samples), max(FEWEST, BUDGET // (width * height)))
    chosen = np.linspace(0, len(samples) - 1, kept).round().astype(int)
    std = 255 * restoration.std[:1]
    top, pooled = max(float(std.max()), 1e-3), std.square().mean(1).sqrt()
    if measurement is not None:
        measurement = measurement[:1] if measurement.ndim == 4 and measurement.shape[1] in CHANNELS else None
    told = {
        "Quality of the prior": "–" if restoration.quality is None else f"{restoration.quality:.0f} of 100",
        "Inference": f"{len(restoration.trace)} steps, {restoration.seconds:.1f} s",
    }
    data: dict[str, Any] = {
        "title": title,
        "facts": {**(facts or {}), **told},
        "width": width,
        "height": height,
        "channels": CHANNELS[channels],
        "mean": _embed(to_image(mean)),
        "measurement": None if measurement is None else _embed(to_image(measurement)),
        "truth": None if truth is None else _embed(to_image(truth[:1])),
        "std": _embed(to_image((std / top).sqrt())),
        "top": top,
        "white": max(float(np.quantile(pooled.numpy(), 0.998)), 1e-3),
        "palette": _embed(Image.fromarray(colormaps["magma"](np.arange(256), bytes=True)[None, :, :3])),
        "reach": restoration.reach(0.9),
        "draws": len(samples),
        "samples": [_embed(to_image(samples[i])) for i in chosen],
        "psnr": {},
        "coverage": None,
    }
    if truth is not None:
        data["psnr"]["mean"] = _psnr(mean, truth)
        if measurement is not None and measurement.shape == mean.shape:
            data["psnr"]["measured"] = _psnr(measurement, truth)
        levels = [share for share in SHARES if share * (len(samples) + 1) >= 1]
        found = metrics.coverage(samples, truth[:1], levels)
        data["coverage"] = {"levels": levels, "found": found.tolist()}
    parts = {"title": html.escape(title), "data": json.dumps(data).replace("<", "\\u003c")}
    page = files("bayesq").joinpath("report.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], page)


def _psnr(picture: Tensor, truth: Tensor) -> float:
    """In decibels, at most 99, since JSON has no infinity."""
    return min(99.0, float(metrics.psnr(picture, truth[:1])))


def _embed(picture: Image.Image) -> str:
    """A picture as a PNG file in a ``data:`` address."""
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + b64encode(buffer.getvalue()).decode()
