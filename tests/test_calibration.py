"""Recalibration of restorations that are wrong in a known way."""

import math
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from deepinv.physics import Denoising, PoissonNoise

from bayesq import calibration, files, fitting, metrics, operators
from bayesq.calibration import Calibration, Problem, finest_detail, of_model
from bayesq.cli import main
from bayesq.codec import Codec
from bayesq.denoiser import Denoiser, Sizes
from bayesq.errors import ModelError
from bayesq.fitting import Trial, fit
from bayesq.inference.xz import FILE as ERRORS
from bayesq.inference.xz import ErrorTable
from bayesq.io import read_image, to_tensor
from bayesq.resources import data_dir
from bayesq.restore import Restoration, restore

SIZE = (48, 48)


def trial(generator, narrow, power, physics=None, bootstrapped=False):
    """Restorations whose errors grow with the detail of the mean, or a hint of it, and whose narrow samples do not."""
    texture = torch.linspace(0, 0.2, SIZE[1]) * torch.randn(4, 3, *SIZE, generator=generator)
    mean = (0.5 + texture).clamp(0.35, 0.65)
    shape = ((finest_detail(mean) + calibration.FAINT) / calibration.TYPICAL) ** power
    law = 0.02 * shape
    draws = 0.02 / narrow * torch.randn(24, *mean.shape, generator=generator)
    truth = mean + law * torch.randn(mean.shape, generator=generator)
    samples = mean + draws - draws.mean(0)
    result = Restoration(mean, samples.std(0), samples, [], (), 50.0, 0.0)
    hint = shape.pow(1 / power) if bootstrapped else None
    return Trial(truth, result, physics or operators.denoise(SIZE, 0.1), hint)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(("power", "bootstrapped"), [(0.0, False), (0.6, False), (0.6, True)])
def test_what_was_wrong_is_found_and_made_good(power, bootstrapped, generator):
    blur = operators.blur("gaussian:2", SIZE, 0.01)
    trials = [trial(generator, 1.5, power, None, bootstrapped), trial(generator, 3.0, power, blur, bootstrapped)]
    found = fit("00", [[one] for one in trials])
    assert found.bootstrapped == bootstrapped
    assert found.powers == (power, power)
    assert found.scales == pytest.approx((1.5, 3.0), rel=0.1)
    for narrow, physics in ((1.5, None), (3.0, blur)):
        fresh = trial(generator, narrow, power, physics, bootstrapped)
        before, hint = fresh.restoration, fresh.hint
        after = found.correct(before, fresh.physics, lambda hint=hint: hint)
        shares = metrics.coverage(after.samples, fresh.truth)
        torch.testing.assert_close(shares, torch.tensor(metrics.LEVELS), rtol=0, atol=0.02)
        low, high = after.interval(0.9)
        assert ((fresh.truth >= low) & (fresh.truth <= high)).float().mean() == pytest.approx(0.9, abs=0.02)
        assert metrics.coverage(before.samples, fresh.truth)[2] < 0.85
        assert metrics.crps(after.samples, fresh.truth).mean() < metrics.crps(before.samples, fresh.truth).mean()
        assert torch.equal(after.mean, before.mean) and after.samples.min() >= 0 and after.samples.max() <= 1
        torch.testing.assert_close(after.samples.std(0), after.std, rtol=1e-3, atol=1e-4)


def test_intervals_are_wide_enough_for_every_kind_of_pictures(generator):
    kinds = [trial(generator, narrow, 0.0) for narrow in (1.5, 3.0)]
    found = fit("00", [kinds])
    assert found.scales == pytest.approx((3.0,), rel=0.1)
    assert kinds[0].coverage(found) > 0.99 and kinds[1].coverage(found) == pytest.approx(0.9, abs=0.01)


