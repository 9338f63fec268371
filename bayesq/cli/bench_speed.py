"""``bayesq bench speed``: time to encode and decode, beside CompressAI and Pillow's formats, or by size of picture."""

import argparse

from bayesq.cli import common


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "speed",
        help="time to encode and decode",
        description="Encodes and decodes the pictures of a folder in turn with bayesq, CompressAI's mbt2018-mean "
        "(random weights) and Pillow's JPEG, WebP and AVIF. Prints seconds per megapixel, medians over repeats, and "
        "their ratios, and where bayesq's went. With --sizes: what bayesq takes for a photograph, repeated to fill "
        "pictures of several sizes, per megapixel, and its peak of memory.",
    )
    parser.add_argument("folder", metavar="DIR", nargs="?", help="a folder of pictures (default: the sample pictures)")
    parser.add_argument("-q", "--quality", type=common.quality, default=50, metavar="0..100", help="default: 50")
    parser.add_argument(
        "-m",
        "--model",
        default="base",
        metavar="MODEL[,MODEL]",
        help="names of `bayesq models`, or .safetensors files (default: %(default)s)",
    )
    parser.add_argument("--repeats", type=common.positive, default=5, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--sizes",
        type=megapixels,
        nargs="?",
        const=[0.4, 2.0, 6.0, 25.0, 100.0],
        metavar="MP,MP",
        help="instead: time and memory at these megapixels (if none are given: 0.4,2,6,25,100)",
    )
    parser.add_argument("--limit", type=common.positive, metavar="N", help="only the first N pictures")
    parser.add_argument("--threads", type=common.positive, metavar="N", help="of torch (default: its own)")
    parser.add_argument("--cpu", action="store_true", help="count processor time: for busy machines, with one thread")
    common.add_runtime_option(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    common.add_talk_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    import time
    from dataclasses import asdict
    from functools import partial

    import torch
    from tqdm import tqdm

    from bayesq import bench, zoo
    from bayesq.bench import sizes, speed
    from bayesq.errors import BayesqError
    from bayesq.resources import data_dir

    common.use_runtime(args)
    pictures = bench.pictures(args.folder or data_dir(), args.limit)
    progress = partial(tqdm, leave=False, disable=True if args.quiet else None)
    report: sizes.Report | speed.Report
    models = args.model.split(",")
    if args.sizes:
        if len(models) > 1:
            raise BayesqError("--sizes takes one model")
        setting = sizes.Setting(args.model, args.quality, args.repeats, args.threads, args.cpu)
        report = sizes.run(pictures[0], args.sizes, setting, progress)
    else:
        if args.threads:
            torch.set_num_threads(args.threads)
        clock = time.process_time if args.cpu else time.perf_counter
        report = speed.run(list(map(zoo.load, models)), pictures, args.quality, args.repeats, clock, progress)
    if args.json:
        common.print_json(asdict(report))
    else:
        print(report.text())
    return 0


def megapixels(text: str) -> list[float]:
    """Argument type: sizes of pictures, separated by commas."""
    return [common.above_zero(part) for part in text.split(",")]
