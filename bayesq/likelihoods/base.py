"""What likelihoods share: their protocol, and the base of those of which the values are independent."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from bayesq.errors import OperatorError

if TYPE_CHECKING:
    from deepinv.physics import Physics

SIGMA_FLOOR = 1 / (255 * 12**0.5)
"""Standard deviation assumed of a noiseless measurement: that of rounding to eight bits.

VBLE (Biquard et al.) takes 0.004, with which its searches end 0.2 dB lower at a reduction by 2, and 1.9 dB lower than
with 0.002 at a Gaussian blur of one pixel.
"""


class Likelihood(Protocol):
    """The law of a measurement given the picture."""

    def log_prob(self, y: Tensor, x: Tensor) -> Tensor:
        """Computes log p(y | x), of shape (B,), for measurements y and pictures x (B, 3, H, W)."""
        ...

    def num_observed(self, y: Tensor) -> int:
        """Counts the values of y, a picture, that carry information."""
        ...


class Weighable(Likelihood, Protocol):
    """A likelihood that keeps the weight of each value."""

    observed: Tensor


@runtime_checkable
class NearlyGaussian(Weighable, Protocol):
    """A likelihood that, near a picture, says of the values of A x what Gaussian noise would."""

    physics: Physics

    def as_gaussian(self, y: Tensor, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """The measured values, and the deviation of their noise, that say of A x what y does.

        What decides the deviation is drawn given the picture, so that drawing the two in turns is Gibbs sampling;
        without a generator it is at its expectation, and conditioning on the two in turns is iteratively reweighted
        least squares.

        Args:
            y: Measurement.
            x: Pictures ``(B, 3, H, W)`` near which this holds.
            generator: Source of the draw.

        Returns:
            Values of the shape of y, and positive deviations that broadcast to it.
        """
        ...


Weighed = TypeVar("Weighed", bound=Weighable)
Law = TypeVar("Law", bound=Likelihood)


class Independent(ABC):
    """A law under which the values of y are independent, each given its noiseless value in A x.

    Args:
        physics: any deepinv operator; the blanked pixels of an inpainting problem do not count.
    """

    def __init__(self, physics: Physics):
        self.physics = physics
        self.observed = observed(physics)

    @abstractmethod
    def terms(self, y: Tensor, clean: Tensor) -> Tensor:
        """Computes log p(yᵢ | (A x)ᵢ) of each value, nats, in the shape of y."""

    def log_prob(self, y: Tensor, x: Tensor) -> Tensor:
        """Computes log p(y | x), the sum over the observed values; shape (B,)."""
        return total(self.observed, self.terms(y, self.physics.A(x)))

    def num_observed(self, y: Tensor) -> int:
        return count(self.observed, y)


def observed(physics: Physics) -> Tensor:
    """Returns the mask of an inpainting operator, broadcastable to y, or 1: other operators observe all of y.

    Raises:
        OperatorError: no pixel is observed.
    """
    from deepinv.physics import Inpainting

    if not isinstance(physics, Inpainting):
        return torch.ones(())
    if not bool((physics.mask != 0).any()):
        raise OperatorError("the mask has no observed pixel")
    return (physics.mask != 0).float()


def total(mask: Tensor, terms: Tensor) -> Tensor:
    """Sums the terms (B, ...), weighted by the mask, where that is not 0; shape (B,)."""
    mask = mask.to(terms)
    return torch.where(mask > 0, mask * terms, 0).flatten(1).sum(1)


def counts(mask: Tensor, y: Tensor) -> Tensor:
    """Counts the values of each picture of y, weighted by the mask; (B,), double."""
    return mask.expand(y.shape).double().flatten(1).sum(1)


def count(mask: Tensor, y: Tensor) -> int:
    """The same of one picture: the mean, where each has a mask of its own."""
    return round(float(counts(mask, y).mean()))


def weighted(likelihood: Weighed, weight: float | Tensor) -> Weighed:
    """The same law with values that count more or less than once: 1/3 where three channels are copies of one.

    Args:
        likelihood: one of this package.
        weight: not negative, one for all or of a shape that broadcasts to y.
    """
    result: Any = copy.copy(likelihood)
    result.observed = likelihood.observed * torch.as_tensor(weight, dtype=torch.float32)
    return result


def of_part(likelihood: Law, physics: Physics, cut: Callable[[Tensor], Tensor]) -> Law:
    """The same law for a part of a picture.

    Args:
        likelihood: one of this package.
        physics: the operator of the part.
        cut: takes from a map (1 or B, C, H, W) what belongs to the part.
    """
    result: Any = copy.copy(likelihood)
    for name, value in vars(likelihood).items():
        if isinstance(value, Tensor) and value.ndim == 4:
            setattr(result, name, cut(value))
        elif name == "parts":
            setattr(result, name, [of_part(law, physics, cut) for law in value])
    result.physics = physics
    return result


def gaussian_near(
    likelihood: NearlyGaussian, y: Tensor, x: Tensor, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """``as_gaussian``, where values of less weight have more noise, and those not observed all but infinitely much."""
    value, sigma = likelihood.as_gaussian(y, x, generator)
    return value, sigma / likelihood.observed.clamp_min(1e-6).sqrt()


def noise_level(likelihood: NearlyGaussian, y: Tensor, x: Tensor) -> float:
    """Deviation of white noise of the same precision, on the mean over what is observed of pictures near x."""
    _, sigma = gaussian_near(likelihood, y, x)
    weight = likelihood.observed.expand_as(y)
    return float((weight.sum() / (weight / sigma.square()).sum()).sqrt())


def parameter(value: float | Tensor, what: str, zero: bool = False) -> Tensor:
    """A positive parameter as float32.

    Args:
        value: a number, a tensor of one for each picture, or a map that broadcasts to the measurement.
        what: its name, for the message.
        zero: whether zero is allowed.

    Raises:
        OperatorError: a value is not finite, or below zero, or zero where that is not allowed.
    """
    tensor = torch.as_tensor(value, dtype=torch.float32)
    if not bool((tensor.isfinite() & ((tensor >= 0) if zero else (tensor > 0))).all()):
        limit = "not negative" if zero else "positive"
        shown = value if tensor.ndim == 0 else f"a tensor with {float(tensor.min()):g} to {float(tensor.max()):g}"
        raise OperatorError(f"{what} must be finite and {limit}: {shown}")
    return tensor


def spread(value: Tensor, y: Tensor) -> Tensor:
    """A parameter in a shape that broadcasts to y: one for each picture gets trailing dimensions, maps stay."""
    value = value.to(y)
    return value.reshape(-1, *[1] * (y.ndim - 1)) if value.ndim == 1 else value


LOG_ROOT_2PI = 0.5 * math.log(2 * math.pi)
