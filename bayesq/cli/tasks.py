"""The operators on the command line: one sub-command a task, with the same options for ``restore`` and ``degrade``."""

import argparse
from collections.abc import Callable, Iterable
from typing import Any

SUMMARIES = {
    "denoise": "noise alone",
    "deblur": "blur, and noise",
    "superres": "reduced size, and noise",
    "inpaint": "missing pixels, and noise",
    "demosaic": "a Bayer sensor, which sees one colour a pixel, and noise",
    "colorize": "no colours, and noise",
    "jpeg": "a JPEG file's rounding, and noise before it",
    "auto": "a JPEG file's rounding or noise, whichever is found",
}


def add_task_parsers(
    parser: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace], int],
    names: Iterable[str],
    output: str = "in the format of its suffix, - for a PNG on a pipe",
) -> list[argparse.ArgumentParser]:
    """Adds a parser for each task, with its operator's options. Returns them, for the command to add its own."""
    subparsers = parser.add_subparsers(metavar="TASK", required=True)
    tasks = []
    for name in names:
        summary = SUMMARIES[name]
        task = subparsers.add_parser(name, help=summary, description=f"{parser.description} Here: {summary}.")
        task.add_argument("input", metavar="IN", help="a picture, - for standard input")
        task.add_argument("output", metavar="OUT", help=output)
        _add_setting(task, name)
        task.set_defaults(run=run, keeps_freed=True, task=name)
        tasks.append(task)
    return tasks


def _add_setting(parser: argparse.ArgumentParser, task: str) -> None:
    if task == "deblur":
        parser.add_argument(
            "--kernel",
            required=True,
            metavar="KERNEL",
            help="gaussian:STD, motion:LENGTH,ANGLE (pixels, degrees), or a picture, .npy or .npz file",
        )
    elif task == "superres":
        parser.add_argument("--scale", type=int, default=2, metavar="N", help="times smaller (default: %(default)s)")
    elif task == "inpaint":
        parser.add_argument(
            "--mask",
            required=True,
            metavar="FILE",
            help="picture, .npy or .npz file of the size of IN, white where a pixel is observed",
        )


def setting(args: argparse.Namespace) -> list[Any]:
    """What the operator that the options describe takes before size and noise."""
    return [getattr(args, name) for name in ("kernel", "scale", "mask") if name in args]
