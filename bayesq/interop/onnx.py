"""g_a and g_s as ONNX graphs whose quantised layers are integers between QuantizeLinear and DequantizeLinear (QDQ).

Weights are stored as the integers that they are, where their format is affine, and inputs of eight bits are rounded
so that an engine finds what its integer kernels take. Everything else is in float32. Sizes of pictures stay open.
"""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from bayesq.errors import ModelError
from bayesq.io import atomic_write
from bayesq.networks.rate import ANCHORS, LEVELS, Interpolated
from bayesq.networks.transforms import BLOCK, Analysis, Bottleneck, Lapping, Stack, Synthesis
from bayesq.quantization.formats import Affine, Format
from bayesq.quantization.formats.affine import ClippedLattice
from bayesq.quantization.formats.base import Scaled
from bayesq.quantization.layers import QuantizedConv, hadamard

if TYPE_CHECKING:
    from onnx import ModelProto

    from bayesq.codec import Codec

OPSET = 21
"""The first with sixteen-bit integers."""


def check() -> None:
    """Raises ModelError if onnx is not installed."""
    if find_spec("onnx") is None:
        raise ModelError("onnx is not installed: pip install 'bayesq[onnx]'")


def export(codec: Codec, folder: Path) -> list[Path]:
    """Writes ``analysis.onnx`` and ``synthesis.onnx``; returns their paths.

    The graphs map (picture, level) to latent and (latent, level) to picture: float32 ``(B, C, H, W)``, H and W of
    pictures multiples of 16, and int64 ``(B,)``.

    Raises:
        ModelError: the package onnx is not installed, or the codec's transforms are not bayesq's own.
    """
    check()
    paths = []
    for name in ("analysis", "synthesis"):
        path = folder / f"{name}.onnx"
        atomic_write(path, graph_of(getattr(codec, name)).SerializeToString())
        paths.append(path)
    return paths


def graph_of(module: nn.Module) -> ModelProto:
    """g_a or g_s as a checked model. Raises ModelError if it is of another design."""
    graph = _Graph()
    if isinstance(module, Analysis):
        graph("Identity", _analysis(graph, module, "picture", "level"), to="latent")
        return graph.model(("picture", 3), ("latent", module.log_gain.anchors.shape[1]))
    if isinstance(module, Synthesis):
        graph("Identity", _synthesis(graph, module, "latent", "level"), to="picture")
        return graph.model(("latent", module.log_gain.anchors.shape[1]), ("picture", 3))
    raise ModelError("only transforms of bayesq's own design can be exported")


