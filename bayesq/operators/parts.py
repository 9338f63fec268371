"""Measurements of a part of a picture, for operators of which every value sees but a neighbourhood."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from deepinv.physics import Blur, Decolorize, Demosaicing, Denoising, Inpainting, LinearPhysics, Physics
from torch import Tensor

from bayesq.operators.classes import BicubicDownsampling
from bayesq.operators.parse import Size

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels of the picture, the last two exclusive."""


def is_local(physics: Physics) -> bool:
    """Whether ``part`` can cut measurements by an operator: of blurs, those that take a border for no other."""
    wraps = getattr(physics, "padding", None) in ("valid", "circular")
    return any(isinstance(physics, kinds) for kinds, _ in CUTS) and not wraps


def unit(physics: Physics) -> int:
    """What the left and top ends of parts must be multiples of."""
    return math.lcm(2, _factor(physics))


def reach(physics: Physics) -> int:
    """How far a measured value sees, pixels of the picture."""
    if isinstance(physics, Blur):
        return max(physics.filter.shape[-2:]) // 2
    return 2 * _factor(physics)


def size_of(y: Tensor, physics: Physics) -> Size:
    """Height and width of the picture of which y is a measurement by a local operator."""
    if isinstance(physics, BicubicDownsampling):
        return physics.img_size[-2], physics.img_size[-1]
    return y.shape[-2], y.shape[-1]


def part(y: Tensor, physics: LinearPhysics, box: Box) -> tuple[Tensor, LinearPhysics]:
    """The measurement of a part of a picture, and its operator.

    Near the part's borders, up to ``reach``, the operator is wrong, since it does not know what is beyond.

    Args:
        y: measurement of the whole.
        physics: a local operator.
        box: the part; its left and top are multiples of ``unit``.
    """
    cut = next(cut for kinds, cut in CUTS if isinstance(physics, kinds))
    return cut(y, physics, box)


def of_measurement(physics: Physics, box: Box) -> Box:
    """Where in the measurement a part of the picture is."""
    left, top, right, bottom = (side // _factor(physics) for side in box)
    return left, top, right, bottom


def crop(x: Tensor, box: Box) -> Tensor:
    """The part of (..., H, W), along dimensions that are longer than 1."""
    left, top, right, bottom = box
    x = x[..., top:bottom, :] if x.shape[-2] > 1 else x
    return x[..., left:right] if x.shape[-1] > 1 else x


def _factor(physics: Physics) -> int:
    return physics.factor if isinstance(physics, BicubicDownsampling) else 1


def _size(box: Box) -> Size:
    left, top, right, bottom = box
    return bottom - top, right - left


def _same(y: Tensor, physics: LinearPhysics, box: Box) -> tuple[Tensor, LinearPhysics]:
    return crop(y, box), physics


def _mosaic(y: Tensor, physics: Demosaicing, box: Box) -> tuple[Tensor, LinearPhysics]:
    return crop(y, box), Demosaicing((3, *_size(box)), noise_model=physics.noise_model)


def _masked(y: Tensor, physics: Inpainting, box: Box) -> tuple[Tensor, LinearPhysics]:
    mask = crop(physics.mask, box).clone()
    return crop(y, box), Inpainting((3, *_size(box)), mask=mask, noise_model=physics.noise_model)


def _reduced(y: Tensor, physics: BicubicDownsampling, box: Box) -> tuple[Tensor, LinearPhysics]:
    inner = BicubicDownsampling(physics.factor, _size(box), physics.noise_model)
    return crop(y, of_measurement(physics, box)), inner


Cut = Callable[[Tensor, Any, Box], tuple[Tensor, LinearPhysics]]

CUTS: tuple[tuple[type[Physics] | tuple[type[Physics], ...], Cut], ...] = (
    ((Denoising, Blur, Decolorize), _same),
    (Demosaicing, _mosaic),
    (Inpainting, _masked),
    (BicubicDownsampling, _reduced),
)
"""How measurements by each kind of operator are cut; the first that fits is taken."""
