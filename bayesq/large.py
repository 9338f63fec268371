"""Restoration of pictures of any size, piece by piece.

Pieces overlap by what an operator and a prior see, and by a ramp along which one fades into the next, so that no seam
is left. Memory is that of the result and of one piece, or of some where others restore them:

    with bayesq.cluster.workers("tcp://host:8786") as by:
        restoration = bayesq.restore_large(y, physics, by=by)
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor
from tqdm import tqdm

from bayesq.cluster import Map
from bayesq.errors import OperatorError
from bayesq.likelihoods import Likelihood, from_physics, of_part
from bayesq.operators.parts import Box, crop, is_local, of_measurement, part, reach, size_of, unit
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


@dataclass(frozen=True)
class Piece:
    """A part of the measurement, and all that its restoration depends on."""

    y: Tensor
    physics: LinearPhysics
    likelihood: Likelihood
    seed: int


def restore_large(
    y: Tensor,
    physics: LinearPhysics,
    *,
    likelihood: Likelihood | None = None,
    side: int = SIDE,
    grey: bool = False,
    by: Map = map,
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
        by: Restores the pieces, as ``map`` does one by one, and yields results in their order. Those of
            ``bayesq.cluster`` do many at a time, with the same result.
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
    boxes = [
        (max(0, left - around), max(0, top - around), min(width, right + around), min(height, bottom + around))
        for (top, bottom), (left, right) in cores
    ]

    def pieces() -> Iterator[Piece]:
        for box in boxes:
            measured, inner = part(y, physics, box)
            law = of_part(likelihood, inner, partial(_cut, box=of_measurement(physics, box)))
            yield Piece(measured.clone(), inner, law, int(torch.randint(2**62, (), generator=generator)))

    found = by(partial(_restored, grey=grey, options=options), pieces())
    bar = tqdm(found, unit="piece", total=len(boxes), leave=False, disable=None if progress else True)
    for box, ((top, bottom), (left, right)), moments in zip(boxes, cores, bar, strict=True):
        weight = _ramp(top, bottom, box[1], box[3], height)[:, None] * _ramp(left, right, box[0], box[2], width)
        for whole, piece in zip((mean, std), moments, strict=True):
            crop(whole, box).add_(weight * piece)
    return LargeRestoration(mean, std, len(cores), time.perf_counter() - began)


def _cut(value: Tensor, box: Box) -> Tensor:
    """A part that does not hold on to the whole."""
    return crop(value, box).clone()


def _restored(piece: Piece, grey: bool, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Mean and deviation of a piece."""
    generator = torch.Generator().manual_seed(piece.seed)
    found = restore(piece.y, piece.physics, likelihood=piece.likelihood, generator=generator, **options)
    found = found.grey() if grey else found
    return found.mean, found.std


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
