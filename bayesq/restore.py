"""Restoration: from a measurement and an operator to a picture with its uncertainty."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import torch
from scipy.stats import t as student
from torch import Tensor
from tqdm import tqdm

from bayesq import bootstrap, zoo
from bayesq.calibration import of_model
from bayesq.cells import Cell
from bayesq.codec import Codec
from bayesq.errors import ImageError, OperatorError
from bayesq.inference import DAPS, VBLE, Algorithm, Info, Posterior
from bayesq.inference.splitting import split
from bayesq.io import atomic_write
from bayesq.likelihoods import DecoderError, Likelihood, from_physics
from bayesq.likelihoods.base import NearlyGaussian
from bayesq.networks.rate import decoder_error, level_of_error, level_of_noise
from bayesq.operators import initial_image, stated_noise
from bayesq.quality import level_of, quality_of

if TYPE_CHECKING:
    from deepinv.physics import Physics
    from matplotlib.figure import Figure

STEPS = 50
LATER_SHARE = 0.4
OFFSETS = ((0, 0), (8, 8), (12, 4), (4, 12))
SAMPLES = 32
TRIAL_SAMPLES = 8
PRIOR_WEIGHT = 0.6


@dataclass(frozen=True)
class Restoration:
    """What inference knows of a picture.

    Attributes:
        mean: Posterior mean ``(B, 3, H, W)`` in [0, 1]: the estimate of least mean square error.
        std: Posterior standard deviation of each value, same shape, image units.
        samples: Pictures drawn from the posterior ``(n, B, 3, H, W)``. These and std are recalibrated if the model
            comes with a calibration (``bayesq.calibration``).
        cells: The latents' cells on the first grid, in the order of the prior's walk; none where pixels were searched.
        trace: One entry a step of the inference, grid after grid.
        quality: The prior's quality, 0 to 100; None where the prior is no codec.
        seconds: Time that inference and sampling took.
    """

    mean: Tensor
    std: Tensor
    samples: Tensor
    cells: list[Cell]
    trace: tuple[Info, ...]
    quality: float | None
    seconds: float

    def interval(self, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """Lower and upper ends of the central interval that holds each true value with probability ``level``.

        Student's, since mean and deviation are those of so many samples. Raises OperatorError if ``level`` is not
        between 0 and 1.
        """
        reach = self.reach(level) * self.std
        return (self.mean - reach).clamp(0, 1), (self.mean + reach).clamp(0, 1)

    def reach(self, level: float) -> float:
        """Half the width of ``interval`` in standard deviations."""
        if not 0 < level < 1:
            raise OperatorError(f"the probability of an interval must be between 0 and 1, not {level}")
        n = len(self.samples)
        return float(student.ppf((1 + level) / 2, n - 1)) * math.sqrt(1 + 1 / n)

    def components(self, n: int) -> Tensor:
        """Principal components of the samples: the n directions in which the pictures vary most, all pixels together.

        Walk along one by ``mean + t * component``, t from −2 to 2 or so: each is as long as the samples' standard
        deviation in its direction. They are orthogonal, the longest first, each of a sign that brightens the picture;
        the squares of all ``len(samples) - 1`` add up to the variance of every value.

        Returns:
            ``(n, B, 3, H, W)``, image units.

        Raises:
            OperatorError: n is not 1 to ``len(samples) - 1``.
        """
        if not 1 <= n < len(self.samples):
            raise OperatorError(f"{len(self.samples)} samples have 1 to {len(self.samples) - 1} components, not {n}")
        away = (self.samples - self.samples.mean(0)).transpose(0, 1)
        _, lengths, directions = torch.linalg.svd(away.flatten(2), full_matrices=False)
        found = (lengths[..., None] * directions)[:, :n] / math.sqrt(len(self.samples) - 1)
        found = torch.where(found.sum(2, keepdim=True) < 0, -found, found)
        return found.unflatten(2, self.samples.shape[2:]).transpose(0, 1)

    def grey(self) -> Restoration:
        """The restoration of a picture without colours: channels averaged to one, deviations those of its samples."""
        samples = self.samples.mean(2, keepdim=True)
        return replace(self, mean=self.mean.mean(1, keepdim=True), std=samples.std(0), samples=samples)

    def plot(self, measurement: Tensor | None = None) -> Figure:
        """A figure of the first picture: measurement, mean, standard deviation and samples."""
        from bayesq.plot import plot_restoration

        return plot_restoration(self, measurement)

    def report(self, path: str | Path, measurement: Tensor | None = None, truth: Tensor | None = None) -> None:
        """Writes a page of HTML on the first picture, to explore in a browser (``bayesq.report``)."""
        from bayesq.report import render

        atomic_write(path, render(self, measurement, truth, title=Path(path).stem).encode())


def default_quality(physics: Physics) -> float:
    """Quality of the prior for the operator's noise level: 60 at σ = 50/255, 84 at 25/255, 100 from 15/255 down.

    It is the one whose decoder errs by an eighth of the noise, about the best share in denoising three held-out crops;
    blurs and reductions hardly depend on it.
    """
    return quality_of(level_of_error(stated_noise(physics) / 8))


@torch.inference_mode(False)
@torch.enable_grad()
def restore(
    y: Tensor,
    physics: Physics,
    *,
    codec: Codec | None = None,
    likelihood: Likelihood | None = None,
    quality: float | None = None,
    algorithm: Callable[[Posterior, int], Algorithm[Any]] | None = None,
    steps: int | None = None,
    grids: int = len(OFFSETS),
    samples: int = SAMPLES,
    prior_weight: float = PRIOR_WEIGHT,
    calibrated: bool = True,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Restoration:
    """Restores pictures from a measurement through any deepinv operator.

    Args:
        y: Measurement of B pictures, in the shape that ``physics`` gives it; white is 1.
        physics: The operator; its ``noise_model`` says how much to trust y.
        codec: Prior of the pictures, for algorithms on its latents; by default the shipped base model.
        likelihood: p(y | x); by default that of ``physics`` and its noise model.
        quality: Quality of the prior, 0 to 100; by default chosen from the noise level (``default_quality``).
        algorithm: The class of an ``Algorithm``, or a ``functools.partial`` of it, or a function that makes one:
            ``DAPS``, with the shipped denoiser for prior, or ``VBLE``, or ``MAPz`` for a point estimate. By default the
            best for the problem (``default_algorithm``), or ``VBLE`` if a codec or a quality is asked for.
        steps: Iterations on the first grid, by default 50, or those of ``DAPS.default_steps``; each later one starts
            from the mean found so far and takes 2/5 of them.
        grids: Positions of the picture on the codec's grid, 1 to 4. The prior is not quite invariant under translation;
            an equal mixture of priors is. It shows no block borders, gains some tenths of a decibel, and its samples
            spread more truly. Algorithms on pixels have no grid, and search once.
        samples: Posterior samples to draw, at least 2.
        prior_weight: Power of the prior; 1 is Bayes' rule, and less makes up for what the prior does not know. ``DAPS``
            does without.
        calibrated: Spread the samples of ``DAPS`` and ``VBLE`` as the model's calibration says, where it has one. For
            ``DAPS`` behind an operator that takes a second restoration, of what was restored (``bayesq.bootstrap``).
        generator: Source of all randomness; by default seeded with 0.
        progress: Show a progress bar on stderr.

    Raises:
        ImageError: y holds values that are not finite, or integers.
        OperatorError: the noise model is missing or not supported, y does not fit the operator, or a number of steps,
            samples or a weight makes no sense.
        ModelError: the quality is out of range.
    """
    began = time.perf_counter()
    if not isinstance(y, Tensor):
        raise OperatorError("a measurement is one tensor: operators that give several at once are not taken")
    if not y.is_floating_point():
        raise ImageError(f"a measurement has real values, white being 1, not values of {y.dtype}")
    if not torch.isfinite(y).all():
        raise ImageError("the measurement holds values that are not finite")
    if samples < 2 or (steps is not None and steps < 1):
        raise OperatorError(f"an uncertainty takes at least 2 samples and 1 step, not {samples} and {steps}")
    if not 1 <= grids <= len(OFFSETS):
        raise OperatorError(f"the number of grids must be 1 to {len(OFFSETS)}, not {grids}")
    if not 0 < prior_weight < math.inf:
        raise OperatorError(f"the prior's weight must be positive and finite, not {prior_weight}")
    y = y.float().clone() if y.is_inference() else y.float()
    likelihood = likelihood or from_physics(physics)
    if algorithm is None:
        algorithm = VBLE if codec or quality is not None else default_algorithm(likelihood)
    kind = getattr(algorithm, "func", algorithm)  # func: a partial's
    on_pixels = getattr(kind, "on_pixels", False)
    steps = steps or (DAPS.default_steps(physics) if kind is DAPS else STEPS)
    codec = None if kind is DAPS else codec or zoo.shared()
    generator = generator or torch.Generator().manual_seed(0)
    level = level_of(default_quality(physics) if quality is None else quality)
    if codec and DecoderError.takes(likelihood):
        likelihood = DecoderError(likelihood, decoder_error(level))
    x0 = _quick_estimate(y, physics)
    if codec:
        x0 = _improve(x0, y, physics, likelihood, codec, level)
    posterior = Posterior(y, likelihood, codec, torch.full((len(x0),), level), (x0.shape[2], x0.shape[3]), prior_weight)
    offsets = OFFSETS[: 1 if on_pixels else min(grids, samples)]
    counts = [steps] + [math.ceil(LATER_SHARE * steps)] * (len(offsets) - 1)
    draws: list[Tensor] = []
    trace: list[Info] = []
    cells: list[Cell] = []
    with tqdm(total=sum(counts), unit="step", leave=False, disable=None if progress else True) as bar:
        for place, (offset, count) in enumerate(zip(offsets, counts, strict=True)):
            search: Algorithm[Any] = algorithm(replace(posterior, offset=offset), count)
            state = search.init(torch.cat(draws).mean(0) if draws else x0)
            for _ in range(count):
                state, info = search.step(state, generator)
                trace.append(info)
                bar.update()
            draws.append(search.sample(state, len(range(place, samples, len(offsets))), generator))
            cells = cells or [Cell(cell.centre.detach(), cell.width.detach()) for cell in search.cells(state)]
    pictures = torch.cat(draws)
    restoration = Restoration(
        mean=pictures.mean(0),
        std=pictures.std(0),
        samples=pictures,
        cells=cells,
        trace=tuple(trace),
        quality=None if on_pixels else quality_of(level),
        seconds=time.perf_counter() - began,
    )
    prior = search.denoiser if isinstance(search, DAPS) else codec if kind is VBLE else None
    correction = of_model(prior) if calibrated and prior else None
    if correction is None:
        return restoration

    def again(y: Tensor) -> Restoration:
        options: dict[str, Any] = {"likelihood": likelihood, "algorithm": algorithm, "steps": steps}
        return restore(y, physics, **options, samples=TRIAL_SAMPLES, calibrated=False, generator=generator)

    def excess() -> Tensor:
        assert isinstance(likelihood, NearlyGaussian)
        return bootstrap.excess(restoration, y, likelihood, again, generator)

    corrected = correction.correct(restoration, physics, excess)
    return replace(corrected, seconds=time.perf_counter() - began)


def default_algorithm(likelihood: Likelihood) -> type[DAPS | VBLE]:
    """``DAPS`` for noise that is nearly Gaussian behind a linear operator, else ``VBLE``.

    With the shipped models ``DAPS`` errs less, by 0.6 to 1.2 dB, and knows better where; ``VBLE`` takes any likelihood.
    """
    return DAPS if DAPS.takes(likelihood) else VBLE


def _quick_estimate(y: Tensor, physics: Physics) -> Tensor:
    """The operator's own, by which it is also seen whether the measurement fits it."""
    misfit = f"a measurement of shape {tuple(y.shape)} does not fit the operator and colour pictures"
    try:
        x0 = initial_image(y, physics)
        fits = x0.ndim == 4 and x0.shape[1] == 3 and x0.numel() > 0 and physics.A(x0).shape == y.shape
    except (RuntimeError, ValueError, IndexError) as error:
        raise OperatorError(f"{misfit} ({shorten(str(error), 120)})") from error
    if not fits:
        raise OperatorError(misfit)
    return x0


def _improve(x0: Tensor, y: Tensor, physics: Physics, likelihood: Likelihood, codec: Codec, level: int) -> Tensor:
    """A first estimate improved by splitting, or by coding it so coarsely that most noise is lost.

    Started from a clean picture, a search of latents ends higher than from a noisy one, for denoising by more than a
    decibel.
    """
    from deepinv.physics import Denoising

    if isinstance(likelihood, DecoderError) and not isinstance(physics, Denoising):
        return split(y, physics, likelihood.sigma, codec, x0)
    coarse = min(level, level_of_noise(stated_noise(physics)))
    return codec.reconstruct(x0, coarse)[0].clone() if coarse < level else x0
