"""``bayesq restore``: a degraded picture to its posterior mean, and a map of how uncertain that is."""

import argparse
import math
from typing import TYPE_CHECKING, Any, NamedTuple

from bayesq.cli import common, folders, overlays, tasks
from bayesq.errors import BayesqError

if TYPE_CHECKING:
    from PIL.Image import Image

    from bayesq.large import LargeRestoration
    from bayesq.restore import Restoration
    from bayesq.tasks import Measurement


AUTO = "auto"


class Named(NamedTuple):
    """An algorithm by the name that people know it by.

    Attributes:
        name: In ``bayesq.inference``.
        spreads: Whether its samples differ.
    """

    name: str
    spreads: bool = True


ALGORITHMS = {
    "daps": Named("DAPS"),
    "vble": Named("VBLE"),
    "vble-xz": Named("VBLExz"),
    "map": Named("MAPz", spreads=False),
    "ula": Named("ULA"),
    "mala": Named("MALA"),
    "red-diff": Named("REDDiff", spreads=False),
    "scoredvi": Named("ScoreDVI"),
}


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "restore",
        help="restore a degraded picture",
        description="Restores a degraded picture, with its uncertainty, or a folder of them. Grey and alpha are kept. "
        "Of a folder, all pictures below it are restored to PNG files at the same places below OUT; those that are "
        "there already are left alone, whatever options they were made with. Of a picture of more than a megapixel, "
        "--scheduler is handed the pieces.",
    )
    for task in tasks.add_task_parsers(parser, run, tasks.SUMMARIES):
        add_inference_options(task)
        task.add_argument(
            "--point",
            action="store_const",
            dest="algorithm",
            const="map",
            help="the most probable latents alone, without uncertainty: --algorithm map",
        )
        task.add_argument("--std", metavar="STD.png", help="write a map of the standard deviation, white: the largest")
        overlays.add_options(task)
        task.add_argument("--save-samples", metavar="DIR", help="write the draws as pictures")
        folders.add_options(task)
        common.add_output_options(task)
        common.add_talk_options(task)


def add_inference_options(parser: argparse.ArgumentParser) -> None:
    """Adds what ``infer`` obeys."""
    parser.add_argument(
        "--noise",
        default="auto",
        metavar="STD",
        help="standard deviation, as 0.05 or 25/255 of white; auto: measured; infer: found together with the "
        "picture (default: %(default)s)",
    )
    parser.add_argument(
        "--photons",
        type=float,
        metavar="N",
        help="that a white pixel sends: noise that grows with brightness; --noise is then the sensor's, auto: none",
    )
    parser.add_argument(
        "-q",
        "--quality",
        type=quality_or_auto,
        metavar="0..100",
        help="of the prior; auto: the one, and the weight, that best predict held-out measurements, which takes seven "
        "times as long; default: by the noise",
    )
    parser.add_argument(
        "--steps",
        type=common.positive,
        metavar="N",
        help="of the search (default: 8 or 16 for daps, else 50); on each grid but the first, 2/5 of them",
    )
    parser.add_argument(
        "--samples", type=common.several, default=32, metavar="N", help="posterior draws (default: %(default)s)"
    )
    parser.add_argument(
        "--algorithm",
        choices=[AUTO, *ALGORITHMS],
        default=AUTO,
        help="of the inference; auto: daps if the noise is nearly Gaussian, and no quality and no codec is asked "
        "for; else vble (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=common.seed, default=0, help="of the inference and the draws (default: %(default)s)"
    )
    parser.add_argument(
        "-m",
        "--model",
        help="the prior: a name of `bayesq models`, or a .safetensors file (default: denoiser for daps, else base)",
    )


