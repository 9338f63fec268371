"""The comparison of restoring times, on a tiny picture with tiny models."""

import itertools
import json
from functools import partial

import pytest
import torch
from PIL import Image

from bayesq.bench import vble
from bayesq.cli import main
from bayesq.resources import data_dir


@pytest.fixture(scope="module")
def rival():
    return vble.mbt2018(8, 12)


def test_a_few_steps_stand_for_all(tiny_codec, rival, monkeypatch):
    monkeypatch.setattr(vble, "THEIR_STEPS", 7)
    monkeypatch.setattr(vble, "SAMPLES", 10)
    ticks = itertools.count()
    x = torch.rand(1, 3, 24, 40, generator=torch.Generator().manual_seed(0))
    report = vble.run(
        tiny_codec.exported(), x, rival, steps=1, timed_steps=2, timed_samples=4, clock=lambda: float(next(ticks))
    )
    # Every stretch that is timed takes one tick.
    assert [run.seconds for run in report.runs] == [1, 1, 1, 7 / 2 + 10 / 4]
    assert report.ratio == 7 / 2 + 10 / 4
    assert [run.psnr is None for run in report.runs] == [False, False, False, True]
    assert "40 x 24" in report.text() and "means of 2 and 4" in report.text() and "6.0" in report.text()


def test_the_command(small_codec_path, tmp_path, capsys, monkeypatch, rival):
    monkeypatch.setattr(vble, "mbt2018", lambda: rival)
    monkeypatch.setattr(vble, "SAMPLES", 2)
    monkeypatch.setattr(vble, "THEIR_STEPS", 3)
    monkeypatch.setattr(vble, "run", partial(vble.run, steps=1))
    path = tmp_path / "a.png"
    with Image.open(data_dir() / "coffee.png") as image:
        image.crop((200, 100, 260, 160)).save(path)
    options = ["-m", small_codec_path, "--crop", "32", "--steps", "1", "--cpu", "--quiet", "--json"]
    assert main(["bench", "vble", str(path), *options]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["height"] == report["width"] == 32 and len(report["runs"]) == 4
    assert all(run["seconds"] > 0 for run in report["runs"])
    assert report["ratio"] == pytest.approx(report["runs"][-1]["seconds"] / report["runs"][0]["seconds"])
