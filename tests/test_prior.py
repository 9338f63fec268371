"""Laws of latent priors: every use of a walk agrees with every other."""

import math

import pytest
import torch
from test_interop_compressai import CODABLE, CONTEXT, build

from bayesq.codec import Codec
from bayesq.networks.passes import merge, part
from bayesq.prior import decode, drive, encode, information, log_density, quantize, relax, sample

SIZE = 64, 128
LEVELS = torch.tensor([120])


class Case:
    """A codec, and what it would code of a picture."""

    def __init__(self, codec):
        self.codec, self.prior = codec, codec.prior
        x = torch.nn.functional.interpolate(torch.rand((1, 3, 8, 16), generator=generator(1)), SIZE, mode="bicubic")
        self.targets = codec.targets(x.to(next(codec.parameters()).dtype), LEVELS)

    def walk(self, batch=1):
        return self.codec.walk(batch, *SIZE, LEVELS.expand(batch))


def generator(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def cases(tiny_codec):
    foreign = {name: Case(Codec.from_compressai(build(name, torch.float32))) for name in [*CODABLE, *CONTEXT]}
    return {"trainable": Case(tiny_codec), "exported": Case(tiny_codec.exported()), **foreign}


@pytest.fixture(params=["trainable", "exported", *CODABLE, *CONTEXT])
def case(request, cases):
    return cases[request.param]


@pytest.fixture(params=["exported", *CODABLE])
def coder(request, cases):
    return cases[request.param]


@torch.no_grad()
def test_decoding_inverts_encoding(coder):
    coded = quantize(coder.walk(), coder.targets)
    decoded = decode(coder.walk(), encode(coder.walk(), coder.targets))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(decoded, coded.values, strict=True))


@torch.no_grad()
def test_a_stream_is_as_long_as_its_codes_are_improbable(coder):
    bits = float(quantize(coder.walk(), coder.targets).nats) / math.log(2)
    assert abs(8 * len(encode(coder.walk(), coder.targets)) - bits) < 0.02 * bits + 96


@torch.no_grad()
def test_the_parts_cost_what_the_stream_is_long(coder):
    coded = quantize(coder.walk(), coder.targets)
    parts = information(coder.walk(), coded.values)
    assert [part.shape for part in parts] == [cell.centre.shape for cell in coded.cells]
    bits = sum(float(part.sum()) for part in parts) / math.log(2)
    assert 0 <= 8 * len(encode(coder.walk(), coder.targets)) - bits < 128


@torch.no_grad()
def test_codes_are_cells_around_the_targets(case):
    coded = quantize(case.walk(), case.targets)
    for cell, symbols, target in zip(coded.cells, coded.symbols, case.targets, strict=True):
        assert symbols.dtype == torch.int32 and symbols.shape == target.shape
        assert ((cell.centre - target).abs() <= cell.width / 2 + 1e-4).all()


@torch.no_grad()
def test_the_density_of_what_is_decoded_is_the_probability_of_its_code(case):
    coded = quantize(case.walk(), case.targets)
    masses = []

    def answer(n, law):
        cell = coded.cells[n]
        unit = (cell.width == 1).expand_as(cell.value)
        masses.append(law.log_mass(cell))
        assert unit.any() and torch.allclose(law.log_density(cell.value)[unit], masses[-1][unit], atol=1e-5)
        return cell.value

    drive(case.walk(), answer)
    assert coded.nats.shape == (1,) and coded.nats > 0
    assert torch.allclose(sum(mass.sum() for mass in masses), -coded.nats)


@torch.no_grad()
def test_the_relaxed_walk_takes_the_values_of_the_coded_one(case):
    relaxed = relax(case.walk(), case.targets, generator(0))
    for ours, theirs in zip(relaxed.values, quantize(case.walk(), case.targets).values, strict=True):
        assert torch.allclose(ours, theirs)
    assert torch.equal(relax(case.walk(), case.targets, generator(0)).log_density, relaxed.log_density)
    assert not torch.equal(relax(case.walk(), case.targets, generator(1)).log_density, relaxed.log_density)


