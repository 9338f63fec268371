"""Figures for people: restorations with their uncertainty, sheets of pictures, rate-distortion curves.

Every function returns a ``matplotlib.figure.Figure`` of its own and leaves pyplot's state alone; notebooks show it, and
``figure.savefig`` writes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor

    from bayesq.bench.curves import Curve
    from bayesq.restore import Restoration

PANEL, GAP, TITLE, BAR = 2.56, 0.1, 0.28, 0.35
"""Inches: width of a picture, space around pictures, space for a title above and for a colour bar beside."""

GREY = "#b4b4b4"
SHADES = ["#2b2b2b", "#7a5195", "#2f7f8f", "#a05a2c", "#3b6fb6", "#5b8c3a", "#b8860b", "#c06090"]
RATES = [a * 10.0**b for b in range(-3, 2) for a in (1, 2, 3, 5, 7)]
"""Colours of curves, and the bits per pixel that are marked below them."""

Panel = tuple[str, "Tensor"]
"""A title and a picture (1, 3, H, W) in [0, 1], or a map (1, 1, H, W) of deviations in image units."""


def plot_restoration(restoration: Restoration, measurement: Tensor | None = None, samples: int = 3) -> Figure:
    """Draws the first picture of a restoration: measurement, mean and standard deviation, and posterior samples below.

    Args:
        restoration: what ``bayesq.restore`` returned.
        measurement: y; left out where it is no picture (B, 3, h, w).
        samples: how many samples to show.
    """
    deviation = restoration.std[:1].square().mean(1, keepdim=True).sqrt()
    top = [("Posterior mean", _coloured(restoration.mean)), ("Standard deviation", deviation)]
    if measurement is not None and measurement.ndim == 4 and measurement.shape[1] in (1, 3):
        top.insert(0, ("Measurement", _coloured(measurement)))
    draws = [(f"Sample {i}", _coloured(draw)) for i, draw in enumerate(restoration.samples[:samples], 1)]
    return plot_contact_sheet([top, draws])


def plot_contact_sheet(rows: Sequence[Sequence[Panel]]) -> Figure:
    """Draws rows of titled pictures; deviation maps get a bar that is marked in grey levels of 255."""
    columns = max(map(len, rows))
    mapped = [any(len(row) > i and row[i][1].shape[1] == 1 for row in rows) for i in range(columns)]
    widths = [PANEL + GAP + BAR * has_bar for has_bar in mapped]
    heights = [PANEL * max(picture.shape[-2] / picture.shape[-1] for _, picture in row) for row in rows]
    width, bottom = sum(widths) + GAP, sum(heights) + TITLE * len(rows) + GAP
    figure = Figure(figsize=(width, bottom))
    scale = 1 / np.array([width, bottom, width, bottom])
    for row, height in zip(rows, heights, strict=True):
        bottom -= height + TITLE
        for i, (title, picture) in enumerate(row):
            box = np.array([GAP + sum(widths[:i]), bottom, PANEL, height])
            axes = figure.add_axes(tuple(box * scale), xticks=[], yticks=[], frame_on=False)
            axes.set_title(title, loc="left", fontsize=9)
            if picture.shape[1] == 1:
                bar = np.array([box[0] + PANEL + 0.05, bottom, 0.08, height])
                _show_map(axes, figure.add_axes(tuple(bar * scale)), picture)
            else:
                axes.imshow(picture[0].detach().clamp(0, 1).permute(1, 2, 0).cpu().numpy())
    return figure


def _coloured(pictures: Tensor) -> Tensor:
    """The first of the pictures (B, 1 or 3, H, W), with three channels."""
    return pictures[:1].expand(1, 3, *pictures.shape[2:])


def draw_map(values: Tensor) -> tuple[Image.Image, float]:
    """A map ``(1, 1, H, W)`` from 0 up in the colours of viridis, a pixel each, and the value that is yellow.

    That is the 0.998 quantile, so that single pixels do not darken the others.
    """
    samples = values[0, 0].detach().cpu().numpy()
    top = max(float(np.quantile(samples, 0.998)), 1e-12)
    return Image.fromarray(colormaps["viridis"](samples / top, bytes=True)[..., :3]), top


def _show_map(axes: Axes, bar_axes: Axes, deviation: Tensor) -> None:
    levels = 255 * deviation[0, 0].detach().cpu().numpy()
    image = axes.imshow(levels, cmap="magma", vmin=0, vmax=max(float(np.quantile(levels, 0.998)), 1e-3))
    bar = bar_axes.figure.colorbar(image, cax=bar_axes)
    bar.outline.set_visible(False)
    bar_axes.tick_params(labelsize=7, length=2)
    bar_axes.set_title("/255", fontsize=7, loc="left")


def plot_rate_distortion(curve: Curve, measured: Sequence[Curve], published: Sequence[Curve], title: str) -> Figure:
    """Draws PSNR over bits per pixel: ``curve`` in front, then curves of the same run, then published ones.

    The rate is on a logarithmic scale, where curves are nearly straight. Those that end early are led on to their names
    at the right by dotted lines.
    """
    figure = Figure(figsize=(8, 5.6), layout="constrained")
    axes = figure.add_subplot(xscale="log")
    left, right = 0.9 * curve.bpp.min(), 1.05 * curve.bpp.max()
    styles: list[tuple[Curve, dict[str, Any]]] = [(one, {"color": GREY, "linewidth": 0.8}) for one in published]
    styles += [
        (one, {"color": SHADES[i % len(SHADES)], "linewidth": 1.3, "marker": "o", "markersize": 2.5})
        for i, one in enumerate(measured)
    ]
    styles.append((curve, {"color": "#d1495b", "linewidth": 2.4, "marker": "o", "markersize": 4}))
    ends = []
    for one, style in styles:
        order = np.argsort(one.bpp)
        log_rate, psnr = np.log(one.bpp[order]), one.psnr[order]
        axes.plot(one.bpp[order], psnr, **style)
        beyond = np.log(right) - log_rate[-1]
        if beyond > 0:
            slope = (psnr[-1] - psnr[-2]) / (log_rate[-1] - log_rate[-2]) if len(psnr) > 1 else 0.0
            end = float(psnr[-1] + slope * beyond)
            axes.plot([one.bpp.max(), right], [psnr[-1], end], color=style["color"], linewidth=0.9, linestyle=":")
        else:
            end = float(np.interp(np.log(right), log_rate, psnr))
        ends.append((end, one.name, style["color"]))
    inside = np.concatenate([one.psnr[(one.bpp >= left) & (one.bpp <= right)] for one, _ in styles])
    bottom, top = inside.min() - 0.5, max(end for end, _, _ in ends) + 0.5
    axes.set(xlim=(left, right), ylim=(bottom, top), xlabel="bits per pixel", ylabel="PSNR, dB")
    axes.set_xticks([rate for rate in RATES if left <= rate <= right], minor=False)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    _label_ends(axes, sorted(ends), right, (bottom, top))
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(color="#ececec")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _label_ends(axes: Axes, ends: list[tuple[float, str, str]], right: float, span: tuple[float, float]) -> None:
    """Names curves in the right margin near the height of their ends, which rise, without overlap."""
    bottom, top = span
    gap = (top - bottom) / max(36, len(ends))
    heights = [end for end, _, _ in ends]
    for _ in range(500):
        for i in range(len(heights) - 1):
            push = (gap - (heights[i + 1] - heights[i])) / 2
            if push > 0:
                heights[i] -= push
                heights[i + 1] += push
        heights[0], heights[-1] = max(heights[0], bottom), min(heights[-1], top)
    for (y, name, color), height in zip(ends, heights, strict=True):
        line = {"arrowstyle": "-", "color": color, "linewidth": 0.5, "relpos": (0, 0.5), "shrinkB": 0}
        axes.annotate(
            name, (right, y), (1.06 * right, height), color="#707070" if color == GREY else color, fontsize=8,
            va="center", annotation_clip=False, arrowprops=line,
        )  # fmt: skip
