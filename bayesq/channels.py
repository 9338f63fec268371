"""Pictures of other than three channels: grey ones, and those of many bands."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bayesq.errors import OperatorError
from bayesq.likelihoods import Weighable, from_physics, weighted
from bayesq.restore import Restoration, restore

if TYPE_CHECKING:
    from deepinv.physics import Physics


def restore_channels(
    y: Tensor, physics: Physics, *, likelihood: Weighable | None = None, **options: Any
) -> Restoration:
    """Restores pictures of any number of channels, three at a time, by the prior for colour pictures.

    Channels (0, 1, 2), (3, 4, 5), … are restored as if each group were a colour picture. A group that is not full
    repeats its last channel, and the copies count as one observation together: a grey picture is one channel measured
    as three equal ones, each a third.

    Args:
        y: Measurements ``(B, C, h, w)`` of each channel.
        physics: An operator for pictures of three channels that does the same to each of them.
        likelihood: p(y | x) for three channels; by default that of ``physics`` and its noise model.
        **options: Keywords of ``bayesq.restore``.

    Returns:
        Mean, deviation and samples of C channels; cells and trace of all groups, one after the other.

    Raises:
        OperatorError: y has other than four dimensions, or as ``bayesq.restore``.
    """
    if y.ndim != 4 or not y.shape[1]:
        raise OperatorError(f"a measurement of channels has four dimensions, not the shape {tuple(y.shape)}")
    law = likelihood or from_physics(physics)
    parts = [_restore_group(group, physics, law, options) for group in y.split(3, 1)]
    return replace(
        parts[0],
        mean=torch.cat([part.mean for part in parts], 1),
        std=torch.cat([part.std for part in parts], 1),
        samples=torch.cat([part.samples for part in parts], 2),
        cells=[cell for part in parts for cell in part.cells],
        trace=tuple(info for part in parts for info in part.trace),
        seconds=sum(part.seconds for part in parts),
    )


def _restore_group(y: Tensor, physics: Physics, likelihood: Weighable, options: dict[str, Any]) -> Restoration:
    """Restores one to three channels; the last is the mean of its copies."""
    count = y.shape[1]
    copies = 4 - count
    if copies == 1:
        return restore(y, physics, likelihood=likelihood, **options)
    weight = torch.tensor([1.0] * (count - 1) + [1 / copies] * copies).view(1, 3, 1, 1)
    full = torch.cat([y, *[y[:, -1:]] * (copies - 1)], 1)
    found = restore(full, physics, likelihood=weighted(likelihood, weight), **options)

    def merged(v: Tensor) -> Tensor:
        return torch.cat([v[..., : count - 1, :, :], v[..., count - 1 :, :, :].mean(-3, keepdim=True)], -3)

    samples = merged(found.samples)
    return replace(found, mean=merged(found.mean), std=samples.std(0), samples=samples)
