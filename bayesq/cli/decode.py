"""``bayesq decode``: a ``.bq`` file to a picture, and to a map of what the file leaves open."""

import argparse

from bayesq.cli import common


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "decode",
        help="decompress a picture",
        description="Decompresses a picture. With --std it also draws pictures that the file could stand for, and "
        "writes their standard deviation: where, and how much, the compression may have changed the picture.",
    )
    parser.add_argument("input", metavar="IN.bq", help="- for standard input")
    parser.add_argument(
        "output", metavar="OUT", nargs="?", help="in the format of its suffix; default: IN.png; - for a PNG on a pipe"
    )
    parser.add_argument("-m", "--model", help="default: the one that the file names")
    parser.add_argument("--std", metavar="STD.png", help="write a map of the standard deviation, white: the largest")
    parser.add_argument(
        "--samples", type=common.several, default=16, metavar="N", help="draws for --std (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws (default: %(default)s)")
    common.add_output_options(parser)
    common.add_talk_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    output = args.output or common.beside(args.input, ".png")
    common.check_outputs(args, output, *([args.std] if args.std else []))

    from bayesq import files, zoo
    from bayesq.io import write_image

    data = common.read(args.input)
    with common.about(args.input):
        codec = zoo.load(args.model or zoo.find(bytes.fromhex(files.describe(data).model_id)))
        image = files.decode(data, codec)
    write_image(image, output)
    summary = {"input": args.input, "output": output, "width": image.width, "height": image.height, "mode": image.mode}
    common.say(args, f"Decoded {image.width} x {image.height}, {image.mode}.")
    if args.std:
        import torch

        deviation = files.deviation(data, codec, args.samples, torch.Generator().manual_seed(args.seed))
        white = common.write_deviation(deviation, args.std)
        summary |= {"std": args.std, "samples": args.samples, "std_white": white}
        common.say(args, f"Standard deviation of {args.samples} draws in {args.std}, white: {white:.4f}.")
    if args.json:
        common.print_json(summary)
    return 0
