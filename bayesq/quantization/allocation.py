"""Which format for which layer: the least expected harm within a budget.

A solver is a function (harm, costs, budgets) → choices:

- harm ``(L, K)``: how much the loss rises if layer l alone gets format k;
- costs ``(R, L, K)``: what this takes of each of R resources;
- budgets ``(R,)``: what there is of them;
- choices ``(L,)``: a format for each layer.

All raise ModelError where even the cheapest formats exceed a budget.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations_with_replacement

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from bayesq.errors import ModelError

TRIED = 200_000
TOLERANCE = 1e-9
"""By how much a budget may be exceeded, of itself."""


def _check(costs: np.ndarray, budgets: np.ndarray) -> None:
    least = costs.min(2).sum(1)
    if (least > budgets * (1 + TOLERANCE)).any():
        raise ModelError(f"no formats are within the budget: at least {least.tolist()} of {budgets.tolist()}")


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Within the block, what compiled code prints goes to standard error.

    HiGHS 1.12 prints a line of its own whatever it is told (ERGO-Code/HiGHS #2783), which would end up in JSON.
    """
    library = ctypes.CDLL("ucrtbase" if os.name == "nt" else None)
    library.fflush(None)
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        library.fflush(None)
        os.dup2(stdout, 1)
        os.close(stdout)


def integer_program(harm: np.ndarray, costs: np.ndarray, budgets: np.ndarray) -> np.ndarray:
    """The least sum of harms, exactly: binary variables solved by HiGHS (HAWQ-V3, arXiv 2011.10680; CalibTIP).

    Harm is measured by that of the greedy allocation, and cut off above it, where no optimum can be: HiGHS has an
    absolute tolerance, in which layers of little harm would be lost beside one of much.
    """
    _check(costs, budgets)
    excess = harm - harm.min(1, keepdims=True)
    try:
        known = float(excess[np.arange(len(harm)), greedy(harm, costs, budgets)].sum())
    except ModelError:
        known = float(excess.max())
    excess = np.minimum(excess / max(known, 1e-300), 2)
    layers, formats = harm.shape
    one_each = np.kron(np.eye(layers), np.ones(formats))
    scale = np.maximum(budgets, 1e-12)
    with _stdout_to_stderr():
        result = milp(
            excess.ravel(),
            integrality=np.ones(harm.size),
            bounds=Bounds(0, 1),
            constraints=[
                LinearConstraint(one_each, 1, 1),
                LinearConstraint(costs.reshape(len(costs), -1) / scale[:, None], -np.inf, budgets / scale),
            ],
            options={"mip_rel_gap": 1e-6, "time_limit": 20},
        )
    if result.x is None:
        raise ModelError(f"no allocation found ({result.message})")
    return result.x.reshape(harm.shape).argmax(1)


def greedy(harm: np.ndarray, costs: np.ndarray, budgets: np.ndarray) -> np.ndarray:
    """From the least harm, one layer at a time to the format that saves most for the harm it does (MPTQ-ViT).

    What a change saves is by how much less the budgets are exceeded, all of them together, so that changes come to an
    end.
    """
    _check(costs, budgets)
    layers, shares = np.arange(len(harm)), costs / budgets[:, None, None]
    choice = harm.argmin(1)
    while True:
        taken = shares[:, layers, choice]
        others = taken.sum(1)[:, None] - taken
        over = np.maximum(taken.sum(1) - 1, 0).sum()
        if over <= TOLERANCE:
            return choice
        saved = over - np.maximum(others[:, :, None] + shares - 1, 0).sum(0)
        more = harm - harm[layers, choice][:, None]
        price = np.where(saved > 1e-12, more / np.maximum(saved, 1e-12), np.inf)
        if not np.isfinite(price).any():
            raise ModelError("no single change of a layer saves what is over the budget")
        layer, form = np.unravel_index(int(price.argmin()), price.shape)
        choice[layer] = form


def monotone(harm: np.ndarray, costs: np.ndarray, budgets: np.ndarray) -> np.ndarray:
    """The best of those in which layers that are more sensitive never get cheaper formats (HAMP-LIC).

    Layers are sorted by the harm of their cheapest format, formats by what they take of the first resource, and all
    ways to cut the sorted layers into runs, one a format, are tried.
    """
    _check(costs, budgets)
    layers, formats = harm.shape
    ranks = costs[0].sum(0).argsort()
    order = harm[:, ranks[0]].argsort()
    table = np.concatenate([harm[None], costs])[:, order][:, :, ranks]
    total = np.concatenate([np.zeros((len(table), 1, formats)), table.cumsum(1)], 1)
    cuts = np.array(list(_cuts(layers, formats)))
    edges = np.concatenate([np.zeros((len(cuts), 1), int), cuts, np.full((len(cuts), 1), layers)], 1)
    sums = sum(total[:, edges[:, k + 1], k] - total[:, edges[:, k], k] for k in range(formats))
    allowed = (sums[1:] <= budgets[:, None] * (1 + TOLERANCE)).all(0)
    if not allowed.any():
        raise ModelError("no monotone allocation is within the budget")
    best = edges[np.where(allowed, sums[0], np.inf).argmin()]
    choice = np.empty(layers, int)
    for k in range(formats):
        choice[order[best[k] : best[k + 1]]] = ranks[k]
    return choice


def _cuts(layers: int, formats: int) -> list[tuple[int, ...]]:
    """Places of the formats − 1 cuts among the layers; every second, third … place where there would be too many."""
    step = 1
    while math.comb(layers // step + formats - 1, formats - 1) > TRIED:
        step += 1
    return list(combinations_with_replacement(range(0, layers + 1, step), formats - 1))
