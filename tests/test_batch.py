"""Folders of files, by this process, by many, and by a Dask cluster."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from distributed import LocalCluster
from PIL import Image

from bayesq import batch, files, zoo
from bayesq.batch import Decode, Encode, plan, run
from bayesq.cli import main
from bayesq.cluster import LOCAL
from bayesq.errors import BayesqError, ModelError
from bayesq.resources import data_dir

PICTURES = ["a.png", "b.jpg", "deep/er/c.webp", "deep/a.png"]


@pytest.fixture
def album(tmp_path) -> Path:
    """Four small pictures in folders, and what is none."""
    with Image.open(data_dir() / "coffee.png") as image:
        for i, name in enumerate(PICTURES):
            path = tmp_path / "album" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            image.crop((20 * i, 0, 20 * i + 32, 24)).save(path)
    (tmp_path / "album/notes.txt").write_text("no picture")
    (tmp_path / "album/.hidden").mkdir()
    (tmp_path / "album/.hidden/d.png").write_text("nor this")
    return tmp_path / "album"


@pytest.fixture
def encode(small_codec_path) -> Encode:
    return Encode(50, small_codec_path)


def encode_all(job: Encode, album: Path, out: Path) -> list[batch.Outcome]:
    return list(run(job, plan(job, album, out)))


def test_the_tree_is_kept(encode, album, tmp_path):
    outcomes = encode_all(encode, album, tmp_path / "out")
    assert [o.error for o in outcomes] == [None] * 4
    found = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert found == ["a.bq", "b.bq", "deep/a.bq", "deep/er/c.bq"]
    assert [o.bytes for o in outcomes] == [o.target.stat().st_size for o in outcomes]
    decode = Decode(encode.model)
    assert [o.error for o in run(decode, plan(decode, tmp_path / "out", tmp_path / "back"))] == [None] * 4
    with Image.open(tmp_path / "back/deep/er/c.png") as back:
        codec = zoo.shared(encode.model)
        assert back.tobytes() == files.decode((tmp_path / "out/deep/er/c.bq").read_bytes(), codec).tobytes()


def test_files_of_one_name_keep_their_suffixes(encode, album):
    Image.new("RGB", (8, 8)).save(album / "a.tiff")
    targets = {str(target.relative_to(album)) for _, target in plan(encode, album, album)}
    assert targets == {"a.png.bq", "a.tiff.bq", "b.bq", "deep/a.bq", "deep/er/c.bq"}


@pytest.mark.parametrize("names", [["a.png", "a.jpg", "a.png.png"], ["a.png", "a.jpg", "a.png.png", "a.png.png.png"]])
def test_no_two_files_have_one_target(names, encode, tmp_path):
    for name in names:
        (tmp_path / name).touch()
    pairs = plan(encode, tmp_path, tmp_path)
    assert sorted(source.name for source, _ in pairs) == sorted(names)
    assert sorted(target.name for _, target in pairs) == sorted(f"{name}.bq" for name in names)


def test_what_is_done_is_left_alone(encode, album, tmp_path):
    first = encode_all(encode, album, tmp_path)
    before = [o.target.stat().st_mtime_ns for o in first]
    assert [o.skipped for o in first] == [False] * 4
    again = encode_all(encode, album, tmp_path)
    assert [o.skipped for o in again] == [True] * 4
    assert [o.target.stat().st_mtime_ns for o in again] == before
    assert [o.bytes for o in again] == [o.bytes for o in first]


@pytest.mark.parametrize("change", ["source", "damage", "removal", "quality"])
def test_what_is_out_of_date_is_done_again(change, encode, album, tmp_path):
    source, target = encode_all(encode, album, tmp_path)[1].source, tmp_path / "b.bq"
    good = target.read_bytes()
    if change == "source":
        os.utime(source, ns=(0, target.stat().st_mtime_ns + 1))
    elif change == "damage":
        target.write_bytes(good[:-1])
    elif change == "removal":
        target.unlink()
    else:
        encode = Encode(20, encode.model)
    again = encode_all(encode, album, tmp_path)
    assert [o.target.name for o in again if not o.skipped] == (["b.bq"] if change != "quality" else [
        o.target.name for o in again])  # fmt: skip
    assert (target.read_bytes() == good) == (change != "quality")


def test_a_bad_picture_does_not_stop_the_others(encode, album, tmp_path):
    (album / "b.jpg").write_bytes(b"no picture at all")
    outcomes = encode_all(encode, album, tmp_path)
    (bad,) = [o for o in outcomes if o.error]
    assert bad.source.name == "b.jpg" and "not a picture" in bad.error and "\n" not in bad.error
    assert len(list(tmp_path.rglob("*.bq"))) == 3


@pytest.mark.parametrize("folder", ["nowhere", "album/.hidden"])
def test_nothing_to_do_is_an_error(folder, encode, album, tmp_path):
    with pytest.raises(BayesqError, match="no files here"):
        plan(Decode(), tmp_path / folder, tmp_path)


def test_jobs_that_cannot_be_done_are_refused_at_once(small_codec_path):
    with pytest.raises(ModelError):
        Encode(101, small_codec_path)
    with pytest.raises(ModelError):
        Encode(50, "nonsense")


@dataclass(frozen=True)
class Deadly:
    """Copies files, and dies of b."""

    sources: ClassVar = frozenset({".jpg", ".png", ".webp"})
    suffix: ClassVar = ".copy"

    def is_done(self, source: Path, target: Path) -> bool:
        return True

    def write(self, source: Path, target: Path) -> None:
        if source.stem == "b":
            os.kill(os.getpid(), signal.SIGKILL)
        target.write_bytes(source.read_bytes())


def test_processes_do_the_same(encode, album, tmp_path):
    alone = {o.source: o.bytes for o in encode_all(encode, album, tmp_path / "alone")}
    outcomes = list(run(encode, plan(encode, album, tmp_path / "many"), workers=2))
    assert all(o.error is None for o in outcomes)
    assert {o.source: o.bytes for o in outcomes} == alone


def test_only_a_file_that_kills_its_process_by_itself_fails(album, tmp_path):
    pairs = plan(Deadly(), album, tmp_path / "copies")
    copies = {o.source: o.error for o in run(Deadly(), pairs, workers=2)}
    assert copies.pop(album / "b.jpg").startswith("it killed its process")
    assert len(copies) == 3 and set(copies.values()) == {None}


def test_a_cluster_does_the_same(encode, album, tmp_path):
    (album / "b.jpg").write_bytes(b"no picture at all")
    alone = {o.source: (o.bytes, o.error) for o in encode_all(encode, album, tmp_path / "alone")}
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        pairs = plan(encode, album, tmp_path / "many")
        many = {o.source: (o.bytes, o.error) for o in run(encode, pairs, scheduler=cluster.scheduler_address)}
        again = list(run(encode, pairs, scheduler=cluster.scheduler_address))
    here = {o.source: (o.bytes, o.error) for o in run(encode, plan(encode, album, tmp_path / "here"), scheduler=LOCAL)}
    assert many == here == alone
    assert sorted(o.target.name for o in again if not o.skipped) == ["b.bq"]


def test_a_killed_run_goes_on(album, encode, tmp_path):
    for i in range(60):
        (album / f"x{i:02}.png").write_bytes((album / "a.png").read_bytes())
    out = tmp_path / "out"
    command = [sys.executable, "-m", "bayesq", "encode", str(album), str(out), "-m", encode.model, "--quiet"]
    process = subprocess.Popen(command)
    while process.poll() is None and not (out / "x05.bq").exists():
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    left = {path.name for path in out.rglob("*.bq")}
    assert 0 < len(left) < 64
    outcomes = encode_all(encode, album, out)
    assert {o.target.name for o in outcomes if o.skipped} == left
    assert all(o.error is None for o in outcomes)


@pytest.mark.parametrize("newer", [False, True])
def test_decoding_leaves_pictures_that_are_there(newer, encode, album):
    encode_all(encode, album, album)
    if newer:
        os.utime(album / "a.png")
    else:
        os.utime(album / "a.png", ns=(0, 0))
    before = {path: path.read_bytes() for path in album.rglob("*.png")}
    outcomes = {o.target: o for o in run(Decode(encode.model), plan(Decode(), album, album))}
    assert before.items() <= {path: path.read_bytes() for path in album.rglob("*.png")}.items()
    of = outcomes[album / "a.png"]
    assert of.skipped if newer else of.error.startswith(f"{of.target}: exists, and is older than its source")
    assert (album / "b.png").exists() and outcomes[album / "b.png"].error is None


def test_results_are_no_sources(album):
    class Restored(Deadly):
        suffix = ".png"

    with pytest.raises(BayesqError, match="is the input too"):
        plan(Restored(), album, album / "deep" / "..")
    before = plan(Restored(), album, album / "out")
    for _, target in before:
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(target)
    assert plan(Restored(), album, album / "out") == before


def test_an_output_that_is_no_folder_is_one_error(encode, album, capsys):
    assert main(["encode", str(album), str(album / "notes.txt"), "-m", encode.model]) == 1
    assert capsys.readouterr().err == f"bayesq: error: {album / 'notes.txt'}: Not a directory\n"


def test_the_command_line_sums_up(encode, album, tmp_path, capsys):
    (album / "b.jpg").write_bytes(b"no picture at all")
    argv = ["encode", str(album), str(tmp_path / "out"), "-m", encode.model, "--json"]
    assert main(argv) == 1
    captured = capsys.readouterr()
    summary = json.loads(captured.out)
    assert (summary["files"], summary["skipped"], len(summary["failed"])) == (4, 0, 1)
    assert summary["bytes"] == sum(path.stat().st_size for path in (tmp_path / "out").rglob("*.bq"))
    assert f"bayesq: error: {album / 'b.jpg'}: " in captured.err
    assert "3 files written, 0 there already, 1 failed" in captured.err
    assert captured.err.count(str(album / "b.jpg")) == 1
    (album / "b.jpg").unlink()
    assert main(argv) == 0
    assert json.loads(capsys.readouterr().out)["skipped"] == 3
    assert main(["decode", str(tmp_path / "out"), str(tmp_path / "back"), "-m", encode.model, "--quiet"]) == 0
    assert len(list((tmp_path / "back").rglob("*.png"))) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "needs another"),
        (["-"], "needs another"),
        (["out", "--no-overwrite"], "single files"),
        (["out", "--bpp", "1"], "at a quality"),
    ],
)
def test_folders_go_to_folders(options, message, encode, album, capsys):
    assert main(["encode", str(album), *options, "-m", encode.model]) == 1
    assert message in capsys.readouterr().err
