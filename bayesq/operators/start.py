"""First estimates: where iterative restoration starts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from deepinv.physics import (
    Blur,
    Decolorize,
    Demosaicing,
    Denoising,
    Downsampling,
    Inpainting,
    LinearPhysics,
    Physics,
    StructuredRandom,
)
from torch import Tensor

from bayesq.errors import OperatorError
from bayesq.operators.classes import BicubicDownsampling
from bayesq.operators.jpeg import JPEG


def initial_image(y: Tensor, physics: Physics) -> Tensor:
    """Computes a quick first estimate of the picture, where iterative restoration starts.

    The measurement itself for denoising; a pull-push filling of the holes for inpainting; for deblurring and
    super-resolution a Tikhonov-regularised inverse around the measurement or its bicubic enlargement; for any other
    operator A⁺y, or Aᵀy where that is not finite.

    Args:
        y: measurement, (B, 3, h, w) for the usual operators.
        physics: the operator that made it.

    Returns:
        Tensor (B, 3, H, W) in [0, 1].

    Raises:
        OperatorError: the estimate is not finite.
    """
    with torch.no_grad():
        start = next((start for operators, start in STARTS if isinstance(physics, operators)), None)
        x = start(y, physics) if start else physics.A_dagger(y)
        if not (start or x.isfinite().all()):
            x = physics.A_adjoint(y)
    if not x.isfinite().all():
        raise OperatorError("the operator, or the measurement, has values that are not finite")
    return x.clamp(0, 1)


def fill_holes(y: Tensor, observed: Tensor) -> Tensor:
    """Fills the unobserved pixels of a picture smoothly, by pull-push over a pyramid (Gortler et al., 1996).

    Observed pixels are averaged over 2x2 blocks until no hole is left; on the way back each level's holes are filled
    by enlarging the level above, then smoothed by two Jacobi steps towards the harmonic filling (Laplace's equation).

    Args:
        y: pictures (B, C, H, W); what stands in the holes is ignored.
        observed: 1 where a pixel is known, 0 in holes, broadcastable to y; each picture has a known pixel a channel.
    """
    known = observed.expand_as(y)
    if bool(known.all()):
        return y
    if max(y.shape[-2:]) == 1:
        return y * known
    weight = F.avg_pool2d(known, 2, ceil_mode=True)
    total = F.avg_pool2d(y * known, 2, ceil_mode=True)
    coarse = fill_holes(total / weight.clamp_min(1e-6), (weight > 0).to(y))
    x = F.interpolate(coarse, scale_factor=2, mode="bilinear")[..., : y.shape[-2], : y.shape[-1]]
    x = torch.where(known > 0, y, x)
    for _ in range(2):
        z = F.pad(x, (1, 1, 1, 1), mode="replicate")
        mean = (z[..., :-2, 1:-1] + z[..., 2:, 1:-1] + z[..., 1:-1, :-2] + z[..., 1:-1, 2:]) / 4
        x = torch.where(known > 0, y, mean)
    return x


def sharpen(x: Tensor, y: Tensor, physics: LinearPhysics) -> Tensor:
    """Computes argmin_u ‖A u − y‖² / σ² + ‖u − x‖² / τ², by ten steps of conjugate gradients from u = x.

    A picture is taken to differ from x by τ = 0.1: what the measurement fixes within its noise is taken from it, and
    the rest stays as it is in x. Started here, a posterior search on a blurred picture needs a fraction of the steps.

    Args:
        x: first guess (B, 3, H, W).
        y: measurement.
        physics: a linear operator with Gaussian noise.
    """
    ridge = max(stated_noise(physics), 1 / 255) ** 2 / 0.1**2
    step = torch.zeros_like(x)
    residual = physics.A_adjoint(y - physics.A(x))
    direction, energy = residual, _inner(residual, residual)
    for _ in range(10):
        image = physics.A_adjoint(physics.A(direction)) + ridge * direction
        rate = energy / _inner(direction, image).clamp_min(1e-20)
        step, residual = step + rate * direction, residual - rate * image
        energy, before = _inner(residual, residual), energy
        direction = residual + energy / before.clamp_min(1e-20) * direction
    return x + step


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1).view(-1, *[1] * (a.ndim - 1))


def stated_noise(physics: Physics) -> float:
    """Standard deviation of the noise that an operator states, image units; of photons, that at mid-grey.

    The mean over values and pictures where these differ; 0 if the noise is of another kind.
    """
    gain, sigma = (getattr(physics.noise_model, name, None) for name in ("gain", "sigma"))
    variance = 0.0 if gain is None else float(gain.mean()) / 2
    return math.sqrt(variance + (0.0 if sigma is None else float(sigma.mean())) ** 2)


def _start_denoise(y: Tensor, physics: Physics) -> Tensor:
    return y


def _start_deblur(y: Tensor, physics: Blur) -> Tensor:
    x = y
    if physics.padding == "valid":
        kh, kw = physics.filter.shape[-2:]
        x = F.pad(y, ((kw - 1) // 2, kw // 2, (kh - 1) // 2, kh // 2), mode="replicate")
    return sharpen(x, y, physics)


def _start_superres(y: Tensor, physics: BicubicDownsampling | Downsampling) -> Tensor:
    height, width = physics.A_adjoint(y).shape[-2:]
    x = F.interpolate(y, scale_factor=physics.factor, mode="bicubic")[..., :height, :width]
    return sharpen(F.pad(x, (0, width - x.shape[-1], 0, height - x.shape[-2]), mode="replicate"), y, physics)


def _start_inpaint(y: Tensor, physics: Inpainting) -> Tensor:
    return fill_holes(y, physics.mask)


def _start_demosaic(y: Tensor, physics: Demosaicing) -> Tensor:
    """Fills green, then the differences of red and blue from it, which are smoother than they are themselves."""
    green = fill_holes(y[:, 1:2], physics.mask[:, 1:2])
    return green + fill_holes(y - physics.mask * green, physics.mask)


def _start_colorize(y: Tensor, physics: Decolorize) -> Tensor:
    return y.expand(-1, 3, -1, -1) / physics.srf.sum()


def _start_compress(y: Tensor, physics: StructuredRandom) -> Tensor:
    """Alternates between the pictures that fit the measurement and smooth ones, of ever finer detail."""
    x = torch.full_like(physics.A_adjoint(y), 0.5)
    for width in torch.linspace(4, 0.6, 24).tolist():
        x = _smooth(x + physics.A_adjoint(y - physics.A(x)), width)
    return x


def _smooth(x: Tensor, width: float) -> Tensor:
    """Blurs by a Gaussian of the given standard deviation, pixels."""
    t = torch.arange(-math.ceil(3 * width), math.ceil(3 * width) + 1)
    taps = torch.exp(-(t**2) / (2 * width**2))
    taps = (taps / taps.sum()).expand(x.shape[1], 1, 1, -1)
    reach = len(t) // 2
    x = F.conv2d(F.pad(x, (reach, reach, 0, 0), mode="replicate"), taps, groups=x.shape[1])
    return F.conv2d(F.pad(x, (0, 0, reach, reach), mode="replicate"), taps.mT, groups=x.shape[1])


def _start_jpeg(y: Tensor, physics: JPEG) -> Tensor:
    return physics.A_dagger(y)


Start = Callable[[Tensor, Any], Tensor]

STARTS: tuple[tuple[type[Physics] | tuple[type[Physics], ...], Start], ...] = (
    (Denoising, _start_denoise),
    (Blur, _start_deblur),
    ((BicubicDownsampling, Downsampling), _start_superres),
    (Demosaicing, _start_demosaic),
    (Inpainting, _start_inpaint),
    (Decolorize, _start_colorize),
    (StructuredRandom, _start_compress),
    (JPEG, _start_jpeg),
)
"""The estimate of each kind of operator; the first that fits is taken."""


def has_start(physics: Physics) -> bool:
    """Whether an operator is of a kind that ``initial_image`` knows, or its estimate is A⁺y, which may be far off."""
    return any(isinstance(physics, operators) for operators, _ in STARTS)
