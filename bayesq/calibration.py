"""Recalibration: samples of the posterior spread so that their intervals hold what they say.

A variational posterior is too narrow, and the more so where pictures have edges. What is missing is measured on
validation pictures: deviations of the samples from their mean are multiplied by

    scale · ((a + ε) / 0.05)^power,

a being the local activity of the mean (its standard deviation in a Gaussian window). The power is one number for the
model, chosen by the continuous ranked probability score; the scale is one for each problem fitted, so that the 90 %
interval covers 90 %. Problems in between take the scales of those most like them. The result is a small JSON file
beside the model's weights, and is used for that model alone.

What a lossy file leaves open (``bayesq.files.deviation``) is recalibrated by one factor for each quality.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from deepinv.physics import Blur, BlurFFT, Demosaicing, Denoising, Downsampling, Inpainting, Physics
from torch import Tensor

from bayesq import metrics
from bayesq.errors import ModelError
from bayesq.io import atomic_write
from bayesq.likelihoods import SIGMA_FLOOR
from bayesq.operators import JPEG, BicubicDownsampling

if TYPE_CHECKING:
    from bayesq.codec import Codec
    from bayesq.restore import Restoration

FILE = "calibration.json"
LEVEL = 0.9
FILE_LEVELS = (0, 64, 128, 192, 255)
POWERS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8)
WINDOW = 1.5
FAINT = 0.01
NEARNESS = 0.4
BORDER = 5
FAMILIES: dict[str, tuple[type[Physics], ...]] = {
    "denoise": (Denoising,),
    "deblur": (Blur, BlurFFT),
    "superres": (BicubicDownsampling, Downsampling),
    "demosaic": (Demosaicing,),
    "inpaint": (Inpainting,),
    "jpeg": (JPEG,),
}


@dataclass(frozen=True)
class Problem:
    """What makes one restoration problem like another.

    Attributes:
        family: A key of ``FAMILIES``, or ``other``.
        gain: Logarithm of the standard deviation that a measurement of white noise of deviation 1 has.
        noise: Logarithm of the noise's standard deviation, image units.
    """

    family: str
    gain: float
    noise: float

    @classmethod
    def of(cls, physics: Physics, size: tuple[int, int]) -> Problem:
        """The problem that an operator poses for pictures of a size (H, W)."""
        family = next((name for name, kinds in FAMILIES.items() if isinstance(physics, kinds)), "other")
        probe = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            gain = (physics.A(probe) - physics.A(torch.zeros_like(probe))).square().mean().sqrt()
        sigma = getattr(physics.noise_model, "sigma", None)
        noise = SIGMA_FLOOR if sigma is None else max(SIGMA_FLOOR, float(sigma.mean()))
        return cls(family, math.log(max(float(gain), 1e-6)), math.log(noise))

    def distance(self, other: Problem) -> float:
        """Squared; problems of another family are far."""
        away = (self.gain - other.gain) ** 2 + (self.noise - other.noise) ** 2
        return away + (0 if self.family == other.family else 100)


@dataclass(frozen=True)
class Calibration:
    """What to multiply deviations by.

    Attributes:
        model: Hexadecimal id of the model that this is for.
        power: Of the local activity.
        problems: Those that were fitted.
        scales: One for each.
        file_scales: Factors for the deviations of lossy files, one for each of ``FILE_LEVELS``; linear in between.
    """

    model: str
    power: float
    problems: tuple[Problem, ...]
    scales: tuple[float, ...]
    file_scales: tuple[float, ...] = (1.0,) * len(FILE_LEVELS)

    def file_scale(self, level: int) -> float:
        """The factor for the deviations of files of a quality level."""
        return float(np.interp(level, FILE_LEVELS, self.file_scales))

    def scale(self, problem: Problem) -> float:
        """The scales of the most similar problems, averaged on a logarithmic scale."""
        nearness = torch.tensor([-problem.distance(other) / (2 * NEARNESS**2) for other in self.problems]).softmax(0)
        return math.exp(float(nearness @ torch.tensor(self.scales).log()))

    def correct(self, restoration: Restoration, physics: Physics) -> Restoration:
        """The same restoration with samples and deviations that are as wide as errors are; its mean is kept."""
        size = (restoration.mean.shape[-2], restoration.mean.shape[-1])
        factor = self.scale(Problem.of(physics, size)) * _shape(restoration.mean, self.power)
        samples = _spread(restoration.samples, restoration.mean, factor)
        return replace(restoration, samples=samples, std=restoration.std * factor)

    def save(self, path: Path) -> None:
        """Writes it as JSON."""
        atomic_write(path, (json.dumps(asdict(self), indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Reads what ``save`` wrote. Raises ModelError if the file is something else."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            problems = tuple(Problem(**problem) for problem in values.pop("problems"))
            result = cls(**values, problems=problems)
            sound = len(problems) == len(result.scales) > 0 and len(result.file_scales) == len(FILE_LEVELS)
            sound = sound and all(0 < scale < 100 for scale in (*result.scales, *result.file_scales))
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ModelError(f"{path}: not a readable calibration ({error})") from error
        if not sound:
            raise ModelError(f"{path}: not a calibration: scales and problems do not fit")
        return replace(result, scales=tuple(result.scales), file_scales=tuple(result.file_scales))


class Loaded(Protocol):
    """A model that knows its file."""

    @property
    def model_id(self) -> bytes: ...

    @property
    def folder(self) -> Path | None: ...


def of_model(codec: Loaded) -> Calibration | None:
    """The calibration beside a model's weights; None without one, or if it is for other weights, as the log says."""
    path = codec.folder / FILE if codec.folder else None
    if path is None or not path.is_file():
        return None
    found = Calibration.load(path)
    if found.model != codec.model_id.hex():
        logging.getLogger(__name__).warning("%s is for other weights, and not used: run bayesq calibrate", path)
        return None
    return found


