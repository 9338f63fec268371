"""Rate-distortion curves: as JSON (the keys of CompressAI's ``eval_model``), and compared."""

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
