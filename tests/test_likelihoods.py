import math

import numpy as np
import pytest
import torch
from deepinv.physics import (
    Denoising,
    GaussianNoise,
    Inpainting,
    LinearPhysics,
    PoissonGaussianNoise,
    PoissonNoise,
    UniformNoise,
    ZeroNoise,
)

from bayesq import operators
from bayesq.errors import OperatorError
from bayesq.likelihoods import (
    RATE_FLOOR,
    SIGMA_FLOOR,
    Cells,
    Gaussian,
    Impulse,
    Mixture,
    Poisson,
    PoissonGaussian,
    UnevenGaussian,
    UnknownGaussian,
    from_physics,
    gaussian_near,
    noise_level,
    weighted,
)

SIZE = (12, 16)
PHYSICS = {
    "denoise": operators.denoise(SIZE, 0.1),
    "blur": operators.blur("gaussian:1", SIZE, 0.1),
    "downsample": operators.downsample(2, SIZE, 0.1),
    "inpaint": operators.inpaint(np.indices(SIZE).sum(0) % 3 > 0, SIZE, 0.1),
}
NEARLY_GAUSSIAN = {
    "known": lambda physics: Gaussian(physics, 0.1),
    "a map": lambda physics: Gaussian(physics, torch.tensor([0.05, 0.2])),
    "weighted": lambda physics: weighted(Gaussian(physics, 0.1), 1 / 3),
    "unknown": UnknownGaussian,
    "uneven": lambda physics: UnevenGaussian(physics, 5),
    "heavy-tailed": lambda physics: weighted(UnevenGaussian(physics, 1), 1 / 3),
    "photons": lambda physics: Poisson(physics, 0.01),
    "photons and sensor": lambda physics: PoissonGaussian(physics, 0.0005, 0.1),
    "outliers": lambda physics: Mixture(physics, [Gaussian(physics, 0.1), Impulse(physics, -1, 2)], [0.9, 0.1]),
    "two levels": lambda physics: Mixture(physics, [Gaussian(physics, s) for s in (0.05, 0.3)], [0.5, 0.5]),
}


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def pair(physics, generator):
    x = 0.1 + 0.8 * torch.rand(2, 3, *SIZE, generator=generator)
    return operators.degrade(x, physics, generator), x


def observed(name, y):
    return PHYSICS[name].mask.bool().expand_as(y) if name == "inpaint" else torch.ones_like(y, dtype=torch.bool)


