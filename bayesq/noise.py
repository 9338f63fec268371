"""How noisy a picture is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bayesq.errors import ImageError

if TYPE_CHECKING:
    from bayesq.operators import JPEG

PATCH = 8
MIN_SIZE = 48
MOST_PATCHES = 2**17
"""About how many of a large picture count."""
MIN_BLOCKS = 200


def estimate_sigma(y: Tensor) -> float:
    """Estimates the standard deviation of the white Gaussian noise of a picture, in its own units.

    Natural patches span few dimensions, so the smallest eigenvalues of the covariance of 8x8 colour patches are the
    noise's alone and all alike. The estimate is the mean of the largest set of smallest eigenvalues of which the mean
    does not exceed the median (Chen, Zhu and Heng, "An Efficient Statistical Method for Image Noise Level Estimation",
    ICCV 2015, algorithm 1).

    It needs noise that is independent from pixel to pixel, hence works as well on a picture blurred before the noise
    came, and not on one that was resized, compressed or masked afterwards. On a photograph without added noise it
    returns the sensor's own, commonly 0.5 to 2 / 255; on a constant picture 0. Noise that saturates at black or white
    is underestimated, as is fitting: it was clipped.

    Args:
        y: pictures (B, C, H, W) of one noise level, H and W at least 48; equal channels count as one.

    Raises:
        ImageError: the picture is too small, or has values that are not finite.
    """
    if min(y.shape[-2:]) < MIN_SIZE:
        raise ImageError(f"noise cannot be estimated on a picture smaller than {MIN_SIZE}x{MIN_SIZE} pixels")
    if not bool(y.isfinite().all()):
        raise ImageError("noise cannot be estimated on a picture with values that are not finite")
    if torch.equal(y, y[:, :1].expand_as(y)):
        y = y[:, :1]
    height, width = y.shape[-2:]
    stride = max(3, math.isqrt(height * width // MOST_PATCHES)) if min(height, width) >= 128 else 1
    patches = y.detach().unfold(2, PATCH, stride).unfold(3, PATCH, stride).permute(0, 2, 3, 1, 4, 5)
    patches = patches.reshape(-1, y.shape[1] * PATCH**2)
    variances = torch.linalg.eigvalsh(torch.cov(patches.T).double()).clamp_min(0)
    for count in range(len(variances), 1, -1):
        smallest = variances[:count]
        if smallest.mean() <= (smallest[(count - 1) // 2] + smallest[count // 2]) / 2:
            return float(smallest.mean().sqrt())
    return float(variances[0].sqrt())


def estimate_masked_sigma(y: Tensor, observed: Tensor) -> float:
    """Estimates the standard deviation of white Gaussian noise from the pixels that a mask keeps.

    The median absolute value of the finest diagonal Haar coefficients, (a - b - c + d) / 2 over 2x2 pixels all of them
    observed, over that of a standard normal variable, 0.6745 (Donoho and Johnstone, "Ideal spatial adaptation by
    wavelet shrinkage", Biometrika 1994). Texture adds to it: on a clean photograph it finds 1 to 4 / 255.

    Args:
        y: pictures (B, C, H, W) of one noise level.
        observed: 1 where a pixel is observed, 0 elsewhere, broadcastable to y.

    Raises:
        ImageError: fewer than `MIN_BLOCKS` blocks of 2x2 pixels are observed.
    """

    def combine(v: Tensor, sign: int) -> Tensor:
        return v[..., :-1, :-1] + sign * (v[..., :-1, 1:] + v[..., 1:, :-1]) + v[..., 1:, 1:]

    whole = combine(observed.expand_as(y), 1) == 4
    if int(whole.sum()) < MIN_BLOCKS:
        raise ImageError("noise cannot be estimated from so few neighbouring observed pixels")
    return float(combine(y, -1)[whole].abs().median()) / 2 / 0.6745


def estimate_coded_sigma(y: Tensor, physics: JPEG) -> float:
    """Estimates the standard deviation of the white Gaussian noise that a picture had before it became a JPEG file.

    The median over the 6 highest frequencies of the variance of luma's coefficients, less the variance step² / 12
    that rounding gives them (Sheppard's correction). Noise of less than about half a step was rounded away, and is
    underestimated, down to 0.

    Args:
        y: coefficients (1, N) of a file.
        physics: its operator.
    """
    rows, columns = physics.blocks[0]
    luma, steps = (v[0, : 64 * rows * columns].view(-1, 8, 8) for v in (y, physics.noise_model.step))
    high = torch.arange(8)[:, None] + torch.arange(8) >= 12
    excess = luma[:, high].var(0, unbiased=False) - steps[0, high].square() / 12
    gain = float(physics.colours[0].norm())
    return float(excess.median().clamp_min(0).sqrt()) / gain
