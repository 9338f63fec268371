"""``bayesq degrade``: what ``bayesq restore`` repairs, made from a good picture."""

import argparse
from pathlib import Path

from bayesq.cli import common, tasks
from bayesq.errors import BayesqError


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "degrade", help="spoil a picture, for tests", description="Degrades a picture as `bayesq restore` takes it."
    )
    for task in tasks.add_task_parsers(parser, run, [name for name in tasks.SUMMARIES if name != "auto"]):
        jpeg = task.get_default("task") == "jpeg"
        usual = "0" if jpeg else "10/255, or 0 beside --photons"
        task.add_argument("--noise", metavar="STD", help=f"as 0.05 or 25/255 of white (default: {usual})")
        if not jpeg:
            task.add_argument("--photons", type=float, metavar="N", help="that a white pixel sends")
        if jpeg:
            task.add_argument("-q", "--quality", type=common.positive, default=20, help="default: %(default)s")
            task.add_argument("--subsampling", choices=["4:4:4", "4:2:2", "4:2:0"], default="4:2:0")
        task.add_argument(
            "--seed", type=common.seed, default=0, help="of the noise and the mask (default: %(default)s)"
        )
        if task.get_default("task") == "inpaint":
            task.add_argument("--save-mask", metavar="FILE", help="where to (default for random:P: OUT as .mask.png)")
        common.add_output_options(task)
        common.add_talk_options(task)


def run(args: argparse.Namespace) -> int:
    mask_path = _mask_path(args) if args.task == "inpaint" else None
    common.check_outputs(args, args.output, *([mask_path] if mask_path else []))

    from io import BytesIO

    import torch

    from bayesq import operators
    from bayesq.io import format_of, is_grey, like, read_image, to_image, to_tensor, write_image

    if args.task == "jpeg" and args.output != common.PIPE and format_of(args.output) != "JPEG":
        raise BayesqError(f"{args.output}: a JPEG file is written, which ends in .jpg")
    image = read_image(args.input)
    x = to_tensor(image)
    size = (x.shape[2], x.shape[3])
    generator = torch.Generator().manual_seed(args.seed)
    if args.task == "inpaint" and args.mask.startswith("random:"):
        args.mask = operators.random_mask(args.mask, size, generator)
    photons = None if args.task == "jpeg" else args.photons
    noise = args.noise or ("10/255" if photons is None and args.task != "jpeg" else "0")
    physics = operators.TASKS["denoise" if args.task == "jpeg" else args.task](*tasks.setting(args), size, noise)
    if photons is not None:
        physics.noise_model = operators.photons(photons, noise)
    y = operators.degrade(x, physics, generator)
    if args.task == "demosaic":
        y = y.sum(1, keepdim=True)
    if args.task == "jpeg":
        buffer = BytesIO()
        picture = to_image(y[:, :1] if is_grey(image) else y)
        picture.save(buffer, "JPEG", quality=args.quality, subsampling=args.subsampling)
        common.write(args.output, buffer.getvalue())
    else:
        write_image(like(y[:, :1] if is_grey(image) else y, image), args.output)
    sigma = operators.stated_noise(physics)
    summary = {"task": args.task, "input": args.input, "output": args.output, "noise": sigma, "seed": args.seed}
    if mask_path:
        write_image(to_image(physics.mask), mask_path)
        summary |= {"mask": mask_path, "observed": physics.mask.mean().item()}
    if args.json:
        common.print_json(summary)
    common.say(args, f"Wrote {y.shape[3]} x {y.shape[2]}, noise {255 * sigma:.2f}/255.")
    if mask_path:
        common.say(args, f"The mask of observed pixels is {mask_path}.")
    return 0


def _mask_path(args: argparse.Namespace) -> str | None:
    if args.save_mask or not args.mask.startswith("random:"):
        return args.save_mask
    if args.output == common.PIPE:
        raise BayesqError("say by --save-mask where the mask goes, without which the picture cannot be restored")
    return str(Path(args.output).with_suffix(".mask.png"))
