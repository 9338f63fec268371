"""Gradients of what has none: rounding."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def rounded(real: Tensor, sharpness: float | None = None) -> Tensor:
    """The nearest integers, with a gradient: the identity's, or one that is larger near the borders of a cell.

    The latter, with β for sharpness, is the slope of soft rounding,

        ½ tanh(β (f − ½)) / tanh(β / 2) + ½,   f the fractional part,

    DynaQuant's distance-aware gradient (arXiv 2511.07903), normalised so that a whole step is a whole step for any β.
    """
    if sharpness is None:
        soft = real
    else:
        whole = real.detach().floor()
        soft = whole + torch.tanh(sharpness * (real - whole - 0.5)) / (2 * math.tanh(sharpness / 2)) + 0.5
    return soft + (real.round() - soft).detach()
