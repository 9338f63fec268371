"""Exported graphs compute what the quantised transforms compute, at any size and quality, with weights as integers."""

import numpy as np
import pytest
import torch

from bayesq import zoo
from bayesq.cli import main
from bayesq.errors import ModelError
from bayesq.interop import onnx as to_onnx
from bayesq.quantization import Calibration, Recipe, quantize
from bayesq.quantization.formats import Affine, Coded, NormalFloat
from bayesq.quantization.layers import fits_bytes, quantized
from bayesq.quantization.recipes import A8, RECTIFIED
from bayesq.quantization.shapes import Absorb, Centre, Noise, Rotate, Smooth
from bayesq.resources import data_dir
from bayesq.runtime import bytes_add_up_in_words

RECIPES = {
    "float": None,
    "eight bits": Recipe(inputs=A8),
    "six bits, noise": Recipe(inputs=(("*", 6),), noise=Noise()),
    "ranges by channel": Recipe((Affine(8, symmetric=False),), inputs=(("*", 8),), by_channel=True),
    "groups, all shapes": Recipe(
        (Affine(4, 32, symmetric=False),),
        inputs=(("*", 8),),
        shapes=(Centre(), Smooth(0.7), Rotate(8), Absorb(4)),
    ),
    "coded": Recipe((Coded(rate=5),), inputs=A8, shapes=(Smooth(0.5),)),
    "ten bits": Recipe((Affine(10),), inputs=(("*", 16),)),
    "powers for inputs": Recipe(inputs=(*RECTIFIED, *A8)),
    "normal float": Recipe((NormalFloat(),)),
}


@pytest.fixture(scope="module")
def data():
    return Calibration.of([data_dir()], count=4, side=64)


@pytest.fixture(scope="module", params=RECIPES)
def codec(request, small_codec_path, data):
    """The convolutions of a codec at its start are almost silent; here they are as loud as what they are added to."""
    base = zoo.load(small_codec_path)
    base.synthesis.head.weight.mul_(10)
    recipe = RECIPES[request.param]
    return base if recipe is None else quantize(base, recipe, data).codec


def in_onnxruntime(model):
    engine = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    session = engine.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [wanted.name for wanted in session.get_inputs()]
    return lambda *inputs: session.run(None, dict(zip(names, map(np.asarray, inputs), strict=True)))[0]


def in_openvino(model):
    engine = pytest.importorskip("openvino", reason="OpenVINO is not installed")
    core = engine.Core()
    compiled = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda *inputs: compiled([np.ascontiguousarray(one) for one in inputs])[0]


@pytest.mark.parametrize("engine", [in_onnxruntime, in_openvino])
def test_onnx_graphs_compute_the_transforms(codec, data, engine):
    pytest.importorskip("onnx", reason="onnx is not installed")
    in_bytes = any(fits_bytes(layer.spec.format, layer.spec.activation) for _, layer in quantized(codec))
    if in_bytes and not bytes_add_up_in_words():
        pytest.skip("engines' sums of bytes saturate on this processor")
    analysis, synthesis = (
        engine(to_onnx.graph_of(module).SerializeToString()) for module in (codec.analysis, codec.synthesis)
    )
    level = torch.tensor([30, 222])
    for height, width in ((32, 32), (48, 16), (16, 80)):
        x = data.batch().pictures[:2].repeat(1, 1, 1, 2)[..., :height, :width].contiguous()
        z = codec.analysis(x, level)
        for run, given, exact in ((analysis, x, z), (synthesis, z, codec.synthesis(z, level))):
            found = torch.from_numpy(run(given, level))
            # An input between two codes may fall to either side.
            assert found.shape == exact.shape and ((found - exact).abs() < 1e-3 * exact.std()).float().mean() > 0.94
            assert (found - exact).square().mean().sqrt() < 3e-3 * exact.std()


def test_onnx_graphs_hold_integers(codec):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    graph = to_onnx.graph_of(codec.synthesis).graph
    kinds = {onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.INT16}
    stored = sum(np.prod(c.dims) for c in graph.initializer if c.data_type in kinds and len(c.dims) > 1)
    layers = [(name, layer) for name, layer in quantized(codec) if name.startswith("synthesis")]
    affine = [layer for _, layer in layers if isinstance(layer.spec.format, Affine)]
    assert stored == sum(layer.weight.numel() for layer in affine)
    rounded = sum(node.op_type == "QuantizeLinear" for node in graph.node)
    assert rounded == sum(layer.spec.activation == 8 for _, layer in layers)


@pytest.mark.parametrize(
    ("engine", "run", "file"),
    [("onnx", in_onnxruntime, "analysis.onnx"), ("openvino", in_openvino, "analysis.xml")],
    ids=["onnx", "openvino"],
)
def test_models_are_exported_on_the_command_line(small_codec_path, tmp_path, engine, run, file, data):
    pytest.importorskip(engine, reason=f"{engine} is not installed")
    pytest.importorskip("onnx", reason="onnx is not installed")
    command = ["quantize", small_codec_path, str(tmp_path), "--crops", "2", "--quiet", "--export", engine]
    assert main(command) == 0
    codec, level = zoo.load(str(tmp_path / "weights.safetensors")), torch.tensor([99])
    x = data.batch().pictures[:1]
    found = torch.from_numpy(run(str(tmp_path / file))(x, level))
    assert (found - codec.analysis(x, level)).abs().mean() < 0.01 * found.abs().mean()
    layers = [layer for name, layer in quantized(codec) if name.startswith("analysis")]
    weights = sum(layer.weight.numel() * (1 if layer.spec.format.width <= 8 else 2) for layer in layers)
    stored = (tmp_path / file).with_suffix(".bin" if engine == "openvino" else ".onnx").stat().st_size
    assert stored < weights + 30_000


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_engines_that_are_missing_are_named(small_codec_path, tmp_path, engine, monkeypatch, capsys):
    monkeypatch.setattr(f"bayesq.interop.{engine}.find_spec", lambda name: None)
    command = ["quantize", small_codec_path, str(tmp_path / "out"), "--quiet", "--export", engine]
    assert main(command) == 1
    assert f"pip install 'bayesq[{engine}]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_foreign_transforms_are_refused():
    with pytest.raises(ModelError, match="own design"):
        to_onnx.graph_of(torch.nn.Identity())
