"""A Gaussian law of pictures, once they have been measured."""

from __future__ import annotations

from collections.abc import Callable

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
    root: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """The mean of p(x | y), or a draw of it, where x ~ N(mean, S²) and y = A x + σ n; S scales by std.

    With x = mean + S u, u is the solution of (I + Sᵀ Aᵀ σ⁻² A S) u = Sᵀ Aᵀ σ⁻² (y − A mean), found by conjugate
    gradients, in which what is known well beforehand costs no iterations. A draw is the same with mean
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

    def spread(u: Tensor) -> Tensor:
        return std * (root(u) if root else u)

    def pull(v: Tensor) -> Tensor:
        gradient = std * physics.A_adjoint(v / sigma**2)
        return root(gradient) if root else gradient

    if generator is not None:
        mean = mean + spread(torch.randn(mean.shape, generator=generator))
        y = y + sigma * torch.randn(y.shape, generator=generator)
    residual = pull(y - physics.A(mean))
    u, direction, size = torch.zeros_like(mean), residual, _square(residual)
    enough = tolerance**2 * mean[0].numel()
    for _ in range(ITERATIONS):
        image = direction + pull(physics.A(spread(direction)))
        step = size / _dot(direction, image).clamp_min(1e-30)
        u, residual = u + step * direction, residual - step * image
        if bool((step * size <= enough).all()):
            break
        size, before = _square(residual), size
        direction = residual + size / before.clamp_min(1e-30) * direction
    return mean + spread(u)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1).view(-1, 1, 1, 1)


def _square(a: Tensor) -> Tensor:
    return _dot(a, a)
