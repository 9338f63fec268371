"""The number formats of weights, by the names that weights files know them under."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from bayesq.errors import ModelError
from bayesq.quantization.formats.affine import Affine
from bayesq.quantization.formats.base import Format, Grid, Parameters, Range
from bayesq.quantization.formats.clusters import Clusters, Sparse
from bayesq.quantization.formats.coded import Coded
from bayesq.quantization.formats.fewbit import Binary, DoubleBinary, Ternary
from bayesq.quantization.formats.floats import Minifloat, NormalFloat
from bayesq.quantization.formats.logarithmic import Log2, Powers
from bayesq.quantization.formats.power import PowerExponent
from bayesq.quantization.formats.pyramid import Pyramid

FORMATS: dict[str, type[Format]] = {
    "affine": Affine,
    "coded": Coded,
    "powers": Powers,
    "log2": Log2,
    "minifloat": Minifloat,
    "normal-float": NormalFloat,
    "power-exponent": PowerExponent,
    "clusters": Clusters,
    "sparse": Sparse,
    "ternary": Ternary,
    "binary": Binary,
    "double-binary": DoubleBinary,
    "pyramid": Pyramid,
}
_NAMES = {kind: name for name, kind in FORMATS.items()}


def as_json(form: Format) -> dict[str, Any]:
    """A format as JSON keeps it: its name and its numbers."""
    values = {field.name: getattr(form, field.name) for field in fields(form)}  # type: ignore[arg-type]
    numbers = {name: as_json(value) if isinstance(value, Format) else value for name, value in values.items()}
    return {"name": _NAMES[type(form)], **numbers}


def from_json(content: dict[str, Any]) -> Format:
    """The format that ``as_json`` wrote. Raises ModelError if there is none of that name with such numbers."""
    try:
        name, numbers = content["name"], {key: value for key, value in content.items() if key != "name"}
        inner = {key: from_json(value) for key, value in numbers.items() if isinstance(value, dict)}
        return FORMATS[name](**{**numbers, **inner})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"no such number format: {content}") from error


__all__ = [
    "FORMATS",
    "Affine",
    "Binary",
    "Clusters",
    "Coded",
    "DoubleBinary",
    "Format",
    "Grid",
    "Log2",
    "Minifloat",
    "NormalFloat",
    "Parameters",
    "PowerExponent",
    "Powers",
    "Pyramid",
    "Range",
    "Sparse",
    "Ternary",
    "as_json",
    "from_json",
]
