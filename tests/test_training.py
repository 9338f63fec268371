"""Training: reproducible, resumable at any moment, and started where it already compresses."""

import csv
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import astronaut
from torch import nn

from bayesq import zoo
from bayesq.architecture import ARCHITECTURES, Architecture
from bayesq.codec import Codec
from bayesq.denoiser import Denoiser, Sizes
from bayesq.errors import TrainingError
from bayesq.networks.integer import IntegerConv
from bayesq.networks.rate import LAMBDA_MAX, rate_weight
from bayesq.networks.transforms import Lapping
from bayesq.training.data import Crops, find_pictures
from bayesq.training.denoising import DenoisingLoss
from bayesq.training.loop import CHECKPOINT, LOG, WEIGHTS, Settings, _Trainer, train
from bayesq.training.loss import BALANCE, RateDistortionLoss, draw_levels
from bayesq.training.overlaying import OverlayLoss
from bayesq.training.start import basis_norms, best_lapping, initialise, inverse_lapping, principal_blocks
from bayesq.training.subjects import COARSER_RATE, CodecSubject, DenoiserSubject, OverlaySubject
from bayesq.training.tables import fitted_tables

TINY = Architecture(8, 4, (16, 16), (1, 1), 16, 4)
SUBJECTS = {
    "codec": CodecSubject(TINY),
    "denoiser": DenoiserSubject(Sizes((8, 16), 1, 1)),
    "cap": OverlaySubject("cap", '{"width": 8, "depth": 2, "told": true}'),
    "flow": OverlaySubject("flow", '{"widths": [8, 16], "depth": 1}'),
}
SETTINGS = Settings(steps=30, batch=2, crop=32, rate=1e-3, warmup=5, every=10, start=64)
KILLED_RUN = """
import torch
from pathlib import Path
from bayesq.architecture import Architecture
from bayesq.denoiser import Sizes
from bayesq.training.loop import Settings, train
from bayesq.training.subjects import CodecSubject, DenoiserSubject, OverlaySubject
torch.set_num_threads({threads})
train([Path({data!r})], Path({out!r}), {settings!r}, {subject!r}, Path({validation!r}), quiet=True)
"""


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    Image.fromarray(astronaut()[:160, 160:320]).save(folder / "a.png")
    (folder / "below").mkdir()
    Image.fromarray(astronaut()[200:340, 100:300]).save(folder / "below" / "b.PNG")
    Image.fromarray(astronaut()[:40, :40]).save(folder / "small.png")
    (folder / "notes.txt").write_text("not a picture")
    return folder


@pytest.fixture(scope="module")
def validation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("validation")
    Image.fromarray(astronaut()[400:464, 300:370]).save(folder / "c.png")
    return folder


@pytest.fixture(scope="module")
def whole_runs(data, validation, tmp_path_factory):
    """The folders of runs that nothing interrupted."""
    folders = {name: tmp_path_factory.mktemp("runs") / name for name in SUBJECTS}
    for name, out in folders.items():
        assert train([data], out, SETTINGS, SUBJECTS[name], validation, quiet=True) == out / WEIGHTS
    return folders


@pytest.fixture(scope="module")
def whole_run(whole_runs):
    """The folder of a codec's run."""
    return whole_runs["codec"]


def start(data):
    with torch.random.fork_rng():
        torch.manual_seed(SETTINGS.seed)
        codec = Codec.build(TINY)
    initialise(codec, Crops(find_pictures([data])), generator(), 64)
    return codec


@pytest.fixture(scope="module")
def started(data):
    """A codec at its start."""
    return start(data).eval().requires_grad_(False)


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_killed_run_resumes_to_the_same_weights(name, whole_runs, data, validation, tmp_path):
    out = tmp_path / "killed"
    terms = {"data": str(data), "out": str(out), "validation": str(validation), "threads": torch.get_num_threads()}
    code = KILLED_RUN.format(**terms, settings=SETTINGS, subject=SUBJECTS[name])
    process = subprocess.Popen([sys.executable, "-c", code])
    while not (out / CHECKPOINT).exists() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    train([data], out, SETTINGS, SUBJECTS[name], validation, resume=True, quiet=True)
    assert (out / WEIGHTS).read_bytes() == (whole_runs[name] / WEIGHTS).read_bytes()


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_run_starts_from_trained_weights(name, whole_runs, data, tmp_path):
    given, settings = whole_runs[name] / WEIGHTS, replace(SETTINGS, steps=1, rate=0.0)
    overlays = {kind: OverlaySubject(kind) for kind in ("cap", "flow")}
    other = {"codec": CodecSubject(), "denoiser": DenoiserSubject(), **overlays}[name]  # of a size that does not count
    train([data], tmp_path, settings, other, quiet=True, weights=given)
    pictures = [torch.from_numpy(astronaut())[64:192, 160:288].permute(2, 0, 1)[None] / 255]
    with torch.no_grad():
        before, after = (other.scores(other.load(path), pictures) for path in (given, tmp_path / WEIGHTS))
    assert after == pytest.approx(before, rel=1e-2)


