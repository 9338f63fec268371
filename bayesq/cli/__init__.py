"""The command line, ``bayesq COMMAND ...``: one module a subcommand, no logic of its own.

A command module offers ``add_parser(subparsers)``, which sets ``run`` as the parser's default, and
``run(args) -> int``, the exit status. Its module level imports only what parsing needs: anything heavy
(torch, PIL, bayesq's own numerics) is imported inside ``run``. Commands that restore or train set ``keeps_freed``, by
which their process keeps memory (``bayesq.memory``): they ask for much again and again.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

import bayesq
from bayesq.cli import common
from bayesq.errors import BayesqError
from bayesq.memory import keep_freed

COMMANDS = ["demo", "restore", "report", "degrade", "encode", "decode", "info"]
COMMANDS += ["models", "train", "calibrate", "quantize", "bench", "completion"]


def build_parser(commands: Sequence[str] = COMMANDS) -> argparse.ArgumentParser:
    """The parser of the command line, or of some of its commands alone, which takes less time."""
    parser = argparse.ArgumentParser(
        prog="bayesq",
        description="Image compression and Bayesian image restoration with one learned latent model.",
    )
    parser.add_argument("-V", "--version", action="version", version=f"bayesq {bayesq.__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name in commands:
        import_module(f"bayesq.cli.{name}").add_parser(subparsers)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs one command. Returns 0 when done, 1 on failure, 130 when interrupted; exits with 2 on wrong usage."""
    argv = sys.argv[1:] if argv is None else argv
    args = build_parser(argv[:1] if argv and argv[0] in COMMANDS else COMMANDS).parse_args(argv)
    common.start_logging(args)
    if getattr(args, "keeps_freed", False):
        keep_freed()
    try:
        status = args.run(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if args.verbose >= 2:
            traceback.print_exc()
        print(f"bayesq: error: {_one_line(error)}", file=sys.stderr)
        return 1


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        text = f"{error.filename}: {error.strerror}"
    elif isinstance(error, BayesqError | OSError):
        text = str(error)
    else:
        text = f"{type(error).__name__}: {error} (-vv shows where)"
    return " ".join(text.split())
