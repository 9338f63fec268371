"""Photon noise, alone and with the Gaussian noise of a sensor."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bayesq.likelihoods.base import LOG_ROOT_2PI, SIGMA_FLOOR, Independent, parameter, spread

if TYPE_CHECKING:
    from deepinv.physics import Physics

RATE_FLOOR = 1e-3
"""Expected count below which the logarithm of the Poisson likelihood continues along its tangent."""

MAX_TERMS = 24


class Poisson(Independent):
    """Photon noise: y = gain · k with counts k ~ Poisson(A x / gain), a probability mass on the multiples of the gain.

    Below an expected count of ``RATE_FLOOR`` the logarithm is continued by its tangent, so that the gradient stays
    finite, and points the right way, where A x falls to zero or under.

    Args:
        physics: any deepinv operator.
        gain: brightness of one photon in image units, one for all or (B,).
        normalize: whether y is in image units, as above; otherwise y is the counts themselves.

    Raises:
        OperatorError: the gain is not positive and finite.
    """

    def __init__(self, physics: Physics, gain: float | Tensor, normalize: bool = True):
        super().__init__(physics)
        self.gain = parameter(gain, "the gain of Poisson noise")
        self.normalize = normalize

    def terms(self, y: Tensor, clean: Tensor) -> Tensor:
        """Computes k log r − r − log k!, with counts k and expected counts r = A x / gain."""
        gain = spread(self.gain, y)
        counts = y / gain if self.normalize else y
        rate = clean / gain
        return counts * log_rate(rate) - rate - torch.lgamma(counts + 1)

    def as_gaussian(self, y: Tensor, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """See ``NearlyGaussian``; noise of variance gain · A x, of at least half a photon (Fisher's scoring)."""
        gain = spread(self.gain, y)
        return y if self.normalize else y * gain, _photon_variance(gain, self.physics.A(x)).sqrt()


class PoissonGaussian(Independent):
    """Photon and sensor noise: y = gain · k + n, k ~ Poisson(A x / gain), n ~ N(0, σ²).

    The density is the sum over all counts, p(y) = Σₖ Poisson(k; r) N(y; gain · k, σ²), taken around its largest term.
    Where the terms that matter are more than 49, the sum is an integral of a smooth bell to any accuracy that floats
    have, and is taken by the trapezoidal rule with nodes closer than a third of the bell's deviation. Expected counts
    below ``RATE_FLOOR`` are treated as in ``Poisson``.

    Args:
        physics: any deepinv operator.
        gain: brightness of one photon in image units, one for all or (B,).
        sigma: standard deviation of the sensor's noise in image units, one for all, (B,) or a map; raised to
            ``SIGMA_FLOOR`` where below.

    Raises:
        OperatorError: the gain is not positive and finite, or sigma is negative or not finite.
    """

    def __init__(self, physics: Physics, gain: float | Tensor, sigma: float | Tensor):
        super().__init__(physics)
        self.gain = parameter(gain, "the gain of Poisson noise")
        self.sigma = parameter(sigma, "the noise level", zero=True).clamp_min(SIGMA_FLOOR)

    def terms(self, y: Tensor, clean: Tensor) -> Tensor:
        gain, sigma = spread(self.gain, y).double(), spread(self.sigma, y).double()  # large counts cancel
        rate = clean.double() / gain
        log_r = log_rate(rate)
        log_sum, count = _sum_over_counts(y.double() / gain, log_r.detach(), sigma / gain)
        # d/d log r of the log-sum is the expected count.
        terms = log_sum + count * (log_r - log_r.detach()) - rate - sigma.log() - LOG_ROOT_2PI
        return terms.to(y)

    def as_gaussian(self, y: Tensor, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """See ``NearlyGaussian``; noise of variance gain · A x + σ²."""
        photons = _photon_variance(spread(self.gain, y), self.physics.A(x))
        return y, (photons + spread(self.sigma, y).square()).sqrt()


def _photon_variance(gain: Tensor, clean: Tensor) -> Tensor:
    return gain * torch.maximum(clean, gain / 2)


def log_rate(rate: Tensor) -> Tensor:
    """log r, continued by its tangent below ``RATE_FLOOR``."""
    tangent = math.log(RATE_FLOOR) + rate / RATE_FLOOR - 1
    return torch.where(rate > RATE_FLOOR, rate.clamp_min(RATE_FLOOR).log(), tangent)


@torch.no_grad()
def _sum_over_counts(y: Tensor, log_r: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """log Σₖ exp(k log r − log k! − (y − k)² / 2s²), and the mean of k under these weights; y and s in counts."""
    mode = torch.minimum(y, log_r.exp() - 0.5).clamp_min(0)
    for _ in range(12):  # Newton on a convex decreasing slope, from the left of its root
        slope = (y - mode) / s**2 + log_r - (mode + 0.5).log()
        mode = (mode + slope / (1 / s**2 + 1 / (mode + 0.5))).clamp_min(0)
    deviation = (1 / s**2 + 1 / (mode + 0.5)).rsqrt()
    reach = min(MAX_TERMS, 3 + math.ceil(6 * float(deviation.max())))
    step = (6 * deviation / reach).clamp_min(1)
    start = torch.where(step > 1, mode, mode.round())
    nodes = torch.stack([start + j * step for j in range(-reach, reach + 1)])
    logs = nodes * log_r - torch.lgamma(nodes.clamp_min(0) + 1) - ((y - nodes) / s).square() / 2
    logs = torch.where(nodes > -0.5, logs, -math.inf)
    return logs.logsumexp(0) + step.log(), (logs.softmax(0) * nodes).sum(0)
