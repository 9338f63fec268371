import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import models

from bayesq import metrics
from bayesq.errors import BayesqError, ImageError


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def pair(generator):
    x = torch.rand(2, 3, 176, 180, generator=generator)
    return x, (x + torch.tensor([0.05, 0.1]).reshape(2, 1, 1, 1) * torch.randn(x.shape, generator=generator)).clamp(
        0, 1
    )


def test_psnr_of_a_known_error():
    x = torch.zeros(2, 3, 4, 4)
    y = x + torch.tensor([0.1, 0.01]).reshape(2, 1, 1, 1)
    torch.testing.assert_close(metrics.psnr(x, y), torch.tensor([20.0, 40.0]))
    assert metrics.psnr(x, x).isposinf().all()


@pytest.mark.parametrize("measure", [metrics.ssim, metrics.ms_ssim])
def test_similarity_is_one_for_itself_symmetric_and_falls_with_noise(measure, pair):
    x, y = pair
    torch.testing.assert_close(measure(x, x).float(), torch.ones(2))
    torch.testing.assert_close(measure(x, y), measure(y, x))
    assert measure(x, y).shape == (2,) and 1 > measure(x, y)[0] > measure(x, y)[1]


def test_ssim_agrees_with_another_implementation(pair):
    from pytorch_msssim import ssim

    x, y = (metrics.crop_border(v, 20) for v in pair)
    assert metrics.ssim(x, y).numpy() == pytest.approx(ssim(x, y, data_range=1.0, size_average=False).numpy(), abs=2e-3)


@pytest.mark.parametrize("measure, size", [(metrics.ssim, 10), (metrics.ms_ssim, 160)])
def test_pictures_too_small_for_the_window_are_refused(measure, size):
    with pytest.raises(ImageError, match=r"^[^\n]+$"):
        measure(torch.zeros(1, 3, size, 300), torch.zeros(1, 3, size, 300))


@pytest.fixture
def hub(tmp_path):
    folder = torch.hub.get_dir()
    torch.hub.set_dir(tmp_path)
    yield tmp_path / "checkpoints"
    torch.hub.set_dir(folder)


def test_lpips_without_weights_is_none_and_says_so_once(hub, pair, caplog):
    with caplog.at_level(logging.WARNING, logger="bayesq"):
        assert metrics.lpips(*pair) is None
        assert metrics.lpips(*pair) is None
    (record,) = caplog.records
    assert "vgg16-397923af.pth" in record.getMessage()


def test_lpips_uses_the_weights_on_disk(hub, pair):
    hub.mkdir()
    torch.manual_seed(0)
    torch.save(models.squeezenet1_1(weights=None).state_dict(), hub / "squeezenet1_1-b8a52dc0.pth")
    x, y = pair
    assert metrics.lpips(x, x, "squeeze").tolist() == [0, 0]
    distance = metrics.lpips(x, y, "squeeze")
    torch.testing.assert_close(distance, metrics.lpips(y, x, "squeeze"))
    assert distance[1] > distance[0] > 0


def test_crop_border():
    x = torch.arange(2 * 6 * 7.0).reshape(2, 6, 7)
    assert torch.equal(metrics.crop_border(x, 2), x[:, 2:4, 2:5])
    assert torch.equal(metrics.crop_border(x, 0), x)


# Means over the 24 Kodak pictures, RGB PSNR, published with CompressAI (results/image/kodak).
HYPERPRIOR = (
    [0.131, 0.209, 0.320, 0.478, 0.669, 0.939, 1.259, 1.660],
    [27.58, 29.20, 30.97, 32.84, 34.53, 36.74, 38.58, 40.56],
)
JPEG = (
    [0.221, 0.327, 0.423, 0.508, 0.588, 0.660, 0.729, 0.786, 0.906, 1.037, 1.240, 1.572, 1.859, 2.350, 3.401],
    [23.78, 26.58, 28.04, 29.04, 29.79, 30.38, 30.90, 31.31, 32.06, 32.79, 33.79, 35.24, 36.33, 37.91, 40.56],
)

