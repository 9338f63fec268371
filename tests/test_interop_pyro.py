"""The posterior as a Pyro model."""

import pyro
import pytest
import torch
from linear_gaussian import OPERATORS, exact, grey, latents, measure, posterior, prior_draws
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import Adam
from pyro.poutine import condition, trace

from bayesq.inference import VBLE
from bayesq.interop.pyro import CellGuide, Model, nuts


@pytest.fixture
def problem():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    physics = OPERATORS["deblur"]()
    y = measure(physics, prior_draws(count=2))
    return posterior(physics, y), grey(2), [exact(physics, one) for one in y.split(1)]


def test_joint_density_is_that_of_the_posterior(problem):
    target, x0, _ = problem
    model = Model(target, x0)
    values = [torch.randn_like(value) for value in model.start.values()]
    expected = target.log_likelihood(values).sum() + target.log_prior(values).sum()
    found = trace(condition(model, dict(zip(model.start, values, strict=True)))).get_trace().log_prob_sum()
    torch.testing.assert_close(found, expected)


def test_cells_guide_variational_inference(problem):
    """Stochastic variational inference with the cells as guide is VBLE: the same cells."""
    target, x0, known = problem
    model = Model(target, x0)
    guide = CellGuide(model)
    svi = SVI(model, guide, Adam({"lr": 0.03}), Trace_ELBO())
    for _ in range(400):
        svi.step()
    (cell,) = guide.cells
    for n, law in enumerate(known):
        assert ((cell.centre[n].flatten() - law.mean) / law.std).square().mean().sqrt() < 0.3
        assert abs((cell.width[n].flatten() / 12**0.5 / law.std).log().mean()) < 0.06
    algorithm = VBLE(target, 1)
    _, info = algorithm.step(algorithm.init(x0), torch.Generator().manual_seed(0))
    first = CellGuide(Model(target, x0))
    pyro.clear_param_store()
    elbo = -sum(Trace_ELBO().loss(model, first) for _ in range(20)) / 20
    assert elbo == pytest.approx(info.elbo, rel=0.02)


def test_automatic_guides_fit(problem):
    target, x0, known = problem
    model = Model(target, x0)
    guide = AutoNormal(model, init_scale=1.0)
    svi = SVI(model, guide, Adam({"lr": 0.03}), Trace_ELBO())
    for _ in range(400):
        svi.step()
    (centre,) = guide.median().values()
    for n, law in enumerate(known):
        assert ((centre[n].flatten() - law.mean) / law.std).square().mean().sqrt() < 0.3


def test_prior_draws_are_pictures(problem):
    target, x0, _ = problem
    draws = Predictive(Model(target, x0), num_samples=200)()["latent_0"]
    assert draws.std() == pytest.approx(3.01, rel=0.02)


def test_chain_is_settled_by_its_generator(problem):
    target, x0, _ = problem
    state = torch.get_rng_state()
    draws = [nuts(target, x0, 2, 2, torch.Generator().manual_seed(seed), max_tree_depth=3) for seed in (4, 4, 5)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert draws[0].shape == (2, *x0.shape) and latents(draws[0]).isfinite().all()
    assert torch.equal(state, torch.get_rng_state())
