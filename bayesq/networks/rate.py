"""What varies with the quality: 256 levels, interpolated between a few learned anchors."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayesq.quality import LEVELS

ANCHORS = 9
LAMBDA_MIN, LAMBDA_MAX = 0.0005, 0.2


def rate_weight(level: Tensor) -> Tensor:
    """λ of the loss λ·255²·MSE + bpp at each level: log-spaced from 0.0005 at level 0 to 0.2 at level 255."""
    return LAMBDA_MIN * (LAMBDA_MAX / LAMBDA_MIN) ** (level.float() / (LEVELS - 1))


def decoder_error(level: int) -> float:
    """Standard deviation of the error, image units, of a decoder trained at the level's rate weight λ.

    γ² = 1 / (2 ln 2 · λ · 255²): the variance at which squared error costs as λ says (VBLE, Biquard et al.).
    """
    return float(1 / (2 * math.log(2) * rate_weight(torch.tensor(level)) * 255**2) ** 0.5)


def level_of_noise(sigma: float) -> int:
    """The level at which coding removes most of white noise of standard deviation sigma from a picture.

    It is the one where the decoder's error is 0.87 σ, the best factor on held-out photographs.
    """
    return level_of_error(0.87 * sigma)


def level_of_error(error: float) -> int:
    """The level whose decoder errs by the standard deviation ``error``, or the nearest: inverts ``decoder_error``."""
    weight = 1 / (2 * math.log(2) * (255 * max(error, 1e-4)) ** 2)
    position = math.log(weight / LAMBDA_MIN) / math.log(LAMBDA_MAX / LAMBDA_MIN)
    return round((LEVELS - 1) * min(1.0, max(0.0, position)))


def high_rate_step(weight: Tensor) -> Tensor:
    """Quantiser step (image units) that is optimal at high rate for an orthonormal transform.

    With Δ²/12 = MSE = 3 / (2 ln 2 · λ · 255²): the derivative of the rate, −3/(2 ln 2 MSE) bits per pixel and unit of
    MSE for three channels, balances λ·255².
    """
    return torch.sqrt(12 * 3 / (2 * torch.log(torch.tensor(2.0)) * weight * 255**2))


class Interpolated(nn.Module):
    """A vector of C numbers for each quality level, linear between ``ANCHORS`` equally spaced learned vectors."""

    def __init__(self, channels: int, start: float = 0.0) -> None:
        super().__init__()
        self.anchors = nn.Parameter(torch.full((ANCHORS, channels), start))

    def forward(self, level: Tensor) -> Tensor:
        """Takes levels ``(B,)`` in 0…255 to ``(B, C, 1, 1)``, or maps of them ``(B, 1, H, W)`` to ``(B, C, H, W)``."""
        if level.ndim == 4:
            with torch.autocast(level.device.type, enabled=False):
                return F.conv2d(self._shares(level), self.anchors.mT[..., None, None])
        shares = self._shares(level)[:, :, None]
        return (shares * self.anchors).sum(1)[:, :, None, None]  # no matrix product, which autocast would round

    def _shares(self, level: Tensor) -> Tensor:
        """How much each anchor counts, ``(B, ANCHORS)``, or for maps ``(B, ANCHORS, H, W)``."""
        position = level.to(self.anchors.dtype) * ((ANCHORS - 1) / (LEVELS - 1))
        ticks = torch.arange(ANCHORS, device=level.device, dtype=position.dtype)
        if level.ndim == 4:
            return (1 - (position - ticks[:, None, None]).abs()).clamp_min(0)
        return (1 - (position[:, None] - ticks).abs()).clamp_min(0)

    @torch.no_grad()
    def fit(self, vectors: Tensor) -> None:
        """Sets the anchors to what comes nearest to the vectors of all levels, ``(LEVELS, C)``."""
        shares = self._shares(torch.arange(LEVELS)).double()
        self.anchors.copy_(torch.linalg.lstsq(shares, vectors.double()).solution)
