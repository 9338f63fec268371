"""Weights that go to and fro between two codes in training are frozen."""

from __future__ import annotations

import torch

from bayesq.quantization.learned import LearnedConv

MEMORY = 0.02
"""Share of the latest step in running means."""


class Oscillations:
    """Watches the codes of a layer in training, and freezes those that turn back too often where they mostly were.

    What is rounded is passed straight through, so that a weight whose best value lies between two codes is driven over
    their border again and again, and where it stands at the end is chance. A turn is a change of code against the
    direction of the change before; the share of steps with one is a running mean,

        f ← m · turn + (1 − m) f,

    and where it exceeds the threshold the weight has the rounded running mean of its codes from then on (Nagel et al.,
    arXiv 2203.08086, iterative freezing).

    Args:
        layer: In training.
        most: The threshold, a share of steps; one turn counts ``MEMORY``.
    """

    def __init__(self, layer: LearnedConv, most: float) -> None:
        self.layer, self.most = layer, most
        self._codes = layer.layer.grid.index(layer.weight)
        self._mean = self._codes.float()
        self._direction = torch.zeros_like(self._codes)
        self._turns = torch.zeros_like(self._mean)
        self.frozen = torch.zeros_like(self._codes, dtype=torch.bool)

    @torch.no_grad()
    def __call__(self) -> None:
        """To be called after every step of the optimiser."""
        weight, grid = self.layer.weight, self.layer.layer.grid
        move = torch.where(self.frozen, 0, (codes := grid.index(weight)) - self._codes).sign()
        turn = move * self._direction < 0
        self._turns += MEMORY * (turn.float() - self._turns)
        self._direction = torch.where(move == 0, self._direction, move)
        self._codes = torch.where(self.frozen, self._codes, codes)
        self._mean += MEMORY * (self._codes - self._mean)
        caught = (self._turns > self.most) & ~self.frozen
        self._codes = torch.where(caught, self._mean.round().int(), self._codes)
        self.frozen |= caught
        weight.copy_(torch.where(self.frozen, grid.value(self._codes), weight))
