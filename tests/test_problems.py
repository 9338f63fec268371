"""Problems that a denoiser is trained on: exact fits, kernels, and what a search asks."""

import math

import pytest
import torch

from bayesq.io import read_image, to_tensor
from bayesq.resources import data_dir
from bayesq.training import kernels
from bayesq.training.denoising import COARSEST, FINEST, DenoisingLoss, ask
from bayesq.training.problems import Masked, Reduced, draw_problem


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def crop():
    return to_tensor(read_image(data_dir() / "coffee.png").crop((200, 100, 248, 148)))[0].double()


DRAWS = {
    "gaussian": lambda x, g: Reduced.draw(x, kernels.gaussian(g), 1, 0.03, g),
    "motion": lambda x, g: Reduced.draw(x, kernels.motion(g), 1, 0.01, g),
    "x2": lambda x, g: Reduced.draw(x, kernels.bicubic(2), 2, 0.004, g),
    "x3": lambda x, g: Reduced.draw(x, kernels.bicubic(3), 3, 0.02, g),
    "pixels": lambda x, g: Masked.draw(x, (torch.rand(1, *x.shape[1:], generator=g) < 0.4).to(x), 0.02, g),
    "values": lambda x, g: Masked.draw(x, (torch.rand(x.shape, generator=g) < 0.4).to(x), 0.02, g),
    **{f"draw {seed}": lambda x, g, seed=seed: draw_problem(x, generator(seed)) for seed in range(8)},
}


@pytest.mark.parametrize("name", DRAWS)
def test_a_fit_is_the_posterior_mean(name, crop):
    """Where the gradient of the logarithm of p(x) p(y | x), which is concave, is nought."""
    problem = DRAWS[name](crop, generator())
    mean = (crop + 0.1 * torch.randn(crop.shape, generator=generator(1), dtype=torch.float64)).float().double()
    for std in (0.01, 0.2):
        x = problem.fit(mean, std).requires_grad_()
        data = (problem.y - problem.apply(x)).square().sum() / problem.sigma**2
        prior = (x - mean).square().sum() / std**2
        pull = torch.autograd.grad(data, x, retain_graph=True)[0].abs().max()
        found = torch.autograd.grad(data + prior, x)[0].abs().max()
        assert found < 1e-9 * max(1.0, float(pull))


@pytest.mark.parametrize("name", DRAWS)
def test_measurements_have_the_noise_they_say(name, crop):
    problem = DRAWS[name](crop, generator())
    observed = problem.mask.expand_as(crop) > 0 if isinstance(problem, Masked) else ...
    residual = (problem.y - problem.apply(crop))[observed]
    count = residual.numel()
    assert residual.square().mean().sqrt() == pytest.approx(problem.sigma, rel=4 / math.sqrt(2 * count))


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("std", [0.02, 0.4])
def test_the_noise_left_in_a_fit_is_known(name, std, crop):
    """A fit is linear in estimate and measurement, so noise alone goes through it as it does beside a picture."""
    problem = DRAWS[name](crop, generator())
    clean = problem.apply(crop)
    draws = []
    for seed in range(6):
        problem.y = clean + problem.sigma * torch.randn(clean.shape, generator=generator(seed), dtype=clean.dtype)
        draws.append(problem.fit(crop, std) - crop)
    assert torch.stack(draws).square().mean().sqrt() == pytest.approx(problem.noise(std), rel=0.06)


@pytest.mark.parametrize("name", DRAWS)
def test_a_first_estimate_is_nearer_than_grey(name, crop):
    problem = DRAWS[name](crop, generator())
    error = (problem.start() - crop).square().mean()
    assert error < (crop - crop.mean()).square().mean()


@pytest.mark.parametrize("name", DRAWS)
def test_a_draw_depends_on_the_generator_alone(name, crop):
    assert torch.equal(DRAWS[name](crop, generator(5)).y, DRAWS[name](crop, generator(5)).y)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("draw", [kernels.gaussian, kernels.motion])
def test_kernels_are_laws_of_where_light_goes(draw, seed):
    kernel = draw(generator(seed))
    assert kernel.shape == (kernels.SIDE, kernels.SIDE)
    assert (kernel >= 0).all() and kernel.sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_a_reduction_keeps_straight_lines(factor):
    """Their values are those at the middles of the pixels that are reduced to one, counted from the kernel's."""
    x = torch.arange(96.0, dtype=torch.float64).expand(3, 96, 96)
    problem = Reduced.draw(x, kernels.bicubic(factor).double(), factor, 0.0, generator())
    inner = problem.y[0, 48 // factor, 24 // factor : 72 // factor]
    expected = x[0, 0, 24:72:factor] + (factor - 1) / 2 % 1
    assert torch.allclose(inner, expected, atol=1e-4)
    assert torch.allclose(problem.start()[..., 24:72], x[..., 24:72], atol=1e-4)


class Recording(torch.nn.Module):
    """Gives back what it is given, and keeps it."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def moments(self, x, sigma, noise):
        self.calls.append((x, sigma, torch.is_grad_enabled()))
        return x, sigma.view(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])

    def forward(self, x, sigma, noise):
        return self.moments(x, sigma, noise)[0]


@pytest.mark.parametrize("seed", range(6))
def test_a_search_asks_at_falling_levels(seed, crop):
    recording, problems = Recording(), [draw_problem(crop.float(), generator(k)) for k in range(3)]
    level, _, asked = ask(recording, problems, generator(seed))
    assert asked.shape == (3, *crop.shape) and asked.isfinite().all()
    levels = torch.stack([sigma for _, sigma, _ in recording.calls] + [level])
    assert (levels.diff(dim=0) <= 0).all() and (levels >= FINEST * 0.999).all()
    assert torch.allclose(levels[0], torch.tensor([max(COARSEST, problem.sigma) for problem in problems]))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_half_of_the_crops_are_in_white_noise(count, crop):
    recording = Recording()
    loss = DenoisingLoss(recording)(crop.float().expand(count, -1, -1, -1), generator())
    x, sigma, graded = recording.calls[-1]
    assert loss.isfinite() and graded and not any(graded for *_, graded in recording.calls[:-1])
    white = (count + 1) // 2
    noise = (x - crop.float())[:white].flatten(1).std(1)
    assert torch.allclose(noise, sigma[:white], rtol=0.05)
