"""The operators on the command line: one sub-command a task, with the same options for ``restore`` and ``degrade``."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepinv.physics import LinearPhysics

SUMMARIES = {
    "denoise": "noise alone",
    "deblur": "blur, and noise",
    "superres": "reduced size, and noise",
    "inpaint": "missing pixels, and noise",
    "demosaic": "a Bayer sensor, which sees one colour a pixel, and noise",
    "colorize": "no colours, and noise",
}


def add_task_parsers(
    parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int]
) -> list[argparse.ArgumentParser]:
    """Adds a parser for each task, with its operator's options. Returns them, for the command to add its own."""
    subparsers = parser.add_subparsers(metavar="TASK", required=True)
    tasks = []
    for name, summary in SUMMARIES.items():
        task = subparsers.add_parser(name, help=summary, description=f"{parser.description} Here: {summary}.")
        task.add_argument("input", metavar="IN", help="a picture, - for standard input")
        task.add_argument("output", metavar="OUT", help="in the format of its suffix, - for a PNG on a pipe")
        _add_setting(task, name)
        task.set_defaults(run=run, task=name)
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


def physics(args: argparse.Namespace, size: tuple[int, int], sigma: float | str) -> "LinearPhysics":
    """The operator that the options describe, for pictures of the given (H, W)."""
    from bayesq.operators import TASKS

    setting = [getattr(args, name) for name in ("kernel", "scale", "mask") if name in args]
    return TASKS[args.task](*setting, size, sigma)