def test_the_log_tells_rate_and_distortion(whole_run):
    with open(whole_run / LOG, newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert [row["step"] for row in rows] == [10, 20, 30]
    last = rows[-1]
    assert 0 < last["bpp_0"] < last["bpp_128"] < last["bpp_255"]
    assert all(15 < last[f"psnr_{level}"] < 60 for level in (0, 128, 255))
    assert np.isfinite(last["validation"]) and last["hours"] >= rows[0]["hours"] >= 0


def test_training_a_denoiser_lowers_its_loss(whole_runs, data):
    crops = Crops(find_pictures([data])).draw(16, 32, generator(5))
    trained = Denoiser.load(whole_runs["denoiser"] / WEIGHTS)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        untrained = Denoiser(trained.sizes)
    losses = [DenoisingLoss(model)(crops, generator()).item() for model in (trained, untrained)]
    assert losses[0] < losses[1] - 0.05, losses


@pytest.mark.parametrize("name", ["cap", "flow"])
def test_training_what_is_laid_over_the_denoiser_lowers_its_loss(name, whole_runs, data):
    crops = Crops(find_pictures([data])).draw(16, 32, generator(5))
    trained = SUBJECTS[name].load(whole_runs[name] / WEIGHTS)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        untrained = SUBJECTS[name].build()
    assert zoo.kind(str(whole_runs[name] / WEIGHTS)) == name
    losses = [OverlayLoss(model)(crops, generator()).item() for model in (trained, untrained)]
    assert losses[0] < losses[1], losses


def test_training_lowers_the_loss(whole_run, started, data):
    crops = Crops(find_pictures([data])).draw(16, 32, generator(5))

    @torch.no_grad()
    def loss(codec):
        return float(RateDistortionLoss(codec)(crops, torch.arange(16) * 17, generator()).loss.mean())

    assert loss(Codec.load(whole_run / WEIGHTS)) < loss(started)


def test_the_released_weights_code(whole_run):
    codec = Codec.load(whole_run / WEIGHTS)
    x = torch.from_numpy(astronaut())[:50, :70].permute(2, 0, 1)[None] / 255
    assert torch.equal(codec.decompress(codec.compress(x, 90), 50, 70, 90), codec.reconstruct(x, 90)[0])


def test_the_tables_of_released_weights_are_fitted_to_symbols(whole_run, data):
    codec = Codec.load(whole_run / WEIGHTS)
    gaussian = codec.trainable().exported()
    assert not np.array_equal(codec.own_prior.tables.cdf, gaussian.own_prior.tables.cdf)

    crops, seed = Crops(find_pictures([data])), 5
    codec.own_prior.tables = fitted_tables(gaussian, crops, generator(seed), 128, count=32)
    sizes, draws = [0, 0], generator(seed)
    for level in draw_levels(32, draws).tolist():
        x = crops.draw(1, 128, draws)
        sizes = [size + len(one.compress(x, level)) for size, one in zip(sizes, (codec, gaussian), strict=True)]
    assert sizes[0] < sizes[1], sizes


def test_the_start_compresses_already(started):
    x = torch.from_numpy(astronaut())[64:192, 160:288].permute(2, 0, 1)[None] / 255
    decoded, bits = started.reconstruct(x, 128)
    assert float((decoded - x).square().mean()) < 0.35 * float((x - x.mean((2, 3), keepdim=True)).square().mean())
    assert 0.01 < bits / 128**2 < 1


def test_the_start_depends_on_the_generator_alone(started, data):
    first, second = started.state_dict(), start(data).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_loss_is_made_of_its_parts(tiny_codec, data):
    crops, level = Crops(find_pictures([data])).draw(3, 32, generator()), torch.tensor([0, 100, 255])
    result = RateDistortionLoss(tiny_codec)(crops, level, generator())
    weight = rate_weight(level)
    expected = (weight * 255**2 * result.mse + result.bpp) * (LAMBDA_MAX / weight) ** BALANCE
    assert result.loss.shape == (3,) and torch.allclose(result.loss, expected)
    assert (result.bpp > 0).all() and result.bpp[0] < result.bpp[2] and (result.mse > 0).all()


@pytest.mark.parametrize("count", [1, 3, 8, 300])
def test_levels_are_stratified(count):
    levels = torch.stack([draw_levels(count, generator(seed)) for seed in range(50)])
    assert levels.min() >= 0 and levels.max() <= 255
    strata = torch.arange(count) * 256 / count
    ordered = levels.sort(1).values
    assert (ordered >= strata.floor()).all() and (ordered <= strata + 256 / count).all()
    assert abs(levels.float().mean() - 127.5) < 3 * 74 / 50**0.5


def test_the_learning_rate_warms_up_stays_and_decays():
    settings = Settings(steps=1000, rate=1.0, warmup=100, decay=0.3)
    rates = np.array([settings.learning_rate(step) for step in range(1001)])
    assert np.allclose(rates[:100], np.arange(1, 101) / 100)
    assert np.allclose(rates[100:700], 1) and (np.diff(rates[700:]) < 0).all()
    assert rates[1000] == pytest.approx(0.02)
    assert Settings(warmup=0, decay=0).learning_rate(0) == Settings().rate


def test_crops_depend_on_the_generator_alone(data):
    crops = Crops(find_pictures([data]))
    first, second, third = (crops.draw(6, 32, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, second) and not torch.equal(first, third)
    assert torch.equal(first, Crops(find_pictures([data])).draw(6, 32, generator()))
    assert first.shape == (6, 3, 32, 32) and first.dtype == torch.float32
    assert first.min() >= 0 and first.max() <= 1


def test_rich_crops_hold_more_detail(data):
    rich, plain = (Crops(find_pictures([data]), rich).draw(60, 32, generator()) for rich in (True, False))
    assert rich.diff(dim=2).abs().mean() > 1.1 * plain.diff(dim=2).abs().mean()


def test_crops_are_parts_of_the_pictures(data):
    whole = torch.from_numpy(astronaut()[:40, :40]).permute(2, 0, 1) / 255
    drawn = Crops([data / "small.png"]).draw(40, 40, generator())
    variants = [v for flip in (whole, whole.flip(2)) for v in (flip, flip.transpose(1, 2))]
    matches = torch.tensor([[torch.equal(crop, variant) for variant in variants] for crop in drawn])
    assert (matches.sum(1) == 1).all() and (matches.sum(0) > 0).all()


def test_pictures_are_found_below_the_folder(data):
    assert [path.name for path in find_pictures([data])] == ["a.png", "b.PNG", "small.png"]


def test_runs_that_cannot_start(whole_run, data, tmp_path):
    empty, broken = tmp_path / "empty", tmp_path / "broken"
    empty.mkdir()
    broken.mkdir()
    (broken / CHECKPOINT).write_bytes((whole_run / CHECKPOINT).read_bytes()[:-50])
    new, other_seed = tmp_path / "new", Settings(seed=1, crop=32)
    cases = {
        "no such folder": lambda: train([tmp_path / "nothing"], new, SETTINGS, SUBJECTS["codec"]),
        "no pictures": lambda: train([empty], new, SETTINGS, SUBJECTS["codec"]),
        "exists": lambda: train([data], whole_run, SETTINGS, SUBJECTS["codec"]),
        "no run to resume": lambda: train([data], new, SETTINGS, SUBJECTS["codec"], resume=True),
        "no run to resume ": lambda: train([data], broken, SETTINGS, SUBJECTS["codec"], resume=True),
        "seeded with 0": lambda: train([data], whole_run, other_seed, SUBJECTS["codec"], resume=True),
        "multiple of 32": lambda: train([data], new, Settings(crop=40), SUBJECTS["codec"]),
        "as large as a crop": lambda: Crops([data / "small.png"]).draw(1, 64, generator()),
    }
    for message, call in cases.items():
        with pytest.raises(TrainingError, match=message.strip()) as error:
            call()
        assert "\n" not in str(error.value)
    assert not new.exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"batch": -1}, "batch must be at least 1, not -1"),
        ({"crop": 0}, "crop must be at least 1"),
        ({"every": 0}, "every must be at least 1"),
        *(({"rate": rate}, "rate must be finite and not negative") for rate in (-1.0, float("nan"), float("inf"))),
    ],
)
def test_settings_that_make_no_sense(setting, message):
    with pytest.raises(TrainingError, match=message):
        Settings(**setting)


