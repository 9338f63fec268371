"""The demonstration, with an untrained codec at its analytic start."""

import contextlib
import io
import json

import pytest

from bayesq import demo, files, metrics, zoo
from bayesq.cli import main
from bayesq.io import read_image, to_tensor

PICTURES = ["Blurred, noisy", "Restored", *(f"Compressed {i}" for i in (1, 2, 3))]


SIDE = 112


@pytest.fixture(scope="module", autouse=True)
def small_photograph():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "CROP", (100, 20, 100 + SIDE, 20 + SIDE))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("demo") / "new"


@pytest.fixture(scope="module")
def report(folder, small_codec_path):
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        assert main(["demo", "--out", str(folder), "-m", small_codec_path, "--steps", "3", "--json"]) == 0
    return json.loads(output.getvalue())


def test_rows_are_what_the_pictures_say(report, folder):
    photograph = to_tensor(read_image(folder / "photograph.png"))
    assert [row["picture"] for row in report["rows"]] == PICTURES
    for row in report["rows"]:
        picture = to_tensor(read_image(folder / row["file"]))
        assert metrics.psnr(picture, photograph).item() == pytest.approx(row["psnr"], abs=0.05)
        assert metrics.ssim(picture, photograph).item() == pytest.approx(row["ssim"], abs=0.01)


def test_files_decode_to_the_pictures_beside_them(report, folder, small_codec_path):
    codec = zoo.load(small_codec_path)
    for i, row in enumerate(report["rows"][2:], 1):
        data = (folder / f"compressed-{i}.bq").read_bytes()
        assert files.decode(data, codec).tobytes() == read_image(folder / f"compressed-{i}.png").tobytes()
        assert row["bits_per_pixel"] == pytest.approx(8 * len(data) / SIDE**2)


def test_sheet_and_samples_are_there(report, folder):
    assert report["sheet"] == str(folder / "demo.png")
    assert min(read_image(report["sheet"]).size) > 3 * SIDE
    assert (folder / "restore.png").exists() and (folder / "codec.png").exists()
    assert all((folder / f"sample-{i}.png").exists() for i in (1, 2, 3))
    assert 0 <= report["coverage"] <= 1


def test_table(report, folder, small_codec_path, capsys, monkeypatch):
    rows = tuple(demo.Row(**row) for row in report["rows"])
    monkeypatch.setattr(demo, "run", lambda *_, **__: demo.Report(**report | {"rows": rows}))
    assert main(["demo", "--out", str(folder), "-m", small_codec_path]) == 0
    captured = capsys.readouterr()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in captured.out.splitlines()]
    assert [row[0] for row in cells] == ["picture", "-" * 14, *PICTURES]
    assert str(folder / "demo.png") in captured.err
