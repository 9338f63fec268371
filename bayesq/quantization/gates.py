"""Bits as random variables: gates learn how probable each format is, and the integer program takes the likeliest.

A layer's weights are a sum of what each finer format adds to the coarser one before, gated one inside the other,

    w = w₁ + g₂ · (w₂ − w₁ + g₃ · (w₃ − w₂ + …)),

as in Bayesian Bits (van Baalen et al., arXiv 2005.07093), where the formats are integers of 2, 4, 8, 16 bits. The gates
are hard concrete variables (Louizos et al., arXiv 1712.01312), a variational posterior whose bound,

    E_q[loss] + price · E_q[bits],

is descended by stochastic gradients through the codec. What is learned is q(format) of every layer, and −log q is the
harm: the allocation of least harm within a budget is the likeliest one that the budget allows.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from bayesq.codec import Codec
from bayesq.quantization.calibration import Batch, losses
from bayesq.quantization.draft import Draft
from bayesq.quantization.formats import Format, Range
from bayesq.quantization.layers import replace
from bayesq.quantization.rounding import nearest
from bayesq.training.loss import RateDistortionLoss

TEMPERATURE, LOW, HIGH = 2 / 3, -0.1, 1.1
"""Of the hard concrete law: β, γ and ζ."""
START = 2.0
"""Logit of a gate that is rather open."""


def opened(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Draws of hard concrete gates in [0, 1], with positive probability at either end."""
    uniform = torch.rand(logits.shape, generator=generator).clamp(1e-6, 1 - 1e-6)
    soft = torch.sigmoid((torch.logit(uniform) + logits) / TEMPERATURE)
    return (soft * (HIGH - LOW) + LOW).clamp(0, 1)


def chances(logits: Tensor) -> Tensor:
    """q(format) ``(L, K)`` of gates ``(L, K − 1)``: the gates before it are not shut, its own successor is."""
    free = torch.sigmoid(logits - TEMPERATURE * math.log(-LOW / HIGH))
    reached = torch.cat([torch.ones_like(free[:, :1]), free.cumprod(1)], 1)
    return reached * torch.cat([1 - free, torch.ones_like(free[:, :1])], 1)


@dataclass(frozen=True)
class Gates:
    """−log q(format) of gates that were trained for a while.

    Attributes:
        steps: Of Adam, each on one crop.
        rate: Its learning rate.
        price: Of one bit a weight more, in all layers, in units of the floating-point codec's loss.
    """

    steps: int = 96
    rate: float = 0.15
    price: float = 0.005

    def __call__(
        self, codec: Codec, drafts: Mapping[str, Draft], formats: Sequence[Format], span: Range, batch: Batch
    ) -> np.ndarray:
        codec, crops = copy.deepcopy(codec).requires_grad_(False), list(batch.split())
        with torch.no_grad():
            exact = [float(losses(codec, crop).mean()) for crop in crops]
        order = sorted(range(len(formats)), key=lambda k: formats[k].bits)
        sums = {}
        for name, draft in drafts.items():
            layers = [nearest(draft, formats[k], span).layer() for k in order]
            sums[name] = torch.stack([layer.weight for layer in layers])
            replace(codec, name, layers[-1])
        counts = torch.tensor([float(draft.weight.numel()) for draft in drafts.values()])
        bits = torch.tensor([float(formats[k].bits) for k in order])
        logits = torch.full((len(drafts), len(formats) - 1), START, requires_grad=True)
        optimiser, generator = torch.optim.Adam([logits], self.rate), torch.Generator().manual_seed(0)
        loss = RateDistortionLoss(codec)
        with torch.enable_grad():
            for step in range(self.steps):
                crop = crops[step % len(crops)]
                nested = opened(logits, generator).cumprod(1)
                weights = {
                    f"codec.{name}.weight": parts[0] + torch.einsum("k,k...->...", gates, parts.diff(dim=0))
                    for (name, parts), gates in zip(sums.items(), nested, strict=True)
                }
                noise = torch.Generator().manual_seed(0)
                harm = functional_call(loss, weights, (crop.pictures, crop.levels, noise)).loss.mean()
                mean_bits = counts / counts.sum() @ (chances(logits) @ bits)
                optimiser.zero_grad()
                (harm / exact[step % len(crops)] + self.price * mean_bits).backward()
                optimiser.step()
        chance = np.empty((len(drafts), len(formats)))
        chance[:, order] = chances(logits.detach().double()).clamp_min(1e-12).numpy()
        return -np.log(chance)