class Late(CodecSubject):
    def start(self, *_):
        raise AssertionError("work before the checks")


def test_missing_validation_pictures_are_told_before_any_work(data, tmp_path):
    with pytest.raises(TrainingError, match="no such folder"):
        train([data], tmp_path, SETTINGS, Late(TINY), tmp_path / "nowhere")


@pytest.mark.parametrize("height, width", [(32, 32), (48, 96), (16, 64), (400, 640)])
def test_lapping_is_undone_by_its_inverse_and_keeps_flat_pictures(height, width):
    kernel = 0.1 * torch.randn(8, 8, generator=generator())
    forward, back = Lapping(), Lapping()
    forward.kernel.data, back.kernel.data = kernel, inverse_lapping(kernel)
    x = torch.randn(2, 3, height, width, generator=generator())
    assert not torch.allclose(forward(x), x)
    assert torch.allclose(back(forward(x)), x, atol=1e-5)
    assert torch.allclose(forward(torch.full_like(x, 0.3)), torch.full_like(x, 0.3), atol=1e-6)
    lapped = forward(x)
    with torch.no_grad():
        for form in (torch.contiguous_format, torch.channels_last):
            before = x.clone(memory_format=form)
            assert torch.allclose(forward(before), lapped, atol=1e-5)
            assert torch.equal(before, x)
            assert torch.allclose(forward(before, owned=True), lapped, atol=1e-5)


