"""Laws of conditionals: they are probability laws, and density, mass, samples and tables are of the same one."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from bayesq.cells import Cell
from bayesq.coder import TOTAL, gaussian_tables
from bayesq.conditionals import (
    DISTORTION_PRICE,
    SCALE_COUNT,
    Factorized,
    FactorizedDensity,
    GaussianCells,
    dead_zones,
    index_of,
    scale_of,
)

REACH = 300
SCALES = torch.tensor([0.11, 0.4, 1.0, 5.0, 30.0]).view(1, 5, 1, 1)


def gaussian(batch):
    means = torch.tensor([0.0, 0.3, -7.9, 2.5, 11.1]).view(1, 5, 1, 1)
    return GaussianCells(means.expand(batch, 5, 1, 1), index_of(SCALES).expand(batch, 5, 1, 1))


def factorized(batch):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        density = FactorizedDensity(5)
        for factor in density.factors:
            torch.nn.init.normal_(factor)
    with torch.no_grad():
        density.matrices[0].add_(torch.linspace(0, 4, 5).view(5, 1, 1))
    return Factorized(density.requires_grad_(False), (batch, 5, 1, 1), torch.linspace(-1, 1, 5))


LAWS = {"gaussian": gaussian, "factorized": factorized}


@pytest.fixture(params=LAWS)
def law(request):
    return LAWS[request.param]


def line(low, high, count):
    return torch.linspace(low, high, count).view(-1, 1, 1, 1).expand(-1, 5, 1, 1)


def test_the_codes_share_out_the_probability(law):
    conditional = law(1)
    codes = torch.arange(-REACH, REACH + 1).view(-1, 1, 1, 1).expand(-1, 5, 1, 1)
    masses = conditional.log_mass(conditional.quantizer().cell(codes)).exp().double()
    assert torch.allclose(masses.sum(0), torch.ones(5, 1, 1).double(), atol=1e-4)


def test_the_density_integrates_to_one(law):
    density = law(1).log_density(line(-REACH, REACH, 20 * 2 * REACH + 1)).exp().double()
    assert torch.allclose(density.sum(0) / 20, torch.ones(5, 1, 1).double(), atol=1e-4)


def test_the_density_at_a_centre_is_the_mass_of_its_cell(law):
    conditional = law(1)
    cell = conditional.quantizer().cell(torch.arange(-9, 10).view(-1, 1, 1, 1).expand(-1, 5, 1, 1))
    assert torch.equal(conditional.log_density(cell.centre), conditional.log_mass(cell))


@pytest.mark.parametrize("width", [0.1, 1.0, 3.0])
def test_masses_of_the_parts_add_up(law, width):
    conditional, centre, parts = law(1), line(-20, 20, 41), 4
    whole = conditional.log_mass(Cell(centre, torch.tensor(width)))
    shifts = width * ((torch.arange(parts) + 0.5) / parts - 0.5)
    pieces = [conditional.log_mass(Cell(centre + shift, torch.tensor(width / parts))) for shift in shifts]
    assert torch.allclose(torch.logsumexp(torch.stack(pieces), 0), whole, rtol=1e-4, atol=2e-3)


def test_a_larger_cell_holds_more(law):
    conditional, centre = law(1), line(-20, 20, 41)
    masses = [conditional.log_mass(Cell(centre, torch.tensor(width))) for width in (0.5, 1.0, 2.0, 400.0)]
    assert all(((small < large) | (large > -1e-7)).all() for small, large in pairwise(masses))
    assert (masses[-1] <= 0).all() and torch.allclose(masses[-1], torch.zeros(()), atol=1e-3)


@pytest.mark.parametrize("side", [-1, 1])
def test_gradients_lead_home_from_far_away(law, side):
    value = (side * (40 * SCALES + 400)).requires_grad_()
    density = law(1).log_density(value)
    density.sum().backward()
    assert torch.isfinite(density).all() and torch.isfinite(value.grad).all()
    assert (side * value.grad < 0).all()


def test_gradients_are_those_of_finite_differences(law):
    value = line(-5, 5, 21).clone().requires_grad_()
    law(1).log_density(value).sum().backward()
    with torch.no_grad():
        slope = (law(1).log_density(value + 0.02) - law(1).log_density(value - 0.02)) / 0.04
    assert torch.allclose(value.grad, slope, rtol=0.02, atol=0.02)


def test_gradients_reach_mean_and_scale():
    mean, index = torch.tensor([0.0, 5.0, -90.0], requires_grad=True), torch.full((3,), 5.0, requires_grad=True)
    GaussianCells(mean, index).log_density(torch.tensor([0.1, -3.0, 90.0])).sum().backward()
    assert (mean.grad != 0).all() and (index.grad != 0).all()
    assert torch.isfinite(mean.grad).all() and torch.isfinite(index.grad).all()


def test_samples_follow_the_density(law):
    count, fine = 4000, 40
    draws = law(count).sample(torch.Generator().manual_seed(0))
    assert draws.shape == (count, 5, 1, 1)
    grid = line(-REACH, REACH, fine * 2 * REACH + 1)
    distribution = law(1).log_density(grid).exp().double().cumsum(0)[:, :, 0, 0] / fine
    for channel in range(5):
        ordered = draws[:, channel, 0, 0].sort().values
        at = np.interp(ordered, grid[:, 0, 0, 0] + 0.5 / fine, distribution[:, channel])
        assert np.abs(at - (np.arange(count) + 0.5) / count).max() < 1.8 / count**0.5  # Kolmogorov–Smirnov


@pytest.mark.parametrize("centre", [-7.0, 0.0, 1.3])
def test_samples_within_a_cell_follow_the_law_inside_it(law, centre):
    """They lie in the cell, and divide it into parts as the masses do."""
    count, width = 4000, torch.tensor(1.0)
    cell = Cell(torch.full((count, 5, 1, 1), centre), width)
    draws = law(count).sample_within(cell, torch.Generator().manual_seed(0))
    assert cell.contains(draws).all()
    left = law(1).log_mass(Cell(torch.full((1, 5, 1, 1), centre - 0.25), width / 2))
    whole = law(1).log_mass(Cell(torch.full((1, 5, 1, 1), centre), width))
    expected = (left - whole).exp()[0, :, 0, 0]
    sure = whole[0, :, 0, 0] > -12
    share = (draws < centre).float().mean(0)[:, 0, 0]
    assert ((share - expected).abs() < 4 * (0.25 / count) ** 0.5)[sure].all()


def test_samples_depend_on_the_generator_alone(law):
    first, second, third = (law(2).sample(torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, second) and not torch.equal(first, third)


def test_scales_and_indexes_are_inverse():
    indexes = torch.arange(SCALE_COUNT)
    assert torch.allclose(index_of(scale_of(indexes)), indexes.float(), atol=1e-3)
    assert scale_of(indexes[:1]).item() == pytest.approx(0.11) and scale_of(indexes[-1:]).item() == pytest.approx(256)


def test_tables_hold_the_masses():
    radius = 60
    table = gaussian_tables(scale_of(torch.arange(SCALE_COUNT).double()).numpy(), radius)
    means = torch.linspace(-3, 3, SCALE_COUNT).double().view(1, -1, 1, 1)
    conditional = GaussianCells(means, torch.arange(SCALE_COUNT).double().view(1, -1, 1, 1), table)
    rows, tables = conditional.tables()
    codes = torch.arange(-radius, radius + 1).view(-1, 1, 1, 1).expand(-1, SCALE_COUNT, 1, 1)
    masses = conditional.log_mass(conditional.quantizer().cell(codes)).exp()[:, :, 0, 0].T
    shares = np.diff(tables.cdf[rows.flatten().numpy()])[:, :-1] / TOTAL
    assert np.abs(shares - masses.numpy()).max() < 3 * radius / TOTAL


def test_real_indexes_are_coded_by_the_nearest_table():
    table = gaussian_tables(np.array([0.5, 1.0, 2.0]), 4)
    rows, _ = GaussianCells(torch.zeros(5), torch.tensor([-1.0, 0.4, 0.6, 1.7, 9.0]), table).tables()
    assert rows.tolist() == [0, 0, 1, 2, 2]


def test_without_tables_nothing_is_coded(law):
    with pytest.raises(ValueError, match="no CDF tables"):
        law(1).tables()


def test_at_the_edge_of_a_dead_zone_codes_0_and_1_break_even():
    scales = scale_of(torch.arange(SCALE_COUNT).double())
    zones = dead_zones(scales)
    masses = np.diff(gaussian_tables(scales.numpy(), 20, zones.numpy()).cdf)[:, 20:22]
    saved = np.log(masses[:, 0] / masses[:, 1])
    lost = DISTORTION_PRICE * (2 * zones.numpy() - 1)
    free = (zones < 0.75).numpy()
    np.testing.assert_allclose(lost[free], saved[free], atol=0.05)
    assert (saved[~free] > 0.95 * lost[~free]).all()
    assert (zones.diff() <= 0).all()


def test_what_is_certain_costs_nothing_and_pulls_at_nothing():
    mean, index = torch.zeros(1, 5, 1, 1, requires_grad=True), index_of(SCALES).requires_grad_()
    mass = GaussianCells(mean, index).log_mass(Cell(torch.ones(1, 5, 1, 1), torch.tensor(torch.inf)))
    assert (mass == 0).all()
    for gradient in torch.autograd.grad(mass.sum(), [mean, index]):
        assert (gradient == 0).all()
