"""``bayesq train``: a codec or a denoiser from folders of photographs."""

import argparse
from dataclasses import fields
from pathlib import Path

from bayesq.architecture import ARCHITECTURES
from bayesq.cli import common

HELP = {
    "steps": "length of the run",
    "batch": "crops per step and process",
    "crop": "side of the square crops, pixels",
    "rate": "peak learning rate",
    "seed": "of initialisation, crops, qualities and noise",
    "every": "steps between validations and checkpoints",
}


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "train",
        help="train a codec, or a denoiser",
        description="Trains a variable-rate codec, or a denoiser, on photographs; run it under torchrun for several "
        "processes.",
    )
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="DIR", help="folders of photographs")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the run")
    parser.add_argument("--val", type=Path, metavar="DIR", help="folder of held-out pictures")
    parser.add_argument(
        "--architecture",
        choices=[*ARCHITECTURES, "denoiser", "cap", "flow"],
        default="base",
        help="what to train: a codec of one of two sizes, the denoiser, or what is laid over it: error bars by a cap, "
        "realistic pictures by a flow (default: %(default)s)",
    )
    origin = parser.add_mutually_exclusive_group()
    origin.add_argument(
        "--weights", type=Path, metavar="FILE", help="start from trained weights, such as the zoo's, instead of nothing"
    )
    origin.add_argument("--resume", action="store_true", help="continue the run in --out")
    parser.add_argument("--threads", type=common.positive, metavar="N", help="processor threads; 1 beside other work")
    for name, text in HELP.items():
        parser.add_argument(f"--{name}", type=float if name == "rate" else int, help=text)
    common.add_talk_options(parser)
    parser.set_defaults(run=run, keeps_freed=True)


def run(args: argparse.Namespace) -> int:
    common.check_folder(args.out)

    import torch

    from bayesq.training.loop import Settings, train
    from bayesq.training.subjects import SUBJECTS

    if args.threads:
        torch.set_num_threads(args.threads)
    chosen = {f.name: getattr(args, f.name) for f in fields(Settings) if getattr(args, f.name, None) is not None}
    subject = SUBJECTS[args.architecture]
    weights = train(args.data, args.out, Settings(**chosen), subject, args.val, args.resume, args.quiet, args.weights)
    common.say(args, f"wrote {weights}")
    return 0
