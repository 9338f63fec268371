"""Error bars for restorers that have none: a small network laid over a frozen one.

The true value of each pixel, given the restorer's picture, is taken to follow a generalised Gaussian

    p(x) = β / (2 α Γ(1/β)) · exp(−(|x − μ| / α)^β),

heavy-tailed for small β, Laplace's for 1, Gauss's for 2, almost a box for large β. The cap predicts μ, α and β of every
value from the picture, and from the level of the noise that was in its measurement, if it is told; it is trained by the
likelihood of true pictures: the restorer is not looked into.

Source: Upadhyay et al., "BayesCap: Bayesian identity cap for calibrated uncertainty in frozen neural networks", ECCV
2022. Its penalty on |μ − restored| is replaced by a start at which they are equal, and its stand-in for the power by
the power itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.special import gammaincinv
from torch import Tensor

from bayesq.errors import OperatorError
from bayesq.posthoc.fit import convolutions
from bayesq.posthoc.overlay import Overlay

SCALES = 1e-4, 1.0
SHAPES = 0.4, 8.0
START = 0.03, 1.5
TINY = 1e-5
USUAL = 0.1
"""A level of noise, image units, in which a cap is told others."""


@dataclass(frozen=True)
class GeneralisedGaussian:
    """Independent laws of the values of pictures.

    Attributes:
        mean: μ ``(B, C, H, W)``, image units; the median too.
        scale: α > 0, same shape, image units.
        shape: β > 0, same shape.
    """

    mean: Tensor
    scale: Tensor
    shape: Tensor

    @property
    def std(self) -> Tensor:
        """Standard deviation, α √(Γ(3/β) / Γ(1/β))."""
        return self.scale * ((torch.lgamma(3 / self.shape) - torch.lgamma(1 / self.shape)) / 2).exp()

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density of each value, nats; distances are rounded off below 0.00001 for the sake of gradients."""
        distance = ((x - self.mean).square() + TINY**2).sqrt() / self.scale
        constant = (self.shape / (2 * self.scale)).log() - torch.lgamma(1 / self.shape)
        return constant - (self.shape * distance.log()).exp()

    def interval(self, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """Lower and upper ends of the central interval that holds each true value with probability ``level``.

        Raises:
            OperatorError: the level is not between 0 and 1.
        """
        if not 0 < level < 1:
            raise OperatorError(f"the level of an interval must be between 0 and 1, not {level}")
        beta = self.shape.detach().double().cpu()  # (|x − μ| / α)^β ~ Gamma(1/β)
        reach = torch.from_numpy(gammaincinv((1 / beta).numpy(), level)) ** (1 / beta)
        half = self.scale * reach.to(self.scale)
        return self.mean - half, self.mean + half

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n draws ``(n, B, C, H, W)``."""
        inverse = (1 / self.shape).expand(n, *self.shape.shape)
        reach = torch._standard_gamma(inverse.contiguous(), generator=generator) ** inverse
        sign = torch.randint(2, reach.shape, generator=generator, device=reach.device) * 2 - 1
        return self.mean + sign * self.scale * reach


class BayesCap(Overlay):
    """From a restorer's pictures ``(B, C, H, W)`` to the law of the true ones; at first centred on the pictures.

    Args:
        channels: C.
        width: Channels of the hidden layers.
        depth: Number of 3×3 convolutions, at least 2.
        told: Whether the cap is told the level of the noise: one for restorers of pictures from many.
    """

    kind = "cap"

    def __init__(self, channels: int = 3, width: int = 32, depth: int = 4, told: bool = False) -> None:
        super().__init__(channels=channels, width=width, depth=depth, told=told)
        self.told = told
        start = torch.tensor([0.0, *map(math.log, START)]).repeat_interleave(channels)
        self.network = convolutions(channels + told, start, width, depth)

    def forward(self, restored: Tensor, sigma: float | Tensor | None = None) -> GeneralisedGaussian:
        """The law of true pictures.

        Args:
            restored: ``(B, C, H, W)``.
            sigma: Standard deviation of the noise in the measurements, image units, positive; one for all or ``(B,)``.
                For a cap that is told, and for no other.

        Raises:
            OperatorError: sigma is missing, or not asked for.
        """
        if self.told != (sigma is not None):
            raise OperatorError("this cap has to be told the noise's level" if self.told else "this cap takes no level")
        seen = restored
        if sigma is not None:
            level = (torch.as_tensor(sigma, dtype=restored.dtype) / USUAL).log().expand(len(restored)).view(-1, 1, 1, 1)
            seen = torch.cat([restored, level.expand_as(restored[:, :1])], 1)
        shift, scale, shape = self.network(seen).chunk(3, 1)
        return GeneralisedGaussian(restored + shift, _bounded(scale, SCALES), _bounded(shape, SHAPES))

    def loss(self, restored: Tensor, truth: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        """Mean negative log-likelihood of true pictures, nats per value."""
        return -self(restored, sigma).log_prob(truth).mean()


def _bounded(logarithm: Tensor, bounds: tuple[float, float]) -> Tensor:
    return logarithm.clamp(*map(math.log, bounds)).exp()
