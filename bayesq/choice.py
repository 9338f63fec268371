"""The prior's quality and weight, chosen for a measurement by what they predict of a part of it that was held out.

Gaussian noise can be divided. With n of the law of y's own noise and r² = s / (1 − s),

    y₁ = y + r n,    y₂ = y − n / r

are independent given the picture, with 1 / (1 − s) and 1 / s times the variance: s is the share of the information that
y₂ holds. Photons can be divided too: each is seen with probability 1 − s, else held out; both counts are Poisson's and
independent given the picture. What a prior makes of y₁ is scored by the log density of the values of y₂ if its
posterior mean were the picture: for Gaussian noise its squared error where it is measured, on average and but for a
constant. That needs no truth, and leaves the operator as it is. How wide the posterior is does not count: it is
recalibrated afterwards, and before that a narrow one with a good mean would lose to a wide one with a bad mean.

Source: Oliveira, Lei and Tibshirani, "Unbiased risk estimation in the normal means problem via coupled bootstrap
techniques", 2021; Neufeld et al., "Data thinning for convolution-closed distributions", 2023.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor

from bayesq import zoo
from bayesq.codec import Codec
from bayesq.errors import OperatorError
from bayesq.likelihoods import SIGMA_FLOOR, Gaussian, Likelihood, Poisson, from_physics
from bayesq.likelihoods.base import spread, total
from bayesq.restore import PRIOR_WEIGHT, default_quality, restore

if TYPE_CHECKING:
    from deepinv.physics import Physics

SHIFTS = (-20.0, -10.0, 10.0)
WEIGHTS = (0.4, 1.0)
SHARE = 0.2
SAMPLES = 8


@dataclass(frozen=True)
class Trial:
    """A quality and a weight of the prior, and how well they predict.

    Attributes:
        quality: 0 to 100.
        prior_weight: Power of the prior.
        score: Log density of the values held out, given the posterior mean, nats.
        gain: The score less that of the default.
        error: Standard error of the gain.
    """

    quality: float
    prior_weight: float
    score: float
    gain: float
    error: float


@dataclass(frozen=True)
class Choice:
    """What to restore with: ``restore(y, physics, quality=choice.quality, prior_weight=choice.prior_weight)``.

    Attributes:
        quality: Of the prior, 0 to 100.
        prior_weight: Its power.
        trials: All that were compared, the default first.
        seconds: Time that it took.
    """

    quality: float
    prior_weight: float
    trials: tuple[Trial, ...]
    seconds: float


def choose(
    y: Tensor,
    physics: Physics,
    *,
    codec: Codec | None = None,
    likelihood: Likelihood | None = None,
    qualities: Sequence[float] | None = None,
    prior_weights: Sequence[float] = WEIGHTS,
    share: float = SHARE,
    steps: int | None = None,
    samples: int = SAMPLES,
    generator: torch.Generator | None = None,
) -> Choice:
    """Chooses the prior's quality, then its weight, by restorations of a part of the measurement.

    ``restore``'s own default is among the candidates, and is left only for one that gains more than the standard error
    of its gain: held-out values are few and noisy. Every candidate is restored as ``restore`` would do it: in a shorter
    search on a single grid coarser priors seem better than they are. With the default candidates that is six times.

    Args:
        y: Measurement of B pictures, for which one choice is made.
        physics: The operator, as for ``restore``.
        codec: Prior of the pictures; by default the shipped base model.
        likelihood: Gaussian, of a known noise level, or of photons, in image units; by default that of ``physics``.
        qualities: To compare with the default; by default 20 and 10 below it, and 10 above.
        prior_weights: To compare with the default, at the best quality.
        share: Of the information that is held out, between 0 and 1.
        steps: Of each restoration; by default those of ``restore``.
        samples: Of each restoration.
        generator: Source of all randomness; by default seeded with 0.

    Raises:
        OperatorError: the noise is neither that of photons nor Gaussian, of a known level above ``SIGMA_FLOOR``, or the
            share is not between 0 and 1; and for the reasons of ``restore``.
        ModelError: a quality is out of range.
    """
    began = time.perf_counter()
    if not 0 < share < 1:
        raise OperatorError(f"the share to hold out must be between 0 and 1, not {share}")
    law = likelihood or from_physics(physics)
    if not _can_divide(law):
        raise OperatorError(
            "a choice by held-out measurements takes Gaussian noise of a known level above 1/255, or that of photons"
        )
    codec = codec or zoo.load()
    generator = generator or torch.Generator().manual_seed(0)
    seen, held = divide(y.float(), law, share, generator)
    earlier, later = _noisier(law, 1 - share), _noisier(law, share)
    observed, seed = law.observed, int(torch.randint(2**31, (), generator=generator))

    def densities(quality: float, prior_weight: float) -> Tensor:
        restoration = restore(
            seen,
            physics,
            codec=codec,
            likelihood=earlier,
            quality=quality,
            prior_weight=prior_weight,
            steps=steps,
            samples=samples,
            calibrated=False,
            generator=torch.Generator().manual_seed(seed),
        )
        return _predictive(later, held, restoration.samples)

    default = default_quality(physics)
    reference = densities(default, PRIOR_WEIGHT)

    def attempt(quality: float, prior_weight: float) -> Trial:
        terms = densities(quality, prior_weight)
        score, gain = (float(total(observed, v).sum()) for v in (terms, terms - reference))
        return Trial(quality, prior_weight, score, gain, _error(observed, terms - reference))

    if qualities is None:
        qualities = [default + shift for shift in SHIFTS if 0 <= default + shift <= 100]
    trials = [Trial(default, PRIOR_WEIGHT, float(total(observed, reference).sum()), 0.0, 0.0)]
    trials += [attempt(quality, PRIOR_WEIGHT) for quality in qualities]
    quality = _best(trials).quality
    trials += [attempt(quality, prior_weight) for prior_weight in prior_weights]
    best = _best(trials)
    return Choice(best.quality, best.prior_weight, tuple(trials), time.perf_counter() - began)


def divide(
    y: Tensor, likelihood: Gaussian | Poisson, share: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Divides a measurement in two, independent given the picture; their mean weighted by 1 − share and share is y.

    Channels that are copies of one get the same noise, of the precision that the law gives them together.

    Args:
        y: ``(B, C, h, w)``, or whatever the operator measures; photons are rounded to whole ones.
        likelihood: Law of its noise.
        share: Of the information, for the second; the noises' variances are 1 / (1 − share) and 1 / share of y's.
        generator: Source of randomness.
    """
    if isinstance(likelihood, Poisson):
        return _thinned(y, likelihood, share, generator)
    noise = torch.randn(y.shape, generator=generator)
    sigma = spread(likelihood.sigma, y).expand_as(y)
    if y.ndim > 1 and torch.equal(y, y[:, :1].expand_as(y)):
        noise = noise[:, :1].expand_as(y)
        precision = (likelihood.observed / sigma.square()).sum(1, keepdim=True)
        sigma = precision.clamp_min(1e-12).rsqrt()
    noise = sigma * noise * (likelihood.observed > 0)
    ratio = math.sqrt(share / (1 - share))
    return y + ratio * noise, y - noise / ratio


