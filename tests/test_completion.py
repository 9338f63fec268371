"""What the shells offer after some words, asked of the shells themselves."""

import argparse
import shutil
import subprocess

import pytest

from bayesq.cli import COMMANDS, build_parser, main

NEEDS = {name: pytest.mark.skipif(not shutil.which(name), reason=f"no {name} here") for name in ("bash", "zsh", "fish")}
EACH = [pytest.param(name, marks=mark) for name, mark in NEEDS.items()]


@pytest.fixture
def script(capsys, tmp_path):
    def write(shell: str):
        assert main(["completion", shell]) == 0
        path = tmp_path / f"bayesq.{shell}"
        path.write_text(capsys.readouterr().out)
        return path

    return write


def offered(shell: str, script, line: str) -> set[str]:
    """What the shell offers for the last, unfinished word of a line."""
    if shell == "fish":
        command = f"source {script}; complete -C '{line}'"
        text = subprocess.run(["fish", "-N", "-c", command], capture_output=True, text=True, check=True).stdout
        return {answer.split("\t")[0] for answer in text.splitlines()}
    words = line.split(" ")
    command = (
        f"source {script}; COMP_WORDS=({' '.join(map(repr, words))}); COMP_CWORD={len(words) - 1}; _bayesq; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    text = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout
    return set(text.split())


@pytest.mark.parametrize("shell", [EACH[0], EACH[2]])
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("bayesq ", set(COMMANDS)),
        ("bayesq en", {"encode"}),
        ("bayesq restore de", {"denoise", "deblur", "demosaic"}),
        ("bayesq completion z", {"zsh"}),
        ("bayesq encode --qual", {"--quality"}),
        ("bayesq restore inpaint --ma", {"--mask"}),
        ("bayesq restore denoise --ma", set()),
    ],
)
def test_what_can_follow_is_offered(shell, line, expected, script):
    assert offered(shell, script(shell), line) == expected


@NEEDS["bash"]
def test_every_command_and_option_is_known_to_bash(script):
    path = script("bash")
    for name, parser in commands(build_parser()).items():
        options = {option for action in parser._actions for option in action.option_strings}
        assert offered("bash", path, f"bayesq {name} -") == options


def commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (subparsers,) = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return subparsers.choices


@pytest.mark.parametrize("shell", EACH)
def test_the_script_is_sound(shell, script, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    start = {"bash": ["bash"], "zsh": ["zsh", "-f"], "fish": ["fish", "-N"]}[shell]
    done = subprocess.run([*start, str(script(shell))], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
