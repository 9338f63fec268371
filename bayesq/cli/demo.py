"""``bayesq demo``: restoration and compression of one photograph, to look at."""

import argparse
from dataclasses import asdict

from bayesq.cli import common


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "demo",
        help="restore and compress a photograph, to look at",
        description="Blurs and restores, compresses and decompresses a photograph that bayesq carries. Writes the "
        "pictures, and one sheet of them all.",
    )
    parser.add_argument("--out", default="bayesq-demo", metavar="DIR", help="where to (default: %(default)s)")
    parser.add_argument("-m", "--model", default="base", help="the codec: a name of `bayesq models`, or a file")
    parser.add_argument(
        "--steps", type=common.positive, metavar="N", help="of the restoration (default: those of `restore`)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    common.add_talk_options(parser)
    parser.set_defaults(run=run, keeps_freed=True)


def run(args: argparse.Namespace) -> int:
    common.check_folder(args.out)

    from bayesq import demo, zoo
    from bayesq.bench import table

    codec = zoo.load(args.model)
    common.say(args, f"Restoring and compressing a photograph with model {codec.name}.")
    report = demo.run(args.out, codec, args.steps, progress=not args.quiet)
    if args.json:
        common.print_json(asdict(report))
    else:
        cells = [
            [row.picture, f"{row.psnr:.2f}", f"{row.ssim:.3f}", f"{rate:.3f}" if (rate := row.bits_per_pixel) else ""]
            for row in report.rows
        ]
        print(table(["picture", "PSNR dB", "SSIM", "bpp"], cells))
    common.say(args, f"The restored pixels' 90 % intervals hold the truth in {100 * report.coverage:.0f} % of cases.")
    common.say(args, f"Took {report.seconds:.0f} s. Look at {report.sheet}.")
    return 0