def test_gradients_of_the_relaxed_walk_reach_all_targets(case):
    targets = [target.detach().clone().requires_grad_() for target in case.targets]
    relaxed = relax(case.walk(), targets, generator(0))
    (relaxed.log_density.sum() + case.prior.image_latent(relaxed.values).sum()).backward()
    for target in targets:
        assert torch.isfinite(target.grad).all() and target.grad.abs().sum() > 0


def test_gradients_of_the_density_reach_all_values(case):
    values = [(5 * target).detach().clone().requires_grad_() for target in case.targets]
    log_density(case.walk(), values).sum().backward()
    for value in values:
        assert torch.isfinite(value.grad).all() and value.grad.abs().sum() > 0


@torch.no_grad()
def test_draws_are_latents_of_finite_density(case):
    values = sample(case.walk(), generator(0))
    assert [value.shape for value in values] == [target.shape for target in case.targets]
    assert torch.isfinite(log_density(case.walk(), values)).all()
    again, other = sample(case.walk(), generator(0)), sample(case.walk(), generator(1))
    assert all(torch.equal(a, b) for a, b in zip(values, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(values, other, strict=True))


@torch.no_grad()
def test_draws_are_typical(case):
    draws = [sample(case.walk(), generator(seed)) for seed in range(4)]
    densities = torch.cat([log_density(case.walk(), values) for values in draws])
    assert densities.std() < 0.2 * densities.mean().abs()
    assert log_density(case.walk(), [value + 60 for value in draws[0]]) < densities.min() - 10 * densities.std()


@torch.no_grad()
def test_the_image_latent_is_in_the_targets(case):
    z = case.prior.image_latent(case.targets)
    assert z.shape == (1, z.shape[1], SIZE[0] // 16, SIZE[1] // 16)
    assert torch.equal(case.prior.image_latent(case.prior.targets(z, LEVELS)), z)


@torch.no_grad()
def test_what_comes_later_changes_nothing_before(case):
    values = quantize(case.walk(), case.targets).values

    def laws(changed):
        found = []

        def answer(n, conditional):
            found.append(conditional.log_density(case.targets[n]))
            return values[n] + 2 if n == changed else values[n]

        drive(case.walk(), answer)
        return found

    plain = laws(None)
    for changed in range(len(values)):
        same = [torch.equal(a, b) for a, b in zip(plain, laws(changed), strict=True)]
        assert all(same[: changed + 1]) and not any(same[changed + 1 :])


@torch.no_grad()
def test_pictures_of_a_batch_do_not_mix(case):
    values = quantize(case.walk(), case.targets).values
    pair = [torch.cat([value, value + 1]) for value in values]
    alone = [log_density(case.walk(), [value[n : n + 1] for value in pair]) for n in range(2)]
    assert torch.allclose(log_density(case.walk(2), pair), torch.cat(alone), rtol=1e-4)


def split(z, ways):
    return [part(z, ways, turn) for turn in range(ways)]


@pytest.mark.parametrize("ways", [2, 4])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (5, 4)])
def test_split_and_merge_are_inverse(ways, size):
    z = torch.arange(8.0 * size[0] * size[1]).view(1, 8, *size)
    parts = split(z, ways)
    assert [part.shape for part in parts] == [(1, 8 // ways, *size)] * ways
    assert torch.equal(merge(parts, ways), z)
    assert torch.equal(torch.cat(parts).flatten().sort().values, z.flatten())


def test_passes_that_are_missing_are_zeros():
    parts = split(torch.ones(1, 4, 4, 4), 4)
    for count in range(1, 5):
        merged = merge(parts[:count], 4)
        assert merged.sum() == count * 16 and (merged.sum(1) == count).all() and (merged.sum((2, 3)) == 4 * count).all()


@pytest.mark.parametrize("ways", [2, 4])
def test_every_element_of_a_later_pass_has_neighbours_in_those_before(ways):
    for count in range(1, ways):
        known = merge([torch.ones(1, 4 // ways, 4, 4)] * count, ways)
        near = torch.nn.functional.max_pool2d(known, 3, 1, 1)
        assert (near == 1).all()
