"""Quantised codecs against the one that they are made of: what they cost, and what they lose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bayesq import zoo
from bayesq.bench import table
from bayesq.bench.codec import measure
from bayesq.bench.curves import Curve, bd_rate
from bayesq.bench.formats import Bayesq
from bayesq.codec import Codec
from bayesq.quantization import Calibration, quantize, recipe_called
from bayesq.quantization.cost import Cost, cost

QUALITIES = (10, 30, 50, 70, 90)


@dataclass(frozen=True)
class Row:
    """One codec's figures.

    Attributes:
        name: Of the recipe or of the weights file.
        cost: Of its networks.
        bytes: Of its weights file; for the floating-point codec, of its tensors.
        bd_rate: Per cent more rate than the floating-point codec at equal PSNR, in the same run.
        encoding, decoding: Seconds a picture, over those of the floating-point codec.
        minutes: That quantising took.
        curve: Rate and distortion.
    """

    name: str
    cost: Cost
    bytes: int
    bd_rate: float
    encoding: float
    decoding: float
    minutes: float
    curve: Curve

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "curve": self.curve.as_json()}


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
    yield Row("float", exact, exact.bytes, 0.0, 1.0, 1.0, 0.0, anchor)
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
        yield Row(short, cost(quantised), size, bd_rate(anchor, curve), encoding, decoding, minutes, curve)


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
            f"{row.bd_rate:+.2f}",
            f"{row.encoding:.2f}",
            f"{row.decoding:.2f}",
            f"{row.minutes:.1f}",
        ]
        for row in rows
    ]
    return table([*head, "encode ×", "decode ×", "minutes"], cells)


def front(rows: Sequence[Row]) -> list[Row]:
    """The rows that no other beats in both bits a weight and BD-rate, by bits."""
    kept: list[Row] = []
    for row in sorted(rows, key=lambda row: (row.cost.quantised_bits, row.bd_rate)):
        if not kept or row.bd_rate < kept[-1].bd_rate:
            kept.append(row)
    return kept


def plot(rows: Sequence[Row], title: str) -> Figure:
    """BD-rate over stored bits a weight, with the Pareto front."""
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.add_subplot()
    best = front(rows[1:])
    axes.plot([r.cost.quantised_bits for r in best], [r.bd_rate for r in best], color="#d1495b", linewidth=1.2)
    for row in rows[1:]:
        place = row.cost.quantised_bits, row.bd_rate
        axes.plot(*place, "o", color="#d1495b" if row in best else "#7a7a7a", markersize=4)
        axes.annotate(row.name, place, (3, 3), textcoords="offset points", fontsize=7)
    axes.set(xlabel="stored bits a weight, quantised layers", ylabel="BD-rate against floating point, %")
    if max(row.bd_rate for row in rows) > 10:
        axes.set_yscale("symlog", linthresh=1)
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(color="#ececec")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
