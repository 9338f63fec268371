"""Samplers against posteriors that are known: moments, simulation-based calibration, and each other."""

from collections.abc import Callable

import pyro
import pytest
import torch
from compressai.models import JointAutoregressiveHierarchicalPriors, MeanScaleHyperprior
from linear_gaussian import (
    OPERATORS,
    STEP,
    VARIANCE,
    Blocks,
    ScalePrior,
    exact,
    grey,
    latents,
    measure,
    posterior,
    prior_draws,
    run,
)
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import ClippedAdam
from scipy import stats
from torch import Tensor

from bayesq import operators
from bayesq.codec import Codec
from bayesq.inference import DAPS, MALA, ULA, VBLE, MAPz, Posterior, REDDiff, ScoreDVI, VBLExz
from bayesq.interop.pyro import Model, nuts
from bayesq.likelihoods import from_physics

Sampler = Callable[[Posterior, Tensor, int], Tensor]
ALGORITHMS = [VBLE, VBLExz, MAPz, MALA, ULA, REDDiff, ScoreDVI]


def mala(target: Posterior, x0: Tensor, samples: int) -> Tensor:
    """Pictures of a chain for each picture, far enough apart to be all but independent."""
    algorithm = MALA(target, 120, searching=0.4, thinning=24)
    state, _, generator = run(algorithm, x0, 120)
    return algorithm.sample(state, samples, generator)


def no_u_turns(target: Posterior, x0: Tensor, samples: int) -> Tensor:
    """Every sixth state: neighbours are not independent, all pictures of the batch being one state."""
    return nuts(target, x0, 6 * samples, 40, torch.Generator().manual_seed(0), max_tree_depth=4)[::6]


