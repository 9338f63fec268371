"""Laws of the number formats of weights, checked for each of them."""

import contextlib
import itertools
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bayesq.coder import TOTAL
from bayesq.errors import ModelError
from bayesq.quantization.formats import (
    FORMATS,
    Affine,
    Binary,
    Clusters,
    Coded,
    DoubleBinary,
    Log2,
    Minifloat,
    NormalFloat,
    PowerExponent,
    Powers,
    Pyramid,
    Sparse,
    Ternary,
    as_json,
    from_json,
)
from bayesq.quantization.formats.coded import LAWS, ORIGIN, law_indexes, laws
from bayesq.quantization.formats.pyramid import rank, unrank
from bayesq.quantization.packing import bits_per_code, packed, unpacked
from bayesq.quantization.ranges import LeastError, Percentile, whole_range

SCALAR = {
    "int8": Affine(),
    "int4, one step a tensor": Affine(4, None),
    "int5 in groups, with zero points": Affine(5, 8, symmetric=False),
    "int2": Affine(2),
    "int16": Affine(16, symmetric=False),
    "powers of two": Powers(4),
    "powers of the root of two": Powers(5, root=2),
    "log2": Log2(3),
    "fp4": Minifloat(),
    "fp8": Minifloat(4, 3),
    "nf4": NormalFloat(),
    "nf3 in groups": NormalFloat(3, 8),
    "power-exponent": PowerExponent(4),
    "clusters": Clusters(3),
    "binary": Binary(),
    "ternary": Ternary(),
    "double binary": DoubleBinary(),
    "coded": Coded(),
    "coded, one step a tensor": Coded(12, None, rate=6),
}
ALL = {
    **SCALAR,
    "outliers apart": Sparse(Clusters(3), 0.02),
    "outliers of integers apart": Sparse(Affine(3), 0.02),
    "pyramid": Pyramid(8, 12),
    "fine pyramid": Pyramid(4, 200),
}
SHAPE = (6, 8, 3, 3)


def drawn(seed=0):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)) * torch.logspace(-2, 0, 6).view(6, 1, 1, 1)


@pytest.fixture(params=ALL)
def fitted(request):
    """A format, a weight and its grid."""
    form, weight = ALL[request.param], drawn()
    return form, weight, form.grid(form.fit(weight))


@pytest.fixture(params=SCALAR)
def scalar(request):
    form, weight = SCALAR[request.param], drawn()
    return weight, form.grid(form.fit(weight))


def test_every_format_is_checked():
    assert {type(form) for form in ALL.values()} == set(FORMATS.values())


def test_codes_are_int32_and_stand_for_their_own_value(fitted):
    _, weight, grid = fitted
    index = grid.index(weight)
    assert index.dtype == torch.int32 and index.shape == weight.shape
    assert torch.equal(grid.value(grid.index(grid.value(index))), grid.value(index))


def test_codes_go_through_bytes(fitted):
    _, weight, grid = fitted
    index = grid.index(weight)
    data = grid.pack(index)
    assert data.dtype == torch.uint8 and torch.equal(grid.unpack(data, SHAPE), index)
    for wrong in (data[:-1], data[:5], data[:0], data.int()):
        with pytest.raises(ModelError):
            grid.unpack(wrong, SHAPE)


@pytest.mark.parametrize("name", [name for name, form in ALL.items() if not isinstance(form, Coded)])
def test_codes_take_the_bits_they_say(name):
    form, weight = ALL[name], drawn()
    grid = form.grid(form.fit(weight))
    data = grid.pack(grid.index(weight))
    parameters = 8 * sum(p.numel() for n, p in form.fit(weight).items() if n == "amplitude")
    assert abs(8 * len(data) + parameters - form.bits * weight.numel()) < 16


def test_straight_through_quantises_with_the_gradient_of_the_identity(fitted):
    _, weight, grid = fitted
    weight = weight.clone().requires_grad_()
    quantised = grid.straight_through(weight)
    assert torch.equal(quantised, grid.value(grid.index(weight)))
    (quantised * torch.arange(weight.numel()).view(SHAPE)).sum().backward()
    assert torch.equal(weight.grad, torch.arange(weight.numel()).view(SHAPE).float())


def test_a_cell_holds_its_value(fitted):
    _, weight, grid = fitted
    index = grid.index(weight)
    cell, value = grid.cell(index), grid.value(index)
    assert ((value - cell.centre).abs() <= cell.width / 2 * (1 + 1e-4) + 1e-6).all()


def test_a_cell_stands_for_what_its_code_is_decoded_to(fitted):
    _, weight, grid = fitted
    index = grid.index(weight)
    assert torch.equal(grid.cell(index).value, grid.value(index))


