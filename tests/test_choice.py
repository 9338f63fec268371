"""Choosing the prior by held-out measurements, against predictions that are known in closed form."""

import math

import pytest
import torch
from deepinv.physics import Denoising, LinearPhysics, PoissonGaussianNoise, PoissonNoise
from linear_gaussian import BLOCK, OPERATORS, SCALE, SIGMA, STEP, Blocks, Unblocks, measure
from torch import Tensor, nn
from torch.distributions import Normal

from bayesq import operators
from bayesq.choice import choose, divide
from bayesq.codec import Codec
from bayesq.conditionals import GaussianCells, index_of
from bayesq.errors import OperatorError
from bayesq.likelihoods import Gaussian, Poisson, weighted
from bayesq.networks.rate import decoder_error
from bayesq.quality import level_of
from bayesq.restore import PRIOR_WEIGHT, default_quality

SIDE, SHARE = 16, 0.2


def scale(level: Tensor) -> Tensor:
    return SCALE * 2 ** ((level - 128) / 64)


class LevelledPrior(nn.Module):
    """z ~ N(0, scale(level)²), smoothed by the unit cell: the picture varies the more, the higher the quality."""

    def walk(self, size, level):
        shape = size[0], 3 * BLOCK**2, *size[1:]
        yield GaussianCells(torch.zeros(shape), index_of(scale(level).view(-1, 1, 1, 1).expand(shape)))

    def targets(self, z, level):
        return [z]

    def image_latent(self, values):
        return values[0]


CODEC = Codec(Blocks(), Unblocks(), LevelledPrior(), reduction=BLOCK, multiple=BLOCK)
CODEC.folder = None


def variance(quality: float) -> float:
    """Of the decoded pictures' values under the prior of a quality."""
    return STEP**2 * (float(scale(torch.tensor(float(level_of(quality))))) ** 2 + 1 / 12)


def deviation(quality: float) -> float:
    """Of the pictures' values under the prior of a quality, in which the decoder errs."""
    return math.sqrt(variance(quality) + decoder_error(level_of(quality)) ** 2)


def measured(physics: LinearPhysics, deviation: float, side: int = SIDE) -> Tensor:
    """A measurement of a white picture."""
    x = 0.5 + deviation * torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(10))
    return operators.degrade(x, physics, torch.Generator().manual_seed(11))


def exact_score(seen: Tensor, held: Tensor, quality: float, weight: float) -> float:
    """log p(held | the posterior mean) under white laws; the decoder's error is integrated out."""
    noise, later = SIGMA**2 / (1 - SHARE), SIGMA**2 / SHARE
    error, prior = decoder_error(level_of(quality)) ** 2, variance(quality)
    tempered = weight * (noise + error)
    gain, trust = prior / (prior + tempered), error / (error + noise)
    mean = 0.5 + (trust + (1 - trust) * gain) * (seen - 0.5)
    return float(Normal(mean, math.sqrt(later)).log_prob(held).sum())


def test_scores_are_the_exact_densities_of_what_was_held_out():
    physics = OPERATORS["denoise"](SIDE)
    y = measured(physics, 0.1)
    choice = choose(y, physics, codec=CODEC, qualities=(60,), prior_weights=(4.0,), steps=200, samples=40)
    parts = divide(y, Gaussian(physics, SIGMA), SHARE, torch.Generator().manual_seed(0))
    exact = torch.tensor([exact_score(*parts, trial.quality, trial.prior_weight) for trial in choice.trials])
    found = torch.tensor([trial.score for trial in choice.trials])
    torch.testing.assert_close(found, exact, rtol=0, atol=10.0)
    gains = torch.tensor([trial.gain for trial in choice.trials])
    torch.testing.assert_close(gains, found - found[0], rtol=0, atol=1e-2)
    assert gains.abs().max() > 10


@pytest.mark.parametrize("truth", [40, None])
def test_the_prior_that_the_picture_came_from_is_chosen(truth):
    physics = OPERATORS["denoise"](SIDE)
    quality = truth or default_quality(physics)
    y = measured(physics, deviation(quality))
    choice = choose(y, physics, codec=CODEC, qualities=(40, 60), prior_weights=(), share=0.5, steps=100)
    assert choice.quality == quality and choice.prior_weight == PRIOR_WEIGHT and choice.seconds > 0


@pytest.mark.parametrize(("calm", "weight"), [(True, 1.0), (False, PRIOR_WEIGHT)])
def test_the_weight_makes_up_for_a_prior_that_is_wrong(calm, weight):
    """Pictures that vary less than the prior says want it stronger; where it is right the default stays."""
    physics = operators.denoise((SIDE, SIDE), SIGMA)
    y = measured(physics, 0.03 if calm else deviation(default_quality(physics)))
    choice = choose(y, physics, codec=CODEC, qualities=(), prior_weights=(0.2, 1.0), share=0.5, steps=100)
    assert choice.quality == default_quality(physics) and choice.prior_weight == weight


def test_the_default_is_left_for_evidence_alone():
    """Priors that predict alike to within what the noise can tell give way to the default."""
    physics = operators.denoise((8, 8), SIGMA)
    default = default_quality(physics)
    choice = choose(measured(physics, 0.1, 8), physics, codec=CODEC, qualities=(default - 1,), prior_weights=())
    first, other = choice.trials
    assert first.quality == default and first.gain == 0 < other.error
    assert choice.quality == (other.quality if other.gain > other.error else default)