@pytest.mark.parametrize(("sampler", "name"), [(mala, name) for name in OPERATORS] + [(no_u_turns, "deblur")])
def test_samples_have_the_exact_moments(sampler, name):
    """Chains of one measurement: their mean, and their covariance in the posterior's own coordinates."""
    chains, samples = 32, 10
    physics = OPERATORS[name](4)
    y = measure(physics, prior_draws(4))
    z = latents(sampler(posterior(physics, y.expand(chains, *y.shape[1:]), 4), grey(chains, 4), samples))
    white = exact(physics, y, 4).whiten(z.flatten(0, 1))
    dimensions = white.shape[1]
    assert white.mean(0).square().mean() < 2 / (chains * samples)
    assert abs(white.var(0).mean() - 1) < 0.04
    for part in white.var(0).split(dimensions // 4):
        assert abs(part.mean() - 1) < 0.08
    correlation = torch.corrcoef(white.T) - torch.eye(dimensions)
    assert correlation.square().mean() < 2 / (chains * samples)


def cells(target: Posterior, x0: Tensor, samples: int) -> Tensor:
    algorithm = VBLE(target, 300)
    state, _, generator = run(algorithm, x0, 300)
    return algorithm.sample(state, samples, generator)


def normal_guide(target: Posterior, x0: Tensor, samples: int) -> Tensor:
    """Independent normal laws by stochastic variational inference; the generator is Pyro's own."""
    with torch.random.fork_rng(devices=[]):
        pyro.set_rng_seed(0)
        pyro.clear_param_store()
        model = Model(target, x0)
        guide = AutoNormal(model, init_scale=1.0)
        svi = SVI(model, guide, ClippedAdam({"lr": 0.1, "lrd": 0.99}), Trace_ELBO())
        for _ in range(300):
            svi.step()
        return torch.stack([target.picture(list(guide().values())).detach() for _ in range(samples)])


def annealing(target: Posterior, x0: Tensor, samples: int) -> Tensor:
    """With the exact denoiser of the prior's pictures."""
    algorithm = DAPS(target, 1, WhiteDenoiser())
    state, _, generator = run(algorithm, x0, 1)
    return algorithm.sample(state, samples, generator)


class WhiteDenoiser:
    def moments(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        kept = STEP**2 * VARIANCE / (STEP**2 * VARIANCE + sigma**2)
        return 0.5 + kept * (x - 0.5), (sigma * kept**0.5).expand_as(x[:, :1])


RANDOM = torch.linalg.qr(torch.randn(48, 6, generator=torch.Generator().manual_seed(5))).Q
PIXEL = Blocks()(0.5 + torch.eye(48)[:1].view(1, 3, 4, 4), None).flatten()[:, None]


def ranks(sampler: Sampler, name: str, count: int, draws: int, directions: Tensor) -> Tensor:
    """How often each of the ranks 0 to 7 is a truth's among its samples, along directions ``(48, k)`` of latents."""
    physics = OPERATORS[name](4)
    truth = prior_draws(4, count)
    z = latents(sampler(posterior(physics, measure(physics, truth), 4), grey(count, 4), draws))
    below = (z @ directions < truth.flatten(1) @ directions).sum(0)
    return torch.bincount((8 * below / (draws + 1)).long().flatten(), minlength=8)


@pytest.mark.parametrize(
    ("sampler", "name", "count", "draws", "directions"),
    [
        (mala, "deblur", 200, 7, RANDOM),
        (no_u_turns, "deblur", 40, 7, RANDOM),
        (cells, "denoise", 200, 7, RANDOM),  # sums of many uniform latents are all but normal
        (normal_guide, "denoise", 200, 7, RANDOM),
        (annealing, "denoise", 500, 63, PIXEL),  # its errors hang together as those of photographs, around their mean
    ],
)
def test_ranks_are_uniform(sampler, name, count, draws, directions):
    """Simulation-based calibration (Talts et al. 2018): truths from the prior rank evenly among their samples."""
    assert stats.chisquare(ranks(sampler, name, count, draws, directions).numpy()).pvalue > 0.01


@pytest.mark.parametrize("sampler", [cells, normal_guide])
@pytest.mark.parametrize(("place", "narrow"), [(slice(6), True), (slice(-6, None), False)])
def test_independent_laws_are_centred_but_as_wide_in_all_directions(sampler, place, narrow):
    """Too narrow where the posterior is widest, and too wide where it is narrowest."""
    physics = OPERATORS["deblur"](4)
    known = exact(physics, measure(physics, prior_draws(4)), 4)
    found = ranks(sampler, "deblur", 200, 7, torch.linalg.eigh(known.precision).eigenvectors[:, place])
    total = int(found.sum())
    assert stats.binomtest(int(found[:4].sum()), total).pvalue > 0.01
    outer = stats.binomtest(int(found[0] + found[7]), total, 0.25, "greater" if narrow else "less")
    assert outer.pvalue < 0.01


def test_unadjusted_chains_spread_a_little_more():
    physics = OPERATORS["deblur"](4)
    y = measure(physics, prior_draws(4))
    chains, step = 32, 0.4
    algorithm = ULA(posterior(physics, y.expand(chains, *y.shape[1:]), 4), 200, thinning=20, step_size=step)
    state, _, generator = run(algorithm, grey(chains, 4), 200)
    white = exact(physics, y, 4).whiten(latents(algorithm.sample(state, 10, generator)).flatten(0, 1))
    assert white.mean(0).square().mean() < 2 / (10 * chains)
    assert 1 < white.var(0).mean() < 1 + 2 * step**2


def tiny(kind: type) -> Codec:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Codec.from_compressai(kind(8, 12))


def foreign(kind: type, count: int = 1) -> tuple[Posterior, Tensor]:
    """Blurred pictures under the prior of a CompressAI model with random weights."""
    physics = operators.blur("gaussian:0.7", (16, 16), 0.1)
    x = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    y = operators.degrade(x, physics, torch.Generator().manual_seed(1))
    return Posterior(y, from_physics(physics), tiny(kind), torch.zeros(count, dtype=torch.int64), (16, 16)), y


@pytest.mark.parametrize("kind", [MeanScaleHyperprior, JointAutoregressiveHierarchicalPriors])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_takes_priors_of_compressai(algorithm, kind):
    target, x0 = foreign(kind, 2)
    search = algorithm(target, 4)
    state, trace, generator = run(search, x0, 4)
    pictures = search.sample(state, 2, generator)
    assert pictures.shape == (2, 2, 3, 16, 16) and pictures.isfinite().all()
    assert len(trace) == 4 and all(abs(info.log_likelihood) < float("inf") for info in trace)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("name", OPERATORS)
def test_every_algorithm_takes_any_operator(algorithm, name):
    physics = OPERATORS[name]()
    y = measure(physics, prior_draws(count=2))
    search = algorithm(posterior(physics, y, prior=ScalePrior()), 30)
    state, trace, generator = run(search, grey(2), 30)
    assert search.sample(state, 2, generator).shape == (2, 2, 3, 8, 8)
    assert all(abs(info.log_likelihood) < float("inf") for info in trace)


def test_vble_agrees_with_nuts():
    """On a prior with a hyper-latent: means within half a deviation, and a spread that is smaller, but not by much."""
    physics = OPERATORS["deblur"](4)
    count = 8
    target = posterior(physics, measure(physics, prior_draws(4, count)), 4, ScalePrior())
    algorithm = VBLE(target, 200)
    state, _, generator = run(algorithm, grey(count, 4), 200)
    ours = algorithm.sample(state, 200, generator)
    reference = no_u_turns(target, grey(count, 4), 30)
    spread = reference.std(0).mean()
    assert (ours.mean(0) - reference.mean(0)).square().mean().sqrt() < 0.5 * spread
    assert 0.6 < ours.std(0).mean() / spread < 1