curves = st.integers(2, 8).flatmap(
    lambda n: st.tuples(
        st.lists(st.floats(0.01, 0.5), min_size=n, max_size=n).map(np.cumsum),
        st.lists(st.floats(0.1, 3), min_size=n, max_size=n).map(lambda steps: 25 + np.cumsum(steps)),
    )
)


@settings(deadline=None)
@given(curve=curves, factor=st.floats(0.1, 10))
def test_bd_rate_of_a_scaled_curve_is_the_scale(curve, factor):
    bpp, psnr = curve
    assert metrics.bd_rate(bpp, psnr, factor * bpp, psnr) == pytest.approx(100 * (factor - 1), abs=1e-6)


@settings(deadline=None)
@given(curve=curves)
def test_bd_rate_swaps_and_does_not_depend_on_the_order(curve):
    bpp, psnr = curve
    anchor = ([0.05, 0.5, 5], [20, 30, 60])
    there, back = metrics.bd_rate(*anchor, bpp, psnr), metrics.bd_rate(bpp, psnr, *anchor)
    assert (1 + there / 100) * (1 + back / 100) == pytest.approx(1)
    assert metrics.bd_rate(*anchor, bpp[::-1], psnr[::-1]) == there


def test_bd_rate_uses_the_common_range_alone():
    psnr = np.array([30.0, 32, 34, 36])
    anchor = 0.1 * 2 ** ((psnr - 30) / 6)
    test = 0.8 * 0.1 * 2 ** ((psnr + 1 - 30) / 6)
    assert metrics.bd_rate(anchor, psnr, test, psnr + 1) == pytest.approx(-20)


def test_bd_rate_of_published_curves():
    assert metrics.bd_rate(*HYPERPRIOR, *HYPERPRIOR) == 0
    assert metrics.bd_rate(*JPEG, *HYPERPRIOR) == pytest.approx(-55.0, abs=0.1)


@pytest.mark.parametrize(
    "bpp, psnr",
    [
        *[([0.5], [30]), ([0.1, 0.2], [30]), ([0, 0.2], [30, 31]), ([0.1, 0.2], [30, 30]), ([0.1, 0.2], [50, 60])],
        *[([0.1, np.nan], [30, 31]), ([0.1, 0.2], [30, np.inf])],
    ],
)
def test_bad_curves_are_refused(bpp, psnr):
    with pytest.raises(BayesqError, match=r"^[^\n]+$"):
        metrics.bd_rate(*HYPERPRIOR, bpp, psnr)


@pytest.mark.parametrize("n", [1, 2, 9, 20])
def test_exchangeable_samples_have_nominal_coverage(n, generator):
    draws = torch.randn(n + 1, 1, 3, 200, 200, generator=generator).exp()
    levels = (1 / (n + 1), 0.5, 0.8, 0.9, 0.95, 1.0)
    torch.testing.assert_close(metrics.coverage(draws[1:], draws[0], levels), torch.tensor(levels), atol=0.01, rtol=0)


def test_narrow_samples_have_less_coverage_and_wide_ones_more(generator):
    draws = torch.randn(41, 1, 3, 50, 50, generator=generator)
    for scale, sign in ((0.5, -1), (2, 1)):
        assert (sign * (metrics.coverage(scale * draws[1:], draws[0]) - torch.tensor(metrics.LEVELS)) > 0.02).all()


def test_ties_are_inside():
    assert torch.equal(metrics.coverage(torch.zeros(5, 1, 3, 2, 2), torch.zeros(1, 3, 2, 2)), torch.ones(4))


