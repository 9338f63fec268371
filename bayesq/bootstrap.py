"""How far restorations stray, tried out on a picture that is known: the restored one.

A restored picture is much like the true one. Measured by the same operator, in noise of the same law, and restored
again, it shows what such an operator loses of such a picture, beside what the deviations foretell: smooth pictures lose
less than grainy ones, and neither the measurement nor the deviations tell which it is of.

The picture is moved by a pixel first. A reduction, say, that has made the measurement of it already loses nothing when
it makes it again; of the same picture a pixel off it loses what it lost of the true one.

Source: Tachella and Pereyra, "Equivariant bootstrapping for uncertainty quantification in imaging inverse problems",
AISTATS 2024.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from bayesq.likelihoods.base import NearlyGaussian

if TYPE_CHECKING:
    from bayesq.restore import Restoration

WINDOW = 8.0
"""Deviation of the Gaussian window of means, pixels."""
FAINT = 1e-4
"""Added to errors and deviations, image units: where both are next to nothing neither exceeds the other."""


@torch.no_grad()
def excess(
    restoration: Restoration,
    y: Tensor,
    likelihood: NearlyGaussian,
    again: Callable[[Tensor], Restoration],
    generator: torch.Generator,
) -> Tensor:
    """By how many times errors exceed deviations near each pixel, where the restored picture is the truth.

    Args:
        restoration: Of B pictures.
        y: Their measurement.
        likelihood: p(y | x), which also says how strong the noise was.
        again: Restores another measurement as y was restored.
        generator: Source of the noise.

    Returns:
        Mean error over mean deviation, ``(B, 1, H, W)``, positive.
    """
    known = F.pad(restoration.mean, (1, 0, 1, 0), mode="replicate")[..., :-1, :-1]
    found = again(measure(known, restoration.mean, y, likelihood, generator))
    error = _nearby((found.mean - known).abs()) + FAINT
    return F.pad(error / (_nearby(found.std) + FAINT), (0, 1, 0, 1), mode="replicate")[..., 1:, 1:]


def measure(known: Tensor, x: Tensor, y: Tensor, likelihood: NearlyGaussian, generator: torch.Generator) -> Tensor:
    """A measurement of known pictures such as y is of x, in noise of the law that y's has.

    Three equal channels of y, those of a grey measurement, have equal ones here.
    """
    noise = torch.randn(y.shape, generator=generator).to(y)
    if y.ndim == 4 and y.shape[1] == 3 and torch.equal(y[:, :2], y[:, 1:]):
        known, noise = known.mean(1, keepdim=True).expand_as(known), noise[:, :1]
    _, sigma = likelihood.as_gaussian(y, x)
    return likelihood.physics.A(known) + sigma * noise * (likelihood.observed > 0)


def _nearby(x: Tensor) -> Tensor:
    """Means over the channels and a Gaussian window."""
    radius = round(2.5 * WINDOW)
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / WINDOW).square()).to(x)
    taps = (taps / taps.sum()).view(1, 1, 1, -1)
    padded = F.pad(x.mean(1, keepdim=True), (radius,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, taps), taps.mT)