@pytest.mark.parametrize("sigma", [0.05, torch.tensor([0.05, 0.2])])
@pytest.mark.parametrize("name", PHYSICS)
def test_gaussian_agrees_with_torch_on_the_observed_pixels(name, sigma, generator):
    physics = PHYSICS[name]
    y, x = pair(physics, generator)
    level = torch.as_tensor(sigma).reshape(-1, 1, 1, 1)
    terms = torch.distributions.Normal(physics.A(x), level).log_prob(y) * observed(name, y)
    actual = Gaussian(physics, sigma).log_prob(y, x)
    assert actual.shape == (2,)
    torch.testing.assert_close(actual, terms.sum((1, 2, 3)), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", PHYSICS)
def test_gaussian_gradient_is_the_back_projected_residual(name, generator):
    physics = PHYSICS[name]
    y, x = pair(physics, generator)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(Gaussian(physics, 0.1).log_prob(y, x).sum(), x)
    with torch.no_grad():
        torch.testing.assert_close(gradient, physics.A_adjoint(y - physics.A(x)) / 0.1**2, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", PHYSICS)
def test_poisson_agrees_with_torch_on_the_observed_pixels(name, generator):
    physics = PHYSICS[name]
    _, x = pair(physics, generator)
    gain = torch.tensor([0.02, 0.1])
    rate = physics.A(x) / gain.reshape(-1, 1, 1, 1)
    counts = torch.poisson(rate, generator=generator)
    seen = observed(name, counts)
    expected = (torch.distributions.Poisson(rate.clamp_min(1e-6)).log_prob(counts) * seen).sum((1, 2, 3))
    y = counts * gain.reshape(-1, 1, 1, 1)
    torch.testing.assert_close(Poisson(physics, gain).log_prob(y, x), expected, rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(
        Poisson(physics, gain, normalize=False).log_prob(counts, x), expected, rtol=1e-4, atol=1e-2
    )


@pytest.mark.parametrize("sigma", [0.0, SIGMA_FLOOR, 0.3])
def test_gaussian_integrates_to_one(sigma):
    y = torch.linspace(-2, 3, 20001).reshape(-1, 1, 1, 1)
    density = Gaussian(Denoising(), sigma).log_prob(y, torch.full_like(y, 0.4)).exp()
    assert torch.trapezoid(density, y.flatten()) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("gain", [0.03, 0.5])
@pytest.mark.parametrize("value", [0.01, 0.4])
def test_poisson_sums_to_one(gain, value):
    y = gain * torch.arange(100.0).reshape(-1, 1, 1, 1)
    assert Poisson(Denoising(), gain).log_prob(y, torch.full_like(y, value)).exp().sum() == pytest.approx(1, abs=1e-4)


def test_poisson_gradient_leads_out_of_negative_rates():
    for value in (-0.1, 0.0, RATE_FLOOR / 2):
        x = torch.full((1, 1, 1, 1), value, requires_grad=True)
        (gradient,) = torch.autograd.grad(Poisson(Denoising(), 1.0).log_prob(torch.ones(1, 1, 1, 1), x).sum(), x)
        assert gradient.item() == pytest.approx(1 / RATE_FLOOR - 1)


@pytest.mark.parametrize("name", PHYSICS)
def test_blanked_pixels_say_nothing(name, generator):
    y, x = pair(PHYSICS[name], generator)
    seen = observed(name, y)
    for likelihood in (Gaussian(PHYSICS[name], 0.1), Poisson(PHYSICS[name], 0.1)):
        assert likelihood.num_observed(y) == seen[0].sum()
        altered = torch.where(seen, y.abs(), 5.0)
        torch.testing.assert_close(
            likelihood.log_prob(altered, x), likelihood.log_prob(torch.where(seen, y.abs(), 0), x)
        )


GAUSS, POISSON = Denoising(GaussianNoise(0.1)), Denoising(PoissonNoise(0.05))
INDEPENDENT = {
    "gaussian": Gaussian(GAUSS, 0.1),
    "poisson": Poisson(POISSON, 0.05),
    "few photons": PoissonGaussian(GAUSS, 0.3, 0.02),
    "many photons": PoissonGaussian(GAUSS, 0.01, 0.1),
    "photons of no account": PoissonGaussian(GAUSS, 1e-5, 0.05),
    "two gaussians": Mixture(GAUSS, [Gaussian(GAUSS, 0.03), Gaussian(GAUSS, 0.3)], [0.8, 0.2]),
    "impulses": Mixture(GAUSS, [Gaussian(GAUSS, 0.05), Impulse(GAUSS)], [0.9, 0.1]),
    "rounding": Cells(GAUSS, 0.15, 0.02),
    "coarse rounding": Cells(GAUSS, 0.5, 0.1),
}


def support(name):
    """Values that y may take, and the weight of each in a sum over all of them."""
    if name == "poisson":
        return 0.05 * torch.arange(200.0), 1.0
    if name.endswith("rounding"):
        step = float(INDEPENDENT[name].step)
        return 0.03 + step * torch.arange(-30.0, 30), 1.0
    y = torch.linspace(-2, 4, 24001, dtype=torch.float64)
    return y, 6 / 24000


@pytest.mark.parametrize("value", [0.02, 0.4, 0.9])
@pytest.mark.parametrize("name", INDEPENDENT)
def test_mass_is_one_and_the_score_vanishes_on_average(name, value):
    """∫ p(y | x) dy = 1 for every x, hence E[d/dx log p(y | x)] = 0."""
    y, weight = support(name)
    x = torch.full_like(y, value).requires_grad_()
    log_p = INDEPENDENT[name].terms(y, x)
    (score,) = torch.autograd.grad(log_p.sum(), x)
    p = log_p.detach().exp().double() * weight
    assert float(p.sum()) == pytest.approx(1, abs=1e-3)
    deviation = float((p * score.square()).sum().sqrt())
    assert float((p * score).sum()) == pytest.approx(0, abs=2e-3 * deviation)


@pytest.mark.parametrize("name", INDEPENDENT)
def test_gradients_are_finite_and_match_differences(name):
    y, _ = support(name)
    y = y[:: len(y) // 20].float()
    for value in (-0.1, 0.0, 1e-4, 0.5, 1.1):
        x = torch.full_like(y, value).requires_grad_()
        (score,) = torch.autograd.grad(INDEPENDENT[name].terms(y, x).sum(), x)
        assert score.isfinite().all()
    x = torch.full_like(y, 0.5, dtype=torch.float64).requires_grad_()
    terms = INDEPENDENT[name].terms
    (score,) = torch.autograd.grad(terms(y.double(), x).sum(), x)
    with torch.no_grad():
        difference = (terms(y.double(), x + 1e-5) - terms(y.double(), x - 1e-5)) / 2e-5
    torch.testing.assert_close(score, difference, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", INDEPENDENT)
def test_pictures_of_a_batch_are_on_their_own(name, generator):
    x = torch.rand(3, 3, 4, 5, generator=generator)
    y = torch.round(torch.rand(3, 3, 4, 5, generator=generator) * 20) / 20
    together = INDEPENDENT[name].log_prob(y, x)
    one_by_one = torch.cat([INDEPENDENT[name].log_prob(a[None], b[None]) for a, b in zip(y, x, strict=True)])
    torch.testing.assert_close(together, one_by_one, rtol=1e-5, atol=1e-4)
    assert INDEPENDENT[name].num_observed(y) == 60


@pytest.mark.parametrize("law", [lambda physics: Gaussian(physics, 0.1), UnknownGaussian, UnevenGaussian])
def test_pictures_of_a_batch_have_masks_of_their_own(law, generator):
    masks = (torch.rand(2, 1, *SIZE, generator=generator) < torch.tensor([0.3, 0.8]).view(2, 1, 1, 1)).float()
    y, x = torch.rand(2, 2, 3, *SIZE, generator=generator)

    def masked(mask):
        return law(Inpainting((3, *SIZE), mask=mask, noise_model=GaussianNoise(0.1)))

    alone = [masked(mask[None]) for mask in masks]
    one_by_one = torch.cat([one.log_prob(a[None], b[None]) for one, a, b in zip(alone, y, x, strict=True)])
    torch.testing.assert_close(masked(masks).log_prob(y, x), one_by_one)
    assert masked(masks).num_observed(y) == round(sum(one.num_observed(y[:1]) for one in alone) / 2)


def test_a_map_of_noise_levels_is_the_law_of_each_pixel(generator):
    y, x = torch.rand(2, 2, 3, *SIZE, generator=generator)
    level = 0.05 + torch.rand(1, 1, *SIZE, generator=generator)
    expected = torch.distributions.Normal(x, level).log_prob(y).sum((1, 2, 3))
    torch.testing.assert_close(Gaussian(PHYSICS["denoise"], level).log_prob(y, x), expected)
    level = level.expand(2, 3, -1, -1)
    torch.testing.assert_close(Gaussian(PHYSICS["denoise"], level).log_prob(y, x), expected)


def test_poisson_gaussian_tends_to_its_parts(generator):
    x = 0.2 + 0.6 * torch.rand(1, 3, 8, 8, generator=generator)
    y = x + 0.05 * torch.randn(x.shape, generator=generator)
    mixed = PoissonGaussian(GAUSS, 1e-6, 0.05).log_prob(y, x)
    torch.testing.assert_close(mixed, Gaussian(GAUSS, 0.05).log_prob(y, x), rtol=1e-3, atol=0.05)
    mixed = PoissonGaussian(GAUSS, 2e-3, 0.05).log_prob(y, x)
    torch.testing.assert_close(mixed, Gaussian(GAUSS, (0.05**2 + 2e-3 * x).sqrt()).log_prob(y, x), rtol=1e-2, atol=1)
    counts = torch.poisson(x / 0.2, generator=generator)
    sharp = PoissonGaussian(GAUSS, 0.2, 4e-3).log_prob(0.2 * counts, x)
    peaks = x.numel() * math.log(4e-3 * math.sqrt(2 * math.pi))
    torch.testing.assert_close(sharp + peaks, Poisson(GAUSS, 0.2).log_prob(0.2 * counts, x), rtol=1e-4, atol=1e-2)


def test_cells_tend_to_indicators_and_to_densities():
    y, x = torch.tensor([0.0, 0.3, -0.3]), torch.zeros(3)
    assert Cells(GAUSS, 0.3, 1e-4).terms(y, x).exp().tolist() == pytest.approx([1, 0, 0], abs=1e-6)
    fine = Cells(GAUSS, 1e-3, 0.1).terms(y, x) - math.log(1e-3)
    torch.testing.assert_close(fine, Gaussian(GAUSS, 0.1).terms(y, x), rtol=1e-3, atol=1e-3)


def test_responsibilities_find_the_outliers(generator):
    x = torch.rand(1, 3, *SIZE, generator=generator)
    hit = torch.rand(x.shape, generator=generator) < 0.1
    noisy = (x + 0.02 * torch.randn(x.shape, generator=generator)).clamp(0, 1)
    y = torch.where(hit, torch.rand(x.shape, generator=generator), noisy)
    law = Mixture(GAUSS, [Gaussian(GAUSS, 0.02), Impulse(GAUSS)], [0.9, 0.1])
    found = law.responsibilities(y, x)
    torch.testing.assert_close(found.sum(0), torch.ones_like(y))
    assert ((found[1] > 0.5) == hit).float().mean() > 0.97


class TestUnknownGaussian:
    SMALL = Denoising(GaussianNoise(0.1))

    def test_is_the_mixture_of_gaussians_over_the_prior(self, generator):
        """The integral over σ², and the ratio that Bayes' rule gives at any σ²."""
        law = UnknownGaussian(self.SMALL, 3.0, 0.05)
        y, x = torch.rand(2, 2, 3, 2, 2, generator=generator)
        marginal = law.log_prob(y, x)
        prior = torch.distributions.InverseGamma(torch.tensor(3.0), torch.tensor(0.05))
        grid = torch.logspace(-4, 2, 4000)
        joint = _white(y, x, grid.sqrt()[:, None]) + prior.log_prob(grid)[:, None]
        torch.testing.assert_close(torch.trapezoid(joint.exp(), grid, dim=0).log(), marginal, rtol=0, atol=1e-3)
        for variance in (0.01, 0.1):
            bayes = _white(y, x, variance**0.5) + prior.log_prob(torch.tensor(variance))
            posterior = law.variance(y, x).log_prob(torch.tensor(variance))
            torch.testing.assert_close(bayes - posterior, marginal, rtol=1e-4, atol=1e-4)

    def test_finds_the_level_and_nears_the_gaussian(self, generator):
        x = torch.rand(2, 3, 64, 64, generator=generator)
        y = x + torch.tensor([0.05, 0.2]).view(2, 1, 1, 1) * torch.randn(x.shape, generator=generator)
        law = UnknownGaussian(self.SMALL)
        draws = law.sigma(y, x.expand(50, *x.shape), generator)
        assert draws.shape == (50, 2)
        torch.testing.assert_close(draws.mean(0), torch.tensor([0.05, 0.2]), rtol=0.03, atol=0)
        torch.testing.assert_close(
            draws.std(0) / draws.mean(0), torch.full((2,), (2 * 3 * 64**2) ** -0.5), rtol=0.4, atol=0
        )
        best = torch.stack([Gaussian(self.SMALL, s).log_prob(y, x) for s in (0.05, 0.2)]).amax(0)
        assert (law.log_prob(y, x) < best).all() and (law.log_prob(y, x) > best - 20).all()

    def test_score_vanishes_on_average(self, generator):
        law = UnknownGaussian(self.SMALL, 4.0, 0.1)
        x = torch.full((20000, 1, 2, 2), 0.5, requires_grad=True)
        sigma = (0.1 / torch._standard_gamma(torch.full((20000, 1, 1, 1), 4.0), generator=generator)).sqrt()
        y = x.detach() + sigma * torch.randn(x.shape, generator=generator)
        (score,) = torch.autograd.grad(law.log_prob(y, x).sum(), x)
        assert score.isfinite().all() and (score.mean(0) / score.std(0)).abs().max() < 4 / math.sqrt(20000)


class TestUnevenGaussian:
    @pytest.mark.parametrize("name", ["denoise", "inpaint"])
    def test_is_the_product_of_unknown_levels_of_its_blocks(self, name, generator):
        physics = PHYSICS[name]
        y, x = pair(physics, generator)
        mask = observed(name, y).float()[:1, :1]

        def law(rows, columns):
            part = Inpainting((3, *SIZE), mask=mask[..., rows, columns]) if name == "inpaint" else GAUSS
            return UnknownGaussian(part).log_prob(y[..., rows, columns], x[..., rows, columns])

        blocks = [(slice(i, i + 5), slice(j, j + 5)) for i in (0, 5, 10) for j in (0, 5, 10, 15)]
        expected = sum(law(*block) for block in blocks)
        torch.testing.assert_close(UnevenGaussian(physics, 5).log_prob(y, x), expected)

    def test_finds_the_levels(self, generator):
        x = torch.rand(1, 3, 64, 128, generator=generator)
        level = torch.tensor([0.02, 0.2]).repeat_interleave(64).expand(1, 1, 64, -1)
        law = UnevenGaussian(GAUSS, 32)
        y = x + level * torch.randn(x.shape, generator=generator)
        draws = law.sigma(y, x.expand(20, *x.shape), generator)
        assert draws.shape == (20, 1, 1, 2, 4)
        expected = torch.tensor([0.02, 0.02, 0.2, 0.2]).expand(1, 1, 2, 4)
        torch.testing.assert_close(draws.mean(0), expected, rtol=0.07, atol=0)

    def test_no_block_is_refused(self):
        with pytest.raises(OperatorError, match="at least one pixel"):
            UnevenGaussian(GAUSS, 0)


def _white(y, x, sigma):
    sigma = torch.as_tensor(sigma)
    energy = (y - x).square().sum((1, 2, 3))
    return -energy / (2 * sigma**2) - y[0].numel() * torch.log(sigma * math.sqrt(2 * math.pi))


def test_the_noise_of_the_operator_is_the_likelihood(generator):
    physics = operators.denoise(SIZE, "25/255")
    y, x = pair(physics, generator)
    torch.testing.assert_close(from_physics(physics).log_prob(y, x), Gaussian(physics, 25 / 255).log_prob(y, x))
    physics = Denoising(PoissonNoise(gain=0.1, normalize=False))
    y, x = pair(physics, generator)
    torch.testing.assert_close(from_physics(physics).log_prob(y, x), Poisson(physics, 0.1, False).log_prob(y, x))
    physics = Denoising(PoissonGaussianNoise(0.1, 0.05))
    y, x = pair(physics, generator)
    torch.testing.assert_close(from_physics(physics).log_prob(y, x), PoissonGaussian(physics, 0.1, 0.05).log_prob(y, x))
    physics = Denoising(operators.Rounding(0.1, 0.03, 0.02))
    y, x = pair(physics, generator)
    assert ((y - 0.03) / 0.1 % 1).sub(0.5).abs().min() > 0.499
    torch.testing.assert_close(from_physics(physics).log_prob(y, x), Cells(physics, 0.1, 0.02).log_prob(y, x))


def test_noiseless_gaussian_has_the_documented_floor(generator):
    physics = operators.downsample(2, SIZE, 0)
    y, x = pair(physics, generator)
    n = y[0].numel()
    torch.testing.assert_close(
        from_physics(physics).log_prob(y, x), torch.full((2,), -n * math.log(SIGMA_FLOOR * math.sqrt(2 * math.pi)))
    )


@pytest.mark.parametrize("noise", [ZeroNoise(), UniformNoise(0.1)])
def test_other_noise_is_refused(noise):
    with pytest.raises(OperatorError, match="GaussianNoise"):
        from_physics(LinearPhysics(A=lambda x: x, A_adjoint=lambda y: y, noise_model=noise))


@pytest.mark.parametrize("level", [-0.1, math.nan, math.inf])
def test_bad_levels_are_refused(level):
    for family in (Gaussian, Poisson):
        with pytest.raises(OperatorError, match=r"^[^\n]+$"):
            family(Denoising(GaussianNoise(0.1)), level)
    for build in [
        lambda: Gaussian(GAUSS, torch.tensor([0.1, level])),
        lambda: PoissonGaussian(GAUSS, level, 0.1),
        lambda: PoissonGaussian(GAUSS, 0.1, level),
        lambda: UnknownGaussian(GAUSS, scale=level),
        lambda: Cells(GAUSS, level, 0.1),
        lambda: Impulse(GAUSS, 0.0, level),
        lambda: Mixture(GAUSS, [Gaussian(GAUSS, 0.1)], [level]),
        lambda: Mixture(GAUSS, [Gaussian(GAUSS, 0.1)], [0.5, 0.5]),
    ]:
        with pytest.raises(OperatorError, match=r"^[^\n]+$"):
            build()


@pytest.mark.parametrize("name", PHYSICS)
@pytest.mark.parametrize("law", NEARLY_GAUSSIAN)
def test_the_gaussian_near_a_picture_pulls_it_as_the_likelihood_does(law, name, generator):
    physics = PHYSICS[name]
    likelihood = NEARLY_GAUSSIAN[law](physics)
    y, x = pair(physics, generator)
    x = x.requires_grad_()
    pull = torch.autograd.grad(likelihood.log_prob(y, x).sum(), x)[0]
    value, sigma = gaussian_near(likelihood, y, x.detach())
    found = physics.A_adjoint((value - physics.A(x.detach())) / sigma.square())
    tolerance = 0.02 if law == "photons and sensor" else 1e-3
    assert (found - pull).abs().max() < tolerance * pull.abs().max()


@pytest.mark.parametrize("law", NEARLY_GAUSSIAN)
def test_drawn_gaussians_have_the_precision_of_the_expected_one(law, generator):
    physics = PHYSICS["denoise"]
    likelihood = NEARLY_GAUSSIAN[law](physics)
    y, x = pair(physics, generator)
    expected = gaussian_near(likelihood, y, x)[1].square().reciprocal()
    draws = [gaussian_near(likelihood, y, x, generator)[1].square().reciprocal() for _ in range(400)]
    torch.testing.assert_close(torch.stack(draws).mean(0).mean(), expected.mean(), rtol=0.02, atol=0)


def test_noise_level_is_that_of_the_mean_precision_of_what_is_observed():
    physics = PHYSICS["inpaint"]
    sigma = torch.full((1, 1, *SIZE), 0.1)
    sigma[..., :8] = 0.2
    level = noise_level(Gaussian(physics, sigma), torch.zeros(1, 3, *SIZE), torch.zeros(1, 3, *SIZE))
    seen = physics.mask.expand(1, 3, *SIZE).bool()
    assert level == pytest.approx(float(sigma.expand(1, 3, *SIZE)[seen].pow(-2).mean().rsqrt()))
