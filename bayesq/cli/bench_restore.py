"""``bayesq bench restore``: restoration and its uncertainty, beside classical rivals."""

import argparse

from bayesq.cli import common

TASKS = ["denoise", "deblur", "superres", "inpaint"]


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "restore",
        help="restoration and its uncertainty",
        description="Degrades every picture of a folder and restores it: noise of 25/255; a Gaussian blur of 1.6 "
        "pixels, a bicubic reduction by 2, or half of the pixels lost, with noise of 2.55/255. Prints Markdown tables.",
    )
    parser.add_argument("folder", metavar="DIR", help="a folder of pictures")
    parser.add_argument(
        "--suite",
        choices=["classic", "vble"],
        default="classic",
        help="vble: the problems of VBLE's table, without the 5 pixels at the border (default: %(default)s)",
    )
    parser.add_argument("--motion", metavar="KERNEL", help="of the motion blur of vble (default: the one shipped)")
    parser.add_argument("--weights", metavar="DIR", help="of pretrained denoisers as rivals too (ffdnet_color.npz …)")
    parser.add_argument(
        "--tasks", type=_tasks, default=TASKS, metavar="NAME,...", help=f"of {', '.join(TASKS)} (default: all)"
    )
    parser.add_argument("--sigma", metavar="LEVEL", help="noise of every task, such as 0.05 or 25/255")
    parser.add_argument("--limit", type=common.positive, metavar="N", help="only the first N pictures")
    parser.add_argument("--crop", type=common.positive, metavar="N", help="only the middle N pixels a side")
    parser.add_argument("-m", "--model", default="base", help="model to restore with (default: %(default)s)")
    parser.add_argument("-q", "--quality", type=common.quality, help="quality of the prior (default: from the noise)")
    parser.add_argument("--steps", type=common.positive, metavar="N", help="of VBLE and MAP-z (default: 50)")
    parser.add_argument("--samples", type=common.several, metavar="N", default=32, help="default: %(default)s")
    parser.add_argument(
        "--methods",
        type=lambda text: text.split(","),
        default=[""],
        metavar="WORD,...",
        help="only methods whose names hold one of these: start, daps, vble, map-z, tv, wiener … (default: all)",
    )
    parser.add_argument(
        "--choices",
        action="store_true",
        help="restore by VBLE with quality and weight chosen by held-out measurements, and with tuned quality, too",
    )
    parser.add_argument("--rivals", action="store_true", help="restore by scikit-image and by total variation too")
    parser.add_argument(
        "--tune",
        metavar="DIR",
        help="choose the rivals' parameters, knowing the truth, on the first three pictures of this folder "
        "(default: of the measured ones)",
    )
    parser.add_argument("--seed", type=common.seed, default=0, metavar="N", help="default: %(default)s")
    parser.add_argument("-o", "--output", metavar="JSON", help="write every picture's figures")
    common.add_talk_options(parser)
    parser.set_defaults(run=run, keeps_freed=True)


def run(args: argparse.Namespace) -> int:
    common.check_files(args.output)

    import json
    import shlex
    import sys
    from dataclasses import asdict, replace
    from pathlib import Path

    from bayesq import bench, operators, zoo
    from bayesq.bench import restore, rivals
    from bayesq.errors import BayesqError
    from bayesq.resources import data_dir

    paths = bench.pictures(args.folder, args.limit)
    tuning = bench.pictures(args.tune, 3) if args.tune else paths[:3]
    vble = args.suite == "vble"
    suite = restore.vble_suite(args.motion or str(data_dir() / "motion.png")) if vble else restore.SUITE
    tasks = [task for task in suite if task.name in args.tasks]
    if args.sigma:
        tasks = [replace(task, sigma=operators.parse_noise(args.sigma)) for task in tasks]
    codec = zoo.load(args.model)
    options = {"seed": args.seed, "quality": args.quality, "steps": args.steps, "samples": args.samples}
    options |= {"words": args.methods, "choices": args.choices}
    options["border"] = 5 if vble else 0
    pictures, trials = ([restore.read(path, args.crop) for path in group] for group in (paths, tuning))
    opponents = rivals.available() if args.rivals else []
    if args.weights:
        opponents = opponents + rivals.pretrained(Path(args.weights))
    names = [*restore.OURS, *([restore.CHOSEN, restore.TUNED] if args.choices else [])]
    names += [rival.name for rival in opponents]
    unknown = [word for word in args.methods if not any(word.lower() in name.lower() for name in names)]
    if unknown:
        raise BayesqError(f"no method's name holds {', '.join(unknown)}; there are {'; '.join(names)}")
    common.say(args, f"{codec.name}, means over {len(paths)} picture{'s' if len(paths) > 1 else ''} of {args.folder}")
    scores = []
    for task in tasks:
        found = restore.measure(
            codec, task, pictures, rivals=opponents, tuning=trials, progress=not args.quiet, **options
        )
        print(restore.report(task, found) + "\n", flush=True)
        scores += found
    print(restore.report_uncertainty(scores))
    if args.output:
        content = {
            "model": codec.name,
            "model_id": codec.model_id.hex(),
            "command": shlex.join(["bayesq", *sys.argv[1:]]),
            **options,
            "pictures": [path.name for path in paths],
            "suite": args.suite,
            "sigmas": {task.label if vble else task.name: task.sigma for task in tasks},
            "scores": [asdict(score) for score in scores],
        }
        common.write(args.output, (json.dumps(content, indent=1) + "\n").encode())
    return 0


def _tasks(text: str) -> list[str]:
    names = [word for word in text.split(",") if word]
    unknown = [name for name in names if name not in TASKS]
    if unknown or not names:
        raise argparse.ArgumentTypeError(f"no task called {', '.join(unknown)}; there are {', '.join(TASKS)}")
    return names
