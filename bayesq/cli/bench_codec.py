"""``bayesq bench codec``: rate and distortion against other formats and published curves."""

import argparse

from bayesq.cli import common


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "codec",
        help="rate-distortion of whole files",
        description="Encodes and decodes every picture of a folder at every quality. Prints Markdown tables; the "
        "first of --codecs is the one in focus, the others are measured in the same run and compared with.",
    )
    parser.add_argument("folder", metavar="DIR", help="a folder of pictures")
    parser.add_argument("-q", "--qualities", type=_numbers, metavar="Q,Q,...", help="qualities of the first codec")
    parser.add_argument("-m", "--model", default="base", help="model of the bayesq codec (default: %(default)s)")
    parser.add_argument(
        "--codecs",
        type=_words,
        default=["bayesq", "jpeg", "jpeg-444"],
        metavar="NAME,...",
        help="of bayesq, jpeg (4:2:0), jpeg-444, webp, jpeg2000, avif (slow), jxl, or all "
        "(default: bayesq,jpeg,jpeg-444)",
    )
    parser.add_argument("-e", "--effort", type=common.effort, default=1, metavar="1..9", help="of the bayesq codec")
    parser.add_argument("--against", metavar="JSON", help="a file of published rate-distortion curves")
    parser.add_argument(
        "--curves",
        type=_words,
        default=["*"],
        metavar="PATTERN,...",
        help="which of them, as in a shell (default: all)",
    )
    parser.add_argument("--limit", type=common.positive, metavar="N", help="only the first N pictures")
    parser.add_argument(
        "--coverage", action="store_true", help="also how well files know their own errors; of the bayesq codec"
    )
    parser.add_argument("-o", "--output", metavar="JSON", help="write the results with CompressAI's keys")
    parser.add_argument("--plot", metavar="PNG", help="draw the curves")
    common.add_talk_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    common.check_files(args.output, args.plot)

    import json
    from pathlib import Path

    from bayesq import bench, plot, zoo
    from bayesq.bench import codec, curves, formats
    from bayesq.errors import BayesqError

    known = ["bayesq", *formats.RIVALS]
    names = known if args.codecs == ["all"] else args.codecs
    unknown = set(names) - set(known)
    if unknown or not names:
        raise BayesqError(f"no codec called {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    paths = bench.pictures(args.folder, args.limit)
    published = curves.read_curves(args.against, args.curves) if args.against else []
    forms: list[formats.Format] = [
        formats.Bayesq(zoo.load(args.model), effort=args.effort) if name == "bayesq" else formats.RIVALS[name]
        for name in names
    ]
    qualities = args.qualities or forms[0].qualities
    curve = codec.measure(forms[0], paths, qualities, progress=not args.quiet)
    measured = [codec.measure(form, paths, progress=not args.quiet) for form in forms[1:]]

    count = f"{len(paths)} picture{'s' if len(paths) > 1 else ''}"
    common.say(args, f"{curve.name}, means over {count} of {args.folder}")
    print(codec.report(curve, qualities, measured, published))
    if args.coverage:
        print(f"\n{codec.coverage(zoo.load(args.model), paths, qualities, progress=not args.quiet)}")
    if args.output:
        content = {**curve.as_json(), "rivals": [rival.as_json() for rival in measured]}
        common.write(args.output, (json.dumps(content, indent=1) + "\n").encode())
    if args.plot:
        title = f"{Path(args.folder).name}, {count}" + ("; grey: published" if published else "")
        plot.plot_rate_distortion(curve, measured, published, title).savefig(args.plot, dpi=150)
    return 0


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _numbers(text: str) -> list[float]:
    return [common.quality(word) for word in _words(text)]