def test_finest_detail_is_what_a_small_filter_takes_away(generator):
    noise = torch.randn(2, 3, 96, 96, generator=generator) * torch.tensor([0.01, 0.1]).view(2, 1, 1, 1)
    found = finest_detail(noise)
    assert found.shape == (2, 1, 96, 96)
    share = math.sqrt(1 - 2 / 4 + (3 / 8) ** 2)
    torch.testing.assert_close(found.mean((1, 2, 3)), share * torch.tensor([0.01, 0.1]), rtol=0.03, atol=0)
    ramp = torch.linspace(0, 1, 96).expand(1, 3, 96, 96)
    assert finest_detail(ramp)[..., 8:-8, 8:-8].max() < 1e-4


def test_problems_in_between_are_treated_so():
    problems = [Problem.of(operators.denoise(SIZE, sigma), SIZE) for sigma in (0.05, 0.2)]
    found = Calibration("00", tuple(problems), (1.0, 2.0), (0.2, 0.6))
    (first, low), (last, high) = map(found.rule, problems)
    assert first < 1.05 and last > 1.9 and low < 0.22 and high > 0.58
    observed = tuple(sum(shares) / 2 for shares in zip(*(problem.observed for problem in problems), strict=True))
    noise = sum(problem.noise for problem in problems) / 2
    assert found.rule(Problem("denoise", observed, noise)) == pytest.approx((math.sqrt(2), 0.4), rel=0.01)
    other = Problem.of(operators.colorize(SIZE, 0.05), SIZE)
    assert other.family == "other" and 1 <= found.rule(other)[0] <= 2 + 1e-6


@pytest.mark.parametrize(
    ("physics", "family", "observed"),
    [
        (operators.denoise(SIZE, 0.1), "denoise", 0.2),
        (operators.denoise(SIZE, 0.05), "denoise", 0.5),
        (Denoising(PoissonNoise(gain=2 * 0.05**2)), "photons", 0.5),
        (operators.blur([[0.5, 0.5]], SIZE, 0.05), "deblur", 1 - 1 / math.sqrt(2)),
        (operators.inpaint(torch.arange(48) % 2 + torch.zeros(SIZE), SIZE, 0.05), "inpaint", 0.25),
        (operators.demosaic(SIZE, 0.0), "demosaic", 1 / 3),
        (operators.JPEG(SIZE, [torch.ones(8, 8)], [(1, 1)]), "jpeg", 1 / 3),
    ],
)
def test_operators_are_told_apart(physics, family, observed):
    problem = Problem.of(physics, SIZE)
    assert problem.family == family
    faint, strong = map(math.exp, problem.observed)
    assert faint == pytest.approx(observed, rel=0.08) and faint <= strong <= 1 + 1e-6
    assert math.isfinite(problem.noise)


def test_blurs_of_equal_gain_are_told_apart_by_what_they_lose(generator):
    size, sigma = (96, 96), 2.55 / 255
    kernels = str(data_dir() / "motion.png"), "gaussian:2", "gaussian:1"
    shake, wide, narrow = (operators.blur(kernel, size, sigma) for kernel in kernels)
    noise = torch.randn(1, 3, *size, generator=generator)
    assert shake.A(noise).std() == pytest.approx(wide.A(noise).std().item(), rel=0.1)
    shake, wide, narrow = (Problem.of(physics, size) for physics in (shake, wide, narrow))
    assert shake.distance(narrow) < shake.distance(wide) / 3


def test_blurs_that_settle_as_much_faint_detail_are_told_apart_by_strong_detail():
    size, sigma = (96, 96), 7.65 / 255
    kernels = str(data_dir() / "motion.png"), "gaussian:1.6"
    shake, narrow = (Problem.of(operators.blur(kernel, size, sigma), size) for kernel in kernels)
    assert shake.observed[0] == pytest.approx(narrow.observed[0], abs=0.1)
    assert shake.observed[1] > narrow.observed[1] + 0.2


