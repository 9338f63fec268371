"""Shapes change nothing but help where channels differ; inputs are rounded as the layer rounds them."""

import dataclasses

import pytest
import torch
from layer_errors import SHAPES, error, exact, output, shaped

from bayesq.errors import ModelError
from bayesq.quantization.formats import Affine, Log2, Powers, Pyramid
from bayesq.quantization.layers import hadamard, rotated
from bayesq.quantization.ranges import whole_range
from bayesq.quantization.rounding import nearest
from bayesq.quantization.shapes import Absorb, Centre, Noise, Smooth


def test_hadamard_matrices_are_orthogonal():
    assert torch.allclose(hadamard(16) @ hadamard(16).T, torch.eye(16), atol=1e-6)
    x = torch.randn(2, 24, 3, 3, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(rotated(rotated(x, 8), 8), x, atol=1e-6)


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_leave_what_a_layer_computes(draft, name):
    layer = shaped(draft, SHAPES[name])
    layer = nearest(layer, Affine(16), whole_range).layer()
    assert torch.allclose(output(draft, layer), exact(draft), atol=5e-3 * float(exact(draft).std()))


@pytest.mark.parametrize("name", ["smoothed", "rotated", "all"])
def test_shapes_help_where_channels_differ(draft, name):
    def with_inputs(one):
        return one.with_activation(6)

    plain = error(draft, with_inputs(draft), Affine(8))
    assert error(draft, with_inputs(shaped(draft, SHAPES[name])), Affine(8)) < 0.7 * plain


def test_a_low_rank_branch_takes_what_is_large(draft):
    generator = torch.Generator().manual_seed(1)
    large = torch.einsum("o,i,kl->oikl", *(torch.randn(n, generator=generator) for n in (12, 16)), torch.ones(3, 3))
    draft = dataclasses.replace(draft, weight=draft.weight + large)
    assert error(draft, Absorb(1)(draft), Affine(4)) < 0.3 * error(draft, draft, Affine(4))


def test_a_range_for_each_channel_is_finer(draft):
    one, each = (draft.with_activation(6, by_channel) for by_channel in (False, True))
    assert len(one.step) == 1 and len(each.step) == 16
    assert error(draft, each, Affine(8)) < 0.5 * error(draft, one, Affine(8))


def test_centred_and_wholly_smoothed_inputs_have_in_one_range_what_each_channel_has_in_its_own(draft):
    folded = shaped(draft, (Centre(), Smooth(1.0))).with_activation(6)
    each, one = (draft.with_activation(6, by_channel) for by_channel in (True, False))
    assert len(folded.step) == 1 and len(each.step) == 16
    found = [error(draft, inputs, Affine(12)) for inputs in (folded, each, one)]
    assert found[0] < 1.2 * found[1] < 0.2 * found[2]


@pytest.mark.parametrize("activation, by_channel", [(5, False), (5, True), (Powers(4, group=None), False)], ids=str)
def test_rounded_inputs_are_those_of_the_layer(draft, activation, by_channel):
    draft = draft.with_activation(activation, by_channel)
    layer = nearest(draft, Affine(8), whole_range).layer()
    inside = draft.inputs[..., 1:-1, 1:-1]
    assert torch.allclose(layer.rounded(layer.shaped(inside)), draft.rounded, atol=float(draft.step.max()) * 1.001)
    assert (layer.rounded(layer.shaped(inside)) != draft.rounded).float().mean() < 0.01


def test_powers_are_finer_than_integers_where_inputs_are_small(draft):
    """Their error is a share of the value."""
    inputs = torch.randn(draft.inputs.shape, generator=torch.Generator().manual_seed(0)).exp()
    draft = dataclasses.replace(draft, inputs=inputs)
    powers, integers = draft.with_activation(Log2(5, 2, None)), draft.with_activation(5)
    assert powers.zero is None and len(powers.step) == 1 and powers.step == inputs.max().half().float()
    small = inputs < 0.1
    errors = [(one.rounded / inputs - 1).abs()[small].mean() for one in (powers, integers)]
    assert errors[0] < 0.1 < errors[1]


@pytest.mark.parametrize("form", [Powers(4), Affine(4), Pyramid()], ids=str)
def test_inputs_are_not_given_formats_of_many_scales_or_none(draft, form):
    with pytest.raises(ModelError, match="one scale"):
        draft.with_activation(form)


def test_inputs_of_many_bits_may_go_beyond_what_was_seen(draft):
    draft = draft.with_activation(16)
    layer = nearest(draft, Affine(8), whole_range).layer()
    beyond = 3 * draft.inputs
    assert torch.allclose(layer.rounded(beyond), beyond, atol=float(draft.step))


@pytest.mark.parametrize("shapes", [(), (Centre(), Smooth(0.5))], ids=["raw", "shaped"])
def test_noise_leaves_what_a_layer_computes_and_lowers_the_error_of_its_input(draft, shapes):
    for bits in (5, 14):
        plain = shaped(draft, shapes).with_activation(bits)
        noisy = Noise()(plain)
        errors = [((one.rounded - one.inputs).square() * one.sensitivity).sum((0, 2, 3)) for one in (noisy, plain)]
        assert (errors[0] <= errors[1] * 1.001).all() and errors[0].sum() < errors[1].sum()
    layer = nearest(noisy, Affine(16), whole_range).layer()
    assert torch.allclose(output(draft, layer), exact(draft), atol=0.02 * float(exact(draft).std()))
