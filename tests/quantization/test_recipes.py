"""Quantised codecs: they load, are counted, share files with the original, keep to budgets and run on engines."""

import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F
from layer_errors import SHAPES
from safetensors import safe_open

from bayesq import operators, zoo
from bayesq.codec import Codec
from bayesq.errors import ModelError
from bayesq.metrics import psnr
from bayesq.quantization import RECIPES, Recipe, quantize, recipe_called
from bayesq.quantization.calibration import convolutions
from bayesq.quantization.cost import cost, layer_costs
from bayesq.quantization.formats import Affine, Coded, Powers, Pyramid, Sparse
from bayesq.quantization.latency import Stopwatch
from bayesq.quantization.layers import QuantizedConv, quantized
from bayesq.quantization.recipes import A8, EVERYTHING, FINE, INTEGERS, mixed
from bayesq.quantization.rounding import GPTQ
from bayesq.quantization.sensitivity import (
    relevance,
)
from bayesq.quantization.shapes import Smooth
from bayesq.restore import restore
from bayesq.runtime import bytes_add_up_in_words

WHOLE = {
    "integers": Recipe(),
    "quantised inputs": Recipe(inputs=(("*.linear", 16), ("*", 8))),
    "inputs by channel": Recipe(inputs=(("*", 8),), by_channel=True),
    "inputs in powers": Recipe(inputs=(("synthesis.head", Powers(5, group=None)), ("*", 8))),
    "all shapes": Recipe((Affine(6, 16),), inputs=(("*", 8),), shapes=SHAPES["all"]),
    "pyramids": Recipe((Pyramid(8, 16),)),
    "outliers apart": Recipe((Sparse(),)),
    "allocated": Recipe(INTEGERS, inputs=(("*", 8),), harm=relevance, rounding=GPTQ(), size=0.2),
    "kept": Recipe(INTEGERS, kept=(("analysis.linear", Affine(12)),), harm=relevance, size=0.25),
    "means too": Recipe(parts=EVERYTHING),
    "coded": Recipe((Coded(rate=5),), inputs=(("*", 8),), rounding=GPTQ()),
    "coded, allocated": dataclasses.replace(mixed(0.3, 7), shapes=()),
}


@pytest.fixture(scope="module", params=WHOLE)
def made(request, base, data, tmp_path_factory):
    """A recipe, its result, and the file of that."""
    recipe = WHOLE[request.param]
    result = quantize(base, recipe, data)
    path = tmp_path_factory.mktemp("quantised") / "weights.safetensors"
    result.codec.save(path)
    return recipe, result, path


def test_a_quantised_model_is_loaded_as_it_was_saved(made, picture):
    _, result, path = made
    loaded = Codec.load(path)
    for level in (0, 200):
        (a, a_bits), (b, b_bits) = result.codec.reconstruct(picture, level), loaded.reconstruct(picture, level)
        assert torch.equal(a, b) and a_bits == b_bits
    payload = loaded.compress(picture, 99)
    assert payload == result.codec.compress(picture, 99)
    assert torch.equal(loaded.decompress(payload, 64, 64, 99), loaded.reconstruct(picture, 99)[0])
    again = path.with_name("again.safetensors")
    assert loaded.save(again) and again.read_bytes() == path.read_bytes()


def test_weights_are_stored_as_integers_and_counted(made, base):
    recipe, result, path = made
    with safe_open(path, framework="pt") as file:
        kinds = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        head = file.metadata()
    named = json.loads(head["quantization"])
    assert list(named) == list(convolutions(base, recipe.parts))
    costs = layer_costs(Codec.load(path))
    for name, layer in quantized(result.codec):
        assert f"{name}.weight" not in kinds and kinds[f"{name}.codes"].dtype == torch.uint8
        stored = sum(
            8 * t.numel() * t.element_size()
            for key, t in kinds.items()
            if key.startswith(f"{name}.") and not key.endswith(".bias")
        )
        assert costs[name].bits == stored and costs[name].weights == layer.weight.numel()
    assert abs(cost(result.codec).bytes - path.stat().st_size) < 40_000  # the head


def test_files_are_shared_with_the_original_unless_means_differ(made, base, picture):
    recipe, _, path = made
    codec, shared = Codec.load(path), "prior.means" not in recipe.parts
    assert (codec.model_id == base.model_id) == shared
    assert zoo.model_id(str(path)) == codec.model_id.hex()
    if shared:
        for writer, reader in ((base, codec), (codec, base)):
            payload = writer.compress(picture, 150)
            assert torch.equal(reader.latents(payload, 64, 64, 150), writer.latents(payload, 64, 64, 150))
            ours, theirs = (one.decompress(payload, 64, 64, 150) for one in (writer, reader))
            assert (ours - theirs).square().mean() < 1e-3


