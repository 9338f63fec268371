"""``bayesq encode``: a picture to a ``.bq`` file."""

import argparse
import time
from dataclasses import asdict

from bayesq.cli import common, folders


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "encode",
        help="compress a picture, or a folder of them",
        description="Compresses a picture of any format that Pillow reads. Grey and alpha are kept. Of a folder, all "
        "pictures below it are compressed to the same places below OUT, unless they are there already.",
    )
    parser.add_argument("input", metavar="IN", help="a picture or a folder, - for standard input")
    parser.add_argument("output", metavar="OUT.bq", nargs="?", help="default: IN with the suffix .bq; - for a pipe")
    parser.add_argument(
        "-q", "--quality", type=common.quality, default=50, metavar="0..100", help="default: %(default)s"
    )
    parser.add_argument("-m", "--model", default="base", help="a name of `bayesq models`, or a .safetensors file")
    folders.add_options(parser)
    common.add_output_options(parser)
    common.add_talk_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if folders.is_folder(args):
        from bayesq.batch import Encode

        return folders.run(args, Encode(args.quality, args.model))

    start = time.perf_counter()
    output = args.output or common.beside(args.input, ".bq")
    common.check_outputs(args, output)

    from bayesq import files, zoo
    from bayesq.io import read_image

    image = read_image(args.input)
    codec = zoo.load(args.model)
    with common.about(args.input):
        data = files.encode(image, codec, args.quality)
    common.write(output, data)
    it = files.describe(data)
    if args.json:
        summary = {"input": args.input, "output": output, "model": codec.name, **asdict(it)}
        common.print_json({**summary, "seconds": time.perf_counter() - start})
    common.say(args, f"Compressed to {it.bytes:,} bytes ({it.bits_per_pixel:.3f} bpp).")
    common.say(args, f"{it.width} x {it.height}, {it.mode}, quality {args.quality:g}, model {codec.name}.")
    return 0
