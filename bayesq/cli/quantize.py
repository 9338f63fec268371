"""``bayesq quantize``: a model with fewer bits."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from bayesq.cli import common

if TYPE_CHECKING:
    from bayesq.codec import Codec


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "quantize",
        help="make a model of fewer bits",
        description="Quantises a model's networks after a recipe: writes OUT/weights.safetensors, a model like any "
        "other, and OUT/card.md, which tells what it costs. Files of the model are read by the quantised one, and the "
        "other way round, unless the recipe quantises the mean network too.",
    )
    parser.add_argument("model", metavar="MODEL", help="a model's name, its folder, or its .safetensors file")
    parser.add_argument("output", type=Path, metavar="OUT", help="folder of the new model")
    parser.add_argument(
        "--recipe",
        default="w8a8",
        metavar="NAME",
        help="as RECIPES has them, listed if there is none of that name (default: %(default)s)",
    )
    parser.add_argument("--size", type=common.above_zero, metavar="SHARE", help="budget, in 32 bits a weight")
    parser.add_argument(
        "--operations", type=common.above_zero, metavar="SHARE", help="budget of bit operations, in 32 x 32 bits each"
    )
    parser.add_argument(
        "--latency",
        type=common.above_zero,
        metavar="SHARE",
        help="budget of g_a's and g_s's time, measured layer by layer with OpenVINO, in that of floating point",
    )
    parser.add_argument(
        "--export",
        choices=("onnx", "openvino"),
        help="write g_a and g_s for an engine too, as analysis.* and synthesis.*",
    )
    parser.add_argument("--data", type=Path, nargs="+", metavar="DIR", help="photographs (default: the sample ones)")
    parser.add_argument("--crops", type=common.several, default=64, metavar="N", help="crops (default: %(default)s)")
    parser.add_argument("--seed", type=common.seed, default=0, help="of the choice of crops (default: %(default)s)")
    common.add_output_options(parser)
    common.add_talk_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from bayesq import calibration, zoo
    from bayesq.inference import xz
    from bayesq.quantization import Calibration, card, quantize, recipe_called
    from bayesq.resources import data_dir

    weights = args.output / "weights.safetensors"
    common.check_folder(args.output)
    if args.output.exists():
        common.check_outputs(args, str(weights))
    recipe = recipe_called(args.recipe)
    export = _exporter(args.export) if args.export else None
    folder = Path(args.model) / "weights.safetensors"
    name = str(folder) if folder.is_file() else args.model
    codec = zoo.load(name)
    data = Calibration.of(args.data or [data_dir()], count=args.crops, seed=args.seed)
    budgets = {"size": args.size, "operations": args.operations, "latency": args.latency}
    result = quantize(codec, recipe, data, **budgets, progress=not args.quiet)
    args.output.mkdir(parents=True, exist_ok=True)
    result.codec.save(weights)
    made = zoo.load(str(weights))
    text = card.write(result, args.recipe, codec, made, weights.stat().st_size)
    common.write(str(args.output / "card.md"), text.encode())
    common.say(args, f"wrote {weights}")
    if codec.folder and made.model_id == codec.model_id:
        for known in (codec.folder / file for file in (calibration.FILE, xz.FILE)):
            if known.is_file():
                common.write(str(args.output / known.name), known.read_bytes())
                common.say(args, f"wrote {args.output / known.name}, that of {codec.name}")
    if export is not None:
        for path in export(result.codec, args.output):
            common.say(args, f"wrote {path}")
    if args.json:
        common.print_json(card.facts(result, weights.stat().st_size))
    return 0


def _exporter(engine: str) -> Callable[[Codec, Path], list[Path]]:
    from bayesq.interop import onnx, openvino

    module = {"onnx": onnx, "openvino": openvino}[engine]
    module.check()
    return module.export
