"""Muon: momentum whose matrices are orthogonalised before they are applied.

Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024, with the update scaled to the
size of Adam's as in Liu et al., "Muon is scalable for LLM training", arXiv 2502.16982.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce

import torch
from torch import Tensor, nn

QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
ADAM_SIZE = 0.2


def orthogonalise(x: Tensor) -> Tensor:
    """Nearly U Vᵀ of the singular value decomposition x = U S Vᵀ: singular values between about 0.7 and 1.2.

    Newton–Schulz iterations of the polynomial a·s + b·s³ + c·s⁵ on the singular values, of which all but the last
    product work on the small Gram matrix. Those below about 10⁻⁴ of the largest stay smaller.

    Args:
        x: ``(m, n)``.
    """
    if len(x) > x.shape[1]:
        return orthogonalise(x.T).T
    a, b, c = QUINTIC
    x = x / (torch.linalg.matrix_norm(x) + 1e-9)
    gram, factors = x @ x.T, []
    while len(factors) < ITERATIONS:
        factor = b * gram + c * gram @ gram
        factor.diagonal().add_(a)
        factors.append(factor)
        if len(factors) < ITERATIONS:
            gram = factor @ gram @ factor
    return reduce(torch.matmul, factors) @ x


class Muon(torch.optim.Optimizer):
    """Muon for the kernels of convolutions, seen as matrices with a row for each output channel.

    Args:
        kernels: Parameters ``(O, I, k, k)``.
        lr: Learning rate, comparable to Adam's.
        momentum: Share of the past in the running mean of gradients.
    """

    def __init__(self, kernels: Iterable[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(kernels, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One update, with Nesterov's look ahead."""
        torch.set_flush_denormal(True)  # gradients of idle channels are denormal, which makes products slow
        for group in self.param_groups:
            for kernel in group["params"]:
                state = self.state[kernel]
                if "mean" not in state:
                    state["mean"] = torch.zeros_like(kernel)
                mean = state["mean"].lerp_(kernel.grad, 1 - group["momentum"])
                direction = kernel.grad.lerp(mean, group["momentum"]).contiguous().flatten(1)
                size = ADAM_SIZE * max(direction.shape) ** 0.5
                kernel.add_(orthogonalise(direction).reshape(kernel.shape), alpha=-group["lr"] * size)
        torch.set_flush_denormal(False)


def is_kernel(parameter: nn.Parameter) -> bool:
    """Whether Muon, rather than Adam, trains a parameter."""
    return parameter.ndim == 4 and min(parameter.shape[:2]) > 1
