"""``bayesq bench exactness``: whether every setting reads what any other wrote."""

import argparse

from bayesq.cli import common


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "exactness",
        help="decode in every setting what any other wrote",
        description="Codes pictures in processes that differ in threads, instruction sets, memory layout, runtime and "
        "precision, and decodes every file in each. Prints the matrix, and that of CompressAI's mbt2018-mean under the "
        "same changes. Exits with 1 if a symbol of ours differs, or a pixel by more than 1/255, bfloat16 aside.",
    )
    parser.add_argument("folder", metavar="DIR", nargs="?", help="a folder of pictures (default: the sample pictures)")
    parser.add_argument("-m", "--model", default="base", help="default: %(default)s")
    parser.add_argument("-q", "--quality", type=common.quality, default=60, metavar="0..100", help="default: 60")
    parser.add_argument("--limit", type=common.positive, default=2, metavar="N", help="pictures (default: %(default)s)")
    parser.add_argument("--settings", metavar="NAME,...", help="only these; a wrong one tells which there are")
    parser.add_argument("--alone", action="store_true", help="leave CompressAI out")
    parser.add_argument("--json", action="store_true", help="print JSON")
    common.add_talk_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from dataclasses import asdict
    from functools import partial

    from tqdm import tqdm

    from bayesq import bench
    from bayesq.bench import exactness
    from bayesq.errors import BayesqError
    from bayesq.resources import data_dir

    known = {setting.name: setting for setting in exactness.SETTINGS}
    names = args.settings.split(",") if args.settings else list(known)
    if not known.keys() >= set(names):
        raise BayesqError(f"no such setting; there are {', '.join(known)}")
    pictures = bench.pictures(args.folder or data_dir(), args.limit)
    settings = [known[name] for name in names]
    codecs = [args.model] if args.alone else [args.model, exactness.COMPRESSAI]
    progress = partial(tqdm, unit="process", leave=False, disable=True if args.quiet else None)
    reports = []
    for report in exactness.run(codecs, pictures, args.quality, settings, progress):
        reports.append(report)
        if not args.json:
            print(report.text(), end="\n\n")
    ours = reports[0]
    if args.json:
        counts = [{"garbled": report.garbled, "deviating": report.deviating} for report in reports]
        common.print_json([asdict(report) | count for report, count in zip(reports, counts, strict=True)])
    else:
        for name, reason in ours.absent.items():
            print(f"Not measured: {name}: {reason}.")
    return 1 if ours.garbled or ours.deviating or not ours.pairs else 0
