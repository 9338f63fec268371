"""``bayesq models``: the models at hand."""

import argparse
from dataclasses import asdict

from bayesq.cli import common


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("models", help="list the models at hand", description="Lists the models at hand.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    common.add_talk_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from bayesq import zoo

    entries = zoo.manifest()
    if args.json:
        common.print_json([asdict(entry) for entry in entries])
        return 0
    if not entries:
        common.say(args, "no models at hand")
    for entry in entries:
        print(f"{entry.name}  {entry.id}  {entry.description}")
    return 0
