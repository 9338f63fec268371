"""Likelihoods p(y | x): what the measurement says of the picture, in nats.

Each is the exact, normalised density of its noise model, differentiable in x, and counts the observed pixels alone: the
blanked pixels of an inpainting problem say nothing. Written here rather than taken from deepinv, whose data fidelities
leave out the constants (which comparing models needs) and sum over the batch.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from bayesq.errors import OperatorError

if TYPE_CHECKING:
    from deepinv.physics import Physics

SIGMA_FLOOR = 4e-3
"""Standard deviation assumed of a noiseless measurement: about one 8-bit level, the value of VBLE (Biquard et al.)."""

RATE_FLOOR = 1e-3
"""Expected count below which the logarithm of the Poisson likelihood continues along its tangent."""


class Likelihood(Protocol):
    """The law of a measurement given the picture."""

    def log_prob(self, y: Tensor, x: Tensor) -> Tensor:
        """Computes log p(y | x), of shape (B,), for measurements y and pictures x (B, 3, H, W)."""
        ...

    def num_observed(self, y: Tensor) -> int:
        """Counts the values of y, a picture, that carry information."""
        ...


class Gaussian:
    """White Gaussian noise: y = A x + n, n ~ N(0, σ² I).

    Args:
        physics: any deepinv operator.
        sigma: standard deviation in image units, one for all or (B,); raised to ``SIGMA_FLOOR`` where below, since a
            noiseless measurement has no density (and 8-bit pictures are never noiseless).

    Raises:
        OperatorError: sigma is negative or not finite.
    """

    def __init__(self, physics: Physics, sigma: float | Tensor):
        level = torch.as_tensor(sigma, dtype=torch.float32)
        if not bool((level.isfinite() & (level >= 0)).all()):
            raise OperatorError(f"the noise level must be finite and not negative: {sigma}")
        self.physics = physics
        self.sigma = level.clamp_min(SIGMA_FLOOR)
        self._observed = _observed(physics)

    def log_prob(self, y: Tensor, x: Tensor) -> Tensor:
        """Computes −‖y − A x‖² / 2σ² − n log(σ √2π), n being the number of observed values; shape (B,)."""
        sigma = self.sigma.to(y)
        residual = self._observed.to(y) * (y - self.physics.A(x))
        constant = self.num_observed(y) * (sigma.log() + 0.5 * math.log(2 * math.pi))
        return -residual.square().flatten(1).sum(1) / (2 * sigma**2) - constant

    def num_observed(self, y: Tensor) -> int:
        return _count(self._observed, y)


class Poisson:
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
        self.gain = torch.as_tensor(gain, dtype=torch.float32)
        if not bool((self.gain.isfinite() & (self.gain > 0)).all()):
            raise OperatorError(f"the gain of Poisson noise must be finite and positive: {gain}")
        self.physics = physics
        self.normalize = normalize
        self._observed = _observed(physics)

    def log_prob(self, y: Tensor, x: Tensor) -> Tensor:
        """Computes Σ k log r − r − log k!, with counts k and expected counts r = A x / gain; shape (B,)."""
        gain = self.gain.to(y).reshape(-1, *[1] * (y.ndim - 1))
        counts = y / gain if self.normalize else y
        rate = self.physics.A(x) / gain
        tangent = math.log(RATE_FLOOR) + rate / RATE_FLOOR - 1
        log_rate = torch.where(rate > RATE_FLOOR, rate.clamp_min(RATE_FLOOR).log(), tangent)
        terms = counts * log_rate - rate - torch.lgamma(counts + 1)
        return (self._observed.to(y) * terms).flatten(1).sum(1)

    def num_observed(self, y: Tensor) -> int:
        return _count(self._observed, y)


def from_physics(physics: Physics) -> Likelihood:
    """Builds the likelihood of the noise that a deepinv operator carries.

    Raises:
        OperatorError: the operator states no noise, or one other than Gaussian or Poisson.
    """
    from deepinv.physics import GaussianNoise, PoissonNoise, ZeroNoise

    noise = physics.noise_model
    if isinstance(noise, GaussianNoise):
        return Gaussian(physics, noise.sigma)
    if isinstance(noise, PoissonNoise):
        return Poisson(physics, noise.gain, bool(noise.normalize))
    if isinstance(noise, ZeroNoise):
        raise OperatorError("the operator states no noise: give it one, such as GaussianNoise(5 / 255)")
    raise OperatorError(f"no likelihood for {type(noise).__name__}: use GaussianNoise or PoissonNoise")


def _observed(physics: Physics) -> Tensor:
    """Returns the mask of an inpainting operator, broadcastable to y, or 1: other operators observe all of y."""
    from deepinv.physics import Inpainting

    return (physics.mask != 0).float() if isinstance(physics, Inpainting) else torch.ones(())


def _count(observed: Tensor, y: Tensor) -> int:
    return int(observed.expand(1, *y.shape[1:]).sum())
