"""Allocations keep to budgets, and harm falls with bits."""

import ctypes
import itertools
import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bayesq.errors import ModelError
from bayesq.quantization import allocation
from bayesq.quantization.allocation import greedy, integer_program, monotone
from bayesq.quantization.formats import Affine
from bayesq.quantization.gates import Gates, chances, opened
from bayesq.quantization.ranges import LEAST_HARM
from bayesq.quantization.sensitivity import (
    activation_entropy,
    entropy,
    input_relevance,
    one_at_a_time,
    propagated_relevance,
    relevance,
    traces,
)


def problem(seed=0, layers=5, formats=3):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 10, layers)
    harm = -np.sort(-rng.exponential(size=(layers, formats)), axis=1) * sizes[:, None]
    bits = np.array([2, 4, 8])[:formats]
    return harm, (sizes[:, None] * bits)[None].astype(float), np.array([4.1 * sizes.sum()])


@pytest.mark.parametrize("solver", [integer_program, greedy, monotone])
@pytest.mark.parametrize("seed", range(5))
def test_allocations_keep_to_the_budget(solver, seed):
    harm, costs, budgets = problem(seed)
    choice = solver(harm, costs, budgets)
    assert costs[0][np.arange(5), choice].sum() <= budgets[0]
    assert harm[np.arange(5), choice].sum() <= harm[:, 0].sum()


@pytest.mark.parametrize("seed", range(5))
def test_the_integer_program_is_exact_and_the_others_are_no_better(seed):
    harm, costs, budgets = problem(seed)
    every = np.array(list(itertools.product(range(3), repeat=5)))
    allowed = every[costs[0][np.arange(5), every].sum(1) <= budgets[0]]
    best = harm[np.arange(5), allowed].sum(1).min()
    found = {s: harm[np.arange(5), s(harm, costs, budgets)].sum() for s in (integer_program, greedy, monotone)}
    assert found[integer_program] == pytest.approx(best)
    assert min(found.values()) == pytest.approx(best)


def test_layers_of_little_harm_are_not_lost_beside_one_of_much():
    harm, costs, budgets = problem(1)
    harm[1:] *= 1e-9
    choice = integer_program(harm, costs, budgets)
    left = budgets - costs[0, 0, choice[0]]
    again = integer_program(1e9 * harm[1:], costs[:, 1:], left)
    rows = np.arange(1, 5)
    assert harm[rows, choice[1:]].sum() == pytest.approx(harm[rows, again].sum(), rel=1e-5)


def test_what_the_solver_prints_is_kept_from_stdout(monkeypatch, capfd):
    solve, library = allocation.milp, ctypes.CDLL("ucrtbase" if os.name == "nt" else None)

    def talkative(*args, **settings):
        library.puts(b"a line of the solver's own")
        return solve(*args, **settings)

    monkeypatch.setattr(allocation, "milp", talkative)
    integer_program(*problem())
    library.fflush(None)
    assert capfd.readouterr().out == ""


def test_monotone_allocations_are_monotone():
    harm, costs, budgets = problem(3)
    choice = monotone(harm, costs, budgets)
    assert (np.diff(choice[harm[:, 0].argsort()]) >= 0).all()


def test_two_budgets_hold_at_once():
    harm, costs, budgets = problem(1)
    costs = np.concatenate([costs, costs[:, ::-1] ** 1.2])
    budgets = np.array([budgets[0], 0.5 * costs[1].max(1).sum()])
    for solver in (integer_program, greedy, monotone):
        choice = solver(harm, costs, budgets)
        assert (costs[:, np.arange(5), choice].sum(1) <= budgets).all()


