"""Calibrations fitted to restorations, and to files, of known pictures; see ``bayesq.calibration``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bayesq import metrics
from bayesq.calibration import FILE_LEVELS, Calibration, Problem, detail, spread

if TYPE_CHECKING:
    from deepinv.physics import Physics

    from bayesq.codec import Codec
    from bayesq.restore import Restoration

LEVEL = 0.9
POWERS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
BORDER = 5


@dataclass(frozen=True)
class Trial:
    """Restorations of known pictures, all by one operator.

    Attributes:
        truth: ``(B, 3, H, W)``.
        restoration: Not recalibrated.
        physics: The operator.
        excess: Of errors in a bootstrap, if that is to be the hint, ``(B, 1, H, W)``.
    """

    truth: Tensor
    restoration: Restoration
    physics: Physics
    excess: Tensor | None = None

    @property
    def hint(self) -> Tensor:
        """What tells how wide deviations must be, ``(B, 1, H, W)``, positive."""
        return detail(self.restoration.mean) if self.excess is None else self.excess

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.truth.shape[-2], self.truth.shape[-1]

    def coverage(self, calibration: Calibration | None = None) -> float:
        """The share of true values within the 90 % interval."""
        restored = self.restoration
        if calibration:
            restored = calibration.correct(restored, self.physics, lambda: self.hint)
        samples, truth = (metrics.crop_border(v, BORDER) for v in (restored.samples, self.truth))
        return float(metrics.coverage(samples, truth, [LEVEL]))

    def spread(self, power: float, scale: float) -> tuple[Tensor, Tensor]:
        """Samples spread by the rule above and the truth, both without the border."""
        restored = self.restoration
        samples = spread(restored.samples, restored.mean, scale * self.hint**power)
        return metrics.crop_border(samples, BORDER), metrics.crop_border(self.truth, BORDER)


def fit(model: str, problems: Sequence[Sequence[Trial]]) -> Calibration:
    """Fits scale and power for each problem.

    Args:
        model: Hexadecimal id of the model.
        problems: For each, restorations by one operator, one trial for each kind of pictures. Intervals are made wide
            enough for the kind that needs the widest. A power above 0 is taken only if it lowers the score by 1 %.
    """
    scales, powers = zip(*map(_rule, problems), strict=True)
    posed = tuple(Problem.of(kinds[0].physics, kinds[0].size) for kinds in problems)
    return Calibration(model, posed, scales, powers, bootstrapped=problems[0][0].excess is not None)


def _rule(kinds: Sequence[Trial]) -> tuple[float, float]:
    """Scale and power of least score among those that cover 90 %; the score is of every other row and column."""
    best, least = (0.0, 0.0), math.inf
    needed = [_needed(trial) for trial in kinds]
    for power in POWERS:
        scale = max(_scale(trial, power, needs) for trial, needs in zip(kinds, needed, strict=True))
        score = 0.0
        for trial in kinds:
            samples, truth = (v[..., ::2, ::2] for v in trial.spread(power, scale))
            score += float(metrics.crps(samples, truth).mean().log()) / len(kinds)
        if score < least + (math.log(0.99) if best[1] == 0 < power else 0):
            best, least = (round(scale, 4), power), score
    return best


def _needed(trial: Trial) -> tuple[tuple[float, Tensor], ...]:
    """By how much deviations must be multiplied for the truth to be between the a-th smallest and a-th largest sample.

    For the two ranks a, with their weights, between which ``metrics.coverage`` interpolates; infinite for what is on
    the other side of the mean than all of these.
    """
    samples, mean = trial.restoration.samples, trial.restoration.mean
    error, count = trial.truth - mean, len(samples)
    away = (samples - mean).sort(0).values
    rank = (1 - LEVEL) * (count + 1) / 2
    below = math.floor(rank)
    found = []
    for weight, a in ((1 - rank + below, below), (rank - below, below + 1)):
        if a == 0:
            found.append((weight, torch.zeros_like(error)))
            continue
        reach = torch.where(error < 0, -away[a - 1], away[count - a])
        found.append((weight, torch.where(reach > 0, error.abs() / reach, torch.where(error == 0, 0.0, math.inf))))
    return tuple(found)


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


def _scale(trial: Trial, power: float, needed: tuple[tuple[float, Tensor], ...]) -> float:
    """The scale at which the 90 % interval covers 90 %, by bisection of its logarithm."""
    shape = trial.hint**power
    needs = [(weight, metrics.crop_border(need / shape, BORDER)) for weight, need in needed]
    low, high = math.log(0.1), math.log(20.0)
    for _ in range(12):
        middle = (low + high) / 2
        short = sum(weight * float((need <= math.exp(middle)).double().mean()) for weight, need in needs) < LEVEL
        low, high = (middle, high) if short else (low, middle)
    return math.exp((low + high) / 2)
