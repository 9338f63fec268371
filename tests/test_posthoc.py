"""Networks laid over restorers, on errors and pictures of which the law is known."""

from functools import partial

import pytest
import torch
from scipy.stats import gennorm
from torch import Tensor

from bayesq import zoo
from bayesq.errors import ModelError, OperatorError
from bayesq.posthoc import BayesCap, Flow, GeneralisedGaussian, fit

LEVELS = (0.5, 0.8, 0.9, 0.95)


def law(scale: float, shape: float, count: int = 1) -> GeneralisedGaussian:
    return GeneralisedGaussian(*(torch.full((1, 1, 1, count), v) for v in (0.3, scale, shape)))


@pytest.mark.parametrize("shape", [0.5, 1.0, 2.0, 6.0])
def test_the_law_is_scipys(shape):
    x = torch.linspace(-1, 1, 10).view(1, 1, 1, 10)
    ours, theirs = law(0.2, shape), gennorm(shape, 0.3, 0.2)
    expected = torch.from_numpy(theirs.logpdf(x.double().numpy())).float()
    torch.testing.assert_close(ours.log_prob(x), expected, rtol=1e-4, atol=1e-3)
    assert ours.std.item() == pytest.approx(theirs.std(), rel=1e-5)
    for level in LEVELS:
        ends = [end.item() for end in ours.interval(level)]
        assert ends == pytest.approx(theirs.interval(level), rel=1e-4)
    draws = ours.sample(20_000, torch.Generator().manual_seed(0)).flatten()
    for level in LEVELS:
        low, high = ours.interval(level)
        assert ((draws > low.item()) & (draws < high.item())).float().mean() == pytest.approx(level, abs=0.012)


@pytest.mark.parametrize("level", [0, 1, -0.5, float("nan")])
def test_levels_are_probabilities(level):
    with pytest.raises(OperatorError, match="between 0 and 1"):
        law(0.1, 2.0).interval(level)


def known(restored: Tensor, shape: float) -> GeneralisedGaussian:
    """Errors that are larger, and biased, where the picture is bright."""
    bright = restored.mean(1, keepdim=True).expand_as(restored)
    return GeneralisedGaussian(restored + 0.04 * bright, 0.02 + 0.1 * bright, torch.full_like(restored, shape))


def batch(generator: torch.Generator) -> Tensor:
    """Smooth pictures."""
    coarse = torch.rand(4, 3, 5, 5, generator=generator)
    return torch.nn.functional.interpolate(coarse, (24, 24), mode="bilinear")


@pytest.mark.parametrize("shape", [0.8, 2.0])
def test_scale_and_shape_are_recovered_and_intervals_cover(shape):
    generator = torch.Generator().manual_seed(1)

    def pairs():
        while True:
            restored = batch(generator)
            yield restored, known(restored, shape).sample(1, generator)[0]

    with torch.random.fork_rng():
        torch.manual_seed(0)
        cap = BayesCap(width=16, depth=3)
    restored = batch(generator)
    torch.testing.assert_close(cap(restored).mean, restored)
    losses = fit(cap, cap.loss, pairs(), steps=300, rate=1e-2)
    assert len(losses) == 300

    with torch.no_grad():
        found = cap(restored := torch.cat([batch(generator) for _ in range(8)]))
    truth = known(restored, shape)
    assert (found.scale / truth.scale).log().abs().mean() < 0.2
    assert found.shape.mean().item() == pytest.approx(shape, rel=0.15)
    assert (found.mean - truth.mean).abs().mean() < 0.3 * 0.04 * restored.mean()
    assert (found.std / truth.std).log().abs().mean() < 0.1
    x = truth.sample(1, generator)[0]
    for level in LEVELS:
        low, high = found.interval(level)
        inside = (x > low) & (x < high)
        assert inside.float().mean().item() == pytest.approx(level, abs=0.02)
        bright = restored.mean(1, keepdim=True).expand_as(restored) > 0.5
        assert inside[bright].float().mean().item() == pytest.approx(level, abs=0.03)


def test_a_cap_that_is_told_the_noise_has_its_bars_grow_with_it():
    generator = torch.Generator().manual_seed(4)

    def draw():
        restored, sigma = batch(generator), 0.02 * 5 ** torch.rand(4, generator=generator)
        return restored, restored + sigma.view(-1, 1, 1, 1) * torch.randn(restored.shape, generator=generator), sigma

    with torch.random.fork_rng():
        torch.manual_seed(0)
        cap = BayesCap(width=16, depth=2, told=True)
    fit(cap, cap.loss, (draw() for _ in range(300)), steps=300, rate=1e-2)
    for sigma in (0.02, 0.05, 0.1):
        assert cap(batch(generator), sigma).std.mean().item() == pytest.approx(sigma, rel=0.1)
    with pytest.raises(OperatorError, match="has to be told"):
        cap(batch(generator))
    with pytest.raises(OperatorError, match="takes no level"):
        BayesCap()(batch(generator), 0.1)


def test_training_stops_when_the_pairs_end():
    x, cap = batch(torch.Generator().manual_seed(0)), BayesCap(width=4, depth=2)
    assert len(fit(cap, cap.loss, [(x, x)] * 3)) == 3


def test_a_flow_goes_from_the_mean_to_the_law_of_pictures():
    """Given a mean that knows nothing, the flow's pictures spread as true ones do."""
    generator = torch.Generator().manual_seed(2)
    mean = torch.full((16, 3, 16, 16), 0.5)

    def truth():
        return 0.5 + 0.6 * torch.randn(mean.shape, generator=generator)

    def pairs():
        while True:
            yield mean, truth()

    with torch.random.fork_rng():
        torch.manual_seed(0)
        flow = Flow(noise=0.3, widths=(16, 16), depth=1)
    assert flow(truth(), torch.zeros(16)).abs().max() == 0
    losses = fit(flow, partial(flow.loss, generator=generator), pairs(), steps=400, rate=1e-2)
    assert sum(losses[-50:]) < sum(losses[:50])
    drawn, true = (
        flow.sample(mean, 20, generator, temperature=1).flatten().sort().values,
        truth().flatten().sort().values,
    )
    assert (drawn - true).abs().mean() < 0.1  # Wasserstein's distance of the laws of a value; 0.24 before training
    assert torch.equal(*(flow.sample(mean, 2, torch.Generator().manual_seed(3)) for _ in range(2)))


def test_a_flow_takes_steps():
    with pytest.raises(OperatorError, match="at least 1 step"):
        Flow().sample(torch.zeros(1, 3, 8, 8), 0)


@pytest.mark.parametrize(
    "network", [BayesCap(width=8, depth=2, told=True), Flow(widths=(8, 8), depth=1)], ids=["cap", "flow"]
)
def test_files_keep_the_weights(network, tmp_path):
    path = tmp_path / "weights.safetensors"
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    network.save(path)
    found = type(network).load(path)
    assert found.sizes == network.sizes and zoo.kind(str(path)) == network.kind
    for name, value in network.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value, rtol=1e-3, atol=1e-6)
    other = Flow if network.kind == "cap" else BayesCap
    with pytest.raises(ModelError, match=f"not the weights of a {other.kind}"):
        other.load(path)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ModelError, match=r"^[^\n]+$"):
        type(network).load(path)