@pytest.mark.parametrize("resources", [2, 3])
@pytest.mark.parametrize("solver", [integer_program, greedy, monotone])
@given(seed=st.integers(0, 2**32 - 1))
def test_budgets_that_pull_apart_are_kept_or_refused(solver, resources, seed):
    rng = np.random.default_rng(seed)
    harm = rng.exponential(size=(3, 3))
    costs = rng.integers(1, 20, (resources, 3, 3)).astype(float)
    budgets = np.rint(costs.mean(2).sum(1) * rng.uniform(0.7, 1.1, resources))
    every = np.array(list(itertools.product(range(3), repeat=3)))
    allowed = (costs[:, np.arange(3), every].sum(2) <= budgets[:, None]).all(0)
    try:
        choice = solver(harm, costs, budgets)
    except ModelError:
        assert solver is not integer_program or not allowed.any()
    else:
        assert (costs[:, np.arange(3), choice].sum(1) <= budgets).all()


def test_greedy_allocation_ends_where_each_budget_undoes_what_the_other_asks_for():
    costs = np.array([[[8, 12], [8, 12]], [[1.2, 1.0], [1.2, 1.0]]])
    with pytest.raises(ModelError, match="no single change"):
        greedy(np.zeros((2, 2)), costs, np.array([20, 2.1]))


@pytest.mark.parametrize("solver", [integer_program, greedy, monotone])
def test_impossible_budgets_are_refused(solver):
    harm, costs, budgets = problem()
    with pytest.raises(ModelError, match="budget"):
        solver(harm, costs, budgets / 4)


SENSITIVITIES = [relevance, traces, one_at_a_time, propagated_relevance, activation_entropy]


@pytest.mark.parametrize("sensitivity", SENSITIVITIES)
def test_harm_falls_with_bits(base, drafts, data, sensitivity):
    few = {name: drafts[name] for name in ("analysis.linear", "synthesis.head", "synthesis.linear")}
    harm = sensitivity(base, few, [Affine(2), Affine(5), Affine(12)], LEAST_HARM, data.batch())
    assert harm.shape == (3, 3) and (harm >= 0).all()
    assert (harm[[0, 2], 0] > harm[[0, 2], 2]).all() and harm.sum(0)[1] < harm.sum(0)[0]


def test_harm_of_inputs_falls_with_bits_and_is_none_in_floating_point(drafts):
    for draft in drafts.values():
        harm = [input_relevance(draft.with_activation(bits)) for bits in (3, 5, 8)]
        assert harm[0] > harm[1] > harm[2] > 0 == input_relevance(draft)


def test_entropy_counts_the_values_that_occur():
    few = torch.tensor([0.0, 1.0, 2.0, 3.0]).repeat(25)
    assert entropy(torch.zeros(9)) == 0 and entropy(few) == pytest.approx(2)
    assert entropy(torch.linspace(0, 1, 1024)) == pytest.approx(8)


def test_gates_have_a_law_over_formats():
    logits = torch.tensor([[-9.0, 9, 9], [9, 9, 9], [9, -9, 0], [0.5, -1, 2]])
    chance = chances(logits)
    assert torch.allclose(chance.sum(1), torch.ones(4)) and chance[:3].argmax(1).tolist() == [0, 3, 1]
    nested = opened(logits[3:].expand(20000, 3), torch.Generator().manual_seed(0)).cumprod(1) > 0
    drawn = torch.bincount(nested.sum(1), minlength=4) / len(nested)
    assert torch.allclose(drawn, chance[3], atol=0.015)


def test_gates_close_where_bits_cost_more_and_stay_open_where_they_are_needed(base, drafts, data):
    few = {name: drafts[name] for name in ("analysis.linear", "synthesis.head", "synthesis.linear")}
    formats = [Affine(6), Affine(2), Affine(4)]
    bits = np.array([form.width for form in formats])
    means = []
    for price in (1e-3, 1.0):
        harm = Gates(steps=24, rate=0.3, price=price)(base, few, formats, LEAST_HARM, data.batch())
        assert np.exp(-harm).sum(1) == pytest.approx(1)
        means.append(np.exp(-harm) @ bits)
    assert (means[0] > means[1]).all() and means[1][0] > means[1][1] + 1
