"""The command line: every command explains itself, and every failure is one line and an exit status."""

import json
import subprocess
import sys

import pytest

import bayesq
from bayesq.cli import COMMANDS, build_parser, common, main
from bayesq.errors import BayesqError


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    assert exit_.value.code == 0
    assert f"usage: bayesq {command}" in capsys.readouterr().out


def test_version(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["-V"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"bayesq {bayesq.__version__}\n"


@pytest.mark.parametrize("argv", [[], ["nonsense"], ["models", "--nonsense"], ["models", "-v", "--quiet"]])
def test_wrong_usage_exits_with_2(argv):
    with pytest.raises(SystemExit) as exit_:
        main(argv)
    assert exit_.value.code == 2


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["encode", "a.png", "-q", "abc"], "-q/--quality: 'abc' is not a number from 0 to 100"),
        (["encode", "a.png", "-e", "10"], "-e/--effort: '10' is not an integer from 1 to 9"),
        (["encode", "a.png", "--bpp", "inf"], "--bpp: 'inf' is not a finite number above zero"),
        (["encode", "a.png", "--size", "1G"], "--size: '1G' is not a number of bytes, as 20000, 20k or 1.5M"),
        (["encode", "a.png", "--size=-1k"], "--size: '-1k' is not a number of bytes"),
        (["encode", "a.png", "-j", "0"], "-j/--jobs: '0' is not an integer of at least 1"),
        (["decode", "a.bq", "--samples", "a"], "--samples: 'a' is not an integer of at least 2"),
        (["decode", "a.bq", "--region", "1,2,3"], "--region: '1,2,3' is not X,Y,W,H: left, top, width and height"),
        (["decode", "a.bq", "--seed", "99999999999999999999"], "--seed: '99999999999999999999' is not an integer from"),
        (["restore", "denoise", "a.png", "b.png", "-q", "best"], "'best' is not a number from 0 to 100"),
    ],
)
def test_wrong_arguments_are_told_the_form(argv, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(argv)
    assert exit_.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(("text", "value"), [("20000", 20000), ("20k", 20000), ("0.5k", 500), ("1.5M", 1500000)])
def test_sizes_in_bytes(text, value):
    assert build_parser(["encode"]).parse_args(["encode", "a.png", "--size", text]).size == value


def test_models_as_json(capsys):
    assert main(["models", "--json"]) == 0
    assert isinstance(json.loads(capsys.readouterr().out), list)


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (BayesqError("two\nlines"), 1, "bayesq: error: two lines\n"),
        (FileNotFoundError(2, "No such file", "x.png"), 1, "bayesq: error: x.png: No such file\n"),
        (ZeroDivisionError("oops"), 1, "bayesq: error: ZeroDivisionError: oops (-vv shows where)\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_failures_are_one_line(error, status, message, monkeypatch, capsys):
    def fail(args):
        raise error

    monkeypatch.setattr("bayesq.cli.models.run", fail)
    assert main(["models"]) == status
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", message)


def test_traceback_on_request(monkeypatch, capsys):
    def fail(args):
        raise BayesqError("oops")

    monkeypatch.setattr("bayesq.cli.models.run", fail)
    assert main(["models", "-vv"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_reader_that_goes_away():
    code = "import sys; from bayesq.cli import main; sys.exit(main(['models', '--json']))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.wait() == 1
    assert process.stderr.read() == b""
    process.stderr.close()


def test_about_names_the_file():
    with pytest.raises(BayesqError, match=r"^photo\.bq: damaged$"), common.about("photo.bq"):
        raise BayesqError("damaged")


@pytest.mark.parametrize(("source", "target"), [("a/b.png", "a/b.bq"), ("b", "b.bq"), ("-", "-")])
def test_default_output(source, target):
    assert common.beside(source, ".bq") == target


def test_parser_is_complete():
    assert all(name in build_parser().format_help() for name in COMMANDS)
