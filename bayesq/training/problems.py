"""Random measurements of crops, in which what fits both a measurement and an estimate is known in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from bayesq.operators.start import fill_holes
from bayesq.training import kernels

SIGMAS = 1 / 255, 20 / 255
"""Levels of noise that measurements have."""


class Problem(Protocol):
    """A measurement of a crop ``(3, H, W)``.

    Attributes:
        sigma: Deviation of its white noise, image units.
        finest: Level of noise at which a search ends, for σ of one.
    """

    sigma: float
    finest: float

    def apply(self, x: Tensor) -> Tensor:
        """The measurement of x, without noise."""
        ...

    def start(self) -> Tensor:
        """A first estimate."""
        ...

    def fit(self, mean: Tensor, std: float) -> Tensor:
        """The mean of p(x | y) where x ~ N(mean, std²)."""
        ...

    def noise(self, std: float) -> float:
        """Root mean square of the measurement's noise in what fits it."""
        ...


@dataclass
class Reduced:
    """Every ``factor``-th value, both ways, of a crop convolved periodically; ``response`` is the kernel's spectrum."""

    y: Tensor
    response: Tensor
    factor: int
    sigma: float
    finest: float = 1.0

    @classmethod
    def draw(cls, x: Tensor, kernel: Tensor, factor: int, sigma: float, generator: torch.Generator) -> Reduced:
        rows, columns = (torch.arange(side) - side // 2 for side in kernel.shape)
        places = rows[:, None] % x.shape[-2], columns % x.shape[-1]
        wrapped = x.new_zeros(x.shape[-2:]).index_put_(places, kernel.to(x), accumulate=True)
        problem = cls(x, torch.fft.fft2(wrapped), factor, sigma)
        clean = problem.apply(x)
        problem.y = clean + sigma * torch.randn(clean.shape, generator=generator)
        return problem

    def apply(self, x: Tensor) -> Tensor:
        return torch.fft.ifft2(self._folded(self.response * torch.fft.fft2(x))).real

    def start(self) -> Tensor:
        enlarged = F.interpolate(self.y[None], scale_factor=self.factor, mode="bilinear")[0]
        shift = -((self.factor - 1) // 2)
        return enlarged.roll((shift, shift), (1, 2))

    def fit(self, mean: Tensor, std: float) -> Tensor:
        """In the Fourier domain (Zhao et al., "Fast single image super-resolution", 2016)."""
        precision = self._folded(self.response.abs().square()) + (self.sigma / std) ** 2
        residual = torch.fft.fft2(self.y - self.apply(mean)) / precision
        return mean + torch.fft.ifft2(self.response.conj() * residual.repeat(1, self.factor, self.factor)).real

    def noise(self, std: float) -> float:
        power = self._folded(self.response.abs().square())
        gain = power / (power + (self.sigma / std) ** 2).square()
        return self.sigma * float(gain.mean()) ** 0.5 / self.factor

    def _folded(self, spectrum: Tensor) -> Tensor:
        """The spectrum once only every ``factor``-th value is kept."""
        *_, height, width = spectrum.shape
        parts = spectrum.unflatten(-1, (self.factor, width // self.factor))
        return parts.unflatten(-3, (self.factor, height // self.factor)).mean((-4, -2))


@dataclass
class Masked:
    """The values of a crop where the mask, which broadcasts to it, is 1."""

    y: Tensor
    mask: Tensor
    sigma: float
    finest: float = 0.5

    @classmethod
    def draw(cls, x: Tensor, mask: Tensor, sigma: float, generator: torch.Generator) -> Masked:
        return cls(mask * (x + sigma * torch.randn(x.shape, generator=generator)), mask, sigma)

    def apply(self, x: Tensor) -> Tensor:
        return self.mask * x

    def start(self) -> Tensor:
        return fill_holes(self.y[None], self.mask[None])[0]

    def fit(self, mean: Tensor, std: float) -> Tensor:
        return torch.lerp(mean, self.y, self.mask / (1 + (self.sigma / std) ** 2))

    def noise(self, std: float) -> float:
        return self.sigma * float(self.mask.mean()) ** 0.5 / (1 + (self.sigma / std) ** 2)


def draw_problem(x: Tensor, generator: torch.Generator) -> Problem:
    """A measurement of a crop ``(3, H, W)``, H and W multiples of 4.

    Of a hundred 35 are Gaussian blurs, 35 motion blurs, 15 bicubic reductions by 2, 3 or 4, 5 mosaics, and 10 random
    pixels or values.
    """
    kind, strength, share = torch.rand(3, generator=generator).tolist()
    sigma = SIGMAS[0] * (SIGMAS[1] / SIGMAS[0]) ** strength
    if kind < 0.7:
        kernel = kernels.gaussian(generator) if kind < 0.35 else kernels.motion(generator)
        return Reduced.draw(x, kernel, 1, sigma, generator)
    if kind < 0.85:
        factors = [factor for factor in (2, 2, 3, 4) if x.shape[-2] % factor == x.shape[-1] % factor == 0]
        factor = factors[int(torch.randint(len(factors), (), generator=generator))]
        return Reduced.draw(x, kernels.bicubic(factor), factor, max(SIGMAS[0], sigma / 3), generator)
    if kind < 0.9:
        return Masked.draw(x, _mosaic(x, generator), sigma, generator)
    mask = torch.rand((1 if kind < 0.97 else 3, *x.shape[1:]), generator=generator) < 0.1 + 0.8 * share
    return Masked.draw(x, mask.to(x), sigma, generator)


def _mosaic(x: Tensor, generator: torch.Generator) -> Tensor:
    """Bayer's filters, at one of their four places."""
    mask = torch.zeros_like(x)
    mask[0, ::2, ::2] = mask[1, ::2, 1::2] = mask[1, 1::2, ::2] = mask[2, 1::2, 1::2] = 1
    return mask.roll(tuple(torch.randint(2, (2,), generator=generator).tolist()), (1, 2))
