"""Latent Markov chains: Langevin moves, with and without the test of Metropolis and Hastings.

Where VBLE has found cells, the chain starts in them and measures every latent by its cell's deviation s:

    z' = z + s · ε²/2 · u / (1 + ε²/2 · |u|) + ε s n,    u = s ∇ log p(z | y),    n ~ N(0, 1).

The quotient tames the drift to less than s a move, element by element, so that no chain runs away (Brosse et al. 2019).

``MALA`` (Roberts and Tweedie 1996) accepts or refuses the move, picture by picture, so that the chain's law is the
posterior itself, whatever VBLE left out. It wants a density without jumps, as that of CompressAI's models is. Our own
prior reads its contexts rounded to integers, which makes its density jump wherever one of thousands of latents passes
a half: there the steps that would be accepted are too small to get anywhere, and ``ULA`` is the sampler to take. It
refuses nothing, at the price of a variance too large by a share of about ε² where s is the posterior's deviation.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bayesq.cells import Cell
from bayesq.inference.base import Info, Posterior
from bayesq.inference.vble import VBLE, Search

ACCEPTANCE = 0.574
DECAY = 0.6
"""The n-th move changes log ε by n to the power of minus this, times how far its acceptance was off."""


@dataclass(frozen=True)
class Point:
    """Where a chain is, and all that the next move has to know of it.

    Attributes:
        values: Latents in the order of the walk.
        slopes: Gradients of the log density there.
        log_likelihood, log_prior: ``(B,)``, nats.
        log_density: ``(B,)``, of the posterior, up to its constant.
    """

    values: list[Tensor]
    slopes: list[Tensor]
    log_likelihood: Tensor
    log_prior: Tensor
    log_density: Tensor

    @classmethod
    def of(cls, posterior: Posterior, values: Sequence[Tensor]) -> Point:
        """The point at given latents."""
        with torch.enable_grad():
            leaves = [value.detach().requires_grad_() for value in values]
            log_likelihood, log_prior = posterior.log_likelihood(leaves), posterior.log_prior(leaves)
            log_density = log_likelihood + posterior.prior_weight * log_prior
            slopes = list(torch.autograd.grad(log_density.sum(), leaves))
        fixed = (term.detach() for term in (log_likelihood, log_prior, log_density))
        return cls([leaf.detach() for leaf in leaves], slopes, *fixed)


@dataclass(frozen=True)
class Chain:
    """State of the chains, one a picture.

    Attributes:
        point: Where they are.
        scales: Deviations by which latents are measured, in the order of the walk.
        log_step: ``(B,)`` log ε.
        count: Moves made.
    """

    point: Point
    scales: list[Tensor]
    log_step: Tensor
    count: int = 0

    @property
    def cells(self) -> list[Cell]:
        """None: a chain is no cell."""
        return []


@dataclass(frozen=True)
class Move(Info):
    """A move of the chains; the bound is the log of the joint density.

    Attributes:
        acceptance: Probability with which it was accepted, mean over the pictures.
        step_size: ε, mean over the pictures.
    """

    acceptance: float
    step_size: float


@dataclass(frozen=True)
class _Langevin(ABC):
    posterior: Posterior
    steps: int
    searching: float = 0.5
    thinning: int = 10

    @property
    def _vble(self) -> VBLE:
        return VBLE(self.posterior, max(1, round(self.searching * self.steps)))

    def init(self, x0: Tensor) -> Search | Chain:
        return self._vble.init(x0)

    def step(self, state: Search | Chain, generator: torch.Generator) -> tuple[Search | Chain, Info]:
        if isinstance(state, Chain):
            return self._move(state, generator)
        search, info = self._vble.step(state, generator)
        return (self._chain(search, generator) if search.count == self._vble.steps else search), info

    def cells(self, state: Search | Chain) -> list[Cell]:
        return state.cells

    def sample(self, state: Search | Chain, n: int, generator: torch.Generator) -> Tensor:
        chain = state if isinstance(state, Chain) else self._chain(state, generator)
        draws = []
        for _ in range(n):
            for _ in range(self.thinning):
                chain = replace(self._move(chain, generator)[0], log_step=chain.log_step)
            draws.append(chain.point.values)
        pictures = self.posterior.pictures([torch.stack(values) for values in zip(*draws, strict=True)])
        return torch.stack([self.posterior.complete(x, generator).clamp(0, 1) for x in pictures])

    def _chain(self, search: Search, generator: torch.Generator) -> Chain:
        cells = [Cell(cell.centre.detach(), cell.width.detach()) for cell in search.cells]
        point = Point.of(self.posterior, [cell.sample(1, generator)[0] for cell in cells])
        log_step = torch.full_like(point.log_density, math.log(self._first_step(cells)))
        return Chain(point, [cell.width / 12**0.5 for cell in cells], log_step)

    @abstractmethod
    def _first_step(self, cells: Sequence[Cell]) -> float:
        """ε at the start."""

    @abstractmethod
    def _move(self, chain: Chain, generator: torch.Generator) -> tuple[Chain, Move]: ...


@dataclass(frozen=True)
class MALA(_Langevin):
    """Metropolis-adjusted Langevin moves from the cells of VBLE.

    The step ε of each picture is tuned until 57 % of its moves are accepted, the best rate in many dimensions (Roberts
    and Rosenthal 1998); for the samples it is frozen.

    Attributes:
        posterior: What to sample; a batch has a chain for each picture.
        steps: VBLE's steps and the warm-up moves together.
        searching: Share of them that VBLE takes.
        thinning: Moves from one sample to the next, each of which costs as much as a step.
    """

    def _first_step(self, cells: Sequence[Cell]) -> float:
        return 1.65 * sum(cell.centre[0].numel() for cell in cells) ** (-1 / 6)

    def _move(self, chain: Chain, generator: torch.Generator) -> tuple[Chain, Move]:
        noises = _noises(chain, generator)
        there = Point.of(self.posterior, _proposal(chain, noises))
        back = _noises_between(there, chain)
        log_ratio = there.log_density - chain.point.log_density + (_energy(noises) - _energy(back))
        chance = log_ratio.nan_to_num(-math.inf).clamp_max(0).exp()
        uniform = torch.rand(chance.shape, generator=generator).to(chance)
        point = _choose(uniform < chance, there, chain.point)
        log_step = chain.log_step + (chain.count + 1) ** -DECAY * (chance - ACCEPTANCE)
        return replace(chain, point=point, log_step=log_step, count=chain.count + 1), _info(chain, point, chance)


@dataclass(frozen=True)
class ULA(_Langevin):
    """Unadjusted Langevin moves from the cells of VBLE.

    Attributes:
        posterior, steps, searching, thinning: As for ``MALA``; the warm-up lets the chain forget where it started.
        step_size: ε.
    """

    step_size: float = 0.2

    def _first_step(self, cells: Sequence[Cell]) -> float:
        return self.step_size

    def _move(self, chain: Chain, generator: torch.Generator) -> tuple[Chain, Move]:
        point = Point.of(self.posterior, _proposal(chain, _noises(chain, generator)))
        moved = replace(chain, point=point, count=chain.count + 1)
        return moved, _info(chain, point, torch.ones_like(point.log_density))


def _noises(chain: Chain, generator: torch.Generator) -> list[Tensor]:
    return [torch.randn(value.shape, generator=generator).to(value) for value in chain.point.values]


def _proposal(chain: Chain, noises: Sequence[Tensor]) -> list[Tensor]:
    """Where the noises take the chain."""
    parts = zip(_means(chain.point, chain), _deviations(chain), noises, strict=True)
    return [mean + deviation * noise for mean, deviation, noise in parts]


def _noises_between(there: Point, chain: Chain) -> list[Tensor]:
    """The noises that would take the chain back from there."""
    parts = zip(chain.point.values, _means(there, chain), _deviations(chain), strict=True)
    return [(value - mean) / deviation for value, mean, deviation in parts]


def _means(point: Point, chain: Chain) -> list[Tensor]:
    """Where the next values are expected from a point."""
    half = chain.log_step.exp().square() / 2
    means = []
    for value, slope, scale in zip(point.values, point.slopes, chain.scales, strict=True):
        pull = _by_picture(half, value) * scale * slope
        means.append(value + scale * pull / (1 + pull.abs()))
    return means


def _deviations(chain: Chain) -> list[Tensor]:
    return [_by_picture(chain.log_step.exp(), scale) * scale for scale in chain.scales]


def _info(chain: Chain, point: Point, chance: Tensor) -> Move:
    elbo, fit, prior = (float(term.sum()) for term in (point.log_density, point.log_likelihood, point.log_prior))
    return Move(elbo, fit, -prior / math.log(2), float(chance.mean()), float(chain.log_step.exp().mean()))


def _by_picture(number: Tensor, like: Tensor) -> Tensor:
    return number.view(-1, *[1] * (like.ndim - 1))


def _energy(noises: Sequence[Tensor]) -> Tensor:
    """Minus the log density of normal noise of each picture, without its constant; ``(B,)``."""
    return torch.stack([noise.square().flatten(1).sum(1) / 2 for noise in noises]).sum(0)


def _choose(accepted: Tensor, there: Point, here: Point) -> Point:
    """Picture by picture the one point or the other."""

    def pick(new: Tensor, old: Tensor) -> Tensor:
        return torch.where(_by_picture(accepted, new), new, old)

    return Point(
        [pick(*pair) for pair in zip(there.values, here.values, strict=True)],
        [pick(*pair) for pair in zip(there.slopes, here.slopes, strict=True)],
        pick(there.log_likelihood, here.log_likelihood),
        pick(there.log_prior, here.log_prior),
        pick(there.log_density, here.log_density),
    )