def test_a_calibration_is_used_for_its_model_alone(small_codec_path, tmp_path, caplog, generator):
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(Path(small_codec_path).read_bytes())
    codec = Codec.load(weights)
    assert of_model(codec) is None
    physics = operators.denoise(SIZE, 0.1)
    y = operators.degrade(torch.full((1, 3, *SIZE), 0.5), physics, generator)
    plain = restore(y, physics, codec=codec, steps=2, samples=4, grids=1)
    found = Calibration(codec.model_id.hex(), (Problem.of(physics, SIZE),), (2.0,), (0.0,))
    found.save(tmp_path / calibration.FILE)
    assert of_model(codec) == found
    wide = restore(y, physics, codec=codec, steps=2, samples=4, grids=1)
    torch.testing.assert_close(wide.std, 2 * plain.std)
    torch.testing.assert_close(wide.mean, plain.mean)
    narrow = restore(y, physics, codec=codec, steps=2, samples=4, grids=1, calibrated=False)
    assert torch.equal(narrow.samples, plain.samples)
    replace(found, model="11" * 8).save(tmp_path / calibration.FILE)
    with caplog.at_level("WARNING", logger="bayesq"):
        assert of_model(codec) is None and "run bayesq calibrate" in caplog.text


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model": "00", "problems": [], "scales": [], "powers": []}'])
def test_damaged_files_are_refused(text, tmp_path):
    path = tmp_path / calibration.FILE
    path.write_text(text)
    with pytest.raises(ModelError, match=r"^[^\n]+$"):
        Calibration.load(path)


def test_the_command_writes_what_restore_finds(small_codec_path, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.modules["bayesq.restore"], "restore", partial(restore, grids=1))
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(Path(small_codec_path).read_bytes())
    options = ["--limit", "1", "--crop", "32", "--samples", "4", "--steps", "2", "--motion", "motion:3,20"]
    assert main(["calibrate", "--data", str(data_dir()), str(data_dir()), "-m", str(weights), *options]) == 0
    told = capsys.readouterr().err
    found = of_model(Codec.load(weights))
    assert found is not None and len(found.scales) == 27 and str(tmp_path / calibration.FILE) in told
    assert ErrorTable.load(tmp_path / ERRORS).model == Codec.load(weights).model_id.hex()
    assert "superres, bicubic x4" in told
    assert main(["calibrate", "--data", str(data_dir()), "-m", str(weights), "--crop", "16"]) == 1
    assert "at least 26 pixels" in capsys.readouterr().err


def test_the_command_calibrates_a_denoiser(tmp_path, capsys):
    denoiser = Denoiser(Sizes((8, 16), 1, 1))
    denoiser.save(tmp_path / "weights.safetensors")
    options = ["--limit", "1", "--crop", "32", "--samples", "4", "--steps", "1", "--motion", "motion:3,20"]
    assert main(["calibrate", "--data", str(data_dir()), "-m", str(tmp_path / "weights.safetensors"), *options]) == 0
    found = of_model(Denoiser.load(tmp_path / "weights.safetensors"))
    assert found is not None and len(found.scales) == 27
    assert found.file_scales == (1.0,) * len(calibration.FILE_LEVELS)
    assert "Files" not in capsys.readouterr().err


def test_deviations_of_files_are_scaled_to_their_errors(tiny_codec, tmp_path, generator):
    tiny_codec.exported().save(tmp_path / "weights.safetensors")
    codec = Codec.load(tmp_path / "weights.safetensors")
    picture = read_image(data_dir() / "coffee.png").crop((64, 64, 192, 192))
    scales = fitting.fit_files(codec, [to_tensor(picture)], 16, generator)
    problem = Problem.of(operators.denoise(SIZE, 0.1), SIZE)
    Calibration(codec.model_id.hex(), (problem,), (1.0,), (0.0,), scales).save(tmp_path / calibration.FILE)
    for quality in (0, 50, 100):
        data = files.encode(picture, codec, quality)
        error = (to_tensor(files.decode(data, codec)) - to_tensor(picture)).abs()
        deviation = files.deviation(data, codec, 16, generator)
        assert (error <= 1.645 * deviation).float().mean() == pytest.approx(0.9, abs=0.03)


def test_factors_of_files_are_interpolated():
    found = Calibration("00", (), (), (), (1.0, 2.0, 3.0, 4.0, 5.0))
    assert [found.file_scale(level) for level in (0, 32, 255)] == [1.0, 1.5, 5.0]