def test_budgets_are_kept(made, base):
    recipe, result, _ = made
    if recipe.size:
        assert cost(result.codec).quantised_bits <= 32 * recipe.size
        assert len(set(result.formats.values())) > 1
    for name, form in result.formats.items():
        if recipe.kept and name == recipe.kept[0][0]:
            assert form == recipe.kept[0][1]


def test_eight_bits_lose_little(base, data):
    result = quantize(base, RECIPES["w8a8"], data)
    assert result.loss_after < 1.01 * result.loss_before
    assert cost(result.codec).operations < 0.3 * cost(base).operations


def test_kept_formats_are_exceptions(base, linear_codec, data):
    """Where all of g_a and g_s is their linear branch, that is what a recipe quantises."""
    recipe = Recipe((Affine(8),), kept=FINE)
    for codec, expected in ((base, Affine(12)), (linear_codec, Affine(8))):
        formats = quantize(codec, recipe, data).formats
        assert {form for name, form in formats.items() if name.endswith(".linear")} == {expected}
        assert formats["prior.analysis.head"] == Affine(8)


def test_bit_operations_have_a_budget_too(base, data):
    recipe = Recipe(INTEGERS, inputs=(("*", 8),), harm=relevance)
    result = quantize(base, recipe, data, operations=0.04)
    layers = layer_costs(result.codec)
    chosen = [layers[name] for name, _ in quantized(result.codec)]
    assert sum(c.operations for c in chosen) <= 0.04 * sum(c.macs * 32**2 for c in chosen)


@pytest.mark.parametrize("resource", ["operations", "size"])
def test_bits_of_inputs_are_allocated_beside_those_of_weights(base, data, resource):
    """Where operations cost, inputs get fewer bits; where only size does, all have the first, which do least harm."""
    recipe = Recipe(INTEGERS, inputs=(("*.linear", 16), ("*", (8, 6, 4))), harm=relevance)
    result = quantize(base, recipe, data, **{resource: 0.25 if resource == "size" else 0.06})
    layers = dict(quantized(result.codec))
    widths = {
        name: layer.spec.activation for name, layer in layers.items() if name.startswith(("analysis", "synthesis"))
    }
    assert {bits for name, bits in widths.items() if name.endswith(".linear")} == {16}
    others = {bits for name, bits in widths.items() if not name.endswith(".linear")}
    assert others <= {8, 6, 4} and (others == {8}) == (resource == "size")
    if resource == "operations":
        costs = [layer_costs(result.codec)[name] for name in layers]
        assert sum(c.operations for c in costs) <= 0.06 * sum(c.macs * 32**2 for c in costs)


@pytest.mark.parametrize("resource", ["size", "operations"])
def test_budgets_that_are_too_small_tell_what_is_needed(base, data, resource):
    recipe = Recipe(INTEGERS, kept=FINE, inputs=A8, harm=relevance)
    with pytest.raises(ModelError, match=f"budget of {resource} of 0.01 is too small") as told:
        quantize(base, recipe, data, **{resource: 0.01})
    quantize(base, recipe, data, **{resource: 1.01 * float(str(told.value).split()[-1])})


def test_latency_is_measured_and_kept(base, data):
    pytest.importorskip("openvino")
    recipe = Recipe((Affine(6), Affine(12)), parts=("synthesis",), inputs=(("*", 8),), harm=relevance)
    assert set(quantize(base, recipe, data, latency=1e3).formats.values()) == {Affine(12)}
    with pytest.raises(ModelError, match="budget"):
        quantize(base, recipe, data, latency=1e-6)


def test_layers_are_timed_by_their_kernels(drafts):
    pytest.importorskip("openvino")
    stopwatch, draft = Stopwatch(side=64), drafts["synthesis.up"].with_activation(8)
    times = {form: stopwatch(draft, form) for form in (Affine(3), Affine(8), Affine(9), None)}
    assert times[Affine(3)] == times[Affine(8)] and times[Affine(9)] == times[None] and min(times.values()) > 0
    assert (times[Affine(8)] != times[Affine(9)]) == bytes_add_up_in_words()


