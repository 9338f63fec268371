"""What ``encode``, ``decode`` and ``restore`` share where IN is a folder."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from bayesq.cli import common
from bayesq.errors import BayesqError

if TYPE_CHECKING:
    from bayesq.batch import Job


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds ``--jobs`` and ``--scheduler``."""
    workers = parser.add_argument_group("folders").add_mutually_exclusive_group()
    workers.add_argument(
        "-j",
        "--jobs",
        type=common.positive,
        default=1,
        metavar="N",
        help="processes, of one thread each (default: 1, of all threads)",
    )
    workers.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="of a Dask cluster that sees the same folders, such as tcp://host:8786; local: one on this machine",
    )


def is_folder(args: argparse.Namespace) -> bool:
    """Whether IN is a folder."""
    return args.input != common.PIPE and Path(args.input).is_dir()


def run(args: argparse.Namespace, job: "Job") -> int:
    """Does the job on every file below IN. Returns 1 if any failed."""
    import sys
    import time

    from tqdm import tqdm

    from bayesq import batch

    if not args.output or args.output == common.PIPE:
        raise BayesqError(f"{args.input}: a folder, which needs another to write to")
    if args.no_overwrite:
        raise BayesqError("--no-overwrite is for single files; in folders, what is done is left alone")
    common.check_folder(args.output)
    start = time.perf_counter()
    pairs = batch.plan(job, args.input, args.output)
    outcomes = batch.run(job, pairs, args.jobs, args.scheduler)
    done, failed = [], []
    with tqdm(total=len(pairs), unit="file", disable=True if args.quiet else None) as bar:
        for outcome in outcomes:
            bar.update()
            if outcome.error is None:
                done.append(outcome)
            else:
                failed.append(outcome)
                bar.write(f"bayesq: error: {outcome.source}: {outcome.error}", file=sys.stderr)
    summary = {
        "input": args.input,
        "output": args.output,
        "files": len(pairs),
        "skipped": sum(outcome.skipped for outcome in done),
        "failed": [{"input": str(outcome.source), "error": outcome.error} for outcome in failed],
        "bytes": sum(outcome.bytes for outcome in done),
        "seconds": time.perf_counter() - start,
    }
    if args.json:
        common.print_json(summary)
    common.say(
        args,
        f"{len(done) - summary['skipped']} files written, {summary['skipped']} there already, {len(failed)} failed; "
        f"{summary['bytes']:,} bytes in {args.output}.",
    )
    return 1 if failed else 0
