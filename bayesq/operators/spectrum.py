"""The spectrum of a linear operator, as far as a few products with it tell."""

from __future__ import annotations

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor

STEPS = 12
NEGLIGIBLE = 1e-4
"""Share of the first diagonal element below which what is left of the probe counts as nothing."""


@torch.no_grad()
def spectrum(physics: LinearPhysics, probe: Tensor, steps: int = STEPS) -> tuple[Tensor, Tensor]:
    """Nodes λ and weights w for which Σ wᵢ f(λᵢ) approximates pᵀ f(AᵀA) p / pᵀp, p being the probe.

    For white noise p that is near the trace of f(AᵀA) over its order. By Lanczos' iteration: exact for polynomials f of
    degree below twice the number of steps, and closer the smoother f is.

    Source: Ubaru, Chen and Saad, "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature", 2017, algorithm 1.

    Args:
        physics: The operator A.
        probe: Pictures ``(B, C, H, W)``.
        steps: Products with A and with its adjoint.

    Returns:
        Nodes, not negative, and weights, which sum to one: both ``(n,)``, double precision, n at most ``steps``.
    """
    before, vector, link = torch.zeros_like(probe), probe / probe.norm(), probe.new_zeros(())
    diagonal: list[Tensor] = []
    links: list[Tensor] = []
    while len(diagonal) < steps:
        ahead = physics.A_adjoint(physics.A(vector)) - link * before
        diagonal.append((ahead * vector).sum())
        ahead = ahead - diagonal[-1] * vector
        link = ahead.norm()
        if link <= NEGLIGIBLE * diagonal[0]:
            break
        links.append(link)
        before, vector = vector, ahead / link
    matrix = torch.diag(torch.stack(diagonal))
    if len(diagonal) > 1:
        beside = torch.diag(torch.stack(links[: len(diagonal) - 1]), 1)
        matrix = matrix + beside + beside.T
    nodes, vectors = torch.linalg.eigh(matrix.double())
    return nodes.clamp_min(0), vectors[0].square()