def test_latency_needs_an_engine(base, data, monkeypatch):
    monkeypatch.setattr("bayesq.quantization.latency.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"OpenVINO.*pip install"):
        quantize(base, Recipe(INTEGERS, harm=relevance), data, latency=0.5)


@pytest.mark.parametrize("task", ["denoise", "blur"])
def test_a_quantised_prior_restores_as_well(base, data, picture, task):
    size = picture.shape[-2:]
    physics = operators.denoise(size, 0.1) if task == "denoise" else operators.blur("gaussian:1", size, 0.03)
    y = operators.degrade(picture, physics, torch.Generator().manual_seed(0))
    few = quantize(base, RECIPES["w8a8"], data).codec
    options = {"steps": 12, "grids": 1, "samples": 4}
    exact, ours = (psnr(restore(y, physics, codec=codec, **options).mean, picture).item() for codec in (base, few))
    assert abs(ours - exact) < 0.1


def test_gradients_pass_quantised_layers(base, data, picture):
    codec = quantize(base, RECIPES["w8a8"], data).codec
    slopes = []
    for one in (base, codec):
        z = one.analysis(picture, torch.tensor([99])).clone().requires_grad_()
        (one.synthesis(z, torch.tensor([99])) - picture).square().sum().backward()
        slopes.append(z.grad.flatten())
    assert F.cosine_similarity(*slopes, dim=0) > 0.99


def test_a_quantised_model_is_not_quantised_again(base, data):
    codec = quantize(base, Recipe(), data).codec
    with pytest.raises(ModelError, match="already"):
        quantize(codec, Recipe(), data)
    with pytest.raises(ModelError, match="allocates"):
        quantize(base, Recipe(), data, size=0.1)


def test_formats_are_compared_beside_the_same_linear_branch():
    without = [name for name, recipe in RECIPES.items() if recipe.harm is None and recipe.kept != FINE]
    assert without == ["w8a8-plain"]


def test_unknown_recipes_are_named():
    with pytest.raises(ModelError, match="no recipe called 'soup'; there are w8,"):
        recipe_called("soup")


def test_damaged_quantised_models_are_refused(made, tmp_path):
    _, result, path = made
    data = path.read_bytes()
    bad = tmp_path / "weights.safetensors"
    bad.write_bytes(data.replace(b'\\"width\\":', b'\\"wydth\\":').replace(b'\\"share\\":', b'\\"shore\\":'))
    if bad.read_bytes() != data:
        with pytest.raises(ModelError):
            Codec.load(bad)
    _, layer = next(iter(quantized(result.codec)))
    with pytest.raises(ModelError):
        QuantizedConv(layer.spec, layer.padding, {**layer.state_dict(), "codes": layer.codes[:-1]})


def test_an_engine_runs_eight_bit_layers_in_integers_where_they_do_not_saturate(base, data, picture):
    pytest.importorskip("openvino")
    from bayesq.runtime import openvino

    codec = quantize(base, Recipe(inputs=(("*.linear", 16), ("*", 8))), data).codec
    runtime, level = openvino(codec), torch.tensor([128])
    z = runtime.analysis(picture, level)
    exact = codec.analysis(picture, level)
    assert (z - exact).abs().mean() < 0.02 * exact.abs().mean()
    operations = runtime.analysis._request.get_compiled_model().get_runtime_model().get_ops()
    facts = [op.get_rt_info() for op in operations]
    kinds = [fact["runtimePrecision"].astype(str) for fact in facts if fact["layerType"].astype(str) == "Convolution"]
    in_bytes = kinds.count("u8") + kinds.count("i8")
    assert in_bytes >= len(kinds) - 2 if bytes_add_up_in_words() else in_bytes == 0


@pytest.mark.filterwarnings("ignore")  # torch's, about how OpenVINO traces
def test_an_engine_computes_smoothed_layers_as_torch_does(base, data):
    ov = pytest.importorskip("openvino")
    from bayesq.runtime import compiled

    inputs = ("synthesis.head", Powers(5, group=None)), ("*", 8)
    codec = quantize(base, Recipe(inputs=inputs, shapes=(Smooth(0.5),)), data).codec
    layers = [layer for _, layer in quantized(codec) if layer.step is not None and layer.input_scale is not None]
    assert {type(layer.spec.activation) for layer in layers} == {int, Powers}
    for layer in layers:
        shape = 1, layer.spec.shape[1], 16, 16
        far = 40 if layer.spec.activation == 8 else 0.5
        x = far * layer.step * torch.randn(shape, generator=torch.Generator().manual_seed(0)) / layer.input_scale
        found = torch.from_numpy(compiled(ov.convert_model(layer, example_input=x)).infer([x.numpy()])[0])
        exact = layer(x)
        assert (found - exact).norm() < 0.01 * exact.norm()
