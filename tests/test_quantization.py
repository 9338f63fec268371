"""Quantised codecs: shapes change nothing, reconstruction helps, allocations keep to budgets, files load."""

import ctypes
import dataclasses
import itertools
import json
import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from bayesq import operators, zoo
from bayesq.codec import Codec
from bayesq.errors import ModelError
from bayesq.metrics import psnr
from bayesq.quantization import RECIPES, Calibration, Recipe, Tuning, allocation, quantize, recipe_called
from bayesq.quantization.allocation import greedy, integer_program, monotone
from bayesq.quantization.calibration import convolutions, observe
from bayesq.quantization.cost import cost, layer_costs
from bayesq.quantization.draft import Draft
from bayesq.quantization.formats import Affine, Coded, DoubleBinary, NormalFloat, Pyramid, Sparse
from bayesq.quantization.gates import Gates, chances, opened
from bayesq.quantization.latency import Stopwatch
from bayesq.quantization.layers import QuantizedConv, hadamard, quantized, rotated
from bayesq.quantization.ranges import LEAST_HARM, whole_range
from bayesq.quantization.recipes import A8, EVERYTHING, FINE, INTEGERS, mixed
from bayesq.quantization.rounding import GPTQ, AdaRound, corrected, nearest
from bayesq.quantization.sensitivity import (
    activation_entropy,
    entropy,
    one_at_a_time,
    propagated_relevance,
    relevance,
    traces,
)
from bayesq.quantization.shapes import Absorb, Centre, Noise, Rotate, Smooth
from bayesq.quantization.tuning import LearnedConv
from bayesq.resources import data_dir
from bayesq.restore import restore
from bayesq.runtime import bytes_add_up_in_words

SHAPES = {
    "nothing": (),
    "centred": (Centre(),),
    "smoothed": (Smooth(0.5),),
    "rotated": (Rotate(8),),
    "low rank apart": (Absorb(4),),
    "all": (Centre(), Smooth(0.7), Rotate(8), Absorb(4)),
}


@pytest.fixture(scope="module")
def base(small_codec_path):
    return zoo.load(small_codec_path)


@pytest.fixture(scope="module")
def data():
    return Calibration.of([data_dir()], count=4, side=64)


@pytest.fixture(scope="module")
def drafts(base, data):
    convs = convolutions(base, ["analysis", "synthesis"])
    seen = observe(base, list(convs), data.batch())
    return {name: Draft.of(conv, seen[name]) for name, conv in convs.items()}


@pytest.fixture(scope="module")
def picture(data):
    return data.batch().pictures[:1]


