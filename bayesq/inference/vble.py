"""Variational Bayes latent estimation (Biquard et al., arXiv 2311.17744) and its point estimate.

The posterior of all latents is approximated by cells: q(z) uniform on centre ± width / 2. Centres and widths climb
the evidence bound

    E_q[ log p(y | g_s(z)) ] + w · ( E_q[ log p(z) ] + Σ log width ),

one reparametrised sample a step. p(z) is the codec's own entropy model, taken from the same walk that codes files.
The point estimate, MAP-z, is the same climb with cells of width zero, and without their entropy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bayesq.cells import Cell
from bayesq.inference.base import Info, Posterior

WIDTH_MIN, WIDTH_MAX = 1.5e-5, 20.0
CLIP = 20.0


@dataclass(frozen=True)
class Search:
    """State of a gradient search over cells.

    Attributes:
        centres: Latents in the order of the walk.
        log_widths: Logarithms of the cells' widths; empty for a point estimate.
        optimiser: Adam over both.
        count: Steps taken.
    """

    centres: list[Tensor]
    log_widths: list[Tensor]
    optimiser: torch.optim.Adam
    count: int = 0

    @property
    def cells(self) -> list[Cell]:
        if not self.log_widths:
            return [Cell(centre, torch.zeros_like(centre)) for centre in self.centres]
        widths = [w.clamp(math.log(WIDTH_MIN), math.log(WIDTH_MAX)).exp() for w in self.log_widths]
        return [Cell(centre, width) for centre, width in zip(self.centres, widths, strict=True)]


@dataclass(frozen=True)
class VBLE:
    """Uniform variational posterior over all latents, climbed with Adam.

    Attributes:
        posterior: What to approximate; a batch is inferred in parallel.
        steps: Length of the search; the learning rate falls along a cosine over it.
        rate: Learning rate at the start, in units of the latents' quantisation step.
    """

    posterior: Posterior
    steps: int
    rate: float = 0.1

    def init(self, x0: Tensor) -> Search:
        return _start(self.posterior, x0, self.rate, lambda centre: [torch.zeros_like(centre, requires_grad=True)])

    def step(self, state: Search, generator: torch.Generator) -> tuple[Search, Info]:
        cells = state.cells
        values = [cell.sample(1, generator)[0] for cell in cells]
        entropy = torch.stack([cell.width.log().flatten(1).sum(1) for cell in cells]).sum(0)
        return _climb(self.posterior, state, values, entropy, cosine(self.rate, state.count, self.steps))

    def cells(self, state: Search) -> list[Cell]:
        return state.cells

    def sample(self, state: Search, n: int, generator: torch.Generator) -> Tensor:
        return _decode(self.posterior, state, n, generator)


@dataclass(frozen=True)
class MAPz:
    """The most probable latents; attributes as in ``VBLE``."""

    posterior: Posterior
    steps: int
    rate: float = 0.1

    def init(self, x0: Tensor) -> Search:
        return _start(self.posterior, x0, self.rate, lambda _: [])

    def step(self, state: Search, generator: torch.Generator) -> tuple[Search, Info]:
        nothing = torch.zeros(len(self.posterior.level))
        return _climb(self.posterior, state, state.centres, nothing, cosine(self.rate, state.count, self.steps))

    def cells(self, state: Search) -> list[Cell]:
        return state.cells

    def sample(self, state: Search, n: int, generator: torch.Generator) -> Tensor:
        with torch.no_grad():
            picture = self.posterior.complete(self.posterior.picture(state.centres)).clamp(0, 1)
        return picture.expand(n, *[-1] * 4)


def _start(posterior: Posterior, x0: Tensor, rate: float, widths: Callable[[Tensor], list[Tensor]]) -> Search:
    centres = [target.requires_grad_() for target in posterior.encode(x0)]
    log_widths = [width for centre in centres for width in widths(centre)]
    return Search(centres, log_widths, torch.optim.Adam([*centres, *log_widths], lr=rate))


def _climb(
    posterior: Posterior, state: Search, values: list[Tensor], entropy: Tensor, rate: float
) -> tuple[Search, Info]:
    """One step of Adam up the bound at the given latents; the loss is counted in nats per pixel."""
    log_likelihood, log_prior = posterior.log_likelihood(values), posterior.log_prior(values)
    bound = log_likelihood + posterior.prior_weight * (log_prior + entropy)
    for group in state.optimiser.param_groups:
        group["lr"] = rate
    state.optimiser.zero_grad()
    (-bound.sum() / math.prod(posterior.size)).backward()
    torch.nn.utils.clip_grad_norm_([*state.centres, *state.log_widths], CLIP * math.sqrt(len(bound)))
    state.optimiser.step()
    elbo, fit, prior = (float(term.detach().sum()) for term in (bound, log_likelihood, log_prior))
    return replace(state, count=state.count + 1), Info(elbo, fit, -prior / math.log(2))


def cosine(rate: float, count: int, steps: int) -> float:
    """The learning rate of a step: it falls along half a cosine to a twentieth."""
    return rate * (0.05 + 0.95 * (1 + math.cos(math.pi * min(1.0, count / steps))) / 2)


@torch.no_grad()
def _decode(posterior: Posterior, state: Search, n: int, generator: torch.Generator) -> Tensor:
    pictures = posterior.pictures([cell.sample(n, generator) for cell in state.cells])
    return torch.stack([posterior.complete(x, generator).clamp(0, 1) for x in pictures])
