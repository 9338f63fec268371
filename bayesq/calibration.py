"""Recalibration: samples of the posterior spread so that their intervals hold what they say.

A posterior that is searched for is too narrow, or too wide, and not alike everywhere. What is amiss is measured on
known pictures: deviations of the samples from their mean are multiplied by

    scale · h^power,

h being a hint that every pixel has. For codecs it is (d + ε) / 0.02 with d the finest detail of the mean nearby
(``finest_detail``): how grainy a picture is at its limit of resolution tells, better than its contrast, what else there
was beyond. For the denoiser, which searches fast enough to do it twice, it is by how many times errors exceed
deviations where the restored picture is the truth (``bayesq.bootstrap``). Scale and power are those of the problem
(``bayesq.fitting``): the power is the best by the continuous ranked probability score, and with it the scale lets the
90 % interval cover 90 %. Problems in between take those of the problems most like them. The result is a small JSON file
beside the model's weights, and is used for that model alone.

What a lossy file leaves open (``bayesq.files.deviation``) is recalibrated by one factor for each quality.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bayesq.errors import ModelError
from bayesq.io import atomic_write
from bayesq.likelihoods import SIGMA_FLOOR

if TYPE_CHECKING:
    from deepinv.physics import Physics

    from bayesq.restore import Restoration

FILE = "calibration.json"
FILE_LEVELS = (0, 64, 128, 192, 255)
FAINTEST_POWER = 0.01
WINDOW = 7
FAINT = 0.001
TYPICAL = 0.02
NEARNESS = 0.2
DETAILS = 0.05, 0.2
"""Deviations that faint and strong detail are reckoned to have, image units."""


@dataclass(frozen=True)
class Problem:
    """What makes one restoration problem like another.

    Attributes:
        family: Of operators, as ``family_of`` names it.
        observed: Logarithms of the shares of faint and of strong detail that a measurement settles: the trace, over its
            order, of AᵀA (AᵀA + σ²/d²)⁻¹ for each of the deviations d in ``DETAILS``; 0 where A is not linear. Unlike
            AᵀA itself they tell a motion blur from a Gaussian one, which loses far more.
        noise: Logarithm of the noise's standard deviation σ, image units; of photons, that at mid-grey.
    """

    family: str
    observed: tuple[float, ...]
    noise: float

    @classmethod
    def of(cls, physics: Physics, size: tuple[int, int]) -> Problem:
        """The problem that an operator poses for pictures of a size (H, W)."""
        from deepinv.physics import LinearPhysics

        from bayesq.operators import stated_noise
        from bayesq.operators.spectrum import spectrum

        noise = max(SIGMA_FLOOR, stated_noise(physics))
        probe = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
        shares = [1.0] * len(DETAILS)
        if isinstance(physics, LinearPhysics):
            nodes, weights = spectrum(physics, probe)
            shares = [float(weights @ (nodes / (nodes + (noise / detail) ** 2))) for detail in DETAILS]
        return cls(family_of(physics), tuple(math.log(max(share, 1e-6)) for share in shares), math.log(noise))

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Problem:
        """The problem as ``asdict`` and JSON keep it. Raises TypeError, ValueError or KeyError if it is none."""
        observed = tuple(float(share) for share in values["observed"])
        if len(observed) != len(DETAILS):
            raise ValueError(f"{len(DETAILS)} shares of detail expected, not {len(observed)}")
        return cls(**{**values, "observed": observed})

    def distance(self, other: Problem) -> float:
        """Squared; problems of another family are far."""
        away = math.dist((*self.observed, self.noise), (*other.observed, other.noise)) ** 2
        return away + (0 if self.family == other.family else 100)


def family_of(physics: Physics) -> str:
    """denoise, deblur, superres, demosaic, inpaint, jpeg, photons (noise alone, by brightness), or other."""
    from deepinv.physics import Blur, BlurFFT, Demosaicing, Denoising, Downsampling, Inpainting

    from bayesq.operators import JPEG, BicubicDownsampling

    families: dict[str, tuple[type, ...]] = {
        "denoise": (Denoising,),
        "deblur": (Blur, BlurFFT),
        "superres": (BicubicDownsampling, Downsampling),
        "demosaic": (Demosaicing,),
        "inpaint": (Inpainting,),
        "jpeg": (JPEG,),
    }
    family = next((name for name, kinds in families.items() if isinstance(physics, kinds)), "other")
    return "photons" if family == "denoise" and hasattr(physics.noise_model, "gain") else family


@dataclass(frozen=True)
class Calibration:
    """What to multiply deviations by.

    Attributes:
        model: Hexadecimal id of the model that this is for.
        problems: Those that were fitted.
        scales: One for each.
        powers: Of the hint, one for each.
        file_scales: Factors for the deviations of lossy files, one for each of ``FILE_LEVELS``; linear in between.
        bootstrapped: Whether the hint is the excess of errors in a bootstrap, and not the finest detail.
    """

    model: str
    problems: tuple[Problem, ...]
    scales: tuple[float, ...]
    powers: tuple[float, ...]
    file_scales: tuple[float, ...] = (1.0,) * len(FILE_LEVELS)
    bootstrapped: bool = False

    def file_scale(self, level: int) -> float:
        """The factor for the deviations of files of a quality level."""
        return float(np.interp(level, FILE_LEVELS, self.file_scales))

    def rule(self, problem: Problem) -> tuple[float, float]:
        """Scale and power for a problem: those of the most similar ones, averaged; the scale, its logarithm."""
        nearness = torch.tensor([-problem.distance(other) / (2 * NEARNESS**2) for other in self.problems]).softmax(0)
        scale = math.exp(float(nearness @ torch.tensor(self.scales).log()))
        return scale, float(nearness @ torch.tensor(self.powers))

    def correct(self, restoration: Restoration, physics: Physics, bootstrap: Callable[[], Tensor]) -> Restoration:
        """The same restoration with samples and deviations that are as wide as errors are; its mean is kept.

        Args:
            restoration: Of pictures, not recalibrated.
            physics: Their operator.
            bootstrap: Finds the excess of errors, as ``bayesq.bootstrap.excess`` does; called only if it counts.
        """
        size = (restoration.mean.shape[-2], restoration.mean.shape[-1])
        scale, power = self.rule(Problem.of(physics, size))
        factor = torch.tensor(scale)
        if power > FAINTEST_POWER:
            factor = scale * (bootstrap() if self.bootstrapped else detail(restoration.mean)) ** power
        samples = spread(restoration.samples, restoration.mean, factor)
        return replace(restoration, samples=samples, std=restoration.std * factor)

    def save(self, path: Path) -> None:
        """Writes it as JSON."""
        atomic_write(path, (json.dumps(asdict(self), indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Reads what ``save`` wrote. Raises ModelError if the file is something else."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            problems = tuple(Problem.from_json(problem) for problem in values.pop("problems"))
            result = cls(**values, problems=problems)
            sound = len(problems) == len(result.scales) == len(result.powers) > 0
            sound = sound and len(result.file_scales) == len(FILE_LEVELS)
            sound = sound and all(0 < scale < 100 for scale in (*result.scales, *result.file_scales))
            sound = sound and all(0 <= power <= 2 for power in result.powers)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ModelError(f"{path}: not a readable calibration ({error}): run bayesq calibrate") from error
        if not sound:
            raise ModelError(f"{path}: not a calibration: scales and problems do not fit")
        lists: dict[str, Any] = {name: tuple(getattr(result, name)) for name in ("scales", "powers", "file_scales")}
        return replace(result, **lists)


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


def spread(samples: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    return (mean + factor * (samples - mean)).clamp(0, 1)


def detail(mean: Tensor) -> Tensor:
    """The finest detail nearby, relative to what is typical, and not nothing: ``(B, 1, H, W)``."""
    return (finest_detail(mean) + FAINT) / TYPICAL


def finest_detail(x: Tensor) -> Tensor:
    """Strength of the finest detail of pictures (B, 3, H, W) at each pixel: (B, 1, H, W), image units.

    The root mean square, over 7 × 7 pixels and all channels, of what a binomial filter of 3 × 3 takes away.
    """
    taps = torch.tensor([0.25, 0.5, 0.25]).to(x).view(1, 1, 1, 3)
    alone = x.flatten(0, 1)[:, None]
    smooth = F.conv2d(F.conv2d(F.pad(alone, (1, 1, 1, 1), mode="replicate"), taps), taps.mT)
    energy = (alone - smooth).square().view_as(x).mean(1, keepdim=True)
    return F.avg_pool2d(F.pad(energy, (WINDOW // 2,) * 4, mode="replicate"), WINDOW, 1).sqrt()