class _Graph:
    """A graph that grows: called with an operator and the names of its inputs, it returns that of the output."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def __call__(self, operator: str, *inputs: str, to: str = "", **attributes: Any) -> str:
        from onnx import helper

        name = to or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        from onnx import numpy_helper

        array = values.detach().numpy() if isinstance(values, Tensor) else np.asarray(values)
        self.constants.append(numpy_helper.from_array(array.astype(dtype), f"c{len(self.constants)}"))
        return self.constants[-1].name

    def integers(self, *values: int) -> str:
        return self.constant(values, np.int64)

    def model(self, given: tuple[str, int], wanted: tuple[str, int]) -> ModelProto:
        from onnx import TensorProto, checker, helper

        def pixels(name: str, channels: int) -> Any:
            sides: list[str | int | None] = ["batch", channels, f"{name} height", f"{name} width"]
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, sides)

        level = helper.make_tensor_value_info("level", TensorProto.INT64, ["batch"])
        graph = helper.make_graph(self.nodes, "bayesq", [pixels(*given), level], [pixels(*wanted)], self.constants)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10, producer_name="bayesq"
        )
        checker.check_model(model, full_check=True)
        return model


# Layers --------------------------------------------------------------------------------------------------------------


def _conv(g: _Graph, layer: nn.Module, x: str) -> str:
    if isinstance(layer, nn.Conv2d):
        bias = [] if layer.bias is None else [g.constant(layer.bias)]
        return g("Conv", x, g.constant(layer.weight), *bias, pads=[*layer.padding, *layer.padding])
    assert isinstance(layer, QuantizedConv)
    x = _shaped(g, layer, x)
    bias = [] if layer.bias is None else [g.constant(layer.bias)]
    y = g("Conv", _rounded(g, layer, x), _weight(g, layer), *bias)
    if layer.low_in is None or layer.low_out is None:
        return y
    return g("Add", y, g("Conv", g("Conv", x, g.constant(layer.low_in)), g.constant(layer.low_out)))


def _shaped(g: _Graph, layer: QuantizedConv, x: str) -> str:
    rows, columns = layer.padding
    if rows or columns:
        x = g("Pad", x, g.integers(0, 0, rows, columns, 0, 0, rows, columns))
    x = x if layer.input_shift is None else g("Sub", x, g.constant(layer.input_shift))
    x = x if layer.input_scale is None else g("Mul", x, g.constant(layer.input_scale))
    size, channels = layer.spec.rotation, layer.spec.shape[1]
    if size == 1:
        return x
    mix = hadamard(size).repeat(channels // size, 1)[..., None, None]
    return g("Conv", x, g.constant(mix), group=channels // size)


def _rounded(g: _Graph, layer: QuantizedConv, x: str) -> str:
    """The input through integers: of 8 bits in the pair that engines look for, of others in plain arithmetic;
    or to the nearest of a format's levels."""
    if layer.spec.activation is None or layer.step is None:
        return x
    if isinstance(layer.spec.activation, Format):
        assert isinstance(layer.spec.activation, Scaled)
        levels = layer.spec.activation.levels() * layer.step
        above = g("Greater", g("Unsqueeze", x, g.integers(-1)), g.constant((levels[1:] + levels[:-1]) / 2))
        index = g("ReduceSum", g("CastLike", above, g.integers(0)), g.integers(-1), keepdims=0)
        return g("Gather", g.constant(levels), index)
    if layer.zero is None:
        return x
    if layer.spec.activation == 8:
        step, zero = (t[0] if len(t) == 1 else t for t in (layer.step, layer.zero))
        parameters = g.constant(step), g.constant(zero, np.uint8)
        return g("DequantizeLinear", g("QuantizeLinear", x, *parameters, axis=1), *parameters, axis=1)
    unit, origin = (g.constant(t.view(1, -1, 1, 1)) for t in (layer.step, layer.zero))
    codes = g("Add", g("Round", g("Div", x, unit)), origin)
    clipped = g("Clip", codes, g.constant(0.0), g.constant(2.0**layer.spec.activation - 1))
    return g("Mul", g("Sub", clipped, origin), unit)


def _weight(g: _Graph, layer: QuantizedConv) -> str:
    """Integers with a step a row where the format is affine; symmetric ones are signed, with 0 for 0."""
    form, grid = layer.spec.format, layer.grid
    if not isinstance(form, Affine):
        return g.constant(layer.weight)
    assert isinstance(grid, ClippedLattice)
    codes = grid.unpack(layer.codes, layer.spec.shape).numpy()
    offset = 2 ** (form.width - 1) if form.symmetric else 0
    kinds = (np.int8, np.int16) if form.symmetric else (np.uint8, np.uint16)
    dtype = kinds[form.width > 8]
    scale, zero = g.constant(grid.step[:, 0]), g.constant(grid.zero[:, 0].numpy() - offset, dtype)
    if form.group == 0:  # the shape that engines look for
        return g("DequantizeLinear", g.constant(codes - offset, dtype), scale, zero, axis=0)
    rows = g.constant((codes - offset).reshape(len(grid.step), -1), dtype)
    return g("Reshape", g("DequantizeLinear", rows, scale, zero, axis=0), g.integers(*layer.spec.shape))


def _interpolated(g: _Graph, values: Interpolated, level: str) -> str:
    position = g("Mul", g("CastLike", level, unit := g.constant((ANCHORS - 1) / (LEVELS - 1))), unit)
    ticks = g.constant(np.arange(ANCHORS)[None])
    far = g("Abs", g("Sub", g("Unsqueeze", position, g.integers(1)), ticks))
    hats = g("Relu", g("Sub", g.constant(1.0), far))
    return g("Unsqueeze", g("MatMul", hats, g.constant(values.anchors)), g.integers(2, 3))


