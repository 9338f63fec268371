"""``bayesq info``: what a ``.bq`` file says of itself. Loads no model and no torch."""

import argparse
from dataclasses import asdict

from bayesq.cli import common


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "info", help="describe a .bq file", description="Describes a .bq file. Exits with 1 if it is damaged."
    )
    parser.add_argument("input", metavar="IN.bq", help="- for standard input")
    parser.add_argument("--json", action="store_true", help="print JSON")
    common.add_talk_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from bayesq import files, zoo

    with common.about(args.input):
        it = files.describe(common.read(args.input))
    names = [entry.name for entry in zoo.manifest() if entry.id == it.model_id]
    if args.json:
        common.print_json({**asdict(it), "model": names[0] if names else None})
    else:
        model = f"model {names[0]} ({it.model_id})" if names else f"model {it.model_id} (not installed)"
        rate = f"{it.bytes:,} bytes ({it.bits_per_pixel:.3f} bpp)"
        state = "checksums ok" if it.intact else "DAMAGED"
        print(
            f"bayesq v{it.format_version}, {it.width} x {it.height} {it.mode}, quality {it.quality:.0f}, {model}, "
            f"{rate}, {state}"
        )
        for tag, size in it.chunks.items():
            print(f"  {tag.strip('_')}: {size:,} bytes")
    return 0 if it.intact else 1