@pytest.fixture(scope="module")
def draft():
    """A layer with outliers among its inputs' channels, and correlated inputs."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(16, 16, generator=generator) / 3
    inputs = torch.einsum("nchw,cd->ndhw", torch.randn(8, 16, 10, 10, generator=generator), mix) + 0.5
    inputs[:, 3] *= 20
    weight = torch.randn(12, 16, 3, 3, generator=generator) / 12
    padded = F.pad(inputs, (1, 1, 1, 1))
    return Draft(weight, torch.zeros(12), (1, 1), padded, torch.ones_like(padded), torch.ones_like(weight), 1.0)


def output(draft, layer):
    """The layer's output for the draft's raw inputs."""
    return layer(draft.inputs[..., 1:-1, 1:-1])


def exact(draft):
    return F.conv2d(draft.inputs, draft.weight, draft.bias)


def shaped(draft, shapes):
    for shape in shapes:
        draft = shape(draft)
    return draft


def error(draft, changed, form, rounding=nearest, span=whole_range):
    layer = changed.built(form, *rounding(changed, form, span))
    return float((output(draft, layer) - exact(draft)).square().mean())


def test_hadamard_matrices_are_orthogonal():
    assert torch.allclose(hadamard(16) @ hadamard(16).T, torch.eye(16), atol=1e-6)
    x = torch.randn(2, 24, 3, 3, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(rotated(rotated(x, 8), 8), x, atol=1e-6)


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_leave_what_a_layer_computes(draft, name):
    layer = shaped(draft, SHAPES[name])
    layer = layer.built(Affine(16), *nearest(layer, Affine(16), whole_range))
    assert torch.allclose(output(draft, layer), exact(draft), atol=5e-3 * float(exact(draft).std()))


@pytest.mark.parametrize("name", ["smoothed", "rotated", "all"])
def test_shapes_help_where_channels_differ(draft, name):
    def with_inputs(one):
        return one.with_activation(6)

    plain = error(draft, with_inputs(draft), Affine(8))
    assert error(draft, with_inputs(shaped(draft, SHAPES[name])), Affine(8)) < 0.7 * plain


def test_a_low_rank_branch_takes_what_is_large(draft):
    generator = torch.Generator().manual_seed(1)
    large = torch.einsum("o,i,kl->oikl", *(torch.randn(n, generator=generator) for n in (12, 16)), torch.ones(3, 3))
    draft = dataclasses.replace(draft, weight=draft.weight + large)
    assert error(draft, Absorb(1)(draft), Affine(4)) < 0.3 * error(draft, draft, Affine(4))


def test_a_range_for_each_channel_is_finer(draft):
    one, each = (draft.with_activation(6, by_channel) for by_channel in (False, True))
    assert len(one.step) == 1 and len(each.step) == 16
    assert error(draft, each, Affine(8)) < 0.5 * error(draft, one, Affine(8))


@pytest.mark.parametrize("by_channel", [False, True])
def test_rounded_inputs_are_those_of_the_layer(draft, by_channel):
    draft = draft.with_activation(5, by_channel)
    layer = draft.built(Affine(8), *nearest(draft, Affine(8), whole_range))
    inside = draft.inputs[..., 1:-1, 1:-1]
    assert torch.allclose(layer.rounded(layer.shaped(inside)), draft.rounded, atol=float(draft.step.max()) * 1.001)
    assert (layer.rounded(layer.shaped(inside)) != draft.rounded).float().mean() < 0.01


def test_inputs_of_many_bits_may_go_beyond_what_was_seen(draft):
    draft = draft.with_activation(16)
    layer = draft.built(Affine(8), *nearest(draft, Affine(8), whole_range))
    beyond = 3 * draft.inputs
    assert torch.allclose(layer.rounded(beyond), beyond, atol=float(draft.step))


@pytest.mark.parametrize("shapes", [(), (Centre(), Smooth(0.5))], ids=["raw", "shaped"])
def test_noise_leaves_what_a_layer_computes_and_lowers_the_error_of_its_input(draft, shapes):
    for bits in (5, 14):
        plain = shaped(draft, shapes).with_activation(bits)
        noisy = Noise()(plain)
        errors = [((one.rounded - one.inputs).square() * one.sensitivity).sum((0, 2, 3)) for one in (noisy, plain)]
        assert (errors[0] <= errors[1] * 1.001).all() and errors[0].sum() < errors[1].sum()
    layer = noisy.built(Affine(16), *nearest(noisy, Affine(16), whole_range))
    assert torch.allclose(output(draft, layer), exact(draft), atol=0.02 * float(exact(draft).std()))


@pytest.mark.parametrize("rounding", [GPTQ(), AdaRound()])
@pytest.mark.parametrize("form", [Affine(3), Affine(3, 16, symmetric=False), NormalFloat(3)], ids=str)
def test_reconstruction_beats_rounding_to_the_nearest(draft, rounding, form):
    assert error(draft, draft, form, rounding) < 0.9 * error(draft, draft, form)


@pytest.mark.parametrize("size", [2, 3])
def test_columns_are_rounded_with_the_scale_of_their_group(size):
    """Weights that are on their grid stay there, whatever the scales of the groups beside theirs."""
    generator = torch.Generator().manual_seed(0)
    for groups in range(1, 50):
        codes = torch.randint(1, 16, (2, groups * size, 1, 1), generator=generator)
        codes[:, ::size] = 15
        scale = torch.ldexp(torch.ones(2 * groups, 1), torch.arange(2 * groups)[:, None] % 5)
        weight = Affine(4, size).grid({"scale": scale}).value(codes)
        inputs = torch.randn(1, groups * size, 4, 4, generator=generator)
        one = Draft(weight, torch.zeros(2), (0, 0), inputs, torch.ones_like(inputs), torch.ones_like(weight), 1.0)
        assert torch.equal(GPTQ()(one, Affine(4, size), whole_range)[1], codes)


@pytest.mark.parametrize("rounding", [GPTQ(), AdaRound()])
@pytest.mark.parametrize("form", [Pyramid(), Sparse()])
def test_reconstruction_refuses_what_it_cannot_round_one_by_one(draft, rounding, form):
    with pytest.raises(ModelError, match="one by one"):
        rounding(draft, form, whole_range)


def test_a_corrected_bias_makes_up_for_the_mean_error(draft):
    form = Affine(2)
    parameters, codes = nearest(draft, form, whole_range)
    means = [
        (output(draft, one.built(form, parameters, codes)) - exact(draft)).mean((0, 2, 3))
        for one in (draft, corrected(draft, form, parameters, codes))
    ]
    assert means[1].abs().max() < 0.05 * means[0].abs().max()


# Allocation ----------------------------------------------------------------------------------------------------------


def problem(seed=0, layers=5, formats=3):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 10, layers)
    harm = -np.sort(-rng.exponential(size=(layers, formats)), axis=1) * sizes[:, None]
    bits = np.array([2, 4, 8])[:formats]
    return harm, (sizes[:, None] * bits)[None].astype(float), np.array([4.1 * sizes.sum()])


@pytest.mark.parametrize("solver", [integer_program, greedy, monotone])
@pytest.mark.parametrize("seed", range(5))
def test_allocations_keep_to_the_budget(solver, seed):
    harm, costs, budgets = problem(seed)
    choice = solver(harm, costs, budgets)
    assert costs[0][np.arange(5), choice].sum() <= budgets[0]
    assert harm[np.arange(5), choice].sum() <= harm[:, 0].sum()


@pytest.mark.parametrize("seed", range(5))
def test_the_integer_program_is_exact_and_the_others_are_no_better(seed):
    harm, costs, budgets = problem(seed)
    every = np.array(list(itertools.product(range(3), repeat=5)))
    allowed = every[costs[0][np.arange(5), every].sum(1) <= budgets[0]]
    best = harm[np.arange(5), allowed].sum(1).min()
    found = {s: harm[np.arange(5), s(harm, costs, budgets)].sum() for s in (integer_program, greedy, monotone)}
    assert found[integer_program] == pytest.approx(best)
    assert min(found.values()) == pytest.approx(best)


def test_layers_of_little_harm_are_not_lost_beside_one_of_much():
    harm, costs, budgets = problem(1)
    harm[1:] *= 1e-9
    choice = integer_program(harm, costs, budgets)
    left = budgets - costs[0, 0, choice[0]]
    again = integer_program(1e9 * harm[1:], costs[:, 1:], left)
    rows = np.arange(1, 5)
    assert harm[rows, choice[1:]].sum() == pytest.approx(harm[rows, again].sum(), rel=1e-5)


def test_what_the_solver_prints_is_kept_from_stdout(monkeypatch, capfd):
    solve, library = allocation.milp, ctypes.CDLL("ucrtbase" if os.name == "nt" else None)

    def talkative(*args, **settings):
        library.puts(b"a line of the solver's own")
        return solve(*args, **settings)

    monkeypatch.setattr(allocation, "milp", talkative)
    integer_program(*problem())
    library.fflush(None)
    assert capfd.readouterr().out == ""


def test_monotone_allocations_are_monotone():
    harm, costs, budgets = problem(3)
    choice = monotone(harm, costs, budgets)
    assert (np.diff(choice[harm[:, 0].argsort()]) >= 0).all()


def test_two_budgets_hold_at_once():
    harm, costs, budgets = problem(1)
    costs = np.concatenate([costs, costs[:, ::-1] ** 1.2])
    budgets = np.array([budgets[0], 0.5 * costs[1].max(1).sum()])
    for solver in (integer_program, greedy, monotone):
        choice = solver(harm, costs, budgets)
        assert (costs[:, np.arange(5), choice].sum(1) <= budgets).all()


@pytest.mark.parametrize("resources", [2, 3])
@pytest.mark.parametrize("solver", [integer_program, greedy, monotone])
@given(seed=st.integers(0, 2**32 - 1))
def test_budgets_that_pull_apart_are_kept_or_refused(solver, resources, seed):
    rng = np.random.default_rng(seed)
    harm = rng.exponential(size=(3, 3))
    costs = rng.integers(1, 20, (resources, 3, 3)).astype(float)
    budgets = np.rint(costs.mean(2).sum(1) * rng.uniform(0.7, 1.1, resources))
    every = np.array(list(itertools.product(range(3), repeat=3)))
    allowed = (costs[:, np.arange(3), every].sum(2) <= budgets[:, None]).all(0)
    try:
        choice = solver(harm, costs, budgets)
    except ModelError:
        assert solver is not integer_program or not allowed.any()
    else:
        assert (costs[:, np.arange(3), choice].sum(1) <= budgets).all()


def test_greedy_allocation_ends_where_each_budget_undoes_what_the_other_asks_for():
    costs = np.array([[[8, 12], [8, 12]], [[1.2, 1.0], [1.2, 1.0]]])
    with pytest.raises(ModelError, match="no single change"):
        greedy(np.zeros((2, 2)), costs, np.array([20, 2.1]))


@pytest.mark.parametrize("solver", [integer_program, greedy, monotone])
def test_impossible_budgets_are_refused(solver):
    harm, costs, budgets = problem()
    with pytest.raises(ModelError, match="budget"):
        solver(harm, costs, budgets / 4)


SENSITIVITIES = [relevance, traces, one_at_a_time, propagated_relevance, activation_entropy]


@pytest.mark.parametrize("sensitivity", SENSITIVITIES)
def test_harm_falls_with_bits(base, drafts, data, sensitivity):
    few = {name: drafts[name] for name in ("analysis.linear", "synthesis.head", "synthesis.linear")}
    harm = sensitivity(base, few, [Affine(2), Affine(5), Affine(12)], LEAST_HARM, data.batch())
    assert harm.shape == (3, 3) and (harm >= 0).all()
    assert (harm[[0, 2], 0] > harm[[0, 2], 2]).all() and harm.sum(0)[1] < harm.sum(0)[0]


def test_entropy_counts_the_values_that_occur():
    few = torch.tensor([0.0, 1.0, 2.0, 3.0]).repeat(25)
    assert entropy(torch.zeros(9)) == 0 and entropy(few) == pytest.approx(2)
    assert entropy(torch.linspace(0, 1, 1024)) == pytest.approx(8)


def test_gates_have_a_law_over_formats():
    logits = torch.tensor([[-9.0, 9, 9], [9, 9, 9], [9, -9, 0], [0.5, -1, 2]])
    chance = chances(logits)
    assert torch.allclose(chance.sum(1), torch.ones(4)) and chance[:3].argmax(1).tolist() == [0, 3, 1]
    nested = opened(logits[3:].expand(20000, 3), torch.Generator().manual_seed(0)).cumprod(1) > 0
    drawn = torch.bincount(nested.sum(1), minlength=4) / len(nested)
    assert torch.allclose(drawn, chance[3], atol=0.015)


def test_gates_close_where_bits_cost_more_and_stay_open_where_they_are_needed(base, drafts, data):
    few = {name: drafts[name] for name in ("analysis.linear", "synthesis.head", "synthesis.linear")}
    formats = [Affine(6), Affine(2), Affine(4)]
    bits = np.array([form.width for form in formats])
    means = []
    for price in (1e-3, 1.0):
        harm = Gates(steps=24, rate=0.3, price=price)(base, few, formats, LEAST_HARM, data.batch())
        assert np.exp(-harm).sum(1) == pytest.approx(1)
        means.append(np.exp(-harm) @ bits)
    assert (means[0] > means[1]).all() and means[1][0] > means[1][1] + 1


# Whole codecs --------------------------------------------------------------------------------------------------------

WHOLE = {
    "integers": Recipe(),
    "quantised inputs": Recipe(inputs=(("*.linear", 16), ("*", 8))),
    "inputs by channel": Recipe(inputs=(("*", 8),), by_channel=True),
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


# Tuning --------------------------------------------------------------------------------------------------------------


LEARNED = [Affine(4), Affine(3, 8, symmetric=False), Coded(rate=3), NormalFloat(4), DoubleBinary(), Pyramid(8)]


@pytest.mark.parametrize("form", LEARNED)
def test_a_layer_in_training_is_the_layer_it_came_from(draft, form):
    draft = draft.with_activation(8)
    layer = draft.built(form, *nearest(draft, form, whole_range))
    learned = LearnedConv(layer, draft.weight)
    assert torch.allclose(output(draft, learned), output(draft, layer), atol=1e-3)
    again = learned.export()
    assert (again.codes != layer.codes).float().mean() < 0.02 and torch.equal(again.grid_scale, layer.grid_scale)


@pytest.mark.parametrize("form", LEARNED)
def test_scales_carry_their_rows_along_and_leave_the_codes(draft, form):
    layer = draft.built(form, *nearest(draft, form, whole_range))
    learned = LearnedConv(layer, draft.weight)
    before, rows = learned.decoded().detach(), len(learned.log_scale)
    growth = torch.linspace(0.8, 1.25, rows).view(learned.log_scale.shape)
    learned.log_scale.data += growth.log()
    value = learned.decoded()
    expected = (before.view(rows, -1) * growth.view(rows, -1)).view(before.shape)
    torch.testing.assert_close(value, expected)
    exported = learned.export()
    assert torch.equal(exported.codes, LearnedConv(layer, draft.weight).export().codes)
    torch.testing.assert_close(
        exported.grid.value(exported.grid.unpack(exported.codes, layer.spec.shape)), expected, rtol=1e-3, atol=1e-4
    )


def test_weights_within_their_cells_learn_as_if_not_rounded(draft):
    form = Affine(3)
    learned = LearnedConv(
        draft.built(form, *nearest(draft, form, lambda rows, *_: torch.full_like(rows[:, :1], 0.5))), draft.weight
    )
    learned.weight.data = draft.weight.clone()
    slope = torch.rand(draft.weight.shape, generator=torch.Generator().manual_seed(0))
    value = learned.decoded()
    (value * slope).sum().backward()
    inside = (learned.weight.detach() - value.detach()).abs() <= 0.5 * learned.log_scale.detach().exp().view(
        -1, 1, 1, 1
    )
    assert 0 < inside.float().mean() < 1
    torch.testing.assert_close(learned.weight.grad, slope * inside)
    torch.testing.assert_close(learned.log_scale.grad.flatten(), (slope * value.detach()).flatten(1).sum(1))


def test_tuning_lowers_the_loss(base, data):
    recipe = Recipe((Affine(3),), inputs=(("*", 8),), rounding=nearest)
    tuned = dataclasses.replace(recipe, tuning=Tuning(steps=15, block_steps=1, batch=2, crop=64))
    assert quantize(base, tuned, data).loss_after < quantize(base, recipe, data).loss_after


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

    codec = quantize(base, Recipe(inputs=(("*", 8),), shapes=(Smooth(0.5),)), data).codec
    layers = [layer for _, layer in quantized(codec) if layer.step is not None and layer.input_scale is not None]
    assert layers
    for layer in layers:
        shape = 1, layer.spec.shape[1], 16, 16
        x = 40 * layer.step * torch.randn(shape, generator=torch.Generator().manual_seed(0)) / layer.input_scale
        found = torch.from_numpy(compiled(ov.convert_model(layer, example_input=x)).infer([x.numpy()])[0])
        exact = layer(x)
        assert (found - exact).norm() < 0.01 * exact.norm()
