"""``bayesq calibrate``: how wide a model's error bars must be, measured on pictures and kept beside its weights."""

import argparse

from bayesq.cli import common


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "calibrate",
        help="fit a model's error bars to validation pictures",
        description="Restores crops of known pictures from sixteen kinds of measurement, and writes how much wider the "
        "posterior's samples must spread for the 90 % interval to hold 90 %, as calibration.json beside the weights, "
        "where `bayesq restore` finds it; the same for what lossy files leave open. Some minutes; run it again "
        "whenever the model or the defaults change.",
    )
    parser.add_argument("--data", required=True, metavar="DIR", help="a folder of pictures, none of them tested on")
    parser.add_argument("-m", "--model", default="base", help="a name of `bayesq models`, or a .safetensors file")
    parser.add_argument("--limit", type=common.positive, default=6, metavar="N", help="pictures (default: %(default)s)")
    parser.add_argument(
        "--crop",
        type=common.positive,
        default=80,
        metavar="N",
        help="middle pixels a side (default: %(default)s)",
    )
    parser.add_argument("--samples", type=common.several, default=16, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--steps", type=common.positive, default=50, metavar="N", help="of the restorations (default: %(default)s)"
    )
    parser.add_argument("--motion", metavar="KERNEL", help="of the motion blur (default: the one shipped)")
    parser.add_argument("-o", "--output", metavar="JSON", help="default: calibration.json beside the weights")
    common.add_talk_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from dataclasses import replace
    from pathlib import Path

    import torch
    from tqdm import tqdm

    from bayesq import bench, calibration, operators, zoo
    from bayesq.bench.restore import calibration_suite, read
    from bayesq.calibration import Trial, fit, fit_files
    from bayesq.errors import BayesqError
    from bayesq.resources import data_dir
    from bayesq.restore import restore

    paths = bench.pictures(args.data)
    paths = paths[:: max(1, len(paths) // args.limit)][: args.limit]
    crops = [read(path, args.crop) for path in paths]
    if any(crop.shape != crops[0].shape for crop in crops) or min(crops[0].shape[-2:]) < 2 * calibration.BORDER + 16:
        raise BayesqError("calibration takes pictures and crops of one size, of at least 26 pixels a side")
    x = torch.cat(crops)
    codec = zoo.load(args.model)
    if args.output:
        path = Path(args.output)
    elif codec.folder:
        path = codec.folder / calibration.FILE
    else:
        raise BayesqError("say by -o where to write the calibration")
    trials = []
    suite = calibration_suite(args.motion or str(data_dir() / "motion.png"))
    for task in tqdm(suite, unit="task", disable=True if args.quiet else None):
        generator = torch.Generator().manual_seed(0)
        physics = task.build((x.shape[-2], x.shape[-1]), task.sigma, generator)
        y = operators.degrade(x, physics, generator)
        restored = restore(y, physics, codec=codec, steps=args.steps, samples=args.samples, calibrated=False)
        trials.append(Trial(x, restored, physics))
    scales = fit_files(
        codec, [read(path, 4 * args.crop) for path in paths], args.samples, torch.Generator().manual_seed(0)
    )
    found = replace(fit(codec.model_id.hex(), trials), file_scales=scales)
    found.save(path)
    for task, trial, scale in zip(suite, trials, found.scales, strict=True):
        before, after = trial.coverage(), trial.coverage(found)
        common.say(args, f"{task.label}: {before:.1%} → {after:.1%} within 90 %, deviations times {scale:.2f}")
    common.say(args, f"Files: deviations times {', '.join(f'{scale:.2f}' for scale in scales)}")
    common.say(args, f"Wrote {path}: power {found.power:g} of the local activity, {len(paths)} pictures.")
    return 0
