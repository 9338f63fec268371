"""Pictures to files and back by the command line, with a small untrained codec."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from bayesq import files, zoo
from bayesq.architecture import Architecture
from bayesq.bitstream import VERSION
from bayesq.cli import main
from bayesq.codec import Codec
from bayesq.resources import data_dir

SMALL = Architecture(8, 4, (8, 8), (1, 1), 8, 4)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("small") / "weights.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Codec.build(SMALL).save(path)
    return str(path)


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    with Image.open(data_dir() / "coffee.png") as image:
        image.crop((0, 0, 40, 30)).save(path)
    return path


@pytest.fixture
def coded(photo, model):
    assert main(["encode", str(photo), "-m", model, "--quiet"]) == 0
    return photo.with_suffix(".bq")


def test_encode_then_decode(photo, model, tmp_path, capsys):
    coded, back = tmp_path / "a.bq", tmp_path / "b.png"
    assert main(["encode", str(photo), str(coded), "-q", "80", "-m", model]) == 0
    data = coded.read_bytes()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"Compressed to {len(data):,} bytes ({8 * len(data) / 1200:.3f} bpp).\n40 x 30, RGB")
    assert main(["decode", str(coded), str(back), "-m", model]) == 0
    assert capsys.readouterr() == ("", "Decoded 40 x 30, RGB.\n")
    with Image.open(back) as image, Image.open(photo) as original:
        codec = zoo.load(model)
        expected = files.decode(files.encode(original, codec, 80), codec)
        assert np.array_equal(np.asarray(image), np.asarray(expected))


def test_summaries_as_json(photo, model, tmp_path, capsys):
    assert main(["encode", str(photo), "-m", model, "--json", "--quiet"]) == 0
    encoded = json.loads(capsys.readouterr().out)
    assert encoded["output"] == str(tmp_path / "photo.bq")
    assert encoded["seconds"] > 0 and encoded["bits_per_pixel"] == 8 * encoded["bytes"] / 1200
    assert encoded["bytes"] == (tmp_path / "photo.bq").stat().st_size
    assert main(["decode", encoded["output"], str(tmp_path / "b.png"), "-m", model, "--json", "--quiet"]) == 0
    decoded = json.loads(capsys.readouterr().out)
    assert (decoded["width"], decoded["height"], decoded["mode"]) == (40, 30, "RGB")
    assert decoded["seconds"] > 0 and decoded["bytes"] == encoded["bytes"]
    assert main(["info", encoded["output"], "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["intact"] and described["model_id"] == encoded["model_id"]


def test_map_of_what_the_file_leaves_open(coded, model, tmp_path, capsys):
    argv = ["decode", str(coded), str(tmp_path / "b.png"), "-m", model, "--samples", "4", "--json", "--quiet"]
    maps = []
    for seed, name in [("0", "s.png"), ("0", "t.png"), ("1", "u.png")]:
        assert main([*argv, "--std", str(tmp_path / name), "--seed", seed]) == 0
        assert json.loads(capsys.readouterr().out)["std_white"] > 0
        with Image.open(tmp_path / name) as image:
            assert (image.size, image.mode, image.getextrema()[1]) == ((40, 30), "L", 255)
            maps.append(image.tobytes())
    assert maps[0] == maps[1] != maps[2]


def test_info(coded, capsys):
    assert main(["info", str(coded)]) == 0
    line = capsys.readouterr().out
    assert line.startswith(f"bayesq v{VERSION}, 40 x 30 RGB, quality 50, model ")
    assert line.endswith("checksums ok\n")


def test_info_of_a_damaged_file(coded, capsys):
    data = bytearray(coded.read_bytes())
    data[-1] ^= 1
    coded.write_bytes(data)
    assert main(["info", str(coded)]) == 1
    assert "DAMAGED" in capsys.readouterr().out


def damage(data, how):
    return {
        "empty": b"",
        "magic": b"PNG" + data[3:],
        "version": data[:4] + b"\xff" + data[5:],
        "head cut": data[:20],
        "payload cut": data[:-5],
        "size": data[:16] + b"\xff\xff\xff\x7f" * 2 + data[24:],
        "flipped": data[:-2] + bytes([data[-2] ^ 16]) + data[-1:],
    }[how]


@pytest.mark.parametrize("how", ["empty", "magic", "version", "head cut", "payload cut", "size", "flipped"])
def test_damaged_files_are_one_line(how, coded, model, capsys):
    coded.write_bytes(damage(coded.read_bytes(), how))
    assert main(["decode", str(coded), f"{coded}.png", "-m", model]) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"bayesq: error: {coded}: ")
    assert message.count("\n") == 1
    assert "(-vv shows where)" not in message


def test_unknown_model(coded, capsys):
    assert main(["decode", str(coded), f"{coded}.png"]) == 1
    assert f"bayesq: error: {coded}: no model with id " in capsys.readouterr().err


@pytest.mark.parametrize("command", ["encode", "decode", "info"])
def test_missing_input(command, tmp_path, capsys):
    assert main([command, str(tmp_path / "nowhere")]) == 1
    assert capsys.readouterr().err == f"bayesq: error: {tmp_path / 'nowhere'}: No such file or directory\n"


@pytest.mark.parametrize("quality", ["-1", "101", "good", "nan"])
def test_quality_out_of_range_is_wrong_usage(quality, photo):
    with pytest.raises(SystemExit) as exit_:
        main(["encode", str(photo), "-q", quality])
    assert exit_.value.code == 2


def test_no_overwrite(photo, coded, model, capsys):
    before = coded.stat().st_mtime_ns
    assert main(["encode", str(photo), "-m", model, "--no-overwrite"]) == 1
    assert capsys.readouterr().err == f"bayesq: error: {coded}: exists, and --no-overwrite was given\n"
    assert coded.stat().st_mtime_ns == before


def test_decoding_replaces_a_picture_only_if_it_is_named(photo, coded, model, capsys):
    original = photo.read_bytes()
    assert main(["decode", str(coded), "-m", model]) == 1
    assert capsys.readouterr().err == f"bayesq: error: {photo}: exists; name it as OUT to replace it\n"
    assert photo.read_bytes() == original
    assert main(["decode", str(coded), str(photo), "-m", model]) == 0
    assert photo.read_bytes() != original


def test_json_and_data_do_not_mix(photo, capsys):
    assert main(["encode", str(photo), "-", "--json"]) == 1
    assert "only one output can go to standard output" in capsys.readouterr().err


def test_info_reads_a_pipe(coded, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(coded.read_bytes())))
    assert main(["info", "-", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == coded.stat().st_size


def test_pipes(photo, model, monkeypatch, capsysbinary):
    def pipe(command, data):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
        assert main([command, "-", "-m", model]) == 0
        return capsysbinary.readouterr().out

    coded = pipe("encode", photo.read_bytes())
    assert files.describe(coded).width == 40
    with Image.open(io.BytesIO(pipe("decode", coded))) as image:
        assert (image.format, image.size) == ("PNG", (40, 30))


def test_info_draws_where_the_bits_went(coded, model, tmp_path, capsys):
    path = tmp_path / "map.png"
    assert main(["info", str(coded), "-m", model, "--map", str(path), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["map_yellow"] > 0
    assert captured.err.startswith(f"Bits per pixel in {path}: ")
    with Image.open(path) as image:
        assert (image.size, image.mode) == ((40, 30), "RGB")
    assert main(["info", str(coded), "-m", model, "--map", "-"]) == 1
    assert capsys.readouterr().out == ""


def test_info_needs_neither_numpy_nor_torch(coded):
    code = (
        "import sys; from bayesq.cli import main; status = main(['info', sys.argv[1]]);"
        "sys.exit(status or bool({'numpy', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(coded)], stdout=subprocess.DEVNULL).returncode == 0
