"""``bayesq bench vble``: time of a restoration with samples, beside VBLE at its authors' settings."""

import argparse

from bayesq.cli import common

SIZE = 321, 481


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "vble",
        help="time to restore with posterior samples",
        description="Blurs a picture and restores it with 100 posterior samples: by default, by VBLE with the codec, "
        "the same with 300 steps on one grid, and as VBLE's authors do (CompressAI's mbt2018, random weights, 300 "
        "steps, of which a few are timed).",
    )
    parser.add_argument("picture", metavar="FILE", nargs="?", help="default: a sample picture, cut to 481 x 321")
    parser.add_argument("--crop", type=common.positive, metavar="N", help="only the middle N pixels a side")
    parser.add_argument("-m", "--model", default="base", help="codec of VBLE (default: %(default)s)")
    parser.add_argument(
        "--steps", type=common.positive, default=3, metavar="N", help="of VBLE that are timed (default: %(default)s)"
    )
    parser.add_argument("--threads", type=common.positive, metavar="N", help="of torch (default: its own)")
    parser.add_argument("--cpu", action="store_true", help="count processor time: for busy machines, with one thread")
    parser.add_argument("--json", action="store_true", help="print JSON")
    common.add_talk_options(parser)
    parser.set_defaults(run=run, keeps_freed=True)


def run(args: argparse.Namespace) -> int:
    import time
    from dataclasses import asdict
    from pathlib import Path

    import torch

    from bayesq import zoo
    from bayesq.bench import restore, vble
    from bayesq.resources import data_dir

    if args.threads:
        torch.set_num_threads(args.threads)
    x = restore.read(Path(args.picture or data_dir() / "coffee.png"), args.crop)
    if not args.picture:
        x = x[..., : SIZE[0], : SIZE[1]]
    clock = time.process_time if args.cpu else time.perf_counter
    report = vble.run(
        zoo.load(args.model), x, vble.mbt2018(), timed_steps=args.steps, timed_samples=args.steps, clock=clock
    )
    if args.json:
        common.print_json(asdict(report) | {"ratio": report.ratio})
    else:
        print(report.text())
    return 0
