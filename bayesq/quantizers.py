"""Number formats: the lattices and level sets on which latents, weights and activations are coded."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from bayesq.cells import Cell


class Quantizer(Protocol):
    """A set of codes, the cell of each, and the two relaxations that training and inference use."""

    def index(self, value: Tensor) -> Tensor:
        """Integer code (int32) whose cell holds ``value``."""
        ...

    def value(self, index: Tensor) -> Tensor:
        """What each code is decoded to."""
        ...

    def cell(self, index: Tensor) -> Cell:
        """The cell of each code: all that is coded as it, up to ties."""
        ...

    def straight_through(self, value: Tensor) -> Tensor:
        """``value`` quantised in the forward pass, with the gradient of the identity."""
        ...

    def dither(self, value: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """``value`` plus noise uniform over one cell: the differentiable stand-in for quantisation."""
        ...


class StraightThrough(torch.autograd.Function):
    """Returns the first argument unchanged and sends its gradient to the second."""

    @staticmethod
    def forward(ctx, exact: Tensor, real: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        return exact.view_as(exact)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[no-untyped-def]
        return None, gradient


class Clamp(torch.autograd.Function):
    """Clamps to [low, high]; outside, only gradients that lead back into the range pass."""

    @staticmethod
    def forward(ctx, value: Tensor, low: float, high: float) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(value)
        ctx.bounds = low, high
        return value.clamp(low, high)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[no-untyped-def]
        (value,), (low, high) = ctx.saved_tensors, ctx.bounds
        blocked = ((value < low) & (gradient > 0)) | ((value > high) & (gradient < 0))
        return gradient.masked_fill(blocked, 0), None, None


class LeakyClamp(torch.autograd.Function):
    """Clamps to [low, high]; outside, a tenth of every gradient passes.

    For hidden units. Gradients that only lead back into the range would drive all units there for good, and a network
    whose units never leave it is linear.
    """

    @staticmethod
    def forward(ctx, value: Tensor, low: float, high: float) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward((value < low) | (value > high))
        return value.clamp(low, high)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[no-untyped-def]
        (outside,) = ctx.saved_tensors
        return torch.where(outside, 0.1 * gradient, gradient), None, None


@dataclass(frozen=True)
class Lattice:
    """The uniform lattice ``offset + step · k``, k any integer.

    Attributes:
        step: Positive; a tensor that broadcasts to the values, or a number.
        offset: Where code 0 lies; in a codec the predicted mean, so that the mean's last bits cannot change a code.
    """

    step: Tensor | float = 1.0
    offset: Tensor | float = 0.0

    def index(self, value: Tensor) -> Tensor:
        return torch.round((value - self.offset) / self.step).to(torch.int32)

    def value(self, index: Tensor) -> Tensor:
        return index * self.step + self.offset

    def cell(self, index: Tensor) -> Cell:
        centre = self.value(index)
        return Cell(centre, torch.as_tensor(self.step, dtype=centre.dtype, device=centre.device).expand_as(centre))

    def straight_through(self, value: Tensor) -> Tensor:
        exact = torch.round((value.detach() - self.offset) / self.step) * self.step + self.offset
        return StraightThrough.apply(exact.detach(), value)

    def dither(self, value: Tensor, generator: torch.Generator | None = None) -> Tensor:
        noise = torch.rand(value.shape, generator=generator, device=value.device, dtype=value.dtype)
        return value + (noise - 0.5) * self.step


@dataclass(frozen=True)
class DeadZone:
    """The lattice ``offset + k`` with a wider cell for code 0, at the cost of those of ±1.

    Attributes:
        reach: ``(T,)`` how far from the offset the cell of code 0 reaches, for each kind of value: in [½, 1), or
            infinite, for values that are coded as 0 whatever they are.
        kind: Of each value, an integer in [0, T); broadcasts to the values.
        offset: Where code 0 lies.
    """

    reach: Tensor
    kind: Tensor
    offset: Tensor | float = 0.0

    @cached_property
    def threshold(self) -> Tensor:
        """How far the cell of code 0 reaches, for each value."""
        return self.reach.take(self.kind.long())

    def index(self, value: Tensor) -> Tensor:
        distance = value - self.offset
        return torch.where(distance.abs() < self.threshold, 0, torch.round(distance)).to(torch.int32)

    def value(self, index: Tensor) -> Tensor:
        return index + self.offset

    def cell(self, index: Tensor) -> Cell:
        spare, value = self.threshold - 0.5, self.value(index)
        beside = torch.where(index.abs() == 1, spare, 0.0)
        return Cell(value + index * beside / 2, 1 - beside + torch.where(index == 0, 2 * spare, 0.0), value)

    def straight_through(self, value: Tensor) -> Tensor:
        return StraightThrough.apply(self.value(self.index(value.detach())).detach(), value)

    def dither(self, value: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return Lattice().dither(value, generator)


@dataclass(frozen=True)
class Levels:
    """Arbitrary reproduction levels on the line; a cell reaches halfway to its neighbours.

    The two outermost cells are as wide on their outer side as on their inner one.

    Attributes:
        levels: ``(K,)``, strictly increasing, K ≥ 2.
    """

    levels: Tensor

    @property
    def _boundaries(self) -> Tensor:
        inner = (self.levels[1:] + self.levels[:-1]) / 2
        return torch.cat([2 * self.levels[:1] - inner[:1], inner, 2 * self.levels[-1:] - inner[-1:]])

    def index(self, value: Tensor) -> Tensor:
        return torch.bucketize(value, self._boundaries[1:-1]).to(torch.int32)

    def value(self, index: Tensor) -> Tensor:
        return self.levels[index.long()]

    def cell(self, index: Tensor) -> Cell:
        boundaries, index = self._boundaries, index.long()
        lower, upper = boundaries[index], boundaries[index + 1]
        return Cell((lower + upper) / 2, upper - lower, self.value(index))

    def straight_through(self, value: Tensor) -> Tensor:
        return StraightThrough.apply(self.value(self.index(value.detach())), value)

    def dither(self, value: Tensor, generator: torch.Generator | None = None) -> Tensor:
        width = self.cell(self.index(value.detach())).width
        return Lattice(width).dither(value, generator)