@pytest.mark.parametrize("share", [0.1, 0.5])
@pytest.mark.parametrize("sigma", [SIGMA, torch.tensor([0.05, 0.2])])
def test_parts_are_independent_and_average_to_the_whole(share, sigma):
    physics, x = operators.denoise((64, 64), SIGMA), torch.rand(2, 3, 64, 64)
    law = Gaussian(physics, sigma)
    deviation = law.sigma.view(-1, 1, 1, 1)
    y = x + deviation * torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    parts = divide(y, law, share, torch.Generator().manual_seed(6))
    torch.testing.assert_close((1 - share) * parts[0] + share * parts[1], y, rtol=0, atol=1e-5)
    standard = torch.stack(
        [(part - x) / deviation * math.sqrt(s) for part, s in zip(parts, (1 - share, share), strict=True)]
    )
    torch.testing.assert_close(torch.cov(standard.flatten(1)), torch.eye(2), rtol=0, atol=0.04)


@pytest.mark.parametrize("copies", [False, True])
def test_photons_are_seen_or_held_out(copies):
    """Each once; both counts follow Poisson's law of their share, and are independent given the picture."""
    gain, share, value = 0.02, 0.3, 0.4
    physics = Denoising(PoissonNoise(gain=gain))
    x = torch.full((1, 1 if copies else 3, 128, 128), value)
    y = (gain * torch.poisson(x / gain, generator=torch.Generator().manual_seed(5))).expand(1, 3, 128, 128)
    seen, held = divide(y, Poisson(physics, gain), share, torch.Generator().manual_seed(6))
    torch.testing.assert_close((1 - share) * seen + share * held, y, rtol=0, atol=1e-5)
    for part, s in ((seen, 1 - share), (held, share)):
        counts = part * s / gain
        torch.testing.assert_close(counts, counts.round(), rtol=0, atol=1e-3)
        assert counts.mean().item() == pytest.approx(s * value / gain, rel=0.02)
        assert counts.var().item() == pytest.approx(s * value / gain, rel=0.05)
        assert torch.equal(part, part[:, :1].expand_as(part)) == copies
    between = torch.corrcoef(torch.stack([seen[:, 0].flatten(), held[:, 0].flatten()]))
    assert abs(between[0, 1]) < 0.03


def test_photons_choose_the_prior_that_the_picture_came_from():
    physics = Denoising(PoissonNoise(gain=SIGMA**2 / 0.5, clip_positive=True))
    default = default_quality(physics)
    for truth, qualities in ((40, (40,)), (default, (40,))):
        y = measured(physics, deviation(truth), 32)
        choice = choose(y, physics, codec=CODEC, qualities=qualities, prior_weights=(), share=0.5, steps=60)
        assert choice.quality == truth and all(math.isfinite(trial.score) for trial in choice.trials)


@pytest.mark.parametrize("weight", [1.0, 1 / 3])
def test_copies_of_a_channel_stay_copies_and_their_parts_are_independent(weight):
    """Whether the law of three copies has three times the variance or a third of the weight."""
    physics, x = operators.denoise((96, 96), SIGMA), torch.rand(1, 1, 96, 96)
    law = weighted(Gaussian(physics, SIGMA * (3 * weight) ** 0.5), weight)
    y = (x + SIGMA * torch.randn(x.shape, generator=torch.Generator().manual_seed(5))).expand(1, 3, 96, 96)
    parts = divide(y, law, SHARE, torch.Generator().manual_seed(6))
    assert all(torch.equal(part, part[:, :1].expand_as(part)) for part in parts)
    shares = (1 - SHARE, SHARE)
    standard = [(part - x)[:, 0] / SIGMA * math.sqrt(s) for part, s in zip(parts, shares, strict=True)]
    torch.testing.assert_close(torch.cov(torch.stack(standard).flatten(1)), torch.eye(2), rtol=0, atol=0.04)


def test_blanks_stay_blank_and_do_not_count():
    physics = OPERATORS["inpaint"](SIDE)
    y = measure(physics, torch.randn(1, 48, SIDE // BLOCK, SIDE // BLOCK))
    blank = physics.mask.expand_as(y) == 0
    for part in divide(y, Gaussian(physics, SIGMA), SHARE, torch.Generator()):
        assert (part[blank] == 0).all() and (part[~blank] != y[~blank]).all()
    whole, third = (
        choose(y, physics, codec=CODEC, likelihood=law, qualities=(), prior_weights=(), steps=1)
        for law in (Gaussian(physics, SIGMA), weighted(Gaussian(physics, SIGMA), 0.5))
    )
    assert whole.trials[0].score == pytest.approx(2 * third.trials[0].score, rel=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"physics": Denoising(PoissonGaussianNoise(0.05, 0.1))}, "Gaussian noise of a known level"),
        ({"physics": Denoising(PoissonNoise(0.05, normalize=False))}, "Gaussian noise of a known level"),
        ({"physics": operators.denoise((8, 8), 0.0)}, "Gaussian noise of a known level"),
        ({"share": 0.0}, "share"),
        ({"share": math.nan}, "share"),
    ],
)
def test_what_cannot_be_divided_is_said_in_a_line(change, message):
    options = {"physics": operators.denoise((8, 8), SIGMA), **change}
    with pytest.raises(OperatorError, match=message):
        choose(torch.rand(1, 3, 8, 8), codec=CODEC, **options)
