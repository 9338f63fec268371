"""The matrix of settings: processes of their own read what others wrote, and what was not read has not passed."""

import json
from itertools import product

import pytest
from PIL import Image

from bayesq import zoo
from bayesq.bench import exactness
from bayesq.bench.exactness import Outcome, Report, Setting
from bayesq.cli import main
from bayesq.quantization import RECIPES, Calibration, quantize
from bayesq.resources import data_dir

SETTINGS = {setting.name: setting for setting in exactness.SETTINGS}
CHEAP = ["threads-1", "threads-2", "threads-4", "sse4.1", "avx2", "layout", "bfloat16"]
"""Those that start fast, and read small pictures fast."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "a.png"
    with Image.open(data_dir() / "coffee.png") as image:
        image.crop((200, 100, 300, 190)).save(path)
    return [path]


@pytest.fixture(scope="module")
def reports(small_codec_path, pictures, tmp_path_factory):
    """The matrices of models in floating point, and of one with weights and activations of eight bits."""
    codec, data = zoo.load(small_codec_path), Calibration.of([data_dir()], count=2, side=64)
    path = tmp_path_factory.mktemp("w8a8") / "weights.safetensors"
    quantize(codec, RECIPES["w8a8"], data).codec.save(path)
    models = {"fast": "fast", "base": "base", "w8a8": str(path)}
    settings = [SETTINGS[name] for name in CHEAP]
    return dict(zip(models, exactness.run(list(models.values()), pictures, settings=settings), strict=True))


@pytest.mark.parametrize("model", ["fast", "base", "w8a8"])
def test_every_setting_reads_the_symbols_that_any_other_wrote(reports, model):
    report = reports[model]
    present = [name for name in CHEAP if not exactness.missing(SETTINGS[name])]
    assert [setting.name for setting in report.settings] == present
    assert report.garbled == report.deviating == 0 and report.files >= 1 and report.symbols > 400
    assert {writer for outcomes in report.outcomes.values() for writer in outcomes} == set(present)


@pytest.mark.parametrize("model", ["fast", "base"])
def test_pixels_are_nearly_the_same_in_floating_point(reports, model):
    deviations = {outcome.deviation for it, outcome in reports[model].pairs if it.runtime == "torch"}
    assert max(deviations) < 0.1
    assert len(deviations) > 1, "the settings change nothing, and prove nothing"


def test_pixels_of_quantised_models_are_not_bounded(reports):
    assert all(setting.tolerance is None for setting in reports["w8a8"].settings)


def test_what_was_not_read_has_not_passed(small_codec_path, pictures):
    settings = [SETTINGS["threads-1"], Setting("broken", runtime="abacus"), Setting("gone", threads=-1)]
    settings.append(Setting("elsewhere", needs="a quantum computer"))
    (report,) = exactness.run([small_codec_path], pictures, settings=settings)
    assert [setting.name for setting in report.settings] == ["threads-1", "broken", "gone"]
    assert report.absent.keys() == {"elsewhere"}
    read = {names for names in product(report.outcomes, repeat=2) if report.outcomes[names[0]][names[1]].symbols == 0}
    assert read == {("threads-1", "threads-1")}
    assert report.garbled == report.deviating == 8
    assert "failed" in report.text() and "broken: KeyError: 'abacus'" in report.text()
    assert "gone: the process died" in report.text()


def test_the_command_tells_the_settings(capsys):
    assert main(["bench", "exactness", "--settings", "abacus"]) == 1
    told = capsys.readouterr().err
    assert all(name in told for name in SETTINGS)


@pytest.mark.parametrize(
    ("reader", "outcome", "garbled", "deviating"),
    [
        (Setting("a"), Outcome(0, 0.9), 0, 0),
        (Setting("a"), Outcome(0, 1.1), 0, 1),
        (Setting("a"), Outcome(0, float("nan")), 0, 1),
        (Setting("a"), Outcome(1, 0.0), 1, 0),
        (Setting("a"), Outcome(None, None, "gone"), 1, 1),
        (Setting("a", tolerance=None), Outcome(0, 3.0), 0, 0),
        (Setting("a", tolerance=None), Outcome(None, None, "gone"), 1, 1),
    ],
)
def test_what_passes(monkeypatch, capsys, reader, outcome, garbled, deviating):
    report = Report("codec", [reader], {"amx": "the processor has no amx_tile"}, {"a": {"a": outcome}}, 1, 10)
    assert (report.garbled, report.deviating) == (garbled, deviating)
    monkeypatch.setattr(exactness, "run", lambda *args: iter([report]))
    assert main(["bench", "exactness", "--alone", "--quiet"]) == (1 if garbled or deviating else 0)
    assert "Not measured: amx" in capsys.readouterr().out
    assert main(["bench", "exactness", "--alone", "--quiet", "--json"]) == (1 if garbled or deviating else 0)
    (told,) = json.loads(capsys.readouterr().out)
    assert told["garbled"] == garbled and told["absent"] == report.absent
