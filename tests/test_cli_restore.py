"""Degrading and restoring from the command line, with an untrained codec at its analytic start."""

import io
import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bayesq import calibration, choice, metrics
from bayesq.cli import main
from bayesq.cli.restore import ALGORITHMS
from bayesq.cli.tasks import SUMMARIES
from bayesq.io import read_image, to_tensor
from bayesq.operators import TASKS
from bayesq.resources import data_dir

SETTINGS = {
    "denoise": [],
    "deblur": ["--kernel", "motion:3,20"],
    "superres": ["--scale", "2"],
    "inpaint": ["--mask", "random:0.5"],
    "demosaic": [],
    "colorize": [],
    "jpeg": [],
    "auto": [],
}
NOISE = ["--noise", "50/255"]
QUICK = ["--steps", "8", "--samples", "4", "--quality", "20"]


@pytest.fixture
def photo(tmp_path):
    """A picture of odd sides."""
    path = tmp_path / "photo.png"
    with Image.open(data_dir() / "chelsea.png") as image:
        image.crop((100, 20, 171, 77)).save(path)
    return path


@pytest.fixture
def spoilt(photo, tmp_path):
    path = tmp_path / "spoilt.png"
    assert main(["degrade", "denoise", str(photo), str(path), *NOISE, "--quiet"]) == 0
    return path


@pytest.fixture
def restore(small_codec_path):
    def run(task, *argv):
        return main(["restore", task, *map(str, argv), *run.options, "--quiet"])

    run.options = ["-m", small_codec_path, *QUICK]
    return run


@pytest.fixture
def hasty(restore):
    """The same, where it does not matter how well."""
    restore.options += ["--steps", "2"]
    return restore


def psnr(a, b):
    return metrics.psnr(to_tensor(read_image(a)), to_tensor(read_image(b))).item()


def write(path, array):
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(path)
    return path


def test_every_task_has_a_command():
    assert list(SUMMARIES) == [*TASKS, "jpeg", "auto"] == list(SETTINGS)


@pytest.mark.parametrize("task", ["denoise", "inpaint"])
def test_restoring_helps(task, photo, restore, tmp_path):
    y, x = tmp_path / "y.png", tmp_path / "x.png"
    assert main(["degrade", task, str(photo), str(y), *SETTINGS[task], *NOISE, "--quiet"]) == 0
    setting = ["--mask", y.with_suffix(".mask.png")] if task == "inpaint" else []
    assert restore(task, y, x, *setting, *NOISE) == 0
    assert psnr(photo, x) > psnr(photo, y) + 3


@pytest.mark.parametrize("task", ["deblur", "superres"])
def test_other_operators_run(task, photo, hasty, tmp_path):
    y, x = tmp_path / "y.png", tmp_path / "x.png"
    assert main(["degrade", task, str(photo), str(y), *SETTINGS[task], "--noise", "0.1", "--quiet"]) == 0
    assert hasty(task, y, x, *SETTINGS[task], "--noise", "0.1") == 0
    expected = {"deblur": (71, 57), "superres": (70, 56)}[task]
    assert read_image(x).size == expected


@pytest.mark.parametrize("task", ["demosaic", "colorize"])
def test_colours_come_from_grey(task, photo, restore, tmp_path):
    y, x = tmp_path / "y.png", tmp_path / "x.png"
    assert main(["degrade", task, str(photo), str(y), "--noise", "0.02", "--quiet"]) == 0
    assert read_image(y).mode == "L"
    assert restore(task, y, x, "--noise", "0.02") == 0
    assert read_image(x).mode == "RGB"
    assert psnr(photo, x) > 16


def test_jpeg_files_are_found_and_restored(photo, restore, tmp_path, capsys):
    y, x = tmp_path / "y.jpg", tmp_path / "x.png"
    assert main(["degrade", "jpeg", str(photo), str(y), "-q", "10", "--quiet"]) == 0
    assert restore("jpeg", y, x, "--noise", "0") == 0
    assert psnr(photo, x) > psnr(photo, y) - 2  # of an untrained prior
    plain = read_image(x).tobytes()
    assert main(["restore", "auto", str(y), str(x), "--noise", "0", *restore.options]) == 0
    assert "Found jpeg: rounding in steps of" in capsys.readouterr().err
    assert read_image(x).tobytes() == plain


