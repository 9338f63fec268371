"""The cell: a box of latent space, the one notion that coding and inference share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cell:
    """The uniform law on ``centre ± width / 2``, element by element.

    A coded latent is the cell of its quantiser, a variational posterior is a cell with a learned width, and a
    point estimate is a cell of width zero.

    Attributes:
        centre: ``(B, C, h, w)``, latent units.
        width: Broadcastable to ``centre``, not negative.
        point: What a coded latent is decoded to, where that is not the centre.
    """

    centre: Tensor
    width: Tensor
    point: Tensor | None = None

    @property
    def value(self) -> Tensor:
        """What a coded latent is decoded to."""
        return self.centre if self.point is None else self.point

    @property
    def lower(self) -> Tensor:
        return self.centre - self.width / 2

    @property
    def upper(self) -> Tensor:
        return self.centre + self.width / 2

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws ``(n, B, C, h, w)`` values, differentiable in ``centre`` and ``width`` (reparametrised)."""
        noise = torch.rand((n, *self.centre.shape), generator=generator, device=self.centre.device)
        return self.centre + self.width * (noise - 0.5).to(self.centre.dtype)

    def contains(self, value: Tensor) -> Tensor:
        """Tells element by element whether ``value`` lies in the closed cell."""
        return (value >= self.lower) & (value <= self.upper)
