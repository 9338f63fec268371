"""Forward operators: what a person types, made into a deepinv ``Physics``.

Every builder returns a linear operator A acting on pictures (B, 3, H, W) in [0, 1] and carrying its white Gaussian
noise of standard deviation ``sigma`` (same units), so that one object says all that is known of y = A x + n. Any other
deepinv operator is as welcome as these: only :func:`initial_image` treats the common ones specially.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from deepinv.physics import (
    Decolorize,
    Demosaicing,
    Denoising,
    GaussianNoise,
    Inpainting,
    LinearPhysics,
    NoiseModel,
    Physics,
    PoissonGaussianNoise,
    PoissonNoise,
    StructuredRandom,
)
from deepinv.physics.functional import dst1
from numpy.typing import ArrayLike
from torch import Tensor

from bayesq.errors import OperatorError
from bayesq.operators.classes import BicubicDownsampling, EdgeBlur, Rounding
from bayesq.operators.jpeg import JPEG, open_jpeg
from bayesq.operators.parse import Size, by, parse_kernel, parse_mask, parse_noise, random_mask
from bayesq.operators.start import fill_holes, has_start, initial_image, sharpen, stated_noise

__all__ = [
    "JPEG",
    "TASKS",
    "BicubicDownsampling",
    "EdgeBlur",
    "Rounding",
    "Size",
    "blur",
    "colorize",
    "compress",
    "degrade",
    "demosaic",
    "denoise",
    "downsample",
    "fill_holes",
    "has_start",
    "initial_image",
    "inpaint",
    "open_jpeg",
    "parse_kernel",
    "parse_mask",
    "parse_noise",
    "photons",
    "random_mask",
    "sharpen",
    "stated_noise",
]


def denoise(size: Size, sigma: float | str) -> LinearPhysics:
    """Builds the identity operator with noise; ``size`` is (H, W), unused, and there for the builders to agree."""
    return Denoising(GaussianNoise(parse_noise(sigma)))


def blur(kernel: str | Path | ArrayLike | Tensor, size: Size, sigma: float | str) -> LinearPhysics:
    """Builds a convolution whose output has the picture's size.

    Beyond the border the scene is taken to repeat its edge pixel (``padding="replicate"``): unlike a circular
    convolution it never mixes opposite edges, and unlike a "valid" one it leaves y the size of the picture. The
    likelihood then is exact for pictures degraded this way, and an approximation within half a kernel of the border for
    a camera's, which does see beyond the edge.

    Args:
        kernel: whatever :func:`parse_kernel` accepts.
        size: (H, W) of the picture.
        sigma: noise standard deviation, as :func:`parse_noise` accepts it.

    Raises:
        OperatorError: the kernel is malformed or larger than the picture.
    """
    taps = parse_kernel(kernel)
    if taps.shape[-2] > size[0] or taps.shape[-1] > size[1]:
        raise OperatorError(f"the {by(taps.shape[-2:])} kernel is larger than the {by(size)} picture")
    return EdgeBlur(taps, GaussianNoise(parse_noise(sigma)))


def downsample(factor: int, size: Size, sigma: float | str) -> LinearPhysics:
    """Builds the bicubic reduction by ``factor`` of a picture of ``size`` (H, W), with noise.

    Raises:
        OperatorError: the factor is not an integer from 1 to the smaller side of the picture.
    """
    if not isinstance(factor, int) or factor < 1:
        raise OperatorError(f"the scale must be an integer of at least 1: {factor}")
    if factor > min(size):
        raise OperatorError(f"a {by(size)} picture is too small for a scale of {factor}")
    return BicubicDownsampling(factor, size, GaussianNoise(parse_noise(sigma)))


def inpaint(mask: str | Path | ArrayLike | Tensor, size: Size, sigma: float | str) -> LinearPhysics:
    """Builds the operator that keeps the pixels where the mask is 1 and blanks the others.

    Args:
        mask: whatever :func:`parse_mask` accepts.
        size: (H, W) of the picture.
        sigma: noise standard deviation of the kept pixels, as :func:`parse_noise` accepts it.
    """
    observed = parse_mask(mask, size)
    return Inpainting((3, *size), mask=observed, noise_model=GaussianNoise(parse_noise(sigma)))


def demosaic(size: Size, sigma: float | str) -> LinearPhysics:
    """Builds the Bayer sensor (deepinv's): of each pixel one colour is seen, blue first in even rows, red last in odd.

    y has three channels (B, 3, H, W), zero where a colour is not seen; their sum is the mosaic as cameras store it.
    """
    return Demosaicing((3, *size), noise_model=GaussianNoise(parse_noise(sigma)))


def colorize(size: Size, sigma: float | str) -> LinearPhysics:
    """Builds the luma of a picture, y (B, 1, H, W) (deepinv's, Rec. 601); ``size`` is unused, as for ``denoise``."""
    return Decolorize(noise_model=GaussianNoise(parse_noise(sigma)))


def compress(share: float, size: Size, sigma: float | str, seed: int = 0) -> LinearPhysics:
    """Builds compressive measurements: random signs, sine transform of each channel, a window of its coefficients.

    deepinv's ``StructuredRandom``; the rows of A are orthonormal, so that A A^T is the identity.

    Args:
        share: about how many of the picture's values are measured, in (0, 1].
        size: (H, W) of the picture.
        sigma: noise standard deviation, as :func:`parse_noise` accepts it.
        seed: of the signs.

    Raises:
        OperatorError: the share is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise OperatorError(f"the share of measurements must be in (0, 1]: {share}")
    kept = [max(1, round(side * math.sqrt(share))) for side in size]
    transform = partial(dst1, dim=(-2, -1))
    return StructuredRandom(
        (3, *size),
        (3, *kept),
        transform_func=transform,
        transform_func_inv=transform,
        rng=torch.Generator().manual_seed(seed),
        noise_model=GaussianNoise(parse_noise(sigma)),
    )


def photons(count: float, sigma: float | str = 0.0) -> NoiseModel:
    """The noise of light: a white pixel sends ``count`` photons on the mean, and a sensor adds noise of its own.

    Args:
        count: positive and finite.
        sigma: standard deviation of the sensor's noise, as for the operators.

    Raises:
        OperatorError: the count or the level makes no sense.
    """
    if not 0 < count < math.inf:
        raise OperatorError(f"the number of photons must be positive and finite: {count}")
    level = parse_noise(sigma)
    if level:
        return PoissonGaussianNoise(gain=1 / count, sigma=level, clip_positive=True)
    return PoissonNoise(gain=1 / count, clip_positive=True)


def degrade(x: Tensor, physics: Physics, generator: torch.Generator) -> Tensor:
    """Draws a measurement y of ``x`` (B, 3, H, W) from the operator and its noise, leaving ``physics`` as it was.

    deepinv draws from a copy of the generator; here it advances, so that the next draw is another.
    """
    noise, own = physics.noise_model, physics.noise_model.rng
    noise.rng = generator
    try:
        with torch.no_grad():
            y = physics(x)
        if noise.rng is not generator:
            generator.set_state(noise.rng.get_state())
        return y
    finally:
        noise.rng = own


TASKS: dict[str, Callable[..., LinearPhysics]] = {
    "denoise": denoise,
    "deblur": blur,
    "superres": downsample,
    "inpaint": inpaint,
    "demosaic": demosaic,
    "colorize": colorize,
}
"""Builders by the names of the tasks, called as ``build(*setting, size, sigma)``."""
