"""``bayesq bench fuzz``: damaged and hostile files."""

import argparse

from bayesq.cli import common


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "fuzz",
        help="decode damaged and hostile files",
        description="Decodes files with flipped bits, cut, spliced, with hostile headers and repaired checksums, most "
        "of them of a tiny built-in codec. Exits with 1 if one is neither decoded nor refused as damaged, takes too "
        "long, or allocates too much.",
    )
    parser.add_argument("-n", "--count", type=common.positive, default=100_000, help="files (default: %(default)s)")
    parser.add_argument("--seed", type=common.seed, default=0, help="of the mutations (default: %(default)s)")
    parser.add_argument("-m", "--model", default="base", help="the codec of every fiftieth file (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--keep", metavar="DIR", help="write the files that failed there")
    common.add_talk_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.keep:
        common.check_folder(args.keep)

    from dataclasses import asdict
    from functools import partial
    from pathlib import Path

    from tqdm import tqdm

    from bayesq import bench, zoo
    from bayesq.bench import fuzz

    codecs = [(fuzz.tiny_codec(), 0.98), (zoo.load(args.model), 0.02)]
    progress = partial(tqdm, unit="file", disable=True if args.quiet else None)
    report = fuzz.run(codecs, args.count, args.seed, progress)
    for failure in report.failures if args.keep else ():
        Path(args.keep).mkdir(parents=True, exist_ok=True)
        Path(args.keep, f"{failure.number}.bq").write_bytes(failure.data)
    if args.json:
        failures = [{"number": it.number, "mutation": it.mutation, "reason": it.reason} for it in report.failures]
        common.print_json(asdict(report) | {"failures": failures})
        return 1 if report.failures else 0
    mutations = [[name, f"{tried:,}", f"{decoded:,}"] for name, (tried, decoded) in report.by_mutation.items()]
    print(bench.table(["mutation", "files", "decoded"], mutations))
    print()
    print(bench.table(["refused because", "files"], [[kind, f"{n:,}"] for kind, n in report.refusals.items()]))
    print()
    print(
        f"{report.files:,} files in {report.seconds:.0f} s: {report.decoded:,} decoded, "
        f"{sum(report.refusals.values()):,} refused, {len(report.failures):,} failed; the slowest took "
        f"{1000 * report.slowest:.0f} ms; memory grew by {report.memory / 2**20:.0f} MiB at most."
    )
    for failure in report.failures[:20]:
        print(f"FAILED: file {failure.number} ({failure.mutation}): {failure.reason}")
    return 1 if report.failures else 0
