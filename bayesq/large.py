"""Restoration of pictures of any size, piece by piece.

Pieces overlap by what an operator and a prior see, and by a ramp along which one fades into the next, so that no seam
is left. Memory is that of the result and of one piece.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor
from tqdm import tqdm

from bayesq.errors import OperatorError
from bayesq.likelihoods import Likelihood, from_physics, of_part
from bayesq.operators.parts import crop, is_local, of_measurement, part, reach, size_of, unit
from bayesq.restore import restore

SIDE = 512
CONTEXT = 32
RAMP = 32
LARGE = 2**20
"""Pixels above which the command line restores piece by piece."""


@dataclass(frozen=True)
class LargeRestoration:
    """What inference knows of a large picture; samples of it are not kept.

    Attributes:
        mean: Posterior mean ``(B, C, H, W)`` in [0, 1].
        std: Posterior standard deviation of each value, same shape, image units.
        pieces: How many it took.
        seconds: Time it took.
    """

    mean: Tensor
    std: Tensor
    pieces: int
    seconds: float


def restore_large(
    y: Tensor,
    physics: LinearPhysics,
    *,
    likelihood: Likelihood | None = None,
    side: int = SIDE,
    grey: bool = False,
    generator: torch.Generator | None = None,
    progress: bool = False,
    **options: Any,
) -> LargeRestoration:
    """Restores pictures of any size.

    What is found out about a measurement, such as a noise level that is not known, is found for each piece.

    Args:
        y: Measurement, as for ``bayesq.restore``.
        physics: An operator of which values see but a neighbourhood: noise alone, blur, ``BicubicDownsampling``,
            inpainting, demosaicking, or colours lost.
        likelihood: p(y | x); by default that of ``physics`` and its noise model.
        side: Side of a piece, pixels of the picture, without its surroundings; at least 64.
        grey: Whether to average the channels to one.
        generator: Source of all randomness; by default seeded with 0.
        progress: Show a progress bar on stderr.
        **options: Keywords of ``bayesq.restore``.

    Raises:
        OperatorError: the operator is of another kind, or as for ``bayesq.restore``.
    """
    began = time.perf_counter()
    if not is_local(physics):
        raise OperatorError(f"{type(physics).__name__} cannot be undone piece by piece")
    if side < 2 * RAMP:
        raise OperatorError(f"pieces are of at least {2 * RAMP} pixels a side, not {side}")
    likelihood = likelihood or from_physics(physics)
    generator = generator or torch.Generator().manual_seed(0)
    height, width = size_of(y, physics)
    step = math.lcm(16, unit(physics))
    side = math.ceil(side / step) * step
    around = math.ceil((reach(physics) + CONTEXT + RAMP // 2) / step) * step
    cores = list(product(_cores(height, side), _cores(width, side)))
    mean, std = (torch.zeros(len(y), 1 if grey else 3, height, width) for _ in range(2))
    for (top, bottom), (left, right) in tqdm(cores, unit="piece", leave=False, disable=None if progress else True):
        box = (max(0, left - around), max(0, top - around), min(width, right + around), min(height, bottom + around))
        measured, inner = part(y, physics, box)
        place = of_measurement(physics, box)
        law = of_part(likelihood, inner, partial(crop, box=place))
        found = restore(measured, inner, likelihood=law, generator=generator, **options)
        found = found.grey() if grey else found
        weight = _ramp(top, bottom, box[1], box[3], height)[:, None] * _ramp(left, right, box[0], box[2], width)
        crop(mean, box).add_(weight * found.mean)
        crop(std, box).add_(weight * found.std)
    return LargeRestoration(mean, std, len(cores), time.perf_counter() - began)


def _cores(length: int, side: int) -> list[tuple[int, int]]:
    """Stretches of ``side`` pixels, the last of them longer by what is left."""
    starts = list(range(0, max(1, length - side + 1), side))
    return list(zip(starts, [*starts[1:], length], strict=True))


def _ramp(start: int, stop: int, first: int, last: int, length: int) -> Tensor:
    """Weights of the pixels from ``first`` to ``last`` for the stretch: all stretches' weights add up to one."""
    place = torch.arange(first, last) + 0.5
    rise = ((place - start) / RAMP + 0.5).clamp(0, 1) if start else torch.ones_like(place)
    fall = ((stop - place) / RAMP + 0.5).clamp(0, 1) if stop < length else torch.ones_like(place)
    return rise * fall
