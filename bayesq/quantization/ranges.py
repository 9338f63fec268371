"""How much of a row's span its codes cover: rules of one signature, ``Range``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesq.quantization.formats.base import whole_range as whole_range


@dataclass(frozen=True)
class Percentile:
    """The magnitude below which this share of a row's values lies, over the largest."""

    share: float = 0.999

    def __call__(self, rows: Tensor, importance: Tensor, quantised: Callable[[Tensor], Tensor]) -> Tensor:
        magnitudes = rows.abs().sort(1).values
        place = min(round(self.share * (rows.shape[1] - 1)), rows.shape[1] - 1)
        return (magnitudes[:, place, None] / magnitudes[:, -1:].clamp_min(1e-30)).clamp(1e-3, 1)


@dataclass(frozen=True)
class LeastError:
    """The share of least squared error, found by trying.

    Args:
        weighted: Weight errors by importance. With the squared gradients of λ·D + R as importance this is clipping
            driven by rate and distortion, to second order and with the diagonal of Fisher's information for curvature.
        least, tried: The smallest share and how many are tried.
    """

    weighted: bool = False
    least: float = 0.35
    tried: int = 27

    def __call__(self, rows: Tensor, importance: Tensor, quantised: Callable[[Tensor], Tensor]) -> Tensor:
        best = torch.ones_like(rows[:, :1])
        least = torch.full_like(best, torch.inf)
        for share in torch.linspace(1, self.least, self.tried).tolist():
            error = (quantised(torch.full_like(best, share)) - rows).square()
            error = (error * importance if self.weighted else error).sum(1, keepdim=True)
            best, least = torch.where(error < least, share, best), torch.minimum(error, least)
        return best


LEAST_HARM = LeastError(weighted=True)
"""Least error weighted by the loss' sensitivity."""