def take(args: argparse.Namespace) -> "tuple[Image, Measurement]":
    """Reads the input, and finds out what is the matter with it."""
    from bayesq.io import parse_image
    from bayesq.tasks import COLOURED, take

    data = common.read(args.input)
    image = parse_image(data, "standard input" if args.input == common.PIPE else args.input)
    with common.about(args.input):
        measurement = take(args.task, image, data, tasks.setting(args), args.noise, args.photons)
    if args.task == "auto":
        common.say(args, f"Found {measurement.summary}.")
    if measurement.task in COLOURED:
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
        image.info.pop("icc_profile", None)  # one for grey
    return image, measurement


def infer(args: argparse.Namespace, measurement: "Measurement") -> "tuple[Restoration, dict[str, Any]]":
    """Restores what ``take`` took, to one channel if it is grey. Also returns what there is to tell programs."""
    from bayesq.likelihoods import UnknownGaussian
    from bayesq.restore import restore

    options, summary = choose_options(args, measurement)
    restoration = restore(measurement.y, measurement.physics, **options)
    likelihood = measurement.likelihood
    if isinstance(likelihood, UnknownGaussian):
        summary["noise"] = float(likelihood.sigma(measurement.y, restoration.samples, options["generator"]).mean())
    height, width = restoration.mean.shape[-2:]
    elbo = restoration.trace[-1].elbo
    summary |= {
        "width": width,
        "height": height,
        "quality": restoration.quality,
        "steps": len(restoration.trace),
        "elbo": None if math.isnan(elbo) else elbo,
        "seconds": restoration.seconds,
    }
    common.say(args, f"Restored {width} x {height} in {len(restoration.trace)} steps, {restoration.seconds:.1f} s.")
    _tell(args, summary)
    return restoration.grey() if measurement.grey else restoration, summary


def infer_large(args: argparse.Namespace, measurement: "Measurement") -> "tuple[LargeRestoration, dict[str, Any]]":
    """The same piece by piece, for pictures of which samples would not fit into memory."""
    from bayesq.cluster import workers
    from bayesq.large import restore_large

    if args.quality == AUTO:
        raise BayesqError("-q auto is for pictures of up to a megapixel: let it find a quality for a part")
    if args.save_samples:
        raise BayesqError("samples are kept of pictures of up to a megapixel: restore a part for them")
    options, summary = choose_options(args, measurement)
    with workers(args.scheduler) as by:
        restoration = restore_large(measurement.y, measurement.physics, grey=measurement.grey, by=by, **options)
    height, width = restoration.mean.shape[-2:]
    summary |= {"width": width, "height": height, "pieces": restoration.pieces, "seconds": restoration.seconds}
    common.say(args, f"Restored {width} x {height}, pieces: {restoration.pieces}, {restoration.seconds:.1f} s.")
    _tell(args, summary)
    return restoration, summary


def infer_any(
    args: argparse.Namespace, measurement: "Measurement"
) -> "tuple[Restoration | LargeRestoration, dict[str, Any]]":
    """Either, as the picture's size has it."""
    from bayesq.large import LARGE
    from bayesq.operators.parts import is_local, size_of

    large = is_local(measurement.physics) and math.prod(size_of(measurement.y, measurement.physics)) > LARGE
    return (infer_large if large else infer)(args, measurement)


