"""Inference algorithms against a posterior that is known in closed form: a linear decoder and Gaussian laws."""

import inspect
import math

import pytest
import torch
from linear_gaussian import OPERATORS, SIDE, SIGMA, STEP, VARIANCE, exact, grey, measure, posterior, prior_draws, run
from torch import Tensor

from bayesq import operators
from bayesq.inference import MALA, ULA, VBLE, Algorithm, MAPz, Posterior, VBLExz
from bayesq.likelihoods import from_physics
from bayesq.runtime import RUNTIMES

SEARCHES = [VBLE, MAPz, VBLExz]
ALGORITHMS = [*SEARCHES, MALA, ULA]


@pytest.fixture(scope="module", params=OPERATORS)
def problem(request):
    physics = OPERATORS[request.param]()
    y = measure(physics, prior_draws())
    return posterior(physics, y), grey(), exact(physics, y)


def test_vble_finds_the_best_cells(problem):
    """The uniform laws nearest to a Gaussian have its mean, and the variance that each latent has given all others."""
    target, x0, known = problem
    algorithm = VBLE(target, 500)
    state, trace, _ = run(algorithm, x0, 500)
    (cell,) = algorithm.cells(state)
    assert ((cell.centre.flatten() - known.mean) / known.std).square().mean().sqrt() < 0.2
    ratio = (cell.width.flatten() / 12**0.5 / known.std).log()
    assert ratio.mean().abs() < 0.03 and ratio.std() < 0.12

    elbo = torch.tensor([info.elbo for info in trace])
    logdet = known.precision.double().logdet() - known.precision.diagonal().double().log().sum()
    gap = (
        len(known.std) * (1 + math.log(math.pi / 6)) / 2 - float(logdet) / 2
    )  # KL from the best cells to the posterior
    assert known.log_evidence - gap - 5 < elbo[-100:].mean() < min(known.log_evidence, known.log_evidence - gap + 5)


def test_map_is_the_mode(problem):
    target, x0, known = problem
    algorithm = MAPz(target, 400)
    state, trace, generator = run(algorithm, x0, 400)
    (cell,) = algorithm.cells(state)
    assert ((cell.centre.flatten() - known.mean) / known.std).abs().max() < 0.1
    assert (cell.width == 0).all()
    assert trace[-1].elbo > max(info.elbo for info in trace) - 0.01
    for info in trace:
        assert info.elbo == pytest.approx(info.log_likelihood - info.bits * math.log(2), abs=0.01)
    assert algorithm.sample(state, 3, generator).std(0).eq(0).all()


@pytest.mark.parametrize("kind", SEARCHES)
def test_bound_rises(kind, problem):
    target, x0, _ = problem
    _, trace, _ = run(kind(target, 100), x0, 100)
    bounds = torch.tensor([info.elbo for info in trace]).view(4, 25).mean(1)
    assert (bounds.diff() > 0).all()


@pytest.mark.parametrize("kind", ALGORITHMS)
def test_seed_settles_everything(kind, problem):
    target, x0, _ = problem

    def pictures(seed: int) -> Tensor:
        algorithm = kind(target, 5)
        state, _, generator = run(algorithm, x0, 5, seed)
        return algorithm.sample(state, 2, generator)

    assert torch.equal(pictures(7), pictures(7))
    assert torch.equal(pictures(7), pictures(8)) == (kind is MAPz)


@pytest.mark.parametrize("kind", ALGORITHMS)
@pytest.mark.parametrize("count", [1, 2])
def test_samples_are_pictures(kind, count):
    physics = operators.denoise((SIDE, SIDE), SIGMA)
    y = measure(physics, prior_draws(count=count))
    algorithm = kind(posterior(physics, y), 2)
    state, _, generator = run(algorithm, y, 2)
    pictures = algorithm.sample(state, 3, generator)
    assert pictures.shape == (3, count, 3, SIDE, SIDE) and not pictures.requires_grad
    assert pictures.min() >= 0 and pictures.max() <= 1


@pytest.mark.parametrize("kind", ALGORITHMS)
@pytest.mark.parametrize("method", ["init", "step", "cells", "sample"])
def test_signatures_agree(kind, method):
    expected, actual = (list(inspect.signature(getattr(c, method)).parameters) for c in (Algorithm, kind))
    assert actual == expected


def test_batch_is_as_good_as_one_by_one():
    physics = operators.denoise((SIDE, SIDE), SIGMA)
    y = measure(physics, prior_draws(count=2))

    def centre(y: Tensor) -> Tensor:
        algorithm = MAPz(posterior(physics, y), 30)
        return algorithm.cells(run(algorithm, y, 30)[0])[0].centre

    torch.testing.assert_close(centre(y), torch.cat([centre(y[:1]), centre(y[1:])]), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("at_once", [1, 2 * 40 * 56, 2**17])
@pytest.mark.parametrize("name", ["torch", "bfloat16"])
def test_draws_decoded_together_are_those_decoded_alone(name, at_once, tiny_codec, monkeypatch):
    """Whatever level and draw they are of, but for what the runtime rounds: 8-bit steps at most."""
    monkeypatch.setattr("bayesq.inference.base.AT_ONCE", at_once)
    codec = tiny_codec.exported()
    codec.runtime = RUNTIMES[name](codec)
    physics, size = operators.denoise((32, 52), SIGMA), (32, 52)
    level = torch.tensor([60, 200])
    target = Posterior(torch.zeros(2, 3, *size), from_physics(physics), codec, level, size, offset=(8, 4))
    generator = torch.Generator().manual_seed(0)
    draws = [5 * torch.randn(3, *value.shape, generator=generator) for value in target.encode(target.y)]
    alone = torch.stack([target.picture([values[n] for values in draws]) for n in range(3)])
    together = target.pictures(draws)
    assert together.shape == (3, 2, 3, *size)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5 if name == "torch" else 1 / 255)


def test_weight_tempers_the_prior():
    """With weight w the cells' entropy counts w times too: every width is that of noise and prior both tempered."""
    physics = operators.denoise((SIDE, SIDE), SIGMA)
    y = measure(physics, prior_draws())
    base = posterior(physics, y)
    tempered = Posterior(base.y, base.likelihood, base.codec, base.level, base.size, prior_weight=4.0)
    algorithm = VBLE(tempered, 300)
    (cell,) = algorithm.cells(run(algorithm, y, 300)[0])
    std = (STEP**2 / (4 * SIGMA**2) + 1 / VARIANCE) ** -0.5
    assert abs((cell.width / 12**0.5 / std).log().mean()) < 0.03
