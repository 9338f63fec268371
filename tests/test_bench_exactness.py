"""The matrix of settings: processes of their own read what others wrote, and what was not read has not passed."""

import json

import pytest
from PIL import Image

from bayesq import zoo
from bayesq.bench import exactness
from bayesq.bench.exactness import Outcome, Report, Setting
from bayesq.cli import main
from bayesq.quantization import RECIPES, Calibration, quantize
from bayesq.resources import data_dir

SETTINGS = {setting.name: setting for setting in exactness.SETTINGS}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "a.png"
    with Image.open(data_dir() / "coffee.png") as image:
        image.crop((200, 100, 300, 190)).save(path)
    return [path]


def test_settings_read_what_others_wrote_and_broken_ones_do_not_pass(small_codec_path, pictures):
    settings = [SETTINGS["threads-1"], SETTINGS["sse4.1-threads-4"], Setting("broken", runtime="abacus")]
    settings = [setting for setting in settings if not exactness.missing(setting)]
    settings.append(Setting("elsewhere", needs="a quantum computer"))
    report = exactness.run(small_codec_path, pictures, settings=settings)
    *sound, broken = (setting.name for setting in report.settings)
    assert broken == "broken" and report.absent.keys() == {"elsewhere"}
    for reader in sound:
        for writer in sound:
            outcome = report.outcomes[reader][writer]
            assert outcome.symbols == 0 and 0 <= outcome.deviation < 0.1 and not outcome.error
        assert report.outcomes[reader][broken].symbols is None and report.outcomes[broken][reader].symbols is None
    assert report.symbols > 0 and report.files >= 1
    assert report.garbled == report.deviating == len(settings[:-1]) ** 2 - len(sound) ** 2
    assert "failed" in report.text() and "abacus" in report.text()


def test_symbols_of_quantised_models_are_exact_and_their_pixels_are_not_bounded(small_codec_path, pictures, tmp_path):
    codec, data = zoo.load(small_codec_path), Calibration.of([data_dir()], count=2, side=64)
    path = tmp_path / "weights.safetensors"
    quantize(codec, RECIPES["w8a8"], data).codec.save(path)
    settings = [setting for name in ("threads-1", "sse4.1") if not exactness.missing(setting := SETTINGS[name])]
    report = exactness.run(str(path), pictures, settings=settings)
    assert report.garbled == report.deviating == 0 and report.symbols > 0
    assert all(setting.tolerance is None for setting in report.settings)


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
    monkeypatch.setattr(exactness, "run", lambda *args: report)
    assert main(["bench", "exactness", "--alone", "--quiet"]) == (1 if garbled or deviating else 0)
    assert "Not measured: amx" in capsys.readouterr().out
    assert main(["bench", "exactness", "--alone", "--quiet", "--json"]) == (1 if garbled or deviating else 0)
    (told,) = json.loads(capsys.readouterr().out)
    assert told["garbled"] == garbled and told["absent"] == report.absent
