"""The rate-distortion benchmark counts what is in the files and compares curves as published."""

import json
import sys
import zlib
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image, features
from scipy.fft import dctn, idctn

from bayesq import bench
from bayesq.bench import codec
from bayesq.bench.curves import Curve, bd_rate, read_curves
from bayesq.bench.formats import RIVALS, Bayesq, JpegXL
from bayesq.cli import main
from bayesq.errors import BayesqError, ImageError
from bayesq.resources import data_dir


class Dct:
    """The least of transform codecs: a rounded DCT of the whole picture, deflated."""

    name = "dct"
    model_id = bytes(8)
    reduction = multiple = 1
    margin = context = 0

    def compress(self, x, level, window):
        codes = np.round(dctn(x[0].numpy(), axes=(1, 2), norm="ortho") / self.step(level))
        return zlib.compress(codes.astype("<i2").tobytes(), 9)

    def latents(self, payload, height, width, level):
        codes = np.frombuffer(zlib.decompress(payload), "<i2").reshape(1, 3, height, width)
        return torch.from_numpy(codes.astype(np.float32))

    def synthesize(self, z, level):
        x = idctn(z[0].numpy() * self.step(level), axes=(1, 2), norm="ortho")
        return torch.from_numpy(x.astype(np.float32))[None].clamp(0, 1)

    @staticmethod
    def step(level):
        return 0.8 * 2 ** (-level / 50)


