"""Inference on pixels, with a denoiser for prior.

A denoiser D of pictures in white noise knows the gradient of their log density, smoothed by that noise (Tweedie's
formula; Robbins 1956):

    ∇ log p_σ(x) = (D(x, σ) − x) / σ².

Nothing is propagated back through it, so any one will do: the codec's own, or those of deepinv.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from bayesq.cells import Cell
from bayesq.codec import Codec
from bayesq.inference.base import Info, Posterior
from bayesq.inference.vble import cosine
from bayesq.networks.rate import level_of_noise

Denoise = Callable[[Tensor, Tensor], Tensor]
"""Pictures ``(B, 3, H, W)`` and the standard deviation ``(B,)`` of their noise to pictures without it."""

SHIFTS = ((0, 0), (8, 8), (12, 4), (4, 12))
COARSENESS = 1.2


def denoise_by_coding(codec: Codec, x: Tensor, sigma: Tensor) -> Tensor:
    """Pictures coded so coarsely that noise of standard deviation sigma ``(B,)`` is lost; ``(B, 3, H, W)`` in [0, 1].

    The mean over four positions on the codec's grid, as wavelet thresholding is averaged over shifts (Coifman and
    Donoho 1995): some decibels better than one.
    """

    def one(x: Tensor, level: int) -> Tensor:
        shifted = (F.pad(x, (left, 0, top, 0), mode="replicate") for top, left in SHIFTS)
        coded = (codec.reconstruct(x, level)[0] for x in shifted)
        moved = (x[..., top:, left:] for x, (top, left) in zip(coded, SHIFTS, strict=True))
        return torch.stack(list(moved)).mean(0)

    levels = (level_of_noise(COARSENESS * float(s)) for s in sigma)
    return torch.cat([one(*pair) for pair in zip(x.split(1), levels, strict=True)])


@dataclass(frozen=True)
class Pixels:
    """State of a search over pixels.

    Attributes:
        mean: ``(B, 3, H, W)``.
        log_std: Logarithm of the deviation of each value, same shape; −∞, a number, for a point.
        optimiser: Adam over the mean and the logarithm of the deviations.
        count: Steps taken.
    """

    mean: Tensor
    log_std: Tensor
    optimiser: torch.optim.Adam
    count: int = 0

    @property
    def std(self) -> Tensor:
        return self.log_std.exp()


@dataclass(frozen=True)
class _OnPixels:
    posterior: Posterior
    steps: int
    denoise: Denoise | None = None
    on_pixels: ClassVar[bool] = True

    def cells(self, state: Pixels) -> list[Cell]:
        """None: pixels have no cells."""
        return []

    @torch.no_grad()
    def sample(self, state: Pixels, n: int, generator: torch.Generator) -> Tensor:
        noise = torch.randn((n, *state.mean.shape), generator=generator).to(state.mean)
        return (state.mean + state.std * noise).clamp(0, 1)

    @torch.no_grad()
    def _score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """w ∇ log p_σ(x), nats by image unit; w is the prior's weight."""
        found = denoise_by_coding(self.posterior.model, x, sigma) if self.denoise is None else self.denoise(x, sigma)
        return self.posterior.prior_weight * (found - x) / sigma.view(-1, 1, 1, 1) ** 2

    def _climb(self, state: Pixels, rate: float, log_likelihood: Tensor, rest: Tensor) -> tuple[Pixels, Info]:
        """One step of Adam up the sum of both, whose second part is known but for a constant."""
        for group in state.optimiser.param_groups:
            group["lr"] = group["scale"] * cosine(rate, state.count, self.steps)
        state.optimiser.zero_grad()
        (-(log_likelihood + rest).sum()).backward()
        state.optimiser.step()
        return replace(state, count=state.count + 1), Info(math.nan, float(log_likelihood.detach().sum()), math.nan)


