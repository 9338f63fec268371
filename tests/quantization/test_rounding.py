"""Reconstruction helps, and leaves what is on its grid."""

import dataclasses

import pytest
import torch
from layer_errors import error, exact, output

from bayesq.errors import ModelError
from bayesq.quantization.adaquant import AdaQuant
from bayesq.quantization.draft import Draft
from bayesq.quantization.formats import Affine, NormalFloat, Pyramid, Sparse
from bayesq.quantization.ranges import whole_range
from bayesq.quantization.rounding import GPTQ, AdaRound, corrected, nearest

ROUNDINGS = [GPTQ(), AdaRound(), AdaQuant(), AdaQuant(first=GPTQ())]


@pytest.mark.parametrize("rounding", ROUNDINGS, ids=lambda rounding: type(rounding).__name__)
@pytest.mark.parametrize("form", [Affine(3), Affine(3, 16, symmetric=False), NormalFloat(3)], ids=str)
def test_reconstruction_beats_rounding_to_the_nearest(draft, rounding, form):
    assert error(draft, draft, form, rounding) < 0.9 * error(draft, draft, form)


@pytest.mark.parametrize("rounding", ROUNDINGS, ids=lambda rounding: type(rounding).__name__)
def test_weights_on_their_grid_stay_there(draft, rounding):
    weight = nearest(draft, Affine(4), whole_range).weight
    on_grid = dataclasses.replace(draft, weight=weight)
    made = rounding(on_grid, Affine(4), whole_range)
    assert torch.equal(made.codes, nearest(on_grid, Affine(4), whole_range).codes)
    torch.testing.assert_close(made.weight, weight)
    torch.testing.assert_close(corrected(made, on_grid).draft.bias, draft.bias, atol=1e-5, rtol=0)


def test_ranges_of_inputs_learn_too_unless_they_are_wider_than_what_was_seen(draft):
    """Few bits for inputs that have outliers: the layer's error is less with a range that clips them."""
    for bits, learns in ((4, True), (16, False)):
        one = draft.with_activation(bits)
        made, plain = (rounding(one, Affine(8), whole_range) for rounding in (AdaQuant(), nearest))
        assert torch.equal(made.draft.step, one.step) != learns
        errors = [(output(draft, m.layer()) - exact(draft)).square().mean() for m in (made, plain)]
        assert errors[0] < (0.9 * errors[1] if learns else 1.01 * errors[1])


@pytest.mark.parametrize("first", [nearest, GPTQ()])
def test_what_is_learned_is_no_worse_than_its_start(draft, first):
    one = draft.with_activation(8)
    start = first(one, Affine(3), whole_range)
    wild = AdaQuant(steps=40, rate=50, first=first)(one, Affine(3), whole_range)
    assert wild.draft is one and torch.equal(wild.codes, start.codes)
    assert error(draft, one, Affine(3), AdaQuant(first=first)) <= error(draft, one, Affine(3), first)


@pytest.mark.parametrize("size", [2, 3])
def test_columns_are_rounded_with_the_scale_of_their_group(size):
    """Weights that are on their grid stay there, whatever the scales of the groups beside theirs."""
    generator = torch.Generator().manual_seed(0)
    for groups in range(1, 50):
        codes = torch.randint(1, 16, (2, groups * size, 1, 1), generator=generator)
        codes[:, ::size] = 15
        scale = torch.ldexp(torch.ones(2 * groups, 1), torch.arange(2 * groups)[:, None] % 5)
        weight = Affine(4, size).grid({"scale": scale}).value(codes)
        inputs = torch.randn(1, groups * size, 4, 4, generator=generator)
        one = Draft(weight, torch.zeros(2), (0, 0), inputs, torch.ones_like(inputs), torch.ones_like(weight), 1.0)
        assert torch.equal(GPTQ()(one, Affine(4, size), whole_range).codes, codes)


@pytest.mark.parametrize("rounding", [GPTQ(), AdaRound()])
@pytest.mark.parametrize("form", [Pyramid(), Sparse()])
def test_reconstruction_refuses_what_it_cannot_round_one_by_one(draft, rounding, form):
    with pytest.raises(ModelError, match="one by one"):
        rounding(draft, form, whole_range)


def test_a_corrected_bias_makes_up_for_the_mean_error(draft):
    made = nearest(draft, Affine(2), whole_range)
    means = [(output(draft, one.layer()) - exact(draft)).mean((0, 2, 3)) for one in (made, corrected(made, draft))]
    assert means[1].abs().max() < 0.05 * means[0].abs().max()