DCT = Bayesq(Dct())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two small pictures of which one is grey."""
    folder = tmp_path_factory.mktemp("pictures")
    with Image.open(data_dir() / "coffee.png") as image:
        image.crop((0, 0, 192, 176)).save(folder / "a.png")
    with Image.open(data_dir() / "chelsea.png") as image:
        image.crop((100, 0, 276, 176)).convert("L").save(folder / "b.png")
    (folder / "notes.txt").write_text("not a picture")
    return folder


def is_here(form):
    """Whether what the format needs is installed."""
    if form.name == "jxl":
        return find_spec("imagecodecs") is not None
    return form.name != "avif" or bool(features.check("avif"))


@pytest.mark.parametrize("form", [DCT, *RIVALS.values()], ids=lambda form: form.name)
def test_curve_rises(form, folder):
    if not is_here(form):
        pytest.skip(f"nothing here writes {form.name}")
    if form.name == "avif":
        form = replace(form, variants=[form.variants[0] | {"speed": 8}])
    curve = codec.measure(form, bench.pictures(folder), form.qualities[:: len(form.qualities) // 2])
    assert list(curve.results) == codec.KEYS
    for key in ["bpp", "psnr-rgb", "ms-ssim-rgb"]:
        assert (np.diff(curve.results[key]) > 0).all()
    assert min(curve.results["encoding_time"] + curve.results["decoding_time"]) > 0


def test_rate_is_that_of_the_files(folder):
    paths = bench.pictures(folder)
    curve = codec.measure(DCT, paths, [30])
    rates = []
    for path in paths:
        with Image.open(path) as image:
            rates.append(8 * len(DCT.encode(image.convert("RGB"), 30)) / (image.width * image.height))
    assert curve.results["bpp"] == pytest.approx([np.mean(rates)])


def test_the_smaller_variant_counts(folder):
    form = RIVALS["jpeg"]
    for path in bench.pictures(folder):
        with Image.open(path) as image:
            sizes = [len(replace(form, variants=[one]).encode(image.convert("RGB"), 50)) for one in form.variants]
            assert len(form.encode(image.convert("RGB"), 50)) == min(sizes)


def test_a_format_that_is_not_installed_says_so(folder, monkeypatch):
    image = Image.new("RGB", (8, 8))
    with pytest.raises(BayesqError, match="this Pillow writes no NONSENSE"):
        replace(RIVALS["webp"], format="NONSENSE").encode(image, 50)
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(BayesqError, match=r"pip install 'bayesq\[bench\]'"):
        JpegXL().encode(image, 50)


@pytest.mark.parametrize("form", [DCT, RIVALS["webp"]], ids=lambda form: form.name)
def test_metadata_does_not_count(form, folder, tmp_path):
    with Image.open(folder / "a.png") as image:
        image.save(tmp_path / "a.png", icc_profile=b"profile" * 1000)
    curves = [codec.measure(form, bench.pictures(each, 1), [50]) for each in (folder, tmp_path)]
    assert curves[0].results["bpp"] == curves[1].results["bpp"]


def test_small_pictures_have_no_ms_ssim(tmp_path):
    Image.effect_noise((64, 48), 50).save(tmp_path / "noise.png")
    curve = codec.measure(DCT, bench.pictures(tmp_path), [50, 90])
    assert set(codec.KEYS) - set(curve.results) == {"ms-ssim-rgb"}
    assert codec.report(curve, [50, 90], [], []).count("–") == 2


def test_pictures(folder, tmp_path):
    assert [path.name for path in bench.pictures(folder)] == ["a.png", "b.png"]
    assert [path.name for path in bench.pictures(folder, 1)] == ["a.png"]
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ImageError, match="no pictures here"):
        bench.pictures(tmp_path)


def line(name, bpp, offset=0.0):
    """A curve of 6 dB a bit, shifted."""
    return Curve(name, "made up", {"bpp": list(bpp), "psnr-rgb": [30 + offset + 6 * np.log2(b) for b in bpp]})


@pytest.mark.parametrize("saving", [0.1, 0.5, -0.2])
def test_bd_rate_of_a_known_saving(saving):
    anchor, curve = line("anchor", [2, 1, 0.5, 0.25]), line("curve", [0.3, 0.6, 1.2], -6 * np.log2(1 - saving))
    assert bd_rate(anchor, curve) == pytest.approx(-100 * saving, abs=0.5)


def test_curves_that_do_not_compare():
    assert np.isnan(bd_rate(line("anchor", [0.1, 0.2]), line("curve", [1, 2])))
    assert np.isnan(bd_rate(line("anchor", [0.1, 0.2]), line("curve", [0.15])))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"curves": {"x": {"bpp": [1]}}}', '{"source": "s", "curves": [1]}'])
def test_unreadable_curves(text, tmp_path):
    (tmp_path / "curves.json").write_text(text)
    with pytest.raises(BayesqError, match="not a file of rate-distortion curves"):
        read_curves(tmp_path / "curves.json")


def test_table_is_aligned():
    lines = bench.table(["name", "x"], [["a", "1"], ["long name", "22"]]).splitlines()
    assert lines == ["| name      |  x |", "| --------- | -: |", "| a         |  1 |", "| long name | 22 |"]


def test_command(folder, tmp_path, capsys):
    published, output, plot = tmp_path / "curves.json", tmp_path / "out.json", tmp_path / "plot.png"
    curves = {name: line(name, [0.1, 1, 3]).results for name in ["vtm", "bpg", "other"]}
    published.write_text(json.dumps({"source": "made up", "curves": curves}))
    argv = ["bench", "codec", str(folder), "-q", "20,60,90", "--codecs", "webp,jpeg", "--limit", "1"]
    assert main([*argv, "--against", str(published), "--curves", "vtm,b*", "-o", str(output), "--plot", str(plot)]) == 0
    captured = capsys.readouterr()
    assert "means over 1 picture of" in captured.err
    rows = [row.split("|")[1].strip() for row in captured.out.splitlines() if row]
    assert rows == ["quality", "-------", "20", "60", "90", "webp against", "------------", "jpeg", "vtm", "bpg"]
    content = json.loads(output.read_text())
    assert set(content) == {"name", "description", "results", "rivals"}
    assert all(len(values) == 3 for values in content["results"].values())
    assert [curve.name for curve in read_curves(output)] == ["webp", "jpeg"]
    assert plot.stat().st_size > 0


def test_command_does_not_know_the_codec(folder, capsys):
    assert main(["bench", "codec", str(folder), "--codecs", "nonsense"]) == 1
    assert capsys.readouterr().err.startswith("bayesq: error: no codec called nonsense; there are bayesq, jpeg")


def test_coverage_counts_errors_within_what_files_promise(tiny_codec, folder):
    table = codec.coverage(tiny_codec.exported(), bench.pictures(folder), [20, 80], samples=8)
    rows = [[float(cell) for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert [row[0] for row in rows] == [20, 80] and rows[0][1] > rows[1][1]
    assert all(0 < row[3] < row[4] < row[5] < row[6] <= 100 for row in rows)
