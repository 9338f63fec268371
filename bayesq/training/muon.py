"""Muon: momentum whose matrices are orthogonalised before they are applied.

Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024, with the update scaled to the
size of Adam's as in Liu et al., "Muon is scalable for LLM training", arXiv 2502.16982.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bayesq.runtime import bfloat16_is_fast

QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
ADAM_SIZE = 0.2


def orthogonalise(x: Tensor, precision: torch.dtype = torch.float32) -> Tensor:
    """Nearly U Vᵀ of the singular value decomposition x = U S Vᵀ: singular values between about 0.7 and 1.2.

    Newton–Schulz iterations of the polynomial a·s + b·s³ + c·s⁵ on the singular values. Those below about 10⁻⁴ of the
    largest stay smaller.

    Args:
        x: ``(m, n)``.
        precision: Of the products; bfloat16 is enough, since the iterations repair its roundings.
    """
    if len(x) > x.shape[1]:
        return orthogonalise(x.T, precision).T
    a, b, c = QUINTIC
    y = (x / (torch.linalg.matrix_norm(x) + 1e-9)).to(precision)
    for _ in range(ITERATIONS):
        gram = y @ y.T
        y = a * y + (b * gram + c * gram @ gram) @ y
    return y.to(x)


class Muon(torch.optim.Optimizer):
    """Muon for the kernels of convolutions, seen as matrices with a row for each output channel.

    Args:
        kernels: Parameters ``(O, I, k, k)``, or groups of them.
        lr: Learning rate, comparable to Adam's.
        momentum: Share of the past in the running mean of gradients.
    """

    def __init__(
        self, kernels: Iterable[nn.Parameter] | Iterable[dict[str, Any]], lr: float, momentum: float = 0.95
    ) -> None:
        super().__init__(kernels, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One update, with Nesterov's look ahead."""
        precision = torch.bfloat16 if bfloat16_is_fast() else torch.float32
        torch.set_flush_denormal(True)  # gradients of idle channels are denormal, which makes products slow
        for group in self.param_groups:
            for kernel in group["params"]:
                state = self.state[kernel]
                if "mean" not in state:
                    state["mean"] = torch.zeros_like(kernel)
                mean = state["mean"].lerp_(kernel.grad, 1 - group["momentum"])
                direction = kernel.grad.lerp(mean, group["momentum"]).contiguous().flatten(1)
                size = ADAM_SIZE * max(direction.shape) ** 0.5
                kernel.add_(orthogonalise(direction, precision).reshape(kernel.shape), alpha=-group["lr"] * size)
        torch.set_flush_denormal(False)


def is_kernel(parameter: nn.Parameter) -> bool:
    """Whether Muon, rather than Adam, trains a parameter."""
    return parameter.ndim == 4 and min(parameter.shape[:2]) > 1
