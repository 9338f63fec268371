"""Inference on pixels by annealing, with a denoiser that knows its error for prior."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar

import torch
from deepinv.physics import Denoising
from torch import Tensor

from bayesq import zoo
from bayesq.cells import Cell
from bayesq.denoiser import Denoiser
from bayesq.errors import OperatorError
from bayesq.inference.base import Info, Posterior
from bayesq.likelihoods import DecoderError, Gaussian
from bayesq.operators.conditioning import condition

NOISY = 0.02


@dataclass(frozen=True)
class Annealed:
    """State of an annealing.

    Attributes:
        picture: The estimate so far ``(B, 3, H, W)``.
        count: Steps taken.
    """

    picture: Tensor
    count: int = 0


@dataclass(frozen=True)
class DAPS:
    """Posterior sampling by decoupled annealing, for white Gaussian noise behind a linear operator.

    A step of the search alternates, at a falling level of noise σ, between the denoiser's mean and the picture that
    fits both it, with deviation σ, and the measurement: half-quadratic splitting, which ends near a mode. A sample is
    the end of a chain from there. At each of a few falling levels it adds noise, asks the denoiser for the law of the
    picture given the noisy one, N(mean, diag s²), and draws from that law times p(y | x). The law is treated as if
    values were independent, which they are not: what noisy measurements say is believed too readily, the more so the
    longer the chain. Where noise is all that is the matter nothing needs to be conditioned: chains start from the
    measurement, and follow the reverse diffusion. Nothing is propagated back through the denoiser.

    Sources: Zhang et al., "Improving diffusion inverse problem solving with decoupled noise annealing", CVPR 2025, in
    which the deviation depends on the level alone, and draws are by Langevin steps; for the search, Zhang et al.,
    "Plug-and-play image restoration with deep denoiser prior", 2021; for noise alone, Ho et al., "Denoising diffusion
    probabilistic models", 2020.

    Attributes:
        posterior: Measurement and likelihood; the codec and the prior's weight are not used.
        steps: Length of the search.
        denoiser: By default the shipped one.
        coarsest, restart: σ at the start of the search and of a chain, image units; at least the measurement's. Chains
            start at half of ``restart`` if the measurement's is above ``NOISY``.
        finest: σ at the end of both.
        ratio: How much smaller each σ of a chain is than that before, about.

    Raises:
        OperatorError: the noise is not white and Gaussian of a known level, or the operator is not linear.
    """

    posterior: Posterior
    steps: int
    denoiser: Denoiser = field(default_factory=zoo.denoiser)
    coarsest: float = 0.2
    restart: float = 0.12
    finest: float = 0.01
    ratio: float = 1.6
    default_steps: ClassVar[int] = 10

    def __post_init__(self) -> None:
        if not DecoderError.takes(self._likelihood):
            raise OperatorError("DAPS takes white Gaussian noise of a known level and a linear operator")

    @property
    def _likelihood(self) -> Gaussian:
        given = self.posterior.likelihood
        return given.likelihood if isinstance(given, DecoderError) else given

    @property
    def _sigma(self) -> float:
        return float(self._likelihood.sigma)

    def init(self, x0: Tensor) -> Annealed:
        return Annealed(x0)

    def cells(self, state: Annealed) -> list[Cell]:
        """None: pixels have no cells."""
        return []

    @torch.no_grad()
    def step(self, state: Annealed, generator: torch.Generator) -> tuple[Annealed, Info]:
        """One iteration, of which noise alone takes a single one; the generator is not used."""
        if self._noise_alone:
            picture = state.picture if state.count else self.denoiser(self.posterior.y, self._sigma)
        else:
            sigma = _levels(max(self.coarsest, self._sigma), self.finest, self.steps)[min(state.count, self.steps - 1)]
            mean = self.denoiser(state.picture, sigma)
            picture = self._fit(mean, mean.new_tensor(sigma))
        log_likelihood = self.posterior.log_likelihood_of_picture(picture).sum()
        return Annealed(picture, state.count + 1), Info(math.nan, float(log_likelihood), math.nan)

    @torch.no_grad()
    def sample(self, state: Annealed, n: int, generator: torch.Generator) -> Tensor:
        if not self._noise_alone:
            return torch.stack([self._chain(state.picture, generator) for _ in range(n)]).clamp(0, 1)
        draws = torch.stack([self._reverse(generator) for _ in range(n)])
        known = state.picture - draws.mean(0) if n > 1 and state.count else 0  # the mean is known exactly
        return (draws + known).clamp(0, 1)

    def _chain(self, x: Tensor, generator: torch.Generator) -> Tensor:
        restart = self.restart if self._sigma <= NOISY else self.restart / 2
        for sigma in self._falling(max(restart, self._sigma)):
            mean, std = self.denoiser.moments(x + sigma * _noise(x, generator), sigma)
            x = self._fit(mean, std, generator)
        return x

    def _reverse(self, generator: torch.Generator) -> Tensor:
        def draw(x: Tensor, sigma: float) -> Tensor:
            mean, std = self.denoiser.moments(x, sigma)
            return mean + std * _noise(x, generator)

        x, levels = self.posterior.y, self._falling(self._sigma)
        for sigma, following in pairwise(levels):
            kept = (following / sigma) ** 2
            x = torch.lerp(draw(x, sigma), x, kept) + following * (1 - kept) ** 0.5 * _noise(x, generator)
        return draw(x, levels[-1])

    @property
    def _noise_alone(self) -> bool:
        return isinstance(self._likelihood.physics, Denoising)

    def _falling(self, first: float) -> list[float]:
        """Levels of a chain, down to the finest."""
        if first <= self.finest:
            return [first]
        return _levels(first, self.finest, 1 + math.ceil(math.log(first / self.finest, self.ratio)))

    def _fit(self, mean: Tensor, std: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return condition(mean, std, self.posterior.y, self._likelihood.physics, self._sigma, generator)


def _levels(first: float, last: float, count: int) -> list[float]:
    """So many levels of noise in geometric progression."""
    return [first * (last / first) ** (place / max(1, count - 1)) for place in range(count)]


def _noise(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator).to(x)
