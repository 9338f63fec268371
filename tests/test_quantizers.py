"""Laws of number formats, checked for each of them."""

import pytest
import torch

from bayesq.quantizers import Clamp, DeadZone, Lattice, LeakyClamp, Levels

QUANTIZERS = {
    "integers": Lattice(),
    "offset lattice": Lattice(0.25, -0.1),
    "lattice with a step for each channel": Lattice(torch.tensor([0.1, 1.0, 7.0]).view(1, 3, 1, 1), 0.3),
    "lattice around predicted means": Lattice(1.0, torch.linspace(-2, 2, 60).view(1, 3, 4, 5)),
    "lattice with a dead zone": DeadZone(torch.tensor([0.5, 0.7, 0.98]), torch.tensor([0, 2, 1]).view(1, 3, 1, 1), 0.3),
    "ternary levels": Levels(torch.tensor([-1.0, 0.0, 1.0])),
    "uneven levels": Levels(torch.tensor([-4.0, -1.0, -0.2, 0.1, 0.9, 5.0])),
}


@pytest.fixture(params=QUANTIZERS)
def quantizer(request):
    return QUANTIZERS[request.param]


@pytest.fixture
def values():
    """Values within the outermost levels of every quantizer of the list."""
    return 2 * torch.rand((2, 3, 4, 5), generator=torch.Generator().manual_seed(0)) - 1


def test_a_value_lies_in_the_cell_of_its_code(quantizer, values):
    cell = quantizer.cell(quantizer.index(values))
    assert (cell.width > 0).all()
    assert ((values - cell.centre).abs() <= cell.width / 2 * (1 + 1e-5)).all()


def test_codes_are_int32_and_stand_for_their_own_cell(quantizer, values):
    index = quantizer.index(values)
    assert index.dtype == torch.int32 and index.shape == values.shape
    assert torch.equal(quantizer.index(quantizer.cell(index).value), index)


def test_cells_of_neighbouring_codes_touch(quantizer, values):
    index = quantizer.index(values)
    index = index - (index == index.amax()).int()
    here, there = quantizer.cell(index), quantizer.cell(index + 1)
    assert torch.allclose(here.upper, there.lower, atol=1e-6)


def test_straight_through_quantises_with_the_gradient_of_the_identity(quantizer, values):
    values.requires_grad_()
    quantised = quantizer.straight_through(values)
    assert quantizer.cell(quantizer.index(values)).contains(quantised.detach()).all()
    assert torch.equal(quantizer.straight_through(quantised.detach()), quantised)
    (quantised * torch.arange(values.numel()).view(values.shape)).sum().backward()
    assert torch.equal(values.grad, torch.arange(values.numel()).view(values.shape).float())


@pytest.mark.parametrize("name", [name for name in QUANTIZERS if "levels" not in name])
def test_a_lattice_reproduces_the_centre(name, values):
    lattice = QUANTIZERS[name]
    assert torch.equal(lattice.straight_through(values), lattice.cell(lattice.index(values)).value)


def test_levels_are_what_is_reproduced():
    levels = torch.tensor([-4.0, -1.0, -0.2, 0.1, 0.9, 5.0])
    quantised = Levels(levels).straight_through(torch.linspace(-9, 9, 500))
    assert torch.equal(quantised.unique(), levels)
    assert torch.equal(Levels(levels).index(levels), torch.arange(6, dtype=torch.int32))


def test_dither_is_uniform_over_one_cell(quantizer, values):
    generator = torch.Generator().manual_seed(1)
    width = 1 if isinstance(quantizer, DeadZone) else quantizer.cell(quantizer.index(values)).width
    noise = torch.stack([(quantizer.dither(values, generator) - values) / width for _ in range(200)])
    assert noise.abs().max() <= 0.5 * (1 + 1e-4)
    assert abs(noise.mean()) < 0.01 and abs(noise.var() - 1 / 12) < 0.002


def test_dither_depends_on_the_generator_alone(quantizer, values):
    first, second, third = (quantizer.dither(values, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, second) and not torch.equal(first, third)


def test_dither_lets_gradients_pass(quantizer, values):
    values.requires_grad_()
    quantizer.dither(values, torch.Generator().manual_seed(0)).sum().backward()
    assert torch.equal(values.grad, torch.ones_like(values))


def test_clamp_blocks_only_gradients_that_lead_outwards():
    values = torch.tensor([-2.0, -2.0, 0.5, 0.5, 3.0, 3.0], requires_grad=True)
    clamped = Clamp.apply(values, 0, 1)
    assert clamped.tolist() == [0, 0, 0.5, 0.5, 1, 1]
    clamped.backward(torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0]))
    assert values.grad.tolist() == [0, -1, 1, -1, 1, 0]


def test_leaky_clamp_weakens_gradients_outside_whichever_way_they_lead():
    values = torch.tensor([-2.0, -2.0, 0.0, 0.5, 0.5, 1.0, 3.0, 3.0], requires_grad=True)
    clamped = LeakyClamp.apply(values, 0, 1)
    assert clamped.tolist() == [0, 0, 0, 0.5, 0.5, 1, 1, 1]
    clamped.backward(torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, -1.0, 1.0, -1.0]))
    torch.testing.assert_close(values.grad, torch.tensor([0.1, -0.1, 1, 1, -1, -1, 0.1, -0.1]))
