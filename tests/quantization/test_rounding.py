"""Reconstruction helps, and leaves what is on its grid."""

import pytest
import torch
from layer_errors import error, exact, output

from bayesq.errors import ModelError
from bayesq.quantization.draft import Draft
from bayesq.quantization.formats import Affine, NormalFloat, Pyramid, Sparse
from bayesq.quantization.ranges import whole_range
from bayesq.quantization.rounding import GPTQ, AdaRound, corrected, nearest


@pytest.mark.parametrize("rounding", [GPTQ(), AdaRound()])
@pytest.mark.parametrize("form", [Affine(3), Affine(3, 16, symmetric=False), NormalFloat(3)], ids=str)
def test_reconstruction_beats_rounding_to_the_nearest(draft, rounding, form):
    assert error(draft, draft, form, rounding) < 0.9 * error(draft, draft, form)


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
    means = [(output(draft, one.layer()) - exact(draft)).mean((0, 2, 3)) for one in (made, corrected(made))]
    assert means[1].abs().max() < 0.05 * means[0].abs().max()
