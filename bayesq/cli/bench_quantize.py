"""``bayesq bench quantize``: recipes of quantisation against the floating-point model."""

import argparse
from pathlib import Path

from bayesq.cli import common


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "quantize",
        help="bits, rate and time of quantised models",
        description="Quantises a model after each recipe and measures all models on the pictures of a folder, in one "
        "run. Prints a Markdown table: stored bits a weight (of quantised layers, of all networks), bits of the "
        "inputs of g_a and g_s, size, bit operations, BD-rate against the floating-point model, times over its own "
        "and what ran the transforms.",
    )
    parser.add_argument("folder", metavar="DIR", help="a folder of pictures to measure on")
    parser.add_argument("-m", "--model", default="base", help="floating-point model (default: %(default)s)")
    parser.add_argument(
        "--recipes",
        type=_words,
        default=["w8a8", "mixed5", "mixed4"],
        metavar="NAME,...",
        help="recipes, or weights files of quantised models, or all (default: w8a8,mixed5,mixed4)",
    )
    parser.add_argument("--data", type=Path, nargs="+", metavar="DIR", help="photographs to calibrate on")
    parser.add_argument("--crops", type=common.several, default=64, metavar="N", help="crops (default: %(default)s)")
    parser.add_argument("-q", "--qualities", type=_numbers, metavar="Q,Q,...", help="points of the curves")
    parser.add_argument("--limit", type=common.positive, metavar="N", help="only the first N pictures")
    parser.add_argument("-o", "--output", metavar="JSON", help="write the results, after every recipe")
    parser.add_argument("--plot", metavar="PNG", help="draw BD-rate over bits, and the Pareto front")
    common.add_runtime_option(parser)
    common.add_talk_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    common.check_files(args.output, args.plot)
    common.use_runtime(args)

    import json

    from bayesq import bench, zoo
    from bayesq.bench import quantize
    from bayesq.quantization import RECIPES, Calibration
    from bayesq.resources import data_dir

    names = list(RECIPES) if args.recipes == ["all"] else args.recipes
    paths = bench.pictures(args.folder, args.limit)
    data = Calibration.of(args.data or [data_dir()], count=args.crops)
    codec = zoo.load(args.model)
    title = f"{codec.name}, {len(paths)} picture{'s' if len(paths) > 1 else ''} of {Path(args.folder).name}"
    common.say(args, title)
    rows: list[quantize.Row] = []
    for row in quantize.compare(codec, names, paths, data, args.qualities or quantize.QUALITIES, not args.quiet):
        rows.append(row)
        if args.output:
            common.write(args.output, (json.dumps([row.as_json() for row in rows], indent=1) + "\n").encode())
        if args.plot and rows[1:]:
            quantize.plot(rows, title).savefig(args.plot, dpi=150)
    print(quantize.report(rows))
    return 0


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _numbers(text: str) -> list[float]:
    return [common.quality(word) for word in _words(text)]
