"""``bayesq bench NAME``: the benchmarks, one module each (``bench_NAME``)."""

import argparse
from importlib import import_module

BENCHMARKS = ["codec", "quantize", "restore", "speed", "vble", "exactness", "fuzz"]


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("bench", help="measure on a folder of pictures", description="Runs a benchmark.")
    benchmarks = parser.add_subparsers(metavar="BENCHMARK", required=True)
    for name in BENCHMARKS:
        import_module(f"bayesq.cli.bench_{name}").add_parser(benchmarks)