def _lapping(g: _Graph, lapping: Lapping, x: str) -> str:
    for _ in range(2):
        x = g("Transpose", _rows(g, lapping.kernel, x), perm=[0, 1, 3, 2])
    return x


def _rows(g: _Graph, kernel: Tensor, x: str) -> str:
    """As ``Lapping``; the picture is mirrored at both ends, so that all borders are alike and nothing happens there."""
    half, last = BLOCK // 2, g.integers(-1)

    def part(values: str, start: int, end: int, step: int = 1) -> str:
        return g("Slice", values, g.integers(start), g.integers(end), last, g.integers(step))

    flip = partial(part, start=-1, end=-(2**31), step=-1)
    mirrored = g("Concat", flip(part(x, 0, half)), x, flip(part(x, -half, 2**31)), axis=-1)
    borders = g("Reshape", mirrored, g.integers(0, 0, 0, -1, 2, half))
    before, behind = (g("Gather", borders, g.integers(side), axis=4) for side in (0, 1))
    d = g("MatMul", g("Sub", before, flip(behind)), g.constant(kernel.T))
    correction = g("Reshape", g("Concat", d, g("Neg", flip(d)), axis=4), g.integers(0, 0, 0, -1))
    return g("Add", x, part(correction, half, -half))


def _fold(g: _Graph, x: str, factor: int) -> str:
    """Pixel unshuffle; SpaceToDepth has another order of channels, and what puts it right is misread by OpenVINO."""
    rows = g("Reshape", g("Transpose", x, perm=[0, 1, 3, 2]), g.integers(0, 0, 0, -1, factor))
    both = g("Reshape", g("Transpose", rows, perm=[0, 1, 4, 3, 2]), g.integers(0, 0, 0, 0, -1, factor))
    folded = g("Reshape", g("Transpose", both, perm=[0, 3, 4, 1, 2, 5]), g.integers(0, 0, 0, -1))
    return g("Transpose", folded, perm=[0, 3, 1, 2])


def _unfold(g: _Graph, x: str, factor: int) -> str:
    return g("DepthToSpace", x, blocksize=factor, mode="CRD")


# Transforms ----------------------------------------------------------------------------------------------------------


def _bottleneck(g: _Graph, block: Bottleneck, x: str, level: str) -> str:
    inner = g("Mul", _conv(g, block.reduce, x), _interpolated(g, block.scale, level))
    inner = g("LeakyRelu", g("Add", inner, _interpolated(g, block.shift, level)), alpha=0.1)
    inner = g("LeakyRelu", _conv(g, block.spatial, inner), alpha=0.1)
    return g("Add", x, _conv(g, block.expand, inner))


def _stack(g: _Graph, stack: Stack, x: str, level: str) -> str:
    for block in stack.blocks:
        assert isinstance(block, Bottleneck)
        x = _bottleneck(g, block, x, level)
    return x


def _gain(g: _Graph, log_gain: Interpolated, x: str, level: str) -> str:
    return g("Mul", x, g("Exp", _interpolated(g, log_gain, level)))


def _analysis(g: _Graph, a: Analysis, x: str, level: str) -> str:
    x = _lapping(g, a.lapping, g("Sub", x, g.constant(0.5)))
    return _gain(g, a.log_gain, _conv(g, a.linear, _fold(g, x, BLOCK)), level)


def _synthesis(g: _Graph, s: Synthesis, z: str, level: str) -> str:
    z = _gain(g, s.log_gain, z, level)
    x = _unfold(g, _conv(g, s.linear, z), BLOCK)
    if not s.is_linear:
        features = _stack(g, s.coarse, _conv(g, s.stem, z), level)
        features = _stack(g, s.fine, _unfold(g, _conv(g, s.up, features), 2), level)
        x = g("Add", x, _unfold(g, _conv(g, s.head, features), 8))
    return g("Add", _lapping(g, s.lapping, x), g.constant(0.5))
