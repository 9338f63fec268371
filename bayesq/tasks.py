"""A file and what is known of how it was spoilt, made into a measurement, an operator and a likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from deepinv.physics import GaussianNoise, LinearPhysics
from PIL import Image
from torch import Tensor

from bayesq import jpegfile, operators
from bayesq.errors import ImageError, OperatorError
from bayesq.io import is_grey, to_tensor
from bayesq.likelihoods import Gaussian, Likelihood, UnknownGaussian, from_physics, weighted
from bayesq.noise import estimate_coded_sigma, estimate_masked_sigma, estimate_sigma
from bayesq.operators import TASKS, open_jpeg, parse_mask, parse_noise

COLOURED = ("demosaic", "colorize")
"""Tasks of which the measurement is a grey picture, and the restoration is not."""


@dataclass(frozen=True)
class Measurement:
    """What ``bayesq.restore`` needs to know.

    Attributes:
        task: what was found to be the matter.
        y: the measured values.
        physics: the operator, with its noise.
        likelihood: p(y | x).
        sigma: standard deviation of the noise, given or measured, image units.
        grey: whether the picture has no colours.
    """

    task: str
    y: Tensor
    physics: LinearPhysics
    likelihood: Likelihood
    sigma: float
    grey: bool

    @property
    def summary(self) -> str:
        """What was found, in a few words."""
        noise = f"noise of {255 * self.sigma:.2f}/255"
        if self.task != "jpeg":
            return f"{self.task}: {noise}"
        step = 255 * float(self.physics.noise_model.step.median())
        return f"jpeg: rounding in steps of {step:.0f}/255 (median), {noise} before it"


def take(
    task: str,
    image: Image.Image,
    data: bytes,
    setting: Sequence[Any],
    noise: str = "auto",
    photons: float | None = None,
) -> Measurement:
    """Takes a file for a measurement.

    Args:
        task: a name of ``TASKS``, or ``jpeg``, or ``auto``: the former for a JPEG file of which the
            coefficients can be read, ``denoise`` for any other.
        image: the picture that the file holds.
        data: the file.
        setting: what the operator of the task takes before size and noise: kernel, scale or mask.
        noise: its standard deviation, ``auto`` to measure it first, or ``infer`` to leave it to the inference.
        photons: how many a white pixel sends; ``noise`` is the sensor's alone then, and ``auto`` none.

    Raises:
        ImageError: the noise cannot be measured, or the file is no JPEG where one is meant.
        OperatorError: the setting or the noise level makes no sense.
    """
    if photons is not None:
        return _take_photons(task, image, setting, noise, photons)
    if task == "auto":
        with suppress(ImageError):
            return _take_jpeg(image, data, noise)
        task = "denoise"
    if task == "jpeg":
        return _take_jpeg(image, data, noise)
    known = noise not in ("auto", "infer")
    y, physics = _posed(task, image, setting, parse_noise(noise) if known else 0.0)
    sigma = parse_noise(noise) if known else _measured(task, y, setting)
    if not known:
        physics.noise_model = GaussianNoise(sigma)
    grey = is_grey(image) and task not in COLOURED
    likelihood: Likelihood
    if noise == "infer":
        likelihood = weighted(UnknownGaussian(physics), 1 / 3 if grey else 1.0)
    else:  # the three channels of a grey picture are one observation, and so is their noise
        likelihood = Gaussian(physics, sigma * 3**0.5 if grey else sigma)
    return Measurement(task, y, physics, likelihood, sigma, grey)


def _posed(task: str, image: Image.Image, setting: Sequence[Any], sigma: float) -> tuple[Tensor, LinearPhysics]:
    """The measured values that a picture holds, and their operator with white noise."""
    y = to_tensor(image)
    scale = setting[0] if task == "superres" else 1
    physics = TASKS[task](*setting, (y.shape[2] * scale, y.shape[3] * scale), sigma)
    if task == "demosaic":
        y = y.mean(1, keepdim=True) * physics.mask
    elif task == "colorize":
        y = physics.A(y)
    return y, physics


def _take_photons(task: str, image: Image.Image, setting: Sequence[Any], noise: str, count: float) -> Measurement:
    if task in ("jpeg", "auto"):
        raise OperatorError(f"photons are counted in measurements by operators that are named, not in those of {task}")
    if noise == "infer":
        raise OperatorError("the sensor's noise is given beside a number of photons, not inferred")
    y, physics = _posed(task, image, setting, 0.0)
    physics.noise_model = operators.photons(count, 0.0 if noise == "auto" else noise)
    grey = is_grey(image) and task not in COLOURED
    likelihood = weighted(from_physics(physics), 1 / 3 if grey else 1.0)
    return Measurement(task, y, physics, likelihood, operators.stated_noise(physics), grey)


def _take_jpeg(image: Image.Image, data: bytes, noise: str) -> Measurement:
    file = jpegfile.read(data)
    if noise == "infer":
        raise OperatorError("the noise of a JPEG file is given or measured, not inferred")
    sigma = estimate_coded_sigma(*open_jpeg(file)) if noise == "auto" else parse_noise(noise)
    y, physics = open_jpeg(file, sigma)
    return Measurement("jpeg", y, physics, from_physics(physics), sigma, is_grey(image))


def _measured(task: str, y: Tensor, setting: Sequence[Any]) -> float:
    if task == "inpaint":
        return estimate_masked_sigma(y, parse_mask(setting[0], (y.shape[2], y.shape[3])))
    if task == "demosaic":  # each of the four places of the pattern is a picture of half the size
        mosaic = y.sum(1, keepdim=True)[..., : y.shape[-2] // 2 * 2, : y.shape[-1] // 2 * 2]
        return estimate_sigma(F.pixel_unshuffle(mosaic, 2))
    return estimate_sigma(y)
