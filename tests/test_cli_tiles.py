"""Pictures in tiles by the command line: regions, what damage leaves, what a file says of its tiles."""

import json

import numpy as np
import pytest
from PIL import Image

from bayesq import files, tiling, zoo
from bayesq.bitstream import Reader
from bayesq.cli import main
from bayesq.resources import data_dir


@pytest.fixture
def coded(small_codec_path, tmp_path, monkeypatch):
    monkeypatch.setattr(tiling, "TILE", 64)
    path = tmp_path / "photo.bq"
    with Image.open(data_dir() / "coffee.png") as image:
        path.write_bytes(files.encode(image.crop((0, 0, 150, 100)), zoo.load(small_codec_path), 50))
    return path


def damage(path, tile):
    with path.open("rb") as file:
        head = Reader(file).head
    data = bytearray(path.read_bytes())
    data[head.size + sum(entry.length for entry in head.tiles[: tile + 1]) - 1] ^= 1
    path.write_bytes(data)


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image, dtype=int)


def test_a_region(coded, small_codec_path, tmp_path, capsys):
    whole, part = tmp_path / "whole.png", tmp_path / "part.png"
    assert main(["decode", str(coded), str(whole), "-m", small_codec_path, "--quiet"]) == 0
    argv = ["decode", str(coded), str(part), "-m", small_codec_path, "--region", "50,20,70,30", "--json", "--quiet"]
    assert main([*argv, "--std", str(tmp_path / "std.png"), "--samples", "2"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["width"], summary["height"], summary["bytes"]) == (70, 30, coded.stat().st_size)
    assert np.abs(pixels(part) - pixels(whole)[20:50, 50:120]).max() <= 1
    assert pixels(tmp_path / "std.png").shape == (30, 70)


def test_a_region_outside_is_refused(coded, small_codec_path, capsys):
    assert main(["decode", str(coded), "-m", small_codec_path, "--region", "100,0,51,10"]) == 1
    message = capsys.readouterr().err
    assert message == f"bayesq: error: {coded}: no region of 51 × 10 pixels at 100,0 is in a picture of 150 × 100\n"


@pytest.mark.parametrize("rest", [["{bad}"], ["{good}", "--std", "{bad}", "--samples", "2"]])
@pytest.mark.parametrize("name", ["missing/a.png", "a.xyz", "a"])
def test_trouble_with_an_output_is_not_the_inputs(coded, small_codec_path, tmp_path, capsys, name, rest):
    bad, good = tmp_path / name, tmp_path / "good.png"
    options = [text.format(bad=bad, good=good) for text in rest]
    assert main(["decode", str(coded), *options, "-m", small_codec_path, "--quiet"]) == 1
    assert capsys.readouterr().err.startswith(f"bayesq: error: {bad}: ")


@pytest.mark.parametrize("text", ["1,2,3", "a,b,c,d", "1,2,3,4,5", ""])
def test_malformed_regions_are_wrong_usage(coded, text):
    with pytest.raises(SystemExit) as exit_:
        main(["decode", str(coded), "--region", text])
    assert exit_.value.code == 2


def test_salvage(coded, small_codec_path, tmp_path, capsys):
    damage(coded, 1)
    argv = ["decode", str(coded), str(tmp_path / "a.png"), "-m", small_codec_path, "--quiet"]
    assert main(argv) == 1 and not (tmp_path / "a.png").exists()
    assert "wrong checksum of tile 1" in capsys.readouterr().err
    assert main([*argv, "--salvage", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == "bayesq: lost: tile 1 at 64,0,128,64: the file is damaged: wrong checksum of tile 1\n"
    assert json.loads(out)["damaged"] == [err.removeprefix("bayesq: lost: ").rstrip()]
    picture = pixels(tmp_path / "a.png")
    assert (picture[:64, 64:128] == 128).all() and picture[:64, :64].std() > 5


def test_salvage_of_what_files_leave_open(coded, small_codec_path, tmp_path, capsys):
    damage(coded, 1)
    picture, std, folder = tmp_path / "a.png", tmp_path / "std.png", tmp_path / "draws"
    argv = ["decode", str(coded), str(picture), "-m", small_codec_path, "--salvage", "--json", "--quiet"]
    assert main([*argv, "--std", str(std), "--save-samples", str(folder), "--samples", "3"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert len(summary["damaged"]) == 1 and 0 < summary["std_white"] < 1
    assert (pixels(std)[:64, 64:128] == 255).all() and pixels(std)[:64, :64].mean() < 250
    assert sorted(path.name for path in folder.iterdir()) == [f"sample-0{number}.png" for number in (1, 2, 3)]
    draws = np.stack([pixels(path) for path in sorted(folder.iterdir())])
    assert (draws[:, :64, 64:128] == 128).all() and draws[:, :64, :64].std(0).mean() > 0.5
    assert np.abs(draws.mean(0) - pixels(picture)).mean() < 6


def test_draws_go_to_a_folder(coded, small_codec_path, tmp_path, capsys):
    (tmp_path / "draws").touch()
    argv = ["decode", str(coded), str(tmp_path / "a.png"), "-m", small_codec_path, "--quiet"]
    assert main([*argv, "--samples", "2", "--save-samples", str(tmp_path / "draws")]) == 1
    assert capsys.readouterr().err == f"bayesq: error: {tmp_path / 'draws'}: Not a directory\n"


def test_the_grid_is_described(coded, capsys):
    assert main(["info", str(coded)]) == 0
    assert "  3 x 2 tiles of 64 x 64 pixels\n" in capsys.readouterr().out
    damage(coded, 4)
    assert main(["info", str(coded)]) == 1
    out = capsys.readouterr().out
    assert "DAMAGED" in out and "  damaged: tile 4\n" in out
    assert main(["info", str(coded), "--json"]) == 1
    described = json.loads(capsys.readouterr().out)
    assert (described["tile_grid"], described["tile_size"], described["damaged"]) == ([3, 2], [64, 64], ["tile 4"])