def _can_divide(likelihood: Likelihood) -> TypeGuard[Gaussian | Poisson]:
    if isinstance(likelihood, Poisson):
        return likelihood.normalize
    return isinstance(likelihood, Gaussian) and bool((likelihood.sigma > SIGMA_FLOOR).all())


def _thinned(y: Tensor, likelihood: Poisson, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    gain = spread(likelihood.gain, y)
    counts = (y / gain).round().clamp_min(0)
    copies = y.ndim > 1 and torch.equal(y, y[:, :1].expand_as(y))
    some = counts[:, :1] if copies else counts
    seen = torch.binomial(some, torch.full_like(some, 1 - share), generator=generator).expand_as(y)
    return gain * seen / (1 - share), gain * (counts - seen) / share


def _noisier(likelihood: Gaussian | Poisson, share: float) -> Gaussian | Poisson:
    """The law of a part of the measurement."""
    result = copy.copy(likelihood)
    if isinstance(result, Poisson):
        result.gain = result.gain / share
    else:
        result.sigma = result.sigma / math.sqrt(share)
    return result


def _predictive(likelihood: Gaussian | Poisson, y: Tensor, samples: Tensor) -> Tensor:
    """Log density of each value of y given the mean of the law of samples ``(n, B, 3, H, W)``.

    What it loses for what the mean of n samples errs by is added again.
    """
    clean = torch.stack([likelihood.physics.A(x) for x in samples])
    _, sigma = likelihood.as_gaussian(y, samples.mean(0))
    return likelihood.terms(y, clean.mean(0)) + clean.var(0) / len(samples) / (2 * sigma.square())


def _error(observed: Tensor, terms: Tensor) -> float:
    """Standard error of the sum of terms that count as often as ``observed`` says."""
    weight = observed.expand_as(terms)
    mean = (weight * terms).sum() / weight.sum()
    return float((weight * (terms - mean).square()).sum().sqrt())


def _best(trials: Sequence[Trial]) -> Trial:
    """The one that gains most, less its standard error."""
    return max(trials, key=lambda trial: trial.gain - trial.error)
