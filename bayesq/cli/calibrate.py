"""``bayesq calibrate``: how wide a model's error bars must be, measured on pictures and kept beside its weights."""

import argparse
from pathlib import Path

from bayesq.cli import common


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "calibrate",
        help="fit a model's error bars to validation pictures",
        description="Restores crops of known pictures from 27 kinds of measurement, and writes how much wider "
        "the posterior's samples must spread for the 90 % interval to hold 90 %, as calibration.json beside the "
        "weights, where `bayesq restore` finds it; for codecs the same for what lossy files leave open, and how far "
        "the decoder strays, as decoder-error.json, for VBLE-xz. Some minutes; run it again whenever the model or the "
        "defaults change.",
    )
    parser.add_argument(
        "--data",
        required=True,
        nargs="+",
        metavar="DIR",
        help="pictures, none of them tested on: a folder for each kind; bars are made wide enough for every kind",
    )
    parser.add_argument("-m", "--model", default="base", help="a name of `bayesq models`, or a .safetensors file")
    parser.add_argument("--limit", type=common.positive, default=6, metavar="N", help="of each (default: %(default)s)")
    parser.add_argument(
        "--crop",
        type=common.positive,
        default=80,
        metavar="N",
        help="middle pixels a side (default: %(default)s)",
    )
    parser.add_argument("--samples", type=common.several, default=32, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--steps", type=common.positive, metavar="N", help="of the restorations (default: that of `bayesq restore`)"
    )
    parser.add_argument("--motion", metavar="KERNEL", help="of the motion blur (default: the one shipped)")
    parser.add_argument("-o", "--output", metavar="JSON", help="default: calibration.json beside the weights")
    common.add_talk_options(parser)
    parser.set_defaults(run=run, keeps_freed=True)


def run(args: argparse.Namespace) -> int:
    common.check_files(args.output)

    from dataclasses import replace
    from functools import partial

    import torch
    from tqdm import tqdm

    from bayesq import bench, bootstrap, calibration, operators, zoo
    from bayesq.bench.restore import calibration_suite, read
    from bayesq.errors import BayesqError
    from bayesq.fitting import BORDER, Trial, fit, fit_files
    from bayesq.inference import DAPS, VBLE
    from bayesq.inference.xz import FILE as ERRORS
    from bayesq.inference.xz import ErrorTable
    from bayesq.likelihoods import from_physics
    from bayesq.likelihoods.base import NearlyGaussian
    from bayesq.resources import data_dir
    from bayesq.restore import TRIAL_SAMPLES, restore

    kinds = [_some(bench.pictures(folder), args.limit) for folder in args.data]
    crops = [[read(path, args.crop) for path in paths] for paths in kinds]
    sizes = {crop.shape for kind in crops for crop in kind}
    if len(sizes) > 1 or min(sizes.pop()[-2:]) < 2 * BORDER + 16:
        raise BayesqError("calibration takes pictures and crops of one size, of at least 26 pixels a side")
    denoiser = zoo.denoiser(args.model) if zoo.kind(args.model) == "denoiser" else None
    codec = None if denoiser else zoo.load(args.model)
    model = denoiser or codec
    assert model is not None
    algorithm = partial(DAPS, denoiser=denoiser) if denoiser else VBLE
    if args.output:
        path = Path(args.output)
    elif model.folder:
        path = model.folder / calibration.FILE
    else:
        raise BayesqError("say by -o where to write the calibration")
    problems: list[list[Trial]] = []
    suite = calibration_suite(args.motion or str(data_dir() / "motion.png"))
    for task in tqdm(suite, unit="task", disable=True if args.quiet else None):
        problems.append([])
        for x in map(torch.cat, crops):
            generator = torch.Generator().manual_seed(0)
            physics = task.build((x.shape[-2], x.shape[-1]), task.sigma, generator)
            y = operators.degrade(x, physics, generator)
            again = partial(
                restore, physics=physics, codec=codec, algorithm=algorithm, steps=args.steps, calibrated=False
            )
            found, law = again(y, samples=args.samples), from_physics(physics)
            excess = None
            if denoiser:
                assert isinstance(law, NearlyGaussian)
                excess = bootstrap.excess(found, y, law, partial(again, samples=TRIAL_SAMPLES), generator)
            problems[-1].append(Trial(x, found, physics, excess))
    fitted = fit(model.model_id.hex(), problems)
    if codec:
        pictures = [read(path, 4 * args.crop) for paths in kinds for path in paths]
        scales = fit_files(codec, pictures, args.samples, torch.Generator().manual_seed(0))
        fitted = replace(fitted, file_scales=scales)
        ErrorTable.fit(codec, pictures, torch.Generator().manual_seed(0)).save(path.with_name(ERRORS))
    fitted.save(path)
    for task, trials, scale, power in zip(suite, problems, fitted.scales, fitted.powers, strict=True):
        shares = ", ".join(f"{trial.coverage():.1%} → {trial.coverage(fitted):.1%}" for trial in trials)
        hint = "the errors' excess in a bootstrap" if denoiser else f"fine detail over {calibration.TYPICAL}"
        rule = f"deviations times {scale:.2f}, and {hint} to the power {power:g}"
        common.say(args, f"{task.label}: {shares} within 90 %, {rule}")
    if codec:
        common.say(args, f"Files: deviations times {', '.join(f'{scale:.2f}' for scale in fitted.file_scales)}")
        common.say(args, f"Wrote {path.with_name(ERRORS)}: the decoder's errors.")
    common.say(args, f"Wrote {path}: {sum(map(len, crops))} pictures.")
    return 0


def _some(paths: list[Path], limit: int) -> list[Path]:
    """At most so many of the paths, evenly spread."""
    return paths[:: max(1, len(paths) // limit)][:limit]