def test_values_up_to_the_last_cell_lie_in_that_of_their_code(scalar):
    _, grid = scalar
    first, last = (grid.cell(grid.index(torch.full(SHAPE, end))) for end in (-1e9, 1e9))
    drawn = torch.rand(SHAPE, generator=torch.Generator().manual_seed(6))
    value = first.lower + (last.upper - first.lower) * drawn
    cell = grid.cell(grid.index(value))
    assert ((value - cell.centre).abs() <= cell.width / 2 * (1 + 1e-4) + 1e-6).all()


def test_dither_stays_within_one_cell_and_depends_on_the_generator(fitted):
    _, weight, grid = fitted
    first, second = (grid.dither(weight, torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(first, second)
    assert ((first - weight).abs() <= grid.cell(grid.index(weight)).width / 2 * (1 + 1e-4) + 1e-6).all()


def test_parameters_survive_half_precision_and_rebuild_the_grid(fitted):
    form, weight, grid = fitted
    parameters = form.fit(weight)
    assert all(torch.equal(p.half().float(), p) for p in parameters.values() if p.is_floating_point())
    again = from_json(as_json(form))
    assert again == form
    assert torch.equal(again.grid(parameters).value(grid.index(weight)), grid.value(grid.index(weight)))


def test_no_other_code_is_nearer(scalar):
    weight, grid = scalar
    error = (grid.value(grid.index(weight)) - weight).abs()
    for step in (-1, 1):
        other = (grid.index(weight) + step).clamp_min(0)
        other = torch.minimum(other, grid.index(torch.full(SHAPE, 1e9)))
        assert ((grid.value(other) - weight).abs() >= error * (1 - 1e-4) - 1e-7).all()


def test_values_rise_with_what_is_quantised(scalar):
    _, grid = scalar
    ramp = torch.linspace(-3, 3, 100)
    quantised = torch.stack([grid.value(grid.index(torch.full(SHAPE, float(x)))) for x in ramp])
    assert (quantised.diff(dim=0) >= 0).all()


@pytest.mark.parametrize("span", [whole_range, Percentile(0.99), LeastError(), LeastError(weighted=True)])
@pytest.mark.parametrize("name", ALL)
def test_constant_weights_do_no_harm(name, span):
    for value in (0.0, 0.25):
        weight = torch.full(SHAPE, value)
        decoded = ALL[name].grid(ALL[name].fit(weight, None, span)).straight_through(weight)
        assert torch.isfinite(decoded).all()


@pytest.mark.parametrize("form", [Affine(4), Affine(4, symmetric=False), NormalFloat(), Powers(4), PowerExponent(4)])
def test_the_range_of_least_error_is_no_worse(form):
    weight = drawn(3)
    weight[:, 0, 0, 0] *= 8
    importance = torch.rand(SHAPE, generator=torch.Generator().manual_seed(4)) ** 4

    def error(span, importance_used):
        rows = form.grid(form.fit(weight, importance, span)).straight_through(weight) - weight
        return float((importance_used * rows.square()).sum())

    ones = torch.ones(SHAPE)
    assert error(LeastError(), ones) <= min(error(whole_range, ones), error(Percentile(0.97), ones))
    assert error(LeastError(weighted=True), importance) <= error(LeastError(), importance)


def test_more_bits_are_nearer():
    weight = drawn(1)
    for kind in (Affine, NormalFloat, Clusters, PowerExponent, lambda rate: Coded(rate=rate)):
        errors = [
            (form.grid(form.fit(weight)).straight_through(weight) - weight).square().sum()
            for form in map(kind, range(2, 8))
        ]
        assert errors == sorted(errors, reverse=True), kind


def stored(form, weight, importance=None):
    """Bits a weight with its parameters, and the weighted error."""
    parameters = form.fit(weight, importance)
    grid = form.grid(parameters)
    index = grid.index(weight)
    bits = 8 * len(grid.pack(index)) + 16 * sum(p.numel() for p in parameters.values())
    error = (grid.value(index) - weight).square() * (1 if importance is None else importance)
    return bits / weight.numel(), float(error.sum())


@pytest.mark.parametrize("rate", [2.5, 4, 6.5])
def test_coded_gaussian_weights_take_the_rate_they_are_given(rate):
    weight = torch.randn(64, 64, 3, 3, generator=torch.Generator().manual_seed(0))
    bits, error = stored(Coded(rate=rate), weight)
    assert abs(bits - rate) < 0.3
    assert error < 1.1 * weight.numel() * 2 * np.pi * np.e / 12 / 4**rate


def test_coded_weights_spend_bits_where_they_count():
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(128, 64, 3, 3, generator=generator) * torch.logspace(-1, 1, 128).view(128, 1, 1, 1)
    importance = torch.logspace(1, -3, 128).view(128, 1, 1, 1).expand_as(weight)
    bits, error = stored(Affine(4), weight, importance)
    coded_bits, coded_error = stored(Coded(rate=3.8), weight, importance)
    assert coded_bits < bits and coded_error < 0.5 * error


def test_columns_that_hardly_vary_cost_next_to_nothing():
    weight = drawn(5)
    weight[:, 2:] *= 1e-3
    assert stored(Coded(rate=6), weight)[0] < 0.6 * stored(Coded(rate=6), drawn(5))[0]


def test_laws_of_codes_are_those_of_every_machine():
    """Weights that another machine coded are decoded with this one's laws, so these must never change."""
    assert zlib.crc32(laws().cdf.astype("<i4").tobytes()) == 0x859E0B1F
    masses = np.diff(laws().cdf) / TOTAL
    magnitude = np.abs(np.arange(-(masses.shape[1] // 2 - 1), masses.shape[1] // 2))
    means = masses[:, :-1] @ magnitude
    expected = 2.0 ** ((np.arange(LAWS) - ORIGIN) / 2)
    assert np.allclose(means[16:30], expected[16:30], rtol=0.04)


def test_laws_follow_rows_and_columns():
    rows, columns = (2.0 ** np.random.default_rng(seed).integers(-3, 4, size=20) for seed in (0, 1))
    down, across = law_indexes(np.outer(rows, columns) * 4)
    found = down[:, None].astype(int) + across[None] - ORIGIN
    assert np.abs(found - 2 * np.log2(np.outer(rows, columns) * 4)).max() <= 1


@given(st.integers(0, 10**6), st.integers(1, 255))
def test_damaged_codes_are_refused(place, change):
    grid = (form := Coded()).grid(form.fit(drawn()))
    data = grid.pack(index := grid.index(drawn()))
    data[place % len(data)] ^= change
    with contextlib.suppress(ModelError):
        assert torch.equal(grid.unpack(data, SHAPE), index)  # a byte whose law was cut off says nothing


def test_clusters_follow_importance():
    weight = drawn(2)
    importance = (weight > 0).float() + 1e-6
    plain, steered = (Clusters(3, None).fit(weight, i)["levels"] for i in (None, importance))
    assert (steered > 0).sum() > (plain > 0).sum()


def test_outliers_are_kept_in_half_precision():
    weight = drawn()
    weight.view(-1)[[5, 77]] = torch.tensor([40.0, -30.0])
    form = Sparse(Affine(3), 2 / weight.numel())
    assert form.grid(form.fit(weight)).straight_through(weight).view(-1)[[5, 77]].tolist() == [40.0, -30.0]


def test_two_binary_weights_are_closer_than_one():
    weight = drawn()
    one, two = ((f.grid(f.fit(weight)).straight_through(weight) - weight).norm() for f in (Binary(), DoubleBinary()))
    assert two < 0.7 * one


@given(st.integers(2, 300), st.integers(0, 40), st.integers(0, 2**32 - 1))
def test_packing_is_undone_by_unpacking(alphabet, count, seed):
    codes = torch.from_numpy(np.random.default_rng(seed).integers(alphabet, size=count))
    data = packed(codes, alphabet)
    assert torch.equal(unpacked(data, alphabet, count), codes)
    assert 8 * len(data) < count * bits_per_code(alphabet) + 8


def test_codes_outside_the_alphabet_are_refused():
    with pytest.raises(ModelError, match="not one of 5"):
        unpacked(packed(torch.tensor([7]), 8), 5, 1)


def test_the_pyramid_counts_its_points_one_by_one():
    size, pulses = 3, 4
    points = [p for p in itertools.product(range(-4, 5), repeat=size) if sum(map(abs, p)) == pulses]
    places = rank(np.array(points), pulses)
    assert sorted(places.tolist()) == list(range(len(points)))
    assert unrank(places, size, pulses).tolist() == [list(p) for p in points]


@given(st.integers(1, 16), st.integers(1, 16), st.integers(0, 2**32 - 1))
def test_pyramid_places_are_undone(size, pulses, seed):
    rng = np.random.default_rng(seed)
    points = rng.multinomial(pulses, np.ones(size) / size, size=5) * rng.choice([-1, 1], (5, size))
    assert (unrank(rank(points, pulses), size, pulses) == points).all()


@pytest.mark.parametrize(
    "content", [{}, {"name": "roman"}, {"name": "affine", "width": 99}, {"name": "nf", "x": 1}, []]
)
def test_unknown_formats_are_refused(content):
    with pytest.raises(ModelError, match="no such number format"):
        from_json(content)
