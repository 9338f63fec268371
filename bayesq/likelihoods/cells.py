"""A rounded measurement: all that is known of each value is the cell that it fell into, as in a JPEG file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from bayesq.cells import Cell
from bayesq.conditionals import GaussianCells, index_of
from bayesq.likelihoods.base import Independent, parameter

if TYPE_CHECKING:
    from deepinv.physics import Physics


class Cells(Independent):
    """The probability that A x, slightly disturbed, is rounded to y: P(y ± step/2 contains A x + n), n ~ N(0, s²).

    A mass, not a density: for each x it sums to one over the lattice. As s → 0 it becomes the indicator of the cell;
    with s of half an 8-bit level, about what the rounding of a JPEG encoder's input and arithmetic amounts to, it has
    gradients everywhere, which lead into the cell from outside and are next to nothing within a wide one. A picture
    that was noisy before it was coded has the noise's s.

    Args:
        physics: any deepinv operator; y is a point of the lattice.
        step: width of the cells, image units; broadcasts to y.
        smoothing: s, image units; broadcasts to y.

    Raises:
        OperatorError: a step or the smoothing is not positive and finite.
    """

    def __init__(self, physics: Physics, step: float | Tensor, smoothing: float | Tensor):
        super().__init__(physics)
        self.step = parameter(step, "the step of a rounded measurement")
        self.smoothing = parameter(smoothing, "the noise before rounding")

    def terms(self, y: Tensor, clean: Tensor) -> Tensor:
        return GaussianCells(clean, index_of(self.smoothing).to(y)).log_mass(Cell(y, self.step.to(y)))
