"""The uniform box."""

import pytest
import torch

from bayesq.cells import Cell


@pytest.fixture
def cell():
    generator = torch.Generator().manual_seed(0)
    return Cell(torch.randn((2, 3, 4, 5), generator=generator), torch.rand((1, 3, 1, 1), generator=generator))


def test_samples_fill_the_cell(cell):
    draws = cell.sample(2000, torch.Generator().manual_seed(1))
    assert draws.shape == (2000, 2, 3, 4, 5)
    assert ((draws - cell.centre).abs() <= cell.width / 2 + 1e-6).all()
    standard = (draws - cell.centre) / cell.width
    assert standard.mean(0).abs().max() < 0.05
    assert (standard.var(0) - 1 / 12).abs().max() < 0.01


def test_samples_depend_on_the_generator_alone(cell):
    first, second, third = (cell.sample(2, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, second) and not torch.equal(first, third)
    assert not torch.equal(first[0], first[1])


def test_a_cell_of_no_width_is_a_point():
    centre = torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    cell = Cell(centre, torch.zeros(()))
    assert torch.equal(cell.sample(3), centre.expand(3, *centre.shape))
    assert cell.contains(centre).all() and not cell.contains(centre + 1e-3).any()


def test_samples_are_reparametrised():
    centre, width = torch.zeros(1, 1, 4, 4, requires_grad=True), torch.ones(1, 1, 4, 4, requires_grad=True)
    draws = Cell(centre, width).sample(5, torch.Generator().manual_seed(0))
    draws.sum().backward()
    assert torch.equal(centre.grad, torch.full_like(centre, 5))
    assert torch.allclose(width.grad, draws.detach().sum(0), atol=1e-6)


def test_the_bounds_belong_to_the_cell(cell):
    assert torch.allclose(cell.upper - cell.lower, cell.width.expand_as(cell.centre), atol=1e-6)
    assert cell.contains(cell.lower).all() and cell.contains(cell.upper).all()
    assert not cell.contains(cell.upper + 1e-3).any() and not cell.contains(cell.lower - 1e-3).any()


def test_samples_keep_the_type():
    assert Cell(torch.zeros(2, dtype=torch.float64), torch.ones(())).sample(1).dtype == torch.float64