def correlated_fields(count, size):
    """Separable autoregressive noise of correlation 0.95, about 0.5, ``(count, 3, size, size)``."""
    fields = torch.randn(count, 3, size, size, generator=generator())
    for axis in (2, 3):
        parts = list(fields.unbind(axis))
        for n in range(1, size):
            parts[n] = 0.95 * parts[n - 1] + (1 - 0.95**2) ** 0.5 * parts[n]
        fields = torch.stack(parts, axis)
    return 0.5 + 0.2 * fields


@torch.no_grad()
def test_the_lapping_of_the_start_has_a_coding_gain_over_blocks():
    """Half a decibel or more in the geometric mean of what all components add to pictures: the high-rate error."""
    pictures = correlated_fields(400, 64)

    def decibels(kernel):
        forward, back = Lapping(), Lapping()
        forward.kernel.data, back.kernel.data = kernel, inverse_lapping(kernel)
        components, variances = principal_blocks(forward(pictures - 0.5)[..., 16:48, 16:48], 768)
        return float(10 * (variances * basis_norms(back, components).square()).log10().mean())

    assert decibels(best_lapping(pictures)) < decibels(torch.zeros(8, 8)) - 0.5


@pytest.mark.parametrize(("name", "most"), [("base", 40_000), ("fast", 2_000)])
def test_named_architectures_keep_to_their_budgets(name, most):
    codec = Codec.build(ARCHITECTURES[name]).exported()
    payload, counts = codec.compress(torch.rand(1, 3, 64, 64, generator=generator()), 100), []

    def count(module, inputs, _):
        counts.append(module.weight.numel() * inputs[0].shape[-2] * inputs[0].shape[-1])

    decoders = codec.synthesis, codec.own_prior.scales, codec.own_prior.means
    for module in chain.from_iterable(decoder.modules() for decoder in decoders):
        if isinstance(module, nn.Conv2d | IntegerConv):
            module.register_forward_hook(count)
    codec.decompress(payload, 64, 64, 100)
    assert most / 2 < sum(counts) / 64**2 < most


def test_what_works_on_coarser_maps_learns_more_slowly():
    model = Denoiser(Sizes((8, 16, 16), 2, 1))
    places = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, inputs, output, name=name: places.update({name: output.shape[-1]}))
    model(torch.rand(1, 3, 64, 64), 0.1)
    share = DenoiserSubject().rate_share
    assert set(places.values()) == {8, 16, 32}
    for name, size in places.items():
        assert share(model, f"{name}.weight") == pytest.approx(COARSER_RATE ** {32: 0, 16: 1, 8: 2}[size])


@pytest.mark.parametrize("seed", [0, 1, 2**24 - 1, -1, -(2**23)])
def test_each_seed_has_its_streams(seed):
    trainer = _Trainer(SUBJECTS["codec"], None, Settings(seed=seed), rank=3)
    assert trainer._generator().initial_seed() == ((seed << 40) + 3) % 2**64


@pytest.mark.parametrize("seed", [2**24, -(2**23) - 1])
def test_seeds_that_streams_have_no_room_for_are_refused(seed):
    with pytest.raises(TrainingError, match=f"less than {2**24}, not {seed}"):
        Settings(seed=seed)