def choose_options(args: argparse.Namespace, measurement: "Measurement") -> tuple[dict[str, Any], dict[str, Any]]:
    """Keywords of ``bayesq.restore``, and what of them there is to tell programs."""
    from functools import partial

    import torch

    from bayesq import inference, zoo
    from bayesq.choice import choose
    from bayesq.restore import PRIOR_WEIGHT, default_algorithm

    name = args.algorithm
    if name == AUTO:
        free = args.quality is None and (args.model is None or zoo.kind(args.model) == "denoiser")
        name = default_algorithm(measurement.likelihood).__name__.lower() if free else "vble"
    if name == "daps" and args.quality is not None:
        raise BayesqError("the prior of daps has no quality: leave out --quality, or take another --algorithm")
    kind = getattr(inference, ALGORITHMS[name].name)
    if name == "daps":
        codec, denoiser = None, zoo.denoiser(args.model or "denoiser")
        kind, model = partial(kind, denoiser=denoiser), denoiser.name
    else:
        codec = zoo.shared(args.model or "base")
        model = codec.name
    quality, weight = args.quality, PRIOR_WEIGHT
    if quality == AUTO:
        likelihood, steps = measurement.likelihood, args.steps
        choice = choose(measurement.y, measurement.physics, codec=codec, likelihood=likelihood, steps=steps)
        quality, weight = choice.quality, choice.prior_weight
        common.say(args, f"Chose a prior of quality {quality:.0f} and weight {weight:g} in {choice.seconds:.1f} s.")
    options = {
        "codec": codec,
        "likelihood": measurement.likelihood,
        "quality": quality,
        "prior_weight": weight,
        "algorithm": kind,
        "steps": args.steps,
        "samples": args.samples,
        "generator": torch.Generator().manual_seed(args.seed),
        "progress": not args.quiet,
    }
    summary = {
        "task": measurement.task,
        "input": args.input,
        "output": args.output,
        "model": model,
        "noise": measurement.sigma,
        "quality": quality,
        "prior_weight": weight,
        "algorithm": name,
    }
    return options, summary


def _tell(args: argparse.Namespace, summary: dict[str, Any]) -> None:
    prior = f"model {summary['model']}"
    if summary["quality"] is not None:
        prior = f"prior of quality {summary['quality']:.0f}, {prior}"
    common.say(args, f"Noise {255 * summary['noise']:.2f}/255, {prior}.")


def quality_or_auto(text: str) -> float | str:
    """Argument type: a quality, or that it is to be chosen."""
    return AUTO if text == AUTO else common.quality(text)


def run(args: argparse.Namespace) -> int:
    drawn = args.save_samples or (args.std and not args.error_bars)
    if args.algorithm in ALGORITHMS and not ALGORITHMS[args.algorithm].spreads and drawn:
        raise BayesqError("a point estimate has no spread: leave out --std and --save-samples, or take another")

    if folders.is_folder(args):
        if args.std or args.realistic or args.error_bars or args.save_samples:
            raise BayesqError("--std, --realistic, --error-bars and --save-samples are for single pictures")
        from bayesq.cli.restore_files import RestoreFiles

        return folders.run(args, RestoreFiles(args))

    common.check_outputs(args, args.output, *filter(None, [args.std, args.realistic]))
    if args.save_samples:
        common.check_folder(args.save_samples)

    from bayesq.io import check_format, like, normalized, write_image
    from bayesq.restore import Restoration

    image, measurement = take(args)
    mode = normalized(image).mode
    for path, its in ((args.output, mode), (args.realistic, mode), (args.std, "L")):
        if path:
            check_format(path, its)
    cap = overlays.cap_of(args, measurement.task)
    restoration, summary = infer_any(args, measurement)
    summary["mode"] = image.mode
    write_image(like(restoration.mean, image), args.output)
    if args.std:
        std = overlays.deviation(cap, restoration.mean, summary["noise"]) if cap else restoration.std
        deviation = std.square().mean(1, keepdim=True).sqrt()
        white = common.write_deviation(deviation, args.std, image.info.get("exif"))
        source = args.error_bars or f"{args.samples} draws"
        summary |= {"std": args.std, "samples": args.samples, "std_white": white, "error_bars": args.error_bars}
        common.say(args, f"Standard deviation of {source} in {args.std}, white: {white:.4f}.")
    if args.realistic:
        write_image(like(overlays.realistic(restoration.mean, args.seed), image), args.realistic)
        summary["realistic"] = args.realistic
    if args.save_samples and isinstance(restoration, Restoration):  # large ones keep none, and have said so
        common.write_samples((like(draw, image) for draw in restoration.samples), args.save_samples)
        common.say(args, f"{args.samples} draws in {args.save_samples}.")
    if args.json:
        common.print_json(summary)
    return 0
