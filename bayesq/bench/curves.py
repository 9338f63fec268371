"""Rate-distortion curves: as JSON (the keys of CompressAI's ``eval_model``), compared, and drawn."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from bayesq import metrics
from bayesq.errors import BayesqError


@dataclass(frozen=True)
class Curve:
    """A codec's means over a set of pictures, one value a quality: lists by CompressAI's keys.

    ``bpp`` counts whole files; ``psnr-rgb`` is in dB, ``encoding_time`` and ``decoding_time`` in seconds a picture.
    """

    name: str
    description: str
    results: dict[str, list[float]]

    @property
    def bpp(self) -> np.ndarray:
        return np.asarray(self.results["bpp"])

    @property
    def psnr(self) -> np.ndarray:
        return np.asarray(self.results["psnr-rgb"])

    def as_json(self) -> dict[str, Any]:
        """The object that ``compressai.utils.eval_model`` prints."""
        return {"name": self.name, "description": self.description, "results": self.results}


def read_curves(path: str | Path, patterns: Sequence[str] = ("*",)) -> list[Curve]:
    """Published curves whose names match one of ``patterns`` (as in a shell), in the file's order.

    The file is ``{"source": text, "curves": {name: {"bpp": [...], "psnr-rgb": [...]}}}`` or what
    ``bayesq bench codec -o`` or CompressAI's ``eval_model`` wrote.

    Raises:
        BayesqError: the file is none of these.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if "curves" in content:
            curves = [Curve(name, content["source"], results) for name, results in content["curves"].items()]
        else:
            curves = [
                Curve(one["name"], one["description"], one["results"]) for one in [content, *content.get("rivals", [])]
            ]
        for curve in curves:
            if curve.bpp.shape != curve.psnr.shape or curve.bpp.ndim != 1:
                raise ValueError(f"curve {curve.name!r} has not one PSNR a rate")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BayesqError(f"{path}: not a file of rate-distortion curves ({error})") from error
    return [curve for curve in curves if any(fnmatchcase(curve.name, pattern) for pattern in patterns)]


def bd_rate(anchor: Curve, curve: Curve) -> float:
    """The mean difference in rate at equal PSNR, in per cent of the anchor's; NaN where the curves do not compare."""
    try:
        return metrics.bd_rate(anchor.bpp, anchor.psnr, curve.bpp, curve.psnr)
    except BayesqError:
        return float("nan")


def draw(path: str | Path, curve: Curve, measured: Sequence[Curve], published: Sequence[Curve], title: str) -> None:
    """Plots PSNR over bits per pixel: ``curve`` in front, then curves of the same run, then published ones."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.2), layout="constrained")
    axes = figure.add_subplot()
    right = 1.05 * curve.bpp.max()
    shades = ["#2b2b2b", "#7a5195", "#2f7f8f", "#a05a2c"]
    styles = [(one, {"color": "#b4b4b4", "linewidth": 0.9}) for one in published]
    styles += [
        (one, {"color": shades[i % len(shades)], "linewidth": 1.3, "marker": "o", "markersize": 2.5})
        for i, one in enumerate(measured)
    ]
    styles.append((curve, {"color": "#d1495b", "linewidth": 2.2, "marker": "o", "markersize": 4}))
    ends = []
    for one, style in styles:
        order = np.argsort(one.bpp)
        bpp, psnr = one.bpp[order], one.psnr[order]
        axes.plot(bpp, psnr, **style)
        x = min(bpp[-1], right)
        ends.append((float(x), float(np.interp(x, bpp, psnr)), one.name, style["color"]))
    inside = np.concatenate([one.psnr[one.bpp <= right] for one, _ in styles])
    bottom, top = inside.min() - 0.5, max(end[1] for end in ends) + 0.7
    axes.set(xlim=(0, right), ylim=(bottom, top), xlabel="bits per pixel", ylabel="PSNR, dB")
    _label_ends(axes, ends, right, gap=(top - bottom) / 34)
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(color="#ececec")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def _label_ends(axes: Any, ends: list[tuple[float, float, str, str]], right: float, gap: float) -> None:
    """Names each curve in the right margin, at the height of its end, the names at least ``gap`` apart."""
    ends = sorted(ends, key=lambda end: end[1])
    heights = [end[1] for end in ends]
    for _ in range(200):
        for i in range(len(heights) - 1):
            push = (gap - (heights[i + 1] - heights[i])) / 2
            if push > 0:
                heights[i] -= push
                heights[i + 1] += push
    for (x, y, name, color), height in zip(ends, heights, strict=True):
        dark = "#707070" if color == "#b4b4b4" else color
        line = {"arrowstyle": "-", "color": color, "linewidth": 0.5, "linestyle": ":"}
        axes.annotate(
            name, (x, y), (1.03 * right, height), color=dark, fontsize=8, va="center", annotation_clip=False,
            arrowprops=line,
        )  # fmt: skip