@dataclass(frozen=True)
class REDDiff(_OnPixels):
    """The picture whose noisy versions a denoiser finds likely at every level of noise (RED-diff, Mardani et al. 2023).

    Ascends log p(y | x) + E_n log p_σ(x + σ n) in x while σ falls, coarse structures first: at the end x is a mode of
    the posterior under the prior smoothed by the last σ. In the paper σ weighs the prior's gradient, and the balance
    with the data is a parameter; here both count in nats.

    Attributes:
        posterior: Measurement and likelihood; the level of the prior is not used.
        steps: Length of the search.
        denoise: The denoiser, for instance one of deepinv's; by default ``denoise_by_coding``.
        coarsest, finest: σ at the start and at the end, image units.
        rate: Learning rate of Adam at the start, image units.
    """

    coarsest: float = 0.1
    finest: float = 0.015
    rate: float = 0.02

    def init(self, x0: Tensor) -> Pixels:
        mean = x0.clone().requires_grad_()
        return Pixels(mean, mean.new_tensor(-math.inf), torch.optim.Adam([{"params": [mean], "scale": 1.0}]))

    def step(self, state: Pixels, generator: torch.Generator) -> tuple[Pixels, Info]:
        mean = state.mean
        done = min(1.0, state.count / max(1, self.steps - 1))
        sigma = mean.new_full((len(mean),), self.coarsest * (self.finest / self.coarsest) ** done)
        noise = sigma.view(-1, 1, 1, 1) * torch.randn(mean.shape, generator=generator).to(mean)
        # The score of the noise alone has mean zero, and takes most of the variance away.
        own = self.posterior.prior_weight * noise / sigma.view(-1, 1, 1, 1) ** 2
        score = self._score(mean.detach() + noise, sigma) + own
        return self._climb(state, self.rate, self.posterior.log_likelihood_of_picture(mean), _inner(score, mean))


@dataclass(frozen=True)
class ScoreDVI(_OnPixels):
    """Pixels with independent normal laws, and a score for prior (ScoreDVI, Cheng et al. 2023).

    Means and deviations ascend E_q[log p(y | x)] + w (E_q[log p_s(x)] + Σ log s), draw by draw, where the denoiser sees
    the prior through the noise that the draws themselves have, s in the root mean square over a picture. Smoothing the
    prior by q makes the deviations too wide where the prior is narrower than q. The networks that give the moments in
    the paper are left out. Its noise, of a precision that differs from pixel to pixel and is found along with the
    picture, is a matter of the likelihood here: ``UnevenGaussian`` has that precision integrated out, for a bound that
    is no looser than with a factor for it.

    Attributes:
        posterior, steps, denoise: As for ``REDDiff``.
        draws: Draws from q a step.
        rate: Learning rate of Adam at the start: image units for the mean, a tenth of those of log s.
        first_std: s at the start, image units.
    """

    draws: int = 2
    rate: float = 0.01
    first_std: float = 0.03

    def init(self, x0: Tensor) -> Pixels:
        mean, log_std = x0.clone().requires_grad_(), torch.full_like(x0, math.log(self.first_std)).requires_grad_()
        groups = [{"params": [mean], "scale": 1.0}, {"params": [log_std], "scale": 10.0}]
        return Pixels(mean, log_std, torch.optim.Adam(groups))

    def step(self, state: Pixels, generator: torch.Generator) -> tuple[Pixels, Info]:
        mean, std = state.mean, state.std
        sigma = std.detach().square().flatten(1).mean(1).sqrt()
        log_likelihood, log_prior = torch.zeros(len(mean)), torch.zeros(len(mean))
        for _ in range(self.draws):
            x = mean + std * torch.randn(mean.shape, generator=generator).to(mean)
            log_likelihood = log_likelihood + self.posterior.log_likelihood_of_picture(x) / self.draws
            log_prior = log_prior + _inner(self._score(x.detach(), sigma), x) / self.draws
        entropy = self.posterior.prior_weight * state.log_std.flatten(1).sum(1)
        return self._climb(state, self.rate, log_likelihood, log_prior + entropy)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)
