"""Restoration: from a measurement and an operator to a picture with its uncertainty."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from bayesq import zoo
from bayesq.cells import Cell
from bayesq.codec import Codec
from bayesq.errors import ImageError, OperatorError
from bayesq.inference import VBLE, Algorithm, Info, Posterior
from bayesq.likelihoods import Likelihood, from_physics
from bayesq.operators import initial_image
from bayesq.quality import level_of, quality_of

if TYPE_CHECKING:
    from deepinv.physics import Physics
    from matplotlib.figure import Figure

STEPS = 100
SAMPLES = 32


@dataclass(frozen=True)
class Restoration:
    """What inference knows of a picture.

    Attributes:
        mean: Posterior mean ``(B, 3, H, W)`` in [0, 1]: the estimate of least mean square error.
        std: Posterior standard deviation of each value, same shape, image units.
        samples: Pictures drawn from the posterior ``(n, B, 3, H, W)``.
        cells: The latents' cells, in the order of the prior's walk.
        trace: One entry a step of the inference.
        quality: The prior's quality, 0 to 100.
        seconds: Time that inference and sampling took.
    """

    mean: Tensor
    std: Tensor
    samples: Tensor
    cells: list[Cell]
    trace: tuple[Info, ...]
    quality: float
    seconds: float

    def plot(self, measurement: Tensor | None = None) -> Figure:
        """A figure of the first picture: measurement, mean, standard deviation and samples."""
        from bayesq.plot import plot_restoration

        return plot_restoration(self, measurement)


def default_quality(sigma: float) -> float:
    """Quality of the prior that serves best at a noise level σ: finer for less noise.

    A prior at rate weight λ models pictures to within γ² = 1 / (2 ln 2 · λ · 255²); the quality is chosen so that γ
    is a fixed share of σ. The share was fitted on held-out photographs over the tasks of the command line.
    """
    return 50.0


def restore(
    y: Tensor,
    physics: Physics,
    *,
    codec: Codec | None = None,
    likelihood: Likelihood | None = None,
    quality: float | None = None,
    algorithm: Callable[[Posterior, int], Algorithm[Any]] = VBLE,
    steps: int = STEPS,
    samples: int = SAMPLES,
    prior_weight: float = 1.0,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Restoration:
    """Restores pictures from a measurement through any deepinv operator.

    Args:
        y: Measurement of B pictures, in the shape that ``physics`` gives it.
        physics: The operator; its ``noise_model`` says how much to trust y.
        codec: Prior of the pictures; by default the shipped base model.
        likelihood: p(y | x); by default that of ``physics`` and its noise model.
        quality: Quality of the prior, 0 to 100; by default chosen from the noise level.
        algorithm: ``VBLE`` for a posterior, ``MAPz`` for a point estimate, or any ``Algorithm`` of a ``Posterior``.
        steps: Iterations.
        samples: Posterior samples to draw, at least 2.
        prior_weight: Power of the prior; 1 is Bayes' rule.
        generator: Source of all randomness; by default seeded with 0.
        progress: Show a progress bar on stderr.

    Raises:
        ImageError: y holds values that are not finite.
        OperatorError: the noise model is missing or not supported, or y does not fit the operator.
        ModelError: the quality is out of range.
    """
    began = time.perf_counter()
    if not torch.isfinite(y).all():
        raise ImageError("the measurement holds values that are not finite")
    if samples < 2:
        raise OperatorError(f"an uncertainty takes at least 2 samples, not {samples}")
    codec = codec or zoo.load()
    likelihood = likelihood or from_physics(physics)
    generator = generator or torch.Generator().manual_seed(0)
    x0 = initial_image(y, physics)
    quality = default_quality(_noise(physics)) if quality is None else quality
    level = level_of(quality)
    posterior = Posterior(y, likelihood, codec, torch.full((len(x0),), level), tuple(x0.shape[-2:]), prior_weight)
    search = algorithm(posterior, steps)
    state = search.init(x0)
    trace = []
    for _ in tqdm(range(steps), unit="step", leave=False, disable=None if progress else True):
        state, info = search.step(state, generator)
        trace.append(info)
    pictures = search.sample(state, samples, generator)
    return Restoration(
        mean=pictures.mean(0),
        std=pictures.std(0),
        samples=pictures,
        cells=[Cell(cell.centre.detach(), cell.width.detach()) for cell in search.cells(state)],
        trace=tuple(trace),
        quality=quality_of(level),
        seconds=time.perf_counter() - began,
    )


def _noise(physics: Physics) -> float:
    sigma = getattr(physics.noise_model, "sigma", None)
    return float(sigma.mean()) if sigma is not None else math.nan
