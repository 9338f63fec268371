"""The proximal map of a measurement's misfit."""

from __future__ import annotations

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor


def proximal(x: Tensor, y: Tensor, physics: LinearPhysics, weight: float) -> Tensor:
    """Computes argmin_v weight · ‖y − A v‖² + ‖v − x‖².

    Solved for v − x: deepinv's closed form for operators with a singular value decomposition, such as ``Decolorize``,
    loses the part of x that the operator does not see.

    Args:
        x: pictures (B, C, H, W).
        y: their measurements.
        physics: a linear operator A.
        weight: of the misfit, positive.
    """
    return x + physics.prox_l2(torch.zeros_like(x), y - physics.A(x), weight)