def test_gaussian_coverage_is_nominal_for_gaussian_errors(generator):
    mean, std = torch.rand(2, 1, 3, 200, 200, generator=generator)
    truth = mean + std * torch.randn(mean.shape, generator=generator)
    torch.testing.assert_close(
        metrics.gaussian_coverage(mean, std, truth), torch.tensor(metrics.LEVELS), atol=0.005, rtol=0
    )
    assert metrics.gaussian_coverage(mean, 0 * std, mean).eq(1).all()


class TestErrorBars:
    """Laws of the figures of merit of uncertainty, on truths drawn from a posterior that is known."""

    SHAPE = (1, 3, 64, 64)

    @pytest.fixture
    def generator(self):
        return torch.Generator().manual_seed(0)

    def draw(self, generator, n=20, spread=1.0):
        std = 0.02 + 0.1 * torch.rand(self.SHAPE, generator=generator)
        truth, samples = (torch.randn(k, *self.SHAPE, generator=generator) * std for k in (1, n))
        return truth[0], spread * samples, std

    def test_crps_is_least_for_the_true_law_and_agrees_with_the_normal_one(self, generator):
        truth, samples, std = self.draw(generator)
        score = metrics.crps(samples, truth)
        assert score.shape == truth.shape
        zero = torch.zeros_like(truth)
        assert float(score.mean()) == pytest.approx(float(metrics.gaussian_crps(zero, std, truth).mean()), rel=0.03)
        for wrong in (0.5, 2.0):
            assert metrics.crps(wrong * samples, truth).mean() > 1.02 * score.mean()
            assert metrics.gaussian_crps(zero, wrong * std, truth).mean() > 1.02 * score.mean()
        same = truth.expand(3, *truth.shape)
        assert float(metrics.crps(same + 0.1, truth).mean()) == pytest.approx(0.1, rel=1e-4)

    def test_widths_are_those_of_the_law(self, generator):
        _, samples, std = self.draw(generator, n=200)
        normal = torch.special.ndtri((1 + torch.tensor(metrics.LEVELS)) / 2)
        torch.testing.assert_close(metrics.interval_widths(samples), 2 * normal * std.mean(), rtol=0.03, atol=0)
        assert metrics.interval_widths(samples[:2]).isfinite().all()

    def test_pit_is_flat_when_calibrated_and_tells_what_is_wrong(self, generator):
        truth, samples, _ = self.draw(generator)
        flat = metrics.pit_histogram(samples, truth, generator)
        assert float(flat.sum()) == pytest.approx(1) and (flat - 0.1).abs().max() < 0.012
        narrow = metrics.pit_histogram(0.5 * samples, truth, generator)
        assert narrow[0] > 0.15 < narrow[-1]
        ties = metrics.pit_histogram(torch.zeros(20, *self.SHAPE), torch.zeros(self.SHAPE), generator)
        assert (ties - 0.1).abs().max() < 0.012

    def test_sparsification_orders_by_uncertainty(self, generator):
        truth, _, std = self.draw(generator)
        zero = torch.zeros_like(truth)
        by_std, best = metrics.sparsification(zero, std, truth)
        assert (
            float(by_std[0]) == float(best[0]) == pytest.approx(1)
            and (best <= by_std + 1e-6).all()
            and by_std[-1] < 0.7
        )
        assert metrics.ause(zero, truth.abs(), truth) == pytest.approx(0, abs=1e-6)
        assert 0 < metrics.ause(zero, std, truth) < metrics.ause(zero, torch.rand_like(std), truth)

    def test_spatial_correlation_of_white_and_of_smooth_errors(self, generator):
        white = torch.randn(self.SHAPE, generator=generator)
        assert metrics.spatial_correlation(white).abs().max() < 0.05
        smooth = torch.nn.functional.avg_pool2d(white, 4, 1)
        expected = torch.tensor([0.75, 0.5, 0.25, 0, 0, 0, 0, 0])
        torch.testing.assert_close(metrics.spatial_correlation(smooth), expected, rtol=0, atol=0.1)
