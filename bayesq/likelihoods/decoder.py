"""What a measurement says of a decoder's picture when the decoder errs: VBLE's extension to x and z."""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor

from bayesq.errors import OperatorError
from bayesq.likelihoods.base import observed
from bayesq.likelihoods.gaussian import Gaussian


class DecoderError:
    """p(y | g_s(z)) where the picture is x = g_s(z) + γ n, n ~ N(0, I), and the measurement y = A x + σ n'.

    The picture is integrated out: y given g is Gaussian with covariance σ² I + γ² A Aᵀ. That forgives what a decoder
    cannot say, and is better conditioned than the likelihood of x, since no direction of the picture is known better
    than to γ. Given z too the picture is Gaussian, with the mean

        x̄ = argmin ‖y − A x‖² / σ² + ‖x − g‖² / γ²,

    which both the density (its minimum) and its gradient, (x̄ − g) / γ², are taken from. The constant is that of γ = 0.

    Source: VBLE-xz, Biquard et al., "Variational Bayes image restoration with compressive autoencoders", 2023.

    Args:
        likelihood: of white Gaussian noise behind a linear operator.
        gamma: γ, standard deviation of the decoder's error, image units.

    Raises:
        OperatorError: the noise is not white, the operator not linear, or gamma not positive.
    """

    def __init__(self, likelihood: Gaussian, gamma: float):
        if not self.takes(likelihood):
            raise OperatorError("a decoder's error takes white Gaussian noise of a known level and a linear operator")
        if not gamma > 0:
            raise OperatorError(f"the decoder's error must be positive: {gamma}")
        self.likelihood, self.physics, self.gamma = likelihood, likelihood.physics, gamma
        self.sigma = float(likelihood.sigma)

    @staticmethod
    def takes(likelihood: object) -> TypeGuard[Gaussian]:
        """Whether a likelihood is one that this class can extend."""
        from deepinv.physics import LinearPhysics

        return (
            isinstance(likelihood, Gaussian)
            and likelihood.sigma.numel() == 1
            and isinstance(likelihood.physics, LinearPhysics)
            and torch.equal(likelihood.observed, observed(likelihood.physics))
        )

    def log_prob(self, y: Tensor, x: Tensor) -> Tensor:
        """Computes the density above at decoded pictures x ``(B, 3, H, W)``, of shape (B,)."""
        best = self._mean(y, x.detach())
        distance = (x - best).square().flatten(1).sum(1)
        return self.likelihood.log_prob(y, best) - distance / (2 * self.gamma**2)

    def num_observed(self, y: Tensor) -> int:
        return self.likelihood.num_observed(y)

    def complete(self, y: Tensor, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A draw of p(x | y, z), without a generator its mean, for decoded pictures x ``(B, 3, H, W)``.

        Drawn by perturbing y and x with their noises (Papandreou & Yuille, 2010): exact for a Gaussian.
        """
        if generator is not None:
            y = y + self.sigma * torch.randn(y.shape, generator=generator)
            x = x + self.gamma * torch.randn(x.shape, generator=generator)
        return self._mean(y, x)

    @torch.no_grad()
    def _mean(self, y: Tensor, x: Tensor) -> Tensor:
        from bayesq.operators.proximal import proximal

        return proximal(x, y, self.physics, (self.gamma / self.sigma) ** 2)
