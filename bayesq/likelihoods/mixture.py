"""Noise of several kinds, of which chance picks one for each value: outliers, impulses, heavy tails."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bayesq.errors import OperatorError
from bayesq.likelihoods.base import Independent, NearlyGaussian

if TYPE_CHECKING:
    from deepinv.physics import Physics

SILENT = 1e3
"""Deviation of noise beside which a value says nothing, image units."""


class Impulse(Independent):
    """Values that have nothing to do with the picture: uniform on [low, high]. Meant as a part of a ``Mixture``.

    Args:
        physics: any deepinv operator.
        low: smallest value, image units.
        high: largest value.

    Raises:
        OperatorError: the interval is empty or not finite.
    """

    def __init__(self, physics: Physics, low: float = 0.0, high: float = 1.0):
        super().__init__(physics)
        if not -math.inf < low < high < math.inf:
            raise OperatorError(f"impulses are uniform between two finite values, not {low} and {high}")
        self.low, self.high = low, high

    def terms(self, y: Tensor, clean: Tensor) -> Tensor:
        inside = (y >= self.low) & (y <= self.high)
        return torch.where(inside, -math.log(self.high - self.low), -math.inf).to(y)

    def as_gaussian(self, y: Tensor, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """See ``NearlyGaussian``; noise so strong that nothing is said."""
        return y, y.new_tensor(SILENT)


class Mixture(Independent):
    """Each value has the noise of one of the parts, with the parts' weights as probabilities.

    Args:
        physics: the operator of all parts.
        parts: laws of independent values, such as two ``Gaussian`` or a ``Gaussian`` and ``Impulse``.
        weights: one a part, positive, of sum 1.

    Raises:
        OperatorError: weights and parts differ in number, or the weights are no probabilities.
    """

    def __init__(self, physics: Physics, parts: Sequence[Independent], weights: Sequence[float]):
        super().__init__(physics)
        if len(parts) != len(weights) or not parts:
            raise OperatorError(f"a mixture of {len(parts)} parts has as many weights, not {len(weights)}")
        if not all(0 < weight <= 1 for weight in weights) or abs(sum(weights) - 1) > 1e-6:
            raise OperatorError(f"the weights of a mixture are positive and of sum 1, not {list(weights)}")
        self.parts, self.weights = list(parts), list(weights)

    def terms(self, y: Tensor, clean: Tensor) -> Tensor:
        return torch.logsumexp(self._joint(y, clean), 0)

    def responsibilities(self, y: Tensor, x: Tensor) -> Tensor:
        """Computes the probability that each part made each value, given the picture: (parts, *y.shape)."""
        return self._joint(y, self.physics.A(x)).softmax(0)

    def as_gaussian(self, y: Tensor, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """See ``NearlyGaussian``; the part of each value is drawn, or those of all parts count by their share.

        Raises:
            OperatorError: a part is not nearly Gaussian.
        """
        parts = [part for part in self.parts if isinstance(part, NearlyGaussian)]
        if len(parts) < len(self.parts):
            raise OperatorError("a part of the mixture is not nearly Gaussian")
        shares = self.responsibilities(y, x)
        if generator is not None:
            chosen = torch.multinomial(shares.flatten(1).T, 1, generator=generator).T.view(1, *y.shape)
            shares = torch.zeros_like(shares).scatter_(0, chosen, 1.0)
        equals = [part.as_gaussian(y, x, generator) for part in parts]
        weights = torch.stack([share / sigma.square() for share, (_, sigma) in zip(shares, equals, strict=True)])
        values = sum(weight * value for weight, (value, _) in zip(weights, equals, strict=True))
        return values / weights.sum(0), weights.sum(0).rsqrt()

    def _joint(self, y: Tensor, clean: Tensor) -> Tensor:
        pairs = zip(self.parts, self.weights, strict=True)
        return torch.stack([math.log(weight) + part.terms(y, clean) for part, weight in pairs])
