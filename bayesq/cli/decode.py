"""``bayesq decode``: a ``.bq`` file to a picture, and to a map of what the file leaves open."""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bayesq.cli import common, folders
from bayesq.errors import BayesqError

if TYPE_CHECKING:
    from torch import Generator


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "decode",
        help="decompress a picture, or a folder of them",
        description="Decompresses a picture, or all .bq files below a folder to PNG files below OUT. A picture that is "
        "there already is only replaced if OUT names it. With --std it "
        "also draws pictures that the file could stand for, and writes their standard deviation: where, and how much, "
        "the compression may have changed the picture; with --save-samples it writes the pictures themselves.",
    )
    parser.add_argument("input", metavar="IN.bq", help="or a folder, or - for standard input")
    parser.add_argument(
        "output", metavar="OUT", nargs="?", help="in the format of its suffix; default: IN.png; - for a PNG on a pipe"
    )
    parser.add_argument("-m", "--model", help="default: the one that the file names")
    parser.add_argument(
        "--region", type=region, metavar="X,Y,W,H", help="only these pixels, of which the file is read no further"
    )
    parser.add_argument(
        "--salvage",
        action="store_true",
        help="decode what is not damaged, tell what is, and paint it grey, in STD white",
    )
    parser.add_argument("--std", metavar="STD.png", help="write a map of the standard deviation, white: the largest")
    parser.add_argument("--save-samples", metavar="DIR", help="write the draws as pictures")
    parser.add_argument(
        "--samples", type=common.several, default=16, metavar="N", help="number of draws (default: %(default)s)"
    )
    parser.add_argument("--seed", type=common.seed, default=0, help="seed of the draws (default: %(default)s)")
    common.add_runtime_option(parser)
    folders.add_options(parser)
    common.add_output_options(parser)
    common.add_talk_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    common.use_runtime(args)
    if folders.is_folder(args):
        from bayesq.batch import Decode

        if args.std or args.save_samples or args.region or args.salvage:
            raise BayesqError("--std, --save-samples, --region and --salvage are for single files")
        return folders.run(args, Decode(args.model))

    start = time.perf_counter()
    output = args.output or common.beside(args.input, ".png")
    common.check_outputs(args, output, *([args.std] if args.std else []))
    if not args.output and Path(output).exists():
        raise BayesqError(f"{output}: exists; name it as OUT to replace it")
    if args.save_samples:
        common.check_folder(args.save_samples)

    from bayesq import files, zoo
    from bayesq.bitstream import Reader
    from bayesq.decoding import Damage, read_info
    from bayesq.io import check_format
    from bayesq.streams import decode_to

    damaged: list[Damage] = []
    with common.opened(args.input) as data, common.about(args.input):
        reader = Reader(data)
        header, size = reader.head.header, reader.length()
        check_format(output, files.mode_of(reader.head))
        if args.std:
            check_format(args.std, "L")
        codec = zoo.load(args.model or zoo.find(header.model_id))
        common.spare_start(codec, header.width * header.height)
        options = {"region": args.region, "on_damage": damaged.append if args.salvage else None}
        (width, height), mode = decode_to(output, data, codec, **options)
        summary = {"input": args.input, "output": output, "width": width, "height": height, "mode": mode}
        summary |= {"bytes": size, "bits_per_pixel": 8 * size / (header.width * header.height)}
        summary |= {"damaged": [str(it) for it in damaged]} if args.salvage else {}
        for it in damaged:
            print(f"bayesq: lost: {it}", file=sys.stderr)
        common.say(args, f"Decoded {width} x {height}, {mode}.")
        if args.std:
            deviation = files.deviation(data, codec, args.samples, generator(args.seed), **options)
            exif = read_info(reader, options["on_damage"]).get("exif")
            white = common.write_deviation(deviation, args.std, exif)
            summary |= {"std": args.std, "samples": args.samples, "std_white": white}
            common.say(args, f"Standard deviation of {args.samples} draws in {args.std}, white: {white:.4f}.")
        if args.save_samples:
            draws = files.sample(data, codec, args.samples, generator(args.seed), **options)
            common.write_samples(draws, args.save_samples)
            common.say(args, f"{args.samples} draws in {args.save_samples}.")
    if args.json:
        common.print_json({**summary, "seconds": time.perf_counter() - start})
    return 0


def generator(seed: int) -> "Generator":
    """A source of randomness, so that each output is of the same draws."""
    import torch

    return torch.Generator().manual_seed(seed)


def _box(text: str) -> tuple[int, int, int, int]:
    """Left, top, right and bottom."""
    x, y, width, height = (int(part) for part in text.split(","))
    return x, y, x + width, y + height


region = common.argument("X,Y,W,H: left, top, width and height in pixels", _box)
