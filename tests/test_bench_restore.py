"""The restoration benchmark measures what it says, and gives its rivals their due."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from deepinv.optim import TVPrior
from PIL import Image

from bayesq.bench import restore
from bayesq.bench.rivals import Rival, available, total_variation, tune
from bayesq.cli import main
from bayesq.metrics import LEVELS, psnr
from bayesq.operators import initial_image
from bayesq.resources import data_dir

RIVALS = available()
FEW = 200
"""Iterations that will do here."""


@pytest.fixture(scope="module")
def codec(tiny_codec):
    return tiny_codec.exported()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for name in ["astronaut", "coffee"]:
        with Image.open(data_dir() / f"{name}.png") as image:
            image.crop((100, 20, 164, 84)).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def pictures(folder):
    return [restore.read(path) for path in sorted(folder.iterdir())]


def test_read_crops_the_middle(folder):
    path = folder / "coffee.png"
    whole = restore.read(path)
    assert torch.equal(restore.read(path, 20), whole[..., 22:42, 22:42])
    assert torch.equal(restore.read(path, 1000), whole)


@pytest.mark.parametrize("task", restore.SUITE, ids=lambda task: task.name)
def test_degradation_is_settled_by_the_seed(task, pictures):
    (x, y, physics), (_, again, _), (_, other, _) = (task.problem(pictures[0], seed) for seed in (0, 0, 1))
    assert torch.equal(y, again) and not torch.equal(y, other)
    residual = (y - physics.A(x))[y != 0]
    assert residual.std().item() == pytest.approx(task.sigma, rel=0.05)


@pytest.mark.parametrize("rival", [rival for rival in RIVALS if "TV" not in rival.name], ids=lambda rival: rival.name)
def test_rivals_improve_on_the_measurement(rival, pictures):
    """At one setting of the grid at least, they beat the measurement as it is or, if small, enlarged."""
    task = next(task for task in restore.SUITE if task.name in rival.tasks)
    x, y, physics = task.problem(pictures[0], 0)
    measured = psnr(F.interpolate(y, x.shape[-2:]), x)
    restored = (rival.at(min(value, FEW))(y, physics) for value in rival.grid)
    assert any(result.shape == x.shape and psnr(result.clamp(0, 1), x) > measured for result in restored)


@pytest.mark.parametrize(("task", "weight"), list(zip(restore.SUITE, [0.1, 1e-3, 2e-3, 4e-3], strict=True)))
def test_total_variation_is_the_least(task, weight, pictures):
    """Neither the truth, nor the start, nor the result pulled towards them has a lower objective."""
    x, y, physics = task.problem(pictures[0][..., :40, :40], 0)

    def objective(x):
        return float((physics.A(x) - y).square().sum() / 2 + weight * TVPrior().fn(x))

    result = total_variation(y, physics, weight)
    for other in (x, initial_image(y, physics)):
        assert objective(result) < min(objective(other), objective(torch.lerp(result, other, 0.2)))


def test_total_variations_agree(pictures):
    _, y, physics = restore.SUITE[0].problem(pictures[0], 0)
    chambolle = next(rival for rival in RIVALS if "Chambolle" in rival.name)
    assert psnr(chambolle.at(0.1)(y, physics), total_variation(y, physics, 0.1)) > 45


def test_only_the_methods_asked_for_run(codec, pictures):
    scores = restore.measure(
        codec, restore.SUITE[0], pictures[:1], rivals=RIVALS, words=["START", "bayes"], steps=1, samples=2
    )
    assert [score.method for score in scores] == ["start", "BayesShrink (scikit-image)"]


def test_tuning_finds_the_best_of_the_grid(pictures):
    shrink = Rival("shrink", ("denoise",), (0.5, 1.0, 2.0), lambda y, physics, factor: factor * y)
    problems = [restore.SUITE[0].problem(x, 0) for x in pictures]
    assert tune(shrink, problems) == 1.0
    assert tune(replace(shrink, grid=(7.0,)), []) == 7.0


def test_measure_gives_a_score_a_picture(codec, pictures):
    task = restore.SUITE[0]
    blur = Rival("copy", ("denoise",), (1.0,), lambda y, physics, _: y)
    chain = Rival("chain", ("denoise",), (1.0,), lambda y, physics, _: torch.stack([y - 0.1, y, y + 0.1]))
    other = replace(blur, name="other", tasks=("deblur",))
    scores = restore.measure(codec, task, pictures, rivals=[blur, chain, other], quality=30, steps=8, samples=8)
    start, daps, vble, point, copy, sampled = scores
    assert [score.method for score in scores] == ["start", "DAPS", "VBLE", "MAP-z", "copy", "chain"]
    assert all(len(score.psnr) == len(score.ssim) == len(score.seconds) == 2 for score in scores)
    assert all(min(ours.psnr) > max(start.psnr) + 2 for ours in (daps, vble, point))
    assert copy.psnr == start.psnr and copy.parameter == 1
    assert [score.uncertainty is None for score in scores] == [True, False, False, True, True, False]
    assert sampled.psnr == pytest.approx(copy.psnr, abs=0.01)
    for found in (daps.uncertainty, vble.uncertainty, sampled.uncertainty):
        for shares, width, crps, std, rmse in zip(*vars(found).values(), strict=True):
            assert len(shares) == len(LEVELS) and shares == sorted(shares)
            assert 0.1 < std / rmse < 10 and 1 < width / std < 4 and 0 < crps < rmse
    assert restore.report_uncertainty(scores).count("\n") == 4


@pytest.mark.parametrize("sigma", [0.0, 0.1])
def test_choices_are_compared_with_an_oracles(codec, pictures, sigma, monkeypatch):
    monkeypatch.setattr(restore, "QUALITIES", (20.0, 70.0))
    task, x = replace(restore.SUITE[2], sigma=sigma), [pictures[0][..., :32, :32]]
    scores = restore.measure(codec, task, x, tuning=x, words=["VBLE"], choices=True, steps=2, samples=4)
    plain, *chosen, tuned = scores
    assert plain.method == "VBLE" and "tuned" in tuned.method and len(chosen) == (sigma > 0)
    assert tuned.parameter in (20, 70) and tuned.uncertainty is None
    at = [restore.measure(codec, task, x, words=["VBLE"], quality=q, steps=2, samples=4)[0].psnr for q in (20, 70)]
    assert tuned.psnr == pytest.approx(max(at))


def test_command_prints_tables_and_writes_json(tmp_path, folder, codec, capsys):
    model, out = tmp_path / "model.safetensors", tmp_path / "out.json"
    codec.save(model)
    options = ["--tasks", "denoise,superres", "--sigma", "0.1", "--limit", "1", "--crop", "32", "--steps", "2"]
    assert main(["bench", "restore", str(folder), "-m", str(model), *options, "--samples", "2", "-o", str(out)]) == 0
    shown, told = capsys.readouterr()
    assert "| VBLE " in shown and "| MAP-z " in shown and "truth within the central" in shown
    assert "means over 1 picture of" in told
    content = json.loads(out.read_text())
    assert content["pictures"] == ["astronaut.png"] and content["seed"] == 0 and content["steps"] == 2
    assert content["sigmas"] == {"denoise": 0.1, "superres": 0.1}
    assert [(s["task"], s["method"]) for s in content["scores"][:2]] == [("denoise", "start"), ("denoise", "DAPS")]
    assert len(content["scores"]) == 8


def test_the_suite_of_vble_is_ten_problems_and_noise():
    suite = restore.vble_suite("motion:3,20")
    assert [task.name for task in suite] == ["deblur"] * 6 + ["superres"] * 2 + ["inpaint"] + ["denoise"] * 3
    assert len({task.label for task in suite}) == 12
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for task in suite:
        _, y, physics = task.problem(x, 0)
        assert y.shape == physics.A(x).shape


def test_the_border_does_not_count(codec, pictures):
    task = restore.SUITE[0]
    spoil = Rival("spoil", ("denoise",), (1.0,), lambda y, physics, _: F.pad(y[..., 5:-5, 5:-5], (5,) * 4))
    options = {"rivals": [spoil], "quality": 30, "steps": 1, "samples": 2}
    start, *_, spoilt = restore.measure(codec, task, pictures[:1], border=5, **options)
    assert spoilt.psnr == start.psnr and spoilt.ssim == start.ssim
    start, *_, spoilt = restore.measure(codec, task, pictures[:1], **options)
    assert spoilt.psnr[0] < start.psnr[0]


@pytest.mark.parametrize("tasks", ["", "denoise,dehaze"])
def test_unknown_task_is_wrong_usage(tasks, folder):
    with pytest.raises(SystemExit) as caught:
        main(["bench", "restore", str(folder), "--tasks", tasks])
    assert caught.value.code == 2


def test_empty_folder_is_said_in_a_line(tmp_path, capsys):
    assert main(["bench", "restore", str(tmp_path)]) == 1
    assert "no pictures" in capsys.readouterr().err


def test_unknown_methods_are_told_of(folder, small_codec_path, capsys):
    argv = ["bench", "restore", str(folder), "-m", small_codec_path, "--tasks", "denoise", "--methods", "daps,zzz"]
    assert main(argv) == 1
    shown, told = capsys.readouterr()
    assert told == "bayesq: error: no method's name holds zzz; there are start; DAPS; VBLE; MAP-z\n" and not shown
    argv[-1] = "tuned,chosen,zzz"
    assert main([*argv, "--choices"]) == 1
    assert "holds zzz; there are start" in capsys.readouterr().err
