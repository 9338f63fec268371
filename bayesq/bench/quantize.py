"""Quantised codecs against the one that they are made of: what they cost, and what they lose."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator
from matplotlib.transforms import Bbox

from bayesq import zoo
from bayesq.bench import table
from bayesq.bench.codec import measure
from bayesq.bench.curves import Curve, bd_rate
from bayesq.bench.formats import Bayesq
from bayesq.codec import Codec
from bayesq.quantization import Calibration, quantize, recipe_called
from bayesq.quantization.cost import Cost, cost

QUALITIES = (10, 30, 50, 70, 90)
RED, GREY = "#d1495b", "#6a6a6a"
SIDES = [
    ((5, 0), "left", "center"),
    ((-5, 0), "right", "center"),
    ((0, 5), "center", "bottom"),
    ((0, -5), "center", "top"),
    ((5, 8), "left", "bottom"),
    ((5, -8), "left", "top"),
    ((-5, 8), "right", "bottom"),
    ((-5, -8), "right", "top"),
]
"""Where a name may stand: offset from its point, points; horizontal and vertical alignment."""


@dataclass(frozen=True)
class Row:
    """One codec's figures.

    Attributes:
        name: Of the recipe or of the weights file.
        cost: Of its networks.
        bytes: Of its weights file; for the floating-point codec, of its tensors.
        bd_rate: Per cent more rate than the floating-point codec at equal PSNR, in the same run; NaN (null in JSON) if
            the pictures are too bad to compare.
        encoding, decoding: Seconds a picture, over those of the floating-point codec.
        runtime: What ran g_a and g_s.
        minutes: That quantising took.
        curve: Rate and distortion.
    """

    name: str
    cost: Cost
    bytes: int
    bd_rate: float
    encoding: float
    decoding: float
    runtime: str
    minutes: float
    curve: Curve

    def as_json(self) -> dict[str, Any]:
        bd_rate = self.bd_rate if math.isfinite(self.bd_rate) else None
        return {**asdict(self), "bd_rate": bd_rate, "curve": self.curve.as_json()}


def compare(
    codec: Codec,
    names: Sequence[str],
    paths: Sequence[Path],
    data: Calibration,
    qualities: Sequence[float] = QUALITIES,
    progress: bool = False,
) -> Iterator[Row]:
    """Quantises a codec after each recipe, and measures all on the same pictures in one run: itself, then the others.

    Args:
        codec: In floating point.
        names: Recipes, or weights files of codecs that are quantised already.
        paths: Pictures to measure on.
        data: What recipes calibrate on.
        qualities: Measured points of the curves.
        progress: Show bars on stderr.

    Raises:
        ModelError: there is no recipe of a name.
    """
    recipes = [name for name in names if not name.endswith(".safetensors")]
    for name in recipes:
        recipe_called(name)
    anchor = measure(Bayesq(codec), paths, qualities, progress)
    exact = cost(codec)
    yield Row("float", exact, exact.bytes, 0.0, 1.0, 1.0, codec.runtime.name, 0.0, anchor)
    for name in names:
        start = perf_counter()
        with TemporaryDirectory() as folder:
            file = Path(name)
            if name in recipes:
                file = Path(folder, name, "weights.safetensors")
                file.parent.mkdir()
                quantize(codec, recipe_called(name), data, progress=progress).codec.save(file)
            minutes = (perf_counter() - start) / 60
            quantised, size = zoo.load(str(file)), file.stat().st_size
        curve = measure(Bayesq(quantised), paths, qualities, progress)
        encoding, decoding = (
            float(np.mean(curve.results[key]) / np.mean(anchor.results[key]))
            for key in ("encoding_time", "decoding_time")
        )
        short = name if name in recipes else file.parent.name
        loss, runtime = bd_rate(anchor, curve), quantised.runtime.name
        yield Row(short, cost(quantised), size, loss, encoding, decoding, runtime, minutes, curve)


def report(rows: Sequence[Row]) -> str:
    """A Markdown table of the rows."""
    head = ["recipe", "bits/weight", "all networks", "input bits", "MB", "bit ops/px", "BD-rate %"]
    most = rows[0].cost.operations
    cells = [
        [
            row.name,
            f"{row.cost.quantised_bits:.2f}",
            f"{row.cost.weight_bits:.2f}",
            f"{row.cost.activation_bits:.1f}",
            f"{row.bytes / 1e6:.2f}",
            f"{100 * row.cost.operations / most:.1f} %",
            f"{row.bd_rate:+.2f}" if math.isfinite(row.bd_rate) else "–",
            f"{row.encoding:.2f}",
            f"{row.decoding:.2f}",
            row.runtime,
            f"{row.minutes:.1f}",
        ]
        for row in rows
    ]
    return table([*head, "encode ×", "decode ×", "by", "minutes"], cells)


def front(rows: Sequence[Row]) -> list[Row]:
    """The rows that no other beats in both bits a weight and BD-rate, by bits; those that have a BD-rate."""
    kept: list[Row] = []
    measured = [row for row in rows if math.isfinite(row.bd_rate)]
    for row in sorted(measured, key=lambda row: (row.cost.quantised_bits, row.bd_rate)):
        if not kept or row.bd_rate < kept[-1].bd_rate:
            kept.append(row)
    return kept


def plot(rows: Sequence[Row], title: str) -> Figure:
    """BD-rate over stored bits a weight, with the Pareto front; names where there is room, first those of the front."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    best = front(rows[1:])
    others = [row for row in rows[1:] if row not in best and math.isfinite(row.bd_rate)]
    axes.plot([r.cost.quantised_bits for r in best], [r.bd_rate for r in best], ".-", color=RED, markersize=9)
    axes.plot([r.cost.quantised_bits for r in others], [r.bd_rate for r in others], ".", color=GREY, markersize=7)
    axes.set(xlabel="stored bits a weight, quantised layers", ylabel="BD-rate against floating point, %")
    if max(row.bd_rate for row in [*best, *others]) > 10:
        axes.set_yscale("symlog", linthresh=1)
        axes.yaxis.set_major_locator(FixedLocator([0, 0.5, *(a * 10**b for b in range(5) for a in (1, 2, 5))]))
        axes.yaxis.set_major_formatter("{x:g}")
    axes.margins(0.08)
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(color="#ececec")
    axes.spines[["top", "right"]].set_visible(False)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    taken = [Bbox.from_bounds(*place, 0, 0).padded(3) for place in map(partial(_place, axes), [*best, *others])]
    for row in [*best, *others]:
        _label(axes, row, RED if row in best else GREY, taken)
    return figure


def _place(axes: Axes, row: Row) -> tuple[float, float]:
    x, y = axes.transData.transform((row.cost.quantised_bits, row.bd_rate))
    return float(x), float(y)


def _label(axes: Axes, row: Row, colour: str, taken: list[Bbox]) -> None:
    """Writes a row's name beside its point, if there is room, and adds its place to what is ``taken``."""
    point = row.cost.quantised_bits, row.bd_rate
    for offset, across, along in SIDES:
        text = axes.annotate(
            row.name, point, offset, textcoords="offset points", ha=across, va=along, fontsize=7, color=colour
        )
        box = text.get_window_extent().padded(1)
        if box.x1 < axes.figure.bbox.x1 and not any(box.overlaps(other) for other in taken):
            taken.append(box)
            return
        text.remove()
