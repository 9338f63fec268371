"""Files meet their target, or an error says what can be had instead."""

import pytest
from PIL import Image

from bayesq import files, metrics, zoo
from bayesq.cli import main
from bayesq.errors import ModelError
from bayesq.io import to_tensor
from bayesq.ratecontrol import encode_to
from bayesq.resources import data_dir
from bayesq.streams import StoredPicture, open_image


@pytest.fixture(scope="module")
def codec(small_codec_path):
    return zoo.load(small_codec_path)


@pytest.fixture(scope="module")
def image():
    with Image.open(data_dir() / "coffee.png") as image:
        return image.crop((100, 100, 228, 196)).convert("RGB")


def measures(data, image, codec):
    psnr = metrics.psnr(to_tensor(files.decode(data, codec)), to_tensor(image)).item()
    return {"size": len(data), "bpp": 8 * len(data) / (image.width * image.height), "psnr": psnr}


@pytest.mark.parametrize("name", ["bpp", "psnr", "size"])
@pytest.mark.parametrize("quality", [10, 50, 90])
def test_targets_are_met(name, quality, image, codec):
    wanted = 1.004 * measures(files.encode(image, codec, quality), image, codec)[name]
    data = encode_to(image, codec, **{name: wanted})
    assert measures(data, image, codec)[name] == pytest.approx(wanted, rel=0.02)


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_whole_files_count_whatever_the_mode(mode, image, codec):
    other = image.convert(mode)
    wanted = len(files.encode(other, codec, 60))
    assert len(encode_to(other, codec, size=wanted)) == pytest.approx(wanted, rel=0.02)


@pytest.mark.parametrize("name", ["bpp", "psnr", "size"])
def test_pictures_may_stay_in_their_files(name, image, codec, tmp_path):
    image.save(tmp_path / "a.bmp")
    target = {name: measures(files.encode(image, codec, 60), image, codec)[name]}
    with open_image(tmp_path / "a.bmp") as stored:
        assert isinstance(stored, StoredPicture)
        assert encode_to(stored, codec, **target) == encode_to(image, codec, **target)


def test_higher_efforts_meet_targets_too(image, codec):
    wanted = len(files.encode(image, codec, 60))
    data = encode_to(image, codec, size=wanted, effort=4)
    assert len(data) == pytest.approx(wanted, rel=0.02)
    plain = encode_to(image, codec, size=len(data))
    assert measures(data, image, codec)["psnr"] > measures(plain, image, codec)["psnr"]


@pytest.mark.parametrize(("target", "quality"), [({"bpp": 0.001}, 0), ({"size": 10**6}, 100), ({"psnr": 99}, 100)])
def test_out_of_reach(target, quality, image, codec):
    [(name, _)] = target.items()
    end = measures(files.encode(image, codec, quality), image, codec)[name]
    unit = {"bpp": "bpp", "size": "bytes", "psnr": "dB"}[name]
    with pytest.raises(ModelError, match=f"is out of reach: the nearest is .* {unit}, at quality") as error:
        encode_to(image, codec, **target)
    nearest = float(str(error.value).split("nearest is ")[1].split()[0])
    assert nearest == pytest.approx(end, rel=0.01)


@pytest.mark.parametrize("targets", [{}, {"bpp": 1, "size": 1000}])
def test_one_target_at_a_time(targets, image, codec):
    with pytest.raises(ValueError, match="one of bpp, psnr and size"):
        encode_to(image, codec, **targets)


@pytest.mark.parametrize(("text", "bytes_"), [("800", 800), ("0.8k", 800), ("0.0008M", 800)])
def test_sizes_by_the_command_line(text, bytes_, image, small_codec_path, tmp_path):
    image.save(tmp_path / "a.png")
    assert main(["encode", str(tmp_path / "a.png"), "-m", small_codec_path, "--size", text, "--quiet"]) == 0
    assert (tmp_path / "a.bq").stat().st_size == pytest.approx(bytes_, rel=0.02)


def test_out_of_reach_by_the_command_line(image, small_codec_path, tmp_path, capsys):
    image.save(tmp_path / "a.png")
    assert main(["encode", str(tmp_path / "a.png"), "-m", small_codec_path, "--psnr", "99"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "a.png: 99 dB is out of reach: the nearest is" in error
    assert not (tmp_path / "a.bq").exists()


@pytest.mark.parametrize("argv", [["-q", "50", "--bpp", "1"], ["--bpp", "1", "--size", "1k"], ["--psnr", "nan"]])
def test_wrong_usage(argv, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["encode", str(tmp_path / "a.png"), *argv])


def test_folders_take_no_target(tmp_path, capsys):
    assert main(["encode", str(tmp_path), str(tmp_path / "out"), "--bpp", "1"]) == 1
    assert "folders are coded at a quality" in capsys.readouterr().err
