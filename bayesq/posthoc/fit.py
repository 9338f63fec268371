"""What the networks laid over a restorer share: their shape, and how they are trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR


def convolutions(inputs: int, start: Tensor, width: int, depth: int) -> nn.Sequential:
    """So many 3×3 convolutions, at least 2, with GELU between them; at first every pixel is given ``start``."""
    sides = [inputs, *[width] * (depth - 1), len(start)]
    layers = [nn.Conv2d(a, b, 3, padding=1, padding_mode="replicate") for a, b in pairwise(sides)]
    last = layers.pop()
    last.load_state_dict({"weight": torch.zeros_like(last.weight), "bias": start})
    return nn.Sequential(*[part for layer in layers for part in (layer, nn.GELU())], last)


def fit(
    network: nn.Module,
    loss: Callable[..., Tensor],
    pairs: Iterable[tuple[Tensor, ...]],
    steps: int = 2000,
    rate: float = 2e-3,
) -> list[float]:
    """Trains by Adam, a step for each pair of batches.

    Args:
        network: What to train, in place.
        loss: Its loss for restored and true pictures, such as ``BayesCap.loss``.
        pairs: Restored and true pictures ``(B, C, H, W)``, and what else the loss is told, for as many steps as there
            are to be, or more.
        steps: At most so many.
        rate: Learning rate at the start; it falls along half a cosine.

    Returns:
        The loss of each step.
    """
    optimiser = Adam(network.parameters(), lr=rate)
    schedule = CosineAnnealingLR(optimiser, steps)
    losses = []
    for _, batch in zip(range(steps), pairs, strict=False):
        value = loss(*batch)
        optimiser.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        losses.append(float(value.detach()))
    return losses
