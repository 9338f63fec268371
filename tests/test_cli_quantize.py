"""``bayesq quantize`` and ``bayesq bench quantize``, as a user runs them."""

import json
import math
import shutil

import pytest
from PIL import Image

from bayesq.bench.quantize import front
from bayesq.calibration import FILE, Calibration, Problem, of_model
from bayesq.cli import main
from bayesq.codec import Codec
from bayesq.inference.xz import FILE as ERRORS
from bayesq.resources import data_dir


@pytest.fixture
def photo(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    with Image.open(data_dir() / "chelsea.png") as image:
        image.convert("RGB").crop((100, 60, 196, 156)).save(folder / "cat.png")
    return folder / "cat.png"


def test_a_quantised_model_codes_like_any_other(small_codec_path, photo, tmp_path, capsys, monkeypatch):
    out = tmp_path / "few"
    assert main(["quantize", small_codec_path, str(out), "--recipe", "w8a8", "--crops", "2", "--json", "--quiet"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["bytes"] == (out / "weights.safetensors").stat().st_size and figures["input_bits"] < 16
    card = (out / "card.md").read_text()
    assert "recipe `w8a8`" in card and "synthesis.head" in card

    model, coded, decoded = str(out / "weights.safetensors"), str(tmp_path / "a.bq"), str(tmp_path / "a.png")
    assert main(["encode", str(photo), coded, "-m", model, "--quiet"]) == 0
    assert main(["decode", coded, decoded, "-m", small_codec_path, "--quiet"]) == 0
    monkeypatch.setenv("BAYESQ_MODELS", model)
    assert main(["decode", coded, decoded, "--quiet"]) == 0
    with Image.open(decoded) as image:
        assert image.size == (96, 96)
    assert main(["quantize", str(out), str(tmp_path / "again"), "--quiet"]) == 1
    assert "quantised already" in capsys.readouterr().err


def test_a_calibration_goes_with_the_files(small_codec_path, tmp_path):
    model = tmp_path / "model" / "weights.safetensors"
    model.parent.mkdir()
    shutil.copy(small_codec_path, model)
    found = Calibration(Codec.load(model).model_id.hex(), (Problem("denoise", (0.0, 0.0), -3.0),), (1.5,), (0.2,))
    found.save(model.parent / FILE)
    (model.parent / ERRORS).write_text("the decoder's")
    for recipe, options, kept in (("w8a8", [], True), ("mixed5", ["--size", "1"], False)):
        out = tmp_path / recipe
        command = ["quantize", str(model), str(out), "--recipe", recipe, "--crops", "2", "--quiet"]
        assert main([*command, *options]) == 0
        assert (of_model(Codec.load(out / "weights.safetensors")) == found) == (out / FILE).exists() == kept
        assert (out / ERRORS).exists() == kept


def test_budgets_and_recipes_are_checked(small_codec_path, tmp_path, capsys):
    assert main(["quantize", small_codec_path, str(tmp_path), "--recipe", "soup", "--quiet"]) == 1
    assert "no recipe called 'soup'" in capsys.readouterr().err
    assert main(["quantize", small_codec_path, str(tmp_path), "--size", "0.2", "--crops", "2", "--quiet"]) == 1
    assert "allocates" in capsys.readouterr().err


def test_the_benchmark_compares_recipes(small_codec_path, photo, tmp_path, monkeypatch, capsys):
    figures, drawing = tmp_path / "rows.json", tmp_path / "front.png"
    monkeypatch.setenv("BAYESQ_RUNTIME", "torch")
    command = ["bench", "quantize", str(photo.parent), "-m", small_codec_path, "--recipes", "w8,nf4"]
    command += ["--runtime", "bfloat16"]
    options = ["--crops", "2", "-q", "5,40,80", "-o", str(figures), "--plot", str(drawing), "--quiet"]
    assert main([*command, *options]) == 0
    printed = capsys.readouterr().out
    assert [line.split()[1] for line in printed.splitlines()[2:]] == ["float", "w8", "nf4"]
    rows = json.loads(figures.read_text())
    assert [row["name"] for row in rows] == ["float", "w8", "nf4"]
    assert {row["runtime"] for row in rows} == {"bfloat16"}
    assert rows[0]["bd_rate"] == 0 and abs(rows[1]["bd_rate"]) < 3
    assert rows[2]["bd_rate"] not in (rows[0]["bd_rate"], rows[1]["bd_rate"])
    assert rows[1]["cost"]["quantised_bits"] > rows[2]["cost"]["quantised_bits"] > 4
    with Image.open(drawing) as image:
        assert image.format == "PNG"


def test_the_front_holds_what_nothing_beats():
    class Figures:
        def __init__(self, bits, bd_rate):
            self.cost, self.bd_rate = self, bd_rate
            self.quantised_bits = bits

    rows = [Figures(8, 0.2), Figures(6, 1.0), Figures(6, 0.5), Figures(7, 0.9), Figures(2, 30.0)]
    rows.append(Figures(1, math.nan))
    assert [(row.quantised_bits, row.bd_rate) for row in front(rows)] == [(2, 30.0), (6, 0.5), (8, 0.2)]
