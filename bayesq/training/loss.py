"""The rate–distortion loss of a variable-rate codec."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bayesq.codec import Codec
from bayesq.networks.rate import LAMBDA_MAX, LEVELS, rate_weight
from bayesq.prior import relax

BALANCE = 0.45


@dataclass(frozen=True)
class RateDistortion:
    """Loss and its parts for each picture of a batch, all ``(B,)``: bpp is an estimate in bits per pixel."""

    loss: Tensor
    bpp: Tensor
    mse: Tensor


class RateDistortionLoss(nn.Module):
    """λ·255²·MSE + bpp at a quality of its own for each picture.

    Pictures are weighted by λ^−0.45, which makes up for the larger loss at high quality, so that relative changes of
    the rate count about equally at all qualities.

    Args:
        codec: What is trained.
        bfloat16: Run what may be inexact in bfloat16: all but the linear branches and the scale path.
    """

    def __init__(self, codec: Codec, bfloat16: bool = False) -> None:
        super().__init__()
        self.codec, self.autocast = codec, bfloat16

    def forward(self, x: Tensor, level: Tensor, generator: torch.Generator) -> RateDistortion:
        """Args: x ``(B, 3, H, W)``, level ``(B,)`` int64, generator of the rate's noise."""
        batch, _, height, width = x.shape
        codec = self.codec
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            targets = codec.prior.targets(codec.analysis(x, level).float(), level)
            relaxed = relax(codec.walk(batch, height, width, level), targets, generator)
            decoded = codec.picture(relaxed.values, height, width, level).float()
        mse = (decoded - x).square().flatten(1).mean(1)
        bpp = relaxed.log_density / (-math.log(2) * height * width)
        weight = rate_weight(level)
        loss = (weight * 255**2 * mse + bpp) * (LAMBDA_MAX / weight) ** BALANCE
        return RateDistortion(loss, bpp, mse)


def draw_levels(count: int, generator: torch.Generator) -> Tensor:
    """Quality levels ``(count,)``, stratified over the whole range."""
    places = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
    return (places * LEVELS).long().clamp_max(LEVELS - 1)
