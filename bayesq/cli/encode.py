"""``bayesq encode``: a picture to a ``.bq`` file."""

import argparse
import math
import time
from dataclasses import asdict

from bayesq.cli import common, folders
from bayesq.errors import BayesqError


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "encode",
        help="compress a picture, or a folder of them",
        description="Compresses a picture of any format that Pillow reads, of 8 bits a sample: deeper ones are "
        "refused; the first frame or page if there are several. Grey and alpha are kept. Of a folder, all pictures "
        "below it are compressed to the same places below OUT, unless they are there already.",
    )
    parser.add_argument("input", metavar="IN", help="a picture or a folder, - for standard input")
    parser.add_argument("output", metavar="OUT.bq", nargs="?", help="default: IN with the suffix .bq; - for a pipe")
    aim = parser.add_mutually_exclusive_group()
    aim.add_argument("-q", "--quality", type=common.quality, default=50, metavar="0..100", help="default: %(default)s")
    aim.add_argument("--bpp", type=common.above_zero, help="instead: bits per pixel of the file, within 2 %%")
    aim.add_argument("--psnr", type=common.above_zero, metavar="DB", help="instead: fidelity, within 2 %%")
    aim.add_argument("--size", type=size, metavar="BYTES", help="instead: size of the file, as 20000, 20k or 1.5M")
    parser.add_argument(
        "-e",
        "--effort",
        type=common.effort,
        default=1,
        metavar="1..9",
        help="1: one pass; each more doubles the time spent on a smaller file (default: %(default)s)",
    )
    parser.add_argument("-m", "--model", default="base", help="a name of `bayesq models`, or a .safetensors file")
    common.add_runtime_option(parser)
    folders.add_options(parser)
    common.add_output_options(parser)
    common.add_talk_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    common.use_runtime(args)
    targets = {name: value for name in ("bpp", "psnr", "size") if (value := getattr(args, name)) is not None}
    if folders.is_folder(args):
        from bayesq.batch import Encode

        if targets:
            raise BayesqError("folders are coded at a quality")
        return folders.run(args, Encode(args.quality, args.model, args.effort))

    start = time.perf_counter()
    output = args.output or common.beside(args.input, ".bq")
    common.check_outputs(args, output)

    from bayesq import files, zoo
    from bayesq.ratecontrol import encode_to
    from bayesq.streams import open_image

    options = {"effort": args.effort, "progress": not args.quiet}
    with open_image(args.input) as picture:
        codec = zoo.load(args.model)
        if not targets:
            common.spare_start(codec, picture.size[0] * picture.size[1])
        with common.about(args.input):
            if targets:
                data = encode_to(picture, codec, **targets, **options)
            else:
                data = files.encode(picture, codec, args.quality, **options)
    common.write(output, data)
    it = files.describe(data)
    if args.json:
        summary = {"input": args.input, "output": output, "model": codec.name, **asdict(it)}
        common.print_json({**summary, "seconds": time.perf_counter() - start})
    common.say(args, f"Compressed to {it.bytes:,} bytes ({it.bits_per_pixel:.3f} bpp).")
    common.say(args, f"{it.width} x {it.height}, {it.mode}, quality {it.quality:.1f}, model {codec.name}.")
    return 0


def _bytes(text: str) -> float:
    factor = {"k": 1e3, "K": 1e3, "M": 1e6}.get(text[-1:], 1)
    value = factor * float(text if factor == 1 else text[:-1])
    if not 0 < value < math.inf:
        raise ValueError
    return value


size = common.argument("a number of bytes, as 20000, 20k or 1.5M", _bytes)