def test_auto_denoises_what_is_no_jpeg(spoilt, restore, tmp_path, capsys):
    assert main(["restore", "auto", str(spoilt), str(tmp_path / "x.png"), *restore.options]) == 0
    assert re.search(r"^Found denoise: noise of 4\d|5\d", capsys.readouterr().err)


def test_photons_can_be_told(photo, tmp_path, capsys):
    y, x = tmp_path / "y.png", tmp_path / "x.png"
    assert main(["degrade", "denoise", str(photo), str(y), "--photons", "30", "--quiet"]) == 0
    assert main(["restore", "denoise", str(y), str(x), "--photons", "30", "--samples", "2", "--json", "--quiet"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["algorithm"] == "daps" and told["noise"] == pytest.approx(60**-0.5)
    assert psnr(x, photo) > psnr(y, photo) + 6
    assert main(["restore", "denoise", str(y), str(x), "--photons", "-1", "--quiet"]) == 1
    assert "photons must be positive" in capsys.readouterr().err


def test_noise_can_be_inferred(spoilt, restore, tmp_path, capsys):
    assert restore("denoise", spoilt, tmp_path / "x.png", "--noise", "infer", "--json") == 0
    assert json.loads(capsys.readouterr().out)["noise"] == pytest.approx(50 / 255, rel=0.25)
    assert restore("jpeg", spoilt, tmp_path / "x.png") == 1
    assert "not a JPEG file" in capsys.readouterr().err


def test_summary_as_json(photo, spoilt, restore, tmp_path, capsys):
    std, folder = tmp_path / "std.png", tmp_path / "draws"
    argv = ["denoise", spoilt, tmp_path / "x.png", "--json", "--std", std, "--save-samples", folder]
    assert restore(*argv) == 0
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert captured.err == ""
    assert told["steps"] == 8 + 3 * 4
    assert (told["task"], told["width"], told["height"], told["mode"]) == ("denoise", 71, 57, "RGB")
    assert told["quality"] == pytest.approx(20, abs=0.2)
    assert told["noise"] == pytest.approx(50 / 255, rel=0.2)  # measured
    assert told["seconds"] > 0 and told["std_white"] > 0 and np.isfinite(told["elbo"])
    assert read_image(std).mode == "L" and read_image(std).getextrema()[1] == 255
    assert sorted(path.name for path in folder.iterdir()) == [f"sample-0{i}.png" for i in (1, 2, 3, 4)]
    draws = [to_tensor(read_image(path)) for path in sorted(folder.iterdir())]
    mean = to_tensor(read_image(tmp_path / "x.png"))
    assert (torch.cat(draws).mean(0) - mean).abs().max() < 1.1 / 255


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_realistic_picture_has_more_detail(mode, spoilt, tmp_path, capsys):
    read_image(spoilt).convert(mode).save(spoilt)
    x, real = tmp_path / "x.png", tmp_path / "real.png"
    argv = ["restore", "denoise", str(spoilt), str(x), *NOISE, "--samples", "2", "--realistic", str(real), "--quiet"]
    assert main(argv) == 0
    assert read_image(real).mode == mode and read_image(real).size == read_image(x).size
    detail = [calibration.finest_detail(to_tensor(read_image(path).convert("RGB"))).mean() for path in (x, real)]
    assert detail[1] > 1.05 * detail[0]
    assert main([*argv[:-2], str(x), "--quiet"]) == 1
    assert "twice" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_error_bars_can_be_those_of_a_cap(mode, photo, tmp_path, capsys):
    """They are about as wide as what the draws say, and need none."""
    read_image(photo).convert(mode).save(photo)
    y, x, std = (tmp_path / f"{name}.png" for name in ("y", "x", "std"))
    assert main(["degrade", "denoise", str(photo), str(y), *NOISE, "--quiet"]) == 0
    argv = ["restore", "denoise", str(y), str(x), *NOISE, "--std", str(std), "--json", "--quiet"]
    levels = []
    for own in ([], ["--error-bars", "cap"], ["--error-bars", "cap", "--point", "--steps", "2"]):
        assert main([*argv, *own]) == 0
        white = json.loads(capsys.readouterr().out)["std_white"]
        assert read_image(std).mode == "L" and read_image(std).size == read_image(x).size
        levels.append(white * np.asarray(read_image(std)).mean() / 255)
    assert levels[1] == pytest.approx(levels[0], rel=0.3)


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("denoise", ["--error-bars", "cap"], "give --std too"),
        ("superres", ["--error-bars", "cap", "--std", "std.png"], "noise alone"),
        ("denoise", ["--error-bars", "flow", "--std", "std.png"], "not the weights of a cap"),
    ],
)
def test_a_cap_that_does_not_fit_is_told(task, options, message, spoilt, hasty, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert hasty(task, spoilt, "x.png", *NOISE, *options) == 1
    assert message in capsys.readouterr().err and not Path("x.png").exists()


def test_quality_can_be_chosen(spoilt, hasty, tmp_path, capsys, monkeypatch):
    steps = []

    def choose(*args, **options):
        steps.append(options["steps"])
        return choice_made(*args, **options)

    choice_made = partial(choice.choose, samples=4)
    monkeypatch.setattr(choice, "choose", choose)
    hasty.options += ["--quality", "auto"]
    assert hasty("denoise", spoilt, tmp_path / "x.png", *NOISE, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert 0 <= told["quality"] <= 100 and told["prior_weight"] > 0 and steps == [2]
    assert hasty("denoise", spoilt, tmp_path / "x.png", "--noise", "infer") == 1
    assert "noise of a known level" in capsys.readouterr().err


def test_seed_decides(spoilt, hasty, tmp_path):
    pictures = []
    for seed in ("0", "0", "1"):
        assert hasty("denoise", spoilt, tmp_path / "x.png", *NOISE, "--seed", seed) == 0
        pictures.append(read_image(tmp_path / "x.png").tobytes())
    assert pictures[0] == pictures[1] != pictures[2]


def test_point_estimate(spoilt, photo, restore, tmp_path, capsys):
    assert restore("denoise", spoilt, tmp_path / "x.png", *NOISE, "--point") == 0
    assert psnr(photo, tmp_path / "x.png") > psnr(photo, spoilt) + 3
    assert restore("denoise", spoilt, tmp_path / "x.png", "--point", "--std", tmp_path / "s.png") == 1
    assert "a point estimate has no spread" in capsys.readouterr().err


@pytest.mark.parametrize("name", ALGORITHMS)
def test_algorithms_have_names(name, spoilt, photo, restore, tmp_path, capsys):
    """Each takes the picture a little way; a bound is told where there is one."""
    prior = [] if name == "daps" else [*restore.options[:2], "--quality", "20"]
    restore.options = [*prior, "--steps", "6", "--samples", "2"]
    assert restore("denoise", spoilt, tmp_path / "x.png", *NOISE, "--algorithm", name, "--json") == 0
    assert psnr(photo, tmp_path / "x.png") > psnr(photo, spoilt)
    told = json.loads(capsys.readouterr().out)
    assert told["algorithm"] == name and (told["elbo"] is None) == (name in ("daps", "red-diff", "scoredvi"))


@pytest.mark.parametrize(
    ("options", "algorithm", "model"),
    [([], "daps", "denoiser"), (["-q", "20"], "vble", "base"), (["-m", "denoiser"], "daps", "denoiser")],
)
def test_the_algorithm_follows_from_what_is_asked_for(options, algorithm, model, spoilt, tmp_path, capsys):
    argv = ["denoise", str(spoilt), str(tmp_path / "x.png"), *NOISE, "--steps", "1", "--samples", "2", "--json"]
    assert main(["restore", *argv, *options, "--quiet"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["algorithm"], told["model"]) == (algorithm, model)
    assert (told["quality"] is None) == (algorithm == "daps")


@pytest.mark.parametrize(
    ("options", "message"), [(["-q", "20"], "has no quality"), (["-m", "base"], "not the weights of a denoiser")]
)
def test_daps_takes_no_codec(options, message, spoilt, tmp_path, capsys):
    argv = ["restore", "denoise", str(spoilt), str(tmp_path / "x.png"), "--algorithm", "daps", *options]
    assert main(argv) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1"])
def test_modes_come_back(mode, photo, hasty, tmp_path):
    kept = {"P": "RGB", "1": "L"}.get(mode, mode)
    y, x = tmp_path / "y.png", tmp_path / "x.png"
    image = read_image(photo)
    if mode.endswith("A"):
        image.putalpha(image.getchannel("R"))
    image.convert(mode).save(photo)
    assert main(["degrade", "denoise", str(photo), str(y), *NOISE, "--quiet"]) == 0
    assert hasty("denoise", y, x, *NOISE) == 0
    for path in (y, x):
        image = read_image(path)
        assert (image.mode, image.size) == (kept, (71, 57))
        if kept.endswith("A"):
            assert image.getchannel("A").tobytes() == read_image(photo).getchannel("A").tobytes()


def test_grey_noise_has_the_level_asked_for(tmp_path):
    write(tmp_path / "x.png", np.full((128, 128), 128))
    assert main(["degrade", "denoise", str(tmp_path / "x.png"), str(tmp_path / "y.png"), "--noise", "20/255"]) == 0
    assert np.asarray(read_image(tmp_path / "y.png")).std() == pytest.approx(20, rel=0.05)


def test_degrading_is_seeded(photo, tmp_path):
    pictures = []
    for seed in ("0", "0", "1"):
        argv = ["degrade", "inpaint", str(photo), str(tmp_path / "y.png"), "--mask", "random:0.3", "--seed", seed]
        assert main([*argv, "--quiet"]) == 0
        pictures.append((tmp_path / "y.png").read_bytes() + (tmp_path / "y.mask.png").read_bytes())
    assert pictures[0] == pictures[1] != pictures[2]


def test_mask_goes_where_told_and_blanks(photo, tmp_path, capsys):
    y, mask = tmp_path / "y.png", tmp_path / "m.png"
    argv = ["degrade", "inpaint", str(photo), str(y), "--mask", "random:0.25", "--save-mask", str(mask), "--json"]
    assert main([*argv, "--quiet"]) == 0
    told = json.loads(capsys.readouterr().out)
    hidden = np.asarray(read_image(mask)) == 0
    assert told["mask"] == str(mask) and told["observed"] == pytest.approx(0.25, abs=0.03)
    assert told["observed"] == pytest.approx(1 - hidden.mean())
    assert not np.asarray(read_image(y))[hidden].any()


def test_what_degrading_would_lose_is_refused(photo, monkeypatch, tmp_path, capsysbinary):
    monkeypatch.chdir(tmp_path)
    assert main(["degrade", "inpaint", str(photo), "-", "--mask", "random:.5"]) == 1
    assert b"say by --save-mask where" in capsysbinary.readouterr().err and not Path("mask.png").exists()
    assert main(["degrade", "jpeg", str(photo), "x.png"]) == 1
    assert b"x.png: a JPEG file is written" in capsysbinary.readouterr().err and not Path("x.png").exists()


def test_maps_are_turned_as_their_pictures(photo, hasty, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = read_image(photo)
    image.save(photo, exif=exif)
    x, std, coded, back = (tmp_path / name for name in ("x.png", "s.png", "a.bq", "b.png"))
    assert hasty("denoise", photo, x, *NOISE, "--std", std) == 0
    assert read_image(x).getexif()[0x0112] == read_image(std).getexif()[0x0112] == 6
    own = [*hasty.options[:2], "--quiet"]
    assert main(["encode", str(photo), str(coded), *own]) == 0
    assert main(["decode", str(coded), str(back), "--std", str(std), "--samples", "2", *own]) == 0
    assert main(["info", str(coded), "--map", str(x), *own]) == 0
    assert [read_image(path).getexif().get(0x0112) for path in (back, std, x)] == [6, 6, 6]


def test_pipes(photo, small_codec_path, monkeypatch, capsysbinary):
    def pipe(data, *argv):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
        assert main([*argv, *NOISE, "--quiet"]) == 0
        return capsysbinary.readouterr().out

    y = pipe(photo.read_bytes(), "degrade", "denoise", "-", "-")
    x = pipe(y, "restore", "denoise", "-", "-", "-m", small_codec_path, *QUICK)
    with Image.open(io.BytesIO(x)) as image:
        assert (image.format, image.size) == ("PNG", (71, 57))


@pytest.mark.parametrize("command", ["restore", "degrade"])
@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("denoise", ["--noise=-0.1"], "between 0 and 1"),
        ("denoise", ["--noise", "25"], "write 25/255"),
        ("denoise", ["--noise", "loud"], "a number or a fraction"),
        ("deblur", ["--kernel", "gaussian:100", *NOISE], "kernel is larger than"),
        ("deblur", ["--kernel", "nowhere.png", *NOISE], "cannot read the kernel nowhere.png"),
        ("superres", ["--scale", "0", *NOISE], "at least 1"),
        ("inpaint", ["--mask", "{black}", *NOISE], "at least one observed pixel"),
        ("inpaint", ["--mask", "{large}", *NOISE], "does not fit"),
    ],
)
def test_what_does_not_fit_is_one_line(command, task, options, message, photo, restore, tmp_path, capsys):
    masks = {
        "black": write(tmp_path / "black.png", np.zeros((57, 71))),
        "large": write(tmp_path / "large.png", np.ones((64, 64))),
    }
    argv = [photo, tmp_path / "out.png", *(option.format(**masks) for option in options)]
    run = restore if command == "restore" else lambda task, *argv: main(["degrade", task, *map(str, argv)])
    assert run(task, *argv) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("bayesq: error: ") and captured.err.count("\n") == 1
    assert message in captured.err and "(-vv shows where)" not in captured.err
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize("text", ["random:", "random:0", "random:1.5", "random:nan"])
def test_random_masks_observe_some_share(text, photo, tmp_path, capsys):
    assert main(["degrade", "inpaint", str(photo), str(tmp_path / "y.png"), "--mask", text]) == 1
    assert "(0, 1]" in capsys.readouterr().err


def test_noise_of_a_small_picture_must_be_given(restore, tmp_path, capsys):
    small = write(tmp_path / "small.png", np.full((20, 20, 3), 99))
    assert restore("denoise", small, tmp_path / "x.png") == 1
    assert f"bayesq: error: {small}: noise cannot be estimated" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["restore", "degrade"])
def test_missing_input(command, tmp_path, capsys):
    missing = str(tmp_path / "nowhere.png")
    assert main([command, "denoise", missing, str(tmp_path / "x.png")]) == 1
    assert capsys.readouterr().err == f"bayesq: error: {missing}: No such file or directory\n"


@pytest.mark.parametrize(
    "argv",
    [
        ["restore"],
        ["restore", "magic", "a.png", "b.png"],
        ["restore", "denoise", "a.png"],
        ["restore", "deblur", "a.png", "b.png"],
        ["restore", "inpaint", "a.png", "b.png"],
        ["restore", "denoise", "a.png", "b.png", "--kernel", "gaussian:1"],
        ["restore", "denoise", "a.png", "b.png", "--steps", "0"],
        ["restore", "denoise", "a.png", "b.png", "--samples", "1"],
        ["degrade", "superres", "a.png", "b.png", "--scale", "half"],
    ],
)
def test_wrong_usage_exits_with_2(argv):
    with pytest.raises(SystemExit) as exit_:
        main(argv)
    assert exit_.value.code == 2


def test_folders_are_restored_picture_by_picture(photo, tmp_path, capsys):
    folder, out = tmp_path / "in", tmp_path / "out"
    (folder / "deep").mkdir(parents=True)
    for path in (folder / "a.png", folder / "deep" / "b.png"):
        assert main(["degrade", "denoise", str(photo), str(path), "--noise", "0.1", "--quiet"]) == 0
    (folder / "broken.png").write_bytes(b"no picture")
    argv = ["restore", "denoise", str(folder), str(out), "--noise", "0.1", "--samples", "2", "--quiet"]
    assert main([*argv, "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["files"] == 3 and [Path(failed["input"]).name for failed in told["failed"]] == ["broken.png"]
    assert psnr(out / "a.png", photo) > psnr(folder / "a.png", photo) + 6
    (folder / "broken.png").unlink()
    assert main(["restore", "denoise", str(folder), str(folder)]) == 1
    assert "is the input too" in capsys.readouterr().err
    first = (out / "a.png").read_bytes()
    (out / "a.png").unlink()
    assert main([*argv, "--jobs", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["skipped"] == 1 and (out / "a.png").read_bytes() == first
    assert main([*argv, "--std", str(tmp_path / "std.png")]) == 1
    assert "single pictures" in capsys.readouterr().err
