"""``bayesq info``: what a ``.bq`` file says of itself. Loads no model and no torch, but for a map of the bits."""

import argparse
from dataclasses import asdict

from bayesq.cli import common
from bayesq.errors import BayesqError


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "info", help="describe a .bq file", description="Describes a .bq file. Exits with 1 if it is damaged."
    )
    parser.add_argument("input", metavar="IN.bq", help="- for standard input")
    parser.add_argument("--map", metavar="MAP.png", help="draw where the bits went: dark blue none, yellow most")
    parser.add_argument("-m", "--model", help="for the map; default: the one that the file names")
    parser.add_argument("--json", action="store_true", help="print JSON")
    common.add_talk_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.map == common.PIPE:
        raise BayesqError("the map needs a file: the description goes to standard output")
    common.check_files(args.map)

    from bayesq import files, zoo

    data = common.read(args.input)
    with common.about(args.input):
        it = files.describe(data)
        drawn = _draw(args, data, it.model_id) if args.map else {}
    names = [entry.name for entry in zoo.manifest() if entry.id == it.model_id]
    if args.json:
        common.print_json({**asdict(it), "model": names[0] if names else None, **drawn})
    else:
        model = f"model {names[0]} ({it.model_id})" if names else f"model {it.model_id} (not installed)"
        rate = f"{it.bytes:,} bytes ({it.bits_per_pixel:.3f} bpp)"
        state = "checksums ok" if it.intact else "DAMAGED"
        print(
            f"bayesq v{it.format_version}, {it.width} x {it.height} {it.mode}, quality {it.quality:.0f}, {model}, "
            f"{rate}, {state}"
        )
        if it.tile_grid != (1, 1):
            print("  {} x {} tiles of {} x {} pixels".format(*it.tile_grid, *it.tile_size))
        for tag, size in it.chunks.items():
            print(f"  {tag.strip('_')}: {size:,} bytes")
        for part in it.damaged:
            print(f"  damaged: {part}")
    return 0 if it.intact else 1


def _draw(args: argparse.Namespace, data: bytes, model_id: str) -> dict[str, object]:
    from io import BytesIO

    from bayesq import plot, rates, zoo
    from bayesq.bitstream import Reader
    from bayesq.decoding import read_info
    from bayesq.io import write_image

    bits = rates.bit_map(data, zoo.load(args.model or zoo.find(bytes.fromhex(model_id))))
    picture, yellow = plot.draw_map(bits)
    picture.info["exif"] = read_info(Reader(BytesIO(data))).get("exif")
    write_image(picture, args.map)
    common.say(args, f"Bits per pixel in {args.map}: {bits.mean():.3f} in the mean, yellow: {yellow:.3f}.")
    return {"map": args.map, "map_yellow": yellow}
