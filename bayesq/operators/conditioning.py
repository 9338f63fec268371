"""A Gaussian law of pictures, once they have been measured."""

from __future__ import annotations

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor

ITERATIONS = 50
TOLERANCE = 0.005


@torch.no_grad()
def condition(
    mean: Tensor,
    std: Tensor,
    y: Tensor,
    physics: LinearPhysics,
    sigma: float | Tensor,
    generator: torch.Generator | None = None,
    tolerance: float = TOLERANCE,
) -> Tensor:
    """The mean of p(x | y), or a draw of it, where x ~ N(mean, diag(std²)) and y = A x + σ n.

    With x = mean + std · u, u is the solution of (I + S Aᵀ σ⁻² A S) u = S Aᵀ σ⁻² (y − A mean), found by conjugate
    gradients; S scales by std, so that what is known well beforehand costs no iterations. A draw is the same with mean
    and y perturbed by their noises (Papandreou and Yuille 2010).

    Args:
        mean: ``(B, C, H, W)``.
        std: of a shape that broadcasts to it, positive.
        y: measurement.
        physics: a linear operator A.
        sigma: standard deviation of its noise, positive; a number, or of a shape that broadcasts to y.
        generator: source of the draw; none for the mean.
        tolerance: iterations end when one changes the logarithm of the law by no more than half its square a value: as
            if all were so much of their deviation off.
    """
    std = std.expand_as(mean)
    if generator is not None:
        mean = mean + std * torch.randn(mean.shape, generator=generator)
        y = y + sigma * torch.randn(y.shape, generator=generator)

    def normal(u: Tensor) -> Tensor:
        return u + std * physics.A_adjoint(physics.A(std * u) / sigma**2)

    residual = std * physics.A_adjoint((y - physics.A(mean)) / sigma**2)
    u, direction, size = torch.zeros_like(mean), residual, _square(residual)
    enough = tolerance**2 * mean[0].numel()
    for _ in range(ITERATIONS):
        image = normal(direction)
        step = size / _dot(direction, image).clamp_min(1e-30)
        u, residual = u + step * direction, residual - step * image
        if bool((step * size <= enough).all()):
            break
        size, before = _square(residual), size
        direction = residual + size / before.clamp_min(1e-30) * direction
    return mean + std * u


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1).view(-1, 1, 1, 1)


def _square(a: Tensor) -> Tensor:
    return _dot(a, a)