@dataclass(frozen=True)
class Trial:
    """Restorations of known pictures, all by one operator.

    Attributes:
        truth: ``(B, 3, H, W)``.
        restoration: Not recalibrated.
        physics: The operator.
    """

    truth: Tensor
    restoration: Restoration
    physics: Physics

    def coverage(self, calibration: Calibration | None = None) -> float:
        """The share of true values within the 90 % interval."""
        restored = calibration.correct(self.restoration, self.physics) if calibration else self.restoration
        samples, truth = (metrics.crop_border(v, BORDER) for v in (restored.samples, self.truth))
        return float(metrics.coverage(samples, truth, [LEVEL]))

    def spread(self, power: float, scale: float) -> tuple[Tensor, Tensor]:
        """Samples spread by the rule above and the truth, both without the border."""
        restored = self.restoration
        samples = _spread(restored.samples, restored.mean, scale * _shape(restored.mean, power))
        return metrics.crop_border(samples, BORDER), metrics.crop_border(self.truth, BORDER)


def fit(model: str, trials: Sequence[Trial]) -> Calibration:
    """Fits power and scales to trials.

    A power above 0 is taken only if it lowers the score of the same scale everywhere, by 1 % on average.
    """
    scales = {power: [_scale(trial, power) for trial in trials] for power in POWERS}
    scores = {power: _score(trials, power, scales[power]) for power in POWERS}
    best = min(POWERS, key=scores.__getitem__)
    best = best if scores[best] < scores[0.0] + math.log(0.99) else 0.0
    sizes = [(trial.truth.shape[-2], trial.truth.shape[-1]) for trial in trials]
    problems = tuple(Problem.of(trial.physics, size) for trial, size in zip(trials, sizes, strict=True))
    return Calibration(model, best, problems, tuple(round(scale, 4) for scale in scales[best]))


def fit_files(codec: Codec, pictures: Sequence[Tensor], samples: int, generator: torch.Generator) -> tuple[float, ...]:
    """Fits the factors with which deviations of lossy files hold 90 % of the errors within 1.645 of them.

    Args:
        codec: The model.
        pictures: Each ``(1, 3, H, W)`` in [0, 1].
        samples: Draws from a file.
        generator: Their source of randomness.
    """
    normal = math.sqrt(2) * torch.special.erfinv(torch.tensor(LEVEL)).item()
    scales = []
    for level in FILE_LEVELS:
        ratios = []
        for x in pictures:
            size = x.shape[-2], x.shape[-1]
            payload = codec.compress(x, level)
            draws = codec.sample_decode(payload, *size, level, samples, generator)
            deviation = draws.var(0).mean(1, keepdim=True).sqrt()
            error = (codec.decompress(payload, *size, level) - x).abs()
            ratios.append((error / deviation.clamp_min(1e-6)).flatten())
        scales.append(round(float(np.quantile(torch.cat(ratios).numpy(), LEVEL)) / normal, 4))
    return tuple(scales)


def _scale(trial: Trial, power: float) -> float:
    """The scale at which the 90 % interval covers 90 %, by bisection of its logarithm."""
    low, high = math.log(0.1), math.log(20.0)
    for _ in range(12):
        middle = (low + high) / 2
        short = float(metrics.coverage(*trial.spread(power, math.exp(middle)), [LEVEL])) < LEVEL
        low, high = (middle, high) if short else (low, middle)
    return math.exp((low + high) / 2)


def _score(trials: Sequence[Trial], power: float, scales: Sequence[float]) -> float:
    """The mean over problems of the logarithm of the mean score."""
    logs = [
        float(metrics.crps(*trial.spread(power, scale)).mean().log())
        for trial, scale in zip(trials, scales, strict=True)
    ]
    return sum(logs) / len(logs)


def _spread(samples: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    return (mean + factor * (samples - mean)).clamp(0, 1)


def _shape(mean: Tensor, power: float) -> Tensor:
    return ((activity(mean) + FAINT) / 0.05) ** power


def activity(x: Tensor) -> Tensor:
    """Computes the standard deviation of pictures (B, 3, H, W) in a Gaussian window, channels pooled: (B, 1, H, W)."""
    t = torch.arange(-5, 6)
    taps = torch.exp(-t.square() / (2 * WINDOW**2))
    taps = (taps / taps.sum()).view(1, 1, 1, -1).to(x)

    def blur(v: Tensor) -> Tensor:
        v = F.pad(v.flatten(0, 1)[:, None], (5, 5, 5, 5), mode="replicate")
        return F.conv2d(F.conv2d(v, taps), taps.mT).view_as(x)

    variance = blur(x.square()) - blur(x).square()
    return variance.mean(1, keepdim=True).clamp_min(0).sqrt()
