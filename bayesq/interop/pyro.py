"""The posterior in Pyro's words: the walk as a model, the cell as a guide, and NUTS as the reference on small pictures.

    model = Model(posterior, x0)
    svi = SVI(model, CellGuide(model), Adam({"lr": 0.1}), Trace_ELBO())     # VBLE, or with AutoNormal(model) …
    pictures = nuts(posterior, x0, samples=100, warmup=100, generator=generator)

Hamiltonian dynamics want a density without jumps, as that of CompressAI's models is; our own prior rounds its contexts
to integers (see ``bayesq.inference.langevin``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import pyro
import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import MCMC, NUTS
from pyro.nn import PyroModule, PyroParam
from torch import Tensor

from bayesq.cells import Cell
from bayesq.conditionals import Conditional
from bayesq.inference.base import Posterior
from bayesq.prior import drive


class Law(dist.TorchDistribution):
    """A conditional of the walk as a distribution; all dimensions of the latent are its event.

    Args:
        conditional: p(next | past).
        shape: ``(B, C, h, w)`` of the latent.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.independent(constraints.real, 4)

    def __init__(self, conditional: Conditional, shape: torch.Size) -> None:
        self.conditional = conditional
        super().__init__(event_shape=shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log of the unit-cell-smoothed density, nats, one number."""
        return self.conditional.log_density(value).sum()

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws from the smoothed density, with torch's global generator as all of Pyro."""
        draws = [self.conditional.sample() for _ in range(math.prod(sample_shape))]
        return torch.stack(draws).view(*sample_shape, *self.event_shape)


class Model:
    """p(y | x) p(z) as a Pyro model with the sites ``latent_0``, ``latent_1`` … in the order of the walk.

    Args:
        posterior: Measurement, likelihood and prior; a batch is one joint model.
        x0: ``(B, 3, H, W)`` in [0, 1]; the encoder's latents of it are where inference may start.
    """

    def __init__(self, posterior: Posterior, x0: Tensor) -> None:
        self.posterior = posterior
        self.start = {f"latent_{n}": value for n, value in enumerate(posterior.encode(x0))}

    def __call__(self) -> Tensor:
        """The picture of latents drawn from the prior, which the measurement weights."""
        shapes = [(name, value.shape) for name, value in self.start.items()]

        def answer(n: int, conditional: Conditional) -> Tensor:
            name, shape = shapes[n]
            return pyro.sample(name, Law(conditional, shape))

        with poutine.scale(scale=self.posterior.prior_weight):
            values = drive(self.posterior.walk(), answer)
        pyro.factor("measurement", self.posterior.log_likelihood(values).sum())
        return self.posterior.picture(values)


class CellGuide(PyroModule):
    """The variational family of VBLE: every latent uniform on centre ± width / 2.

    Args:
        model: Its start gives the centres; widths start at 1, the step of the quantiser.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.names, self.weight = list(model.start), model.posterior.prior_weight
        for name, value in model.start.items():
            setattr(self, f"{name}_centre", PyroParam(value.clone()))
            setattr(self, f"{name}_width", PyroParam(torch.ones_like(value), constraints.positive))

    def forward(self) -> list[Tensor]:
        """Draws the latents from their cells."""
        with poutine.scale(scale=self.weight):
            laws = (dist.Uniform(cell.lower, cell.upper, validate_args=False) for cell in self.cells)
            return [pyro.sample(name, law.to_event(4)) for name, law in zip(self.names, laws, strict=True)]

    @property
    def cells(self) -> list[Cell]:
        """The cells, in the order of the walk."""
        return [Cell(getattr(self, f"{name}_centre"), getattr(self, f"{name}_width")) for name in self.names]


def nuts(
    posterior: Posterior, x0: Tensor, samples: int, warmup: int, generator: torch.Generator, **options: Any
) -> Tensor:
    """Pictures ``(samples, B, 3, H, W)`` in [0, 1] of a no-U-turn sampler (Hoffman and Gelman 2014).

    The reference posterior of small pictures: it takes hundreds to thousands of gradients a sample.

    Args:
        posterior: What to sample; a batch is one joint chain.
        x0: Pictures to start from, ``(B, 3, H, W)``.
        samples: Number of successive states of the chain, after the warm-up.
        warmup: States in which step and mass are tuned.
        generator: Source of all randomness.
        **options: Keywords of ``pyro.infer.NUTS``.
    """
    model = Model(posterior, x0)
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        chain = MCMC(NUTS(model, **options), samples, warmup, initial_params=model.start, disable_progbar=True)
        chain.run()
    draws = chain.get_samples()
    return posterior.pictures([draws[name] for name in model.start]).clamp(0, 1)
