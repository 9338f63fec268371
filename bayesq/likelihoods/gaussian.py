"""Gaussian noise: of a known level, of a level for each pixel, and of levels that inference finds out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import InverseGamma

from bayesq.errors import OperatorError
from bayesq.likelihoods.base import (
    LOG_ROOT_2PI,
    SIGMA_FLOOR,
    Independent,
    count,
    counts,
    observed,
    parameter,
    spread,
    total,
)

if TYPE_CHECKING:
    from deepinv.physics import Physics


class Gaussian(Independent):
    """Independent Gaussian noise: y = A x + n, n ~ N(0, diag σ²).

    Args:
        physics: any deepinv operator.
        sigma: standard deviation in image units: one for all, (B,) one for each picture, or a map that broadcasts to y
            (1 or B, 1 or C, h, w), one for each value. Raised to ``SIGMA_FLOOR`` where below, since a noiseless
            measurement has no density (and 8-bit pictures are never noiseless).

    Raises:
        OperatorError: sigma is negative or not finite.
    """

    def __init__(self, physics: Physics, sigma: float | Tensor):
        super().__init__(physics)
        self.sigma = parameter(sigma, "the noise level", zero=True).clamp_min(SIGMA_FLOOR)

    def terms(self, y: Tensor, clean: Tensor) -> Tensor:
        """Computes −(y − A x)² / 2σ² − log(σ √2π)."""
        sigma = spread(self.sigma, y)
        return -((y - clean) / sigma).square() / 2 - sigma.log() - LOG_ROOT_2PI

    def as_gaussian(self, y: Tensor, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """See ``NearlyGaussian``; exact, wherever x is."""
        return y, spread(self.sigma, y)


class UnknownGaussian:
    """White Gaussian noise of unknown level, which is integrated out: a Student law of all values at once.

    With σ² ~ InverseGamma(shape, scale), conjugate to the Gaussian, the marginal density of n observed values is

        log p(y | x) = log Γ(a + n/2) − log Γ(a) + a log b − n/2 log 2π − (a + n/2) log(b + ‖y − A x‖² / 2),

    a and b being shape and scale, and p(σ² | x, y) = InverseGamma(a + n/2, b + ‖y − A x‖² / 2). One level a picture.

    Args:
        physics: any deepinv operator.
        shape: a; the prior weighs as much as 2a observed values.
        scale: b, in squared image units; the prior's mode of σ² is b / (a + 1).

    Raises:
        OperatorError: shape or scale is not positive and finite.
    """

    def __init__(self, physics: Physics, shape: float = 1.0, scale: float = 2 * (10 / 255) ** 2):
        self.physics = physics
        self.observed = observed(physics)
        self.shape = float(parameter(shape, "the shape of the prior of the noise level"))
        self.scale = float(parameter(scale, "the scale of the prior of the noise level"))

    def log_prob(self, y: Tensor, x: Tensor) -> Tensor:
        """Computes the marginal density above, of shape (B,)."""
        half = self._counts(y) / 2
        a, b, energy = self.shape, self.scale, self._energy(y, x)
        constant = torch.lgamma(a + half) - math.lgamma(a) + a * math.log(b) - half * math.log(2 * math.pi)
        terms = constant.to(energy) - (a + half).to(energy) * torch.log(b + energy)
        return terms.reshape(len(y), -1).sum(1)

    def num_observed(self, y: Tensor) -> int:
        return count(self.observed, y)

    def variance(self, y: Tensor, x: Tensor) -> InverseGamma:
        """The posterior of σ² given the picture too, p(σ² | x, y), of a batch shape of one level each."""
        energy = self._energy(y, x)
        shape = self.shape + self._counts(y).to(energy) / 2
        return InverseGamma(shape, self.scale + energy)

    def as_gaussian(self, y: Tensor, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """See ``NearlyGaussian``; σ is drawn, or taken at the mean of 1/σ², given the picture."""
        if generator is None:
            return y, self._spread(self.variance(y, x).base_dist.mean.rsqrt(), y)
        return y, self._spread(self.sigma(y, x[None], generator)[0], y)

    @torch.no_grad()
    def sigma(self, y: Tensor, samples: Tensor, generator: torch.Generator) -> Tensor:
        """Draws σ from p(σ | y), one for each posterior sample of the picture.

        Args:
            y: the measurement of B pictures.
            samples: draws of p(x | y), (n, B, 3, H, W), such as ``Restoration.samples``.
            generator: source of randomness.

        Returns:
            Standard deviations in image units, n of each level: (n, B) of one a picture.
        """
        scale = self.scale + torch.stack([self._energy(y, x) for x in samples])
        shape = (self.shape + self._counts(y).to(scale) / 2).expand_as(scale)
        return (scale / torch._standard_gamma(shape, generator=generator)).sqrt()

    def _energy(self, y: Tensor, x: Tensor) -> Tensor:
        """‖y − A x‖² / 2 over the observed values of each level, (B,)."""
        return total(self.observed, (y - self.physics.A(x)).square() / 2)

    def _counts(self, y: Tensor) -> Tensor:
        """How many observed values have each level, double."""
        return counts(self.observed, y)

    def _spread(self, levels: Tensor, y: Tensor) -> Tensor:
        """Levels in a shape that broadcasts to y."""
        return spread(levels, y)


class UnevenGaussian(UnknownGaussian):
    """Gaussian noise of another unknown level in each block of the measurement: ``UnknownGaussian``, block by block.

    Given the picture a level is known by its block alone, so that noise may be uneven; blocks of one pixel have a
    heavy-tailed law, Student's with 2a degrees of freedom, and outliers do not count.

    Args:
        physics: any deepinv operator of which measurements are pictures (B, C, h, w).
        block: side of the blocks, pixels of the measurement; those at the right and bottom may be smaller.
        shape, scale: as for ``UnknownGaussian``.

    Raises:
        OperatorError: shape or scale is not positive and finite, or the block not of at least one pixel.
    """

    def __init__(self, physics: Physics, block: int = 8, shape: float = 1.0, scale: float = 2 * (10 / 255) ** 2):
        super().__init__(physics, shape, scale)
        if block < 1:
            raise OperatorError(f"blocks of one level of noise have at least one pixel a side, not {block}")
        self.block = block

    def _energy(self, y: Tensor, x: Tensor) -> Tensor:
        mask, squares = self.observed.to(y), (y - self.physics.A(x)).square() / 2
        return self._pooled(torch.where(mask > 0, mask * squares, 0))

    def _counts(self, y: Tensor) -> Tensor:
        return self._pooled(self.observed.expand(y.shape).double())

    def _pooled(self, terms: Tensor) -> Tensor:
        """Sums over the blocks, (B, 1, h / block, w / block)."""
        edges = F.pad(terms, (0, -terms.shape[-1] % self.block, 0, -terms.shape[-2] % self.block))
        blocks = edges.unflatten(-1, (-1, self.block)).unflatten(-3, (-1, self.block))
        return blocks.sum((1, 3, 5))[:, None]

    def _spread(self, levels: Tensor, y: Tensor) -> Tensor:
        grown = levels.repeat_interleave(self.block, -2).repeat_interleave(self.block, -1)
        return grown[..., : y.shape[-2], : y.shape[-1]].to(y)
