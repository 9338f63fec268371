"""The speed benchmark codes for real, and its stages add up to what it times."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from bayesq.bench import sizes, speed
from bayesq.cli import main
from bayesq.resources import data_dir


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    with Image.open(data_dir() / "coffee.png") as image:
        image.crop((200, 100, 296, 180)).save(folder / "a.png")
    return folder


def test_compressai_codes_pictures_of_any_size():
    codec, image = speed.CompressAI(), Image.new("RGB", (70, 50), (200, 30, 40))
    assert codec.decode(codec.encode(image, 50)).size == image.size


def test_stages_are_timed_one_by_one(tiny_codec):
    ticks = itertools.count()
    stages = speed.stages(tiny_codec.exported(), torch.rand(1, 3, 32, 48), 100, lambda: float(next(ticks)))
    # Every timing takes a tick; a walk has ten of entropy coding in it, each two ticks.
    assert stages == dict(zip(speed.STAGES, [1, 21 - 10, 10, 21 - 10, 10, 1], strict=True))


def test_the_command(small_codec_path, folder, capsys):
    other = folder / "other" / "weights.safetensors"
    other.parent.mkdir()
    other.write_bytes(Path(small_codec_path).read_bytes())
    options = ["-m", f"{small_codec_path},{other}", "--repeats", "1", "--cpu", "--quiet"]
    assert main(["bench", "speed", str(folder), *options, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    names = [it["name"] for it in report["timings"]]
    assert names[1:] == ["bayesq-other", "mbt2018-mean", "jpeg", "webp", "avif"]
    assert all(it["encode"] > 0 and it["decode"] > 0 and it["bits_per_pixel"] > 0 for it in report["timings"])
    assert report["runtimes"] == dict.fromkeys(names[:2], "torch") and [*report["stages"]] == names[:2]
    for ours, spent in zip(report["timings"], report["stages"].values(), strict=False):
        assert [*spent] == speed.STAGES and 0 < spent["g_s"] < 10 * ours["decode"]
    report = speed.Report(**report | {"timings": [speed.Timing(**it) for it in report["timings"]]})
    assert "encode: mbt2018-mean = 1" in report.text() and "1.00" in report.text()
    assert main(["bench", "speed", str(folder), *options, "--sizes", "0.03"]) == 1
    assert capsys.readouterr().err == "bayesq: error: --sizes takes one model\n"


def test_a_photograph_is_repeated_without_edges(folder, tmp_path):
    photo, path = folder / "a.png", tmp_path / "large.ppm"
    sizes.write_repeated(photo, path, 250, 170)
    with Image.open(path) as large, Image.open(photo) as image:
        assert large.size == (250, 170)
        assert large.crop((0, 0, 96, 80)).tobytes() == image.tobytes()
        assert large.crop((96, 80, 192, 160)).tobytes() == image.rotate(180).tobytes()


def test_time_and_memory_by_size(small_codec_path, folder, capsys, monkeypatch):
    monkeypatch.setenv("BAYESQ_RUNTIME", "torch")
    options = ["-m", small_codec_path, "--repeats", "1", "--cpu", "--quiet", "--threads", "1", "--json"]
    assert main(["bench", "speed", str(folder), "--sizes", "0.03", *options]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(it["width"], it["height"], it["tiles"]) for it in rows] == [(192, 128, 1)]
    costs = [it[way] for it in rows for way in ("encode", "decode")]
    assert all(it["seconds"] > 0 and 50 < it["mebibytes"] < 5000 for it in costs)


def test_the_dearest_size_is_told():
    row = [sizes.Row(96, 64, 1, sizes.Cost(seconds, 300), sizes.Cost(1, 400)) for seconds in (2.0, 2.5, 2.2)]
    assert sizes.Report(row).text().endswith("takes 25% longer than the cheapest to encode, 0% to decode.")
