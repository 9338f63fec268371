"""Layers in training are the layers they came from, and learn."""

import dataclasses

import pytest
import torch
from layer_errors import output

from bayesq.quantization import Recipe, Tuning, quantize
from bayesq.quantization.formats import Affine, Coded, DoubleBinary, NormalFloat, Powers, Pyramid
from bayesq.quantization.learned import LearnedConv
from bayesq.quantization.oscillation import Oscillations
from bayesq.quantization.ranges import whole_range
from bayesq.quantization.rounding import nearest

LEARNED = [Affine(4), Affine(3, 8, symmetric=False), Coded(rate=3), NormalFloat(4), DoubleBinary(), Pyramid(8)]


@pytest.mark.parametrize("form, activation", [*((form, 8) for form in LEARNED), (Affine(4), Powers(6, 4, None))])
def test_a_layer_in_training_is_the_layer_it_came_from(draft, form, activation):
    draft = draft.with_activation(activation)
    layer = nearest(draft, form, whole_range).layer()
    learned = LearnedConv(layer, draft.weight)
    assert torch.allclose(output(draft, learned), output(draft, layer), atol=1e-3)
    again = learned.export()
    assert (again.codes != layer.codes).float().mean() < 0.02 and torch.equal(again.grid_scale, layer.grid_scale)


@pytest.mark.parametrize("form", LEARNED)
def test_scales_carry_their_rows_along_and_leave_the_codes(draft, form):
    layer = nearest(draft, form, whole_range).layer()
    learned = LearnedConv(layer, draft.weight)
    before, rows = learned.decoded().detach(), len(learned.log_scale)
    growth = torch.linspace(0.8, 1.25, rows).view(learned.log_scale.shape)
    learned.log_scale.data += growth.log()
    value = learned.decoded()
    expected = (before.view(rows, -1) * growth.view(rows, -1)).view(before.shape)
    torch.testing.assert_close(value, expected)
    exported = learned.export()
    assert torch.equal(exported.codes, LearnedConv(layer, draft.weight).export().codes)
    torch.testing.assert_close(
        exported.grid.value(exported.grid.unpack(exported.codes, layer.spec.shape)), expected, rtol=1e-3, atol=1e-4
    )


def test_weights_within_their_cells_learn_as_if_not_rounded(draft):
    form = Affine(3)
    learned = LearnedConv(
        nearest(draft, form, lambda rows, *_: torch.full_like(rows[:, :1], 0.5)).layer(), draft.weight
    )
    learned.weight.data = draft.weight.clone()
    slope = torch.rand(draft.weight.shape, generator=torch.Generator().manual_seed(0))
    value = learned.decoded()
    (value * slope).sum().backward()
    inside = (learned.weight.detach() - value.detach()).abs() <= 0.5 * learned.log_scale.detach().exp().view(
        -1, 1, 1, 1
    )
    assert 0 < inside.float().mean() < 1
    torch.testing.assert_close(learned.weight.grad, slope * inside)
    torch.testing.assert_close(learned.log_scale.grad.flatten(), (slope * value.detach()).flatten(1).sum(1))


def test_weights_that_go_to_and_fro_are_frozen_where_they_mostly_were_and_others_are_not(draft):
    made = nearest(draft, Affine(4), whole_range)
    learned = LearnedConv(made.layer(), draft.weight)
    grid, start = learned.layer.grid, made.codes.clamp(2, 9)
    learned.weight.data = grid.value(start)
    freeze = Oscillations(learned, most=0.1)
    hop, drift = torch.zeros(start.shape, dtype=torch.bool), torch.arange(start.numel()).view(start.shape) % 5 == 1
    hop[0] = True
    hop &= ~drift
    for step in range(40):
        codes = torch.where(hop, start + (step % 3 == 0), torch.where(drift, start + step // 8, start))
        learned.weight.data = grid.value(codes)
        freeze()
    assert torch.equal(freeze.frozen, hop)
    codes = grid.index(learned.weight)
    assert torch.equal(codes[hop], start[hop]) and torch.equal(codes[drift], start[drift] + 4)


@pytest.mark.parametrize(
    "settings",
    [Tuning(steps=15, block_steps=1), Tuning(steps=0, block_steps=2), Tuning(steps=15, freeze=0.04)],
    ids=["blocks, then all", "blocks", "frozen"],
)
def test_tuning_lowers_the_loss(base, data, settings):
    recipe = Recipe((Affine(3),), inputs=(("*", 8),), rounding=nearest)
    tuned = dataclasses.replace(recipe, tuning=dataclasses.replace(settings, batch=2, crop=64))
    assert quantize(base, tuned, data).loss_after < quantize(base, recipe, data).loss_after
