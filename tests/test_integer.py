"""Integer layers: exact, whatever the order, the threads and the precision, and trainable."""

import contextlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bayesq.errors import ModelError
from bayesq.networks import integer
from bayesq.networks.hyper import HyperNetwork
from bayesq.networks.integer import (
    ACCUMULATOR_MAX,
    BIAS_MAX,
    INPUT_MAX,
    MULTIPLIER_MAX,
    SHIFT,
    IntegerConv,
    TrainableIntegerConv,
    bytes_are_exact,
    check_layers,
    convert_layers,
    exact_arithmetic,
    integer_convolution,
)
from bayesq.networks.passes import passes_over
from bayesq.networks.rate import LEVELS
from bayesq.networks.scale import HYPER_UNIT, ScaleNetwork, magnitude_code

LOW, HIGH = -(2**31), 2**31


def reference(x, weight, multiplier, bias, low, high):
    """The layer in int64, one pixel and one channel at a time."""
    x, weight = x.numpy().astype(np.int64), weight.numpy().astype(np.int64)
    size = weight.shape[-1]
    padded = np.pad(x, ((0, 0), (0, 0), (size // 2,) * 2, (size // 2,) * 2))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), (2, 3))
    accumulator = np.einsum("bihwkl,oikl->bohw", windows, weight)
    shifted = accumulator * multiplier.numpy().astype(np.int64).reshape(1, -1, 1, 1) + bias.numpy().astype(np.int64)
    return np.clip((shifted + (1 << (SHIFT - 1))) >> SHIFT, low, high)


def problem(size, seed, at_the_bound):
    """Inputs, weights, multipliers and biases drawn over their whole ranges, or at the very edge of them."""
    generator = torch.Generator().manual_seed(seed)

    def integers(low, high, shape):
        return torch.randint(low, high + 1, shape, generator=generator)

    inputs = ACCUMULATOR_MAX // (INPUT_MAX * 127 * size**2)
    weight = integers(-127, 127, (3, inputs, size, size))
    x = integers(-INPUT_MAX, INPUT_MAX, (2, inputs, 4, 5))
    multiplier, bias = integers(1, MULTIPLIER_MAX, (3,)), integers(-BIAS_MAX, BIAS_MAX, (2, 3, 1, 1))
    if at_the_bound:
        weight, x = 127 * weight.sign(), INPUT_MAX * torch.ones_like(x)
        multiplier, bias = torch.full_like(multiplier, MULTIPLIER_MAX), torch.full_like(bias, BIAS_MAX)
    assert INPUT_MAX * weight.abs().flatten(1).sum(1).max() <= ACCUMULATOR_MAX
    return x.float(), weight.float(), multiplier.double(), bias.double()


@pytest.mark.parametrize("at_the_bound", [False, True])
@pytest.mark.parametrize("size", [1, 3])
def test_layers_are_the_integer_formula(size, at_the_bound):
    for seed in range(10):
        x, weight, multiplier, bias = problem(size, seed, at_the_bound)
        for low, high in ((LOW, HIGH), (0, 255)):
            ours = integer_convolution(x, weight, multiplier, bias, low, high)
            theirs = reference(x, weight, multiplier, bias, low, high)
            assert torch.equal(ours, torch.from_numpy(theirs).float())


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("at_the_bound", [False, True])
@pytest.mark.parametrize("size", [1, 3])
def test_products_of_bytes_are_those_of_floats(size, at_the_bound, signed, monkeypatch):
    for seed in range(10):
        x, *layer = problem(size, seed, at_the_bound)
        outputs = []
        for in_bytes in (bytes_are_exact(), False):
            monkeypatch.setattr(integer, "bytes_are_exact", lambda answer=in_bytes: answer)
            outputs.append(integer_convolution(x if signed else x.abs(), *layer, LOW, HIGH))
        assert torch.equal(*outputs)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("in_bytes", [bytes_are_exact(), False])
@pytest.mark.parametrize("size", [1, 3])
def test_gradients_are_those_of_a_convolution(size, in_bytes, autocast, monkeypatch):
    monkeypatch.setattr(integer, "bytes_are_exact", lambda: in_bytes)
    x, weight, _, bias = problem(size, 0, False)
    unit = torch.full((3,), 2.0**SHIFT, dtype=torch.float64)
    inputs = x.requires_grad_(), weight.requires_grad_()
    direction = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    real = F.conv2d(*inputs, padding=size // 2)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours = integer_convolution(*inputs, unit, 0 * bias, LOW, HIGH)
        assert torch.equal(ours, real)
        gradients = torch.autograd.grad(ours, inputs, direction)
    for a, b in zip(gradients, torch.autograd.grad(real, inputs, direction), strict=True):
        assert a.dtype == torch.float32 and (a - b).norm() < (0.01 if autocast else 1e-5) * b.norm()


def test_bytes_are_left_alone_where_saturating_instructions_may_be_asked_for(monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert not bytes_are_exact.__wrapped__()


def test_halves_are_rounded_up():
    x, one = torch.arange(-5.0, 6.0).view(1, 1, 1, -1), torch.ones(1, dtype=torch.float64)
    output = integer_convolution(x, torch.ones(1, 1, 1, 1), one * 2 ** (SHIFT - 1), one.view(1, 1, 1, 1) * 0, LOW, HIGH)
    assert output.flatten().tolist() == [-2, -2, -1, -1, 0, 0, 1, 1, 2, 2, 3]


@contextlib.contextmanager
def medium_precision():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


CIRCUMSTANCES = {
    "medium precision": medium_precision,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "two threads": two_threads,
    "no gradients": torch.inference_mode,
}


@pytest.mark.parametrize("circumstance", CIRCUMSTANCES)
@pytest.mark.parametrize("size", [1, 3])
def test_layers_are_exact_whatever_is_set_globally(size, circumstance):
    x, weight, multiplier, bias = problem(size, 0, False)
    expected = integer_convolution(x, weight, multiplier, bias, LOW, HIGH)
    with CIRCUMSTANCES[circumstance](), exact_arithmetic():
        assert torch.equal(integer_convolution(x, weight, multiplier, bias, LOW, HIGH), expected)


def test_exact_arithmetic_restores_what_was_set():
    before = torch.get_float32_matmul_precision()
    with medium_precision():
        with exact_arithmetic():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "medium"
    assert torch.get_float32_matmul_precision() == before


def test_exact_arithmetic_holds_until_the_last_thread_leaves_it():
    with medium_precision():
        first, second = exact_arithmetic(), exact_arithmetic()
        first.__enter__()
        with ThreadPoolExecutor(1) as thread:
            thread.submit(second.__enter__).result()
            first.__exit__(None, None, None)
            assert torch.get_float32_matmul_precision() == "highest"
            thread.submit(second.__exit__, None, None, None).result()
        assert torch.get_float32_matmul_precision() == "medium"


@pytest.mark.parametrize("size", [1, 3])
def test_the_order_of_summation_does_not_matter(size):
    x, weight, multiplier, bias = problem(size, 1, False)
    expected = integer_convolution(x, weight, multiplier, bias, LOW, HIGH)
    order = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(0))
    assert torch.equal(integer_convolution(x[:, order], weight[:, order], multiplier, bias, LOW, HIGH), expected)
    last = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(integer_convolution(last, weight, multiplier, bias, LOW, HIGH), expected)
    alone = [integer_convolution(x[i : i + 1], weight, multiplier, bias[i : i + 1], LOW, HIGH) for i in range(2)]
    assert torch.equal(torch.cat(alone), expected)


@pytest.fixture(params=[1, 3])
def trainable(request):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = TrainableIntegerConv(5, 4, request.param, -400, 400, weight_unit=2)
        torch.nn.init.normal_(layer.bias.anchors)
    return layer


def inputs(count=8):
    generator = torch.Generator().manual_seed(3)
    x = torch.randint(-INPUT_MAX, INPUT_MAX + 1, (count, 5, 6, 7), generator=generator).float()
    return x, torch.randint(LEVELS, (count,), generator=generator)


def test_a_trainable_layer_computes_what_its_export_computes(trainable):
    x, level = inputs()
    output = trainable(x, level)
    assert torch.equal(output, trainable.export()(x, level))
    assert torch.equal(output, output.round()) and output.min() >= -400 and output.max() <= 400
    assert output.unique().numel() > 100


@pytest.mark.parametrize("channels", [slice(None), slice(1, None, 2)])
def test_a_layer_without_gradients_is_the_same_and_follows_its_integers(trainable, channels):
    (x, level), layer = inputs(), trainable.export()
    for change in (
        lambda: None,
        lambda: layer.weight.neg_(),
        lambda: layer.multiplier.mul_(2),
        lambda: layer.bias.neg_(),
    ):
        change()
        expected = layer(x, level, channels)
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                assert torch.equal(layer(x, level, channels), expected)
                assert torch.equal(layer(x, level, channels), layer(x, level)[:, channels])


def test_a_trainable_layer_is_close_to_the_real_one(trainable):
    x, level = inputs()
    real = F.conv2d(x, 2 * trainable.weight, padding=trainable.weight.shape[-1] // 2) + 32 * trainable.bias(level)
    assert (trainable(x, level) - real.clamp(-400, 400)).abs().mean() < 0.02 * real.abs().mean()


def test_gradients_are_those_of_the_real_layer(trainable):
    trainable.low, trainable.high = LOW, HIGH
    x, level = inputs()
    x.requires_grad_()
    direction = torch.randn(8, 4, 6, 7, generator=torch.Generator().manual_seed(0))
    (trainable(x, level) * direction).sum().backward()
    ours = [x.grad, trainable.weight.grad, trainable.bias.anchors.grad]
    real = F.conv2d(x, 2 * trainable.weight, padding=trainable.weight.shape[-1] // 2) + 32 * trainable.bias(level)
    theirs = torch.autograd.grad((real * direction).sum(), [x, trainable.weight, trainable.bias.anchors])
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).norm() < 0.02 * b.norm()


def test_gradients_at_the_clamps_lead_back_only(trainable):
    trainable.low, trainable.high = 0, 0
    x, level = inputs()
    x.requires_grad_()
    trainable(x, level).sum().backward()
    assert torch.isfinite(x.grad).all() and x.grad.abs().sum() > 0


def test_gradients_reach_hidden_units_on_both_sides_of_their_thresholds(trainable):
    trainable.low, trainable.high = 0, INPUT_MAX
    x, level = inputs()
    output = trainable(x, level)
    pushed = torch.ones_like(output)
    gradients = [torch.autograd.grad(output, trainable.bias.anchors, s * pushed, retain_graph=True)[0] for s in (1, -1)]
    assert (output == 0).float().mean() > 0.2 and torch.equal(gradients[0], -gradients[1])


@pytest.mark.parametrize("size", [1e-9, 1.0, 1e4])
def test_any_trained_weights_can_be_exported(size):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = TrainableIntegerConv(300, 4, 3, 0, 255)
    with torch.no_grad():
        layer.weight.mul_(size)
        layer.bias.anchors.fill_(1e12)
    layer.export().check()


def test_the_bound_is_checked():
    layer = IntegerConv(600, 2, 1, 0, 255)
    layer.weight[1].fill_(109)
    layer.check()
    layer.weight[1].fill_(110)
    with pytest.raises(ModelError, match="too large"):
        layer.check()


@pytest.mark.parametrize("multiplier", [-1, 0, MULTIPLIER_MAX + 1])
def test_multipliers_are_checked(multiplier):
    layer = IntegerConv(3, 2, 1, 0, 255)
    layer.multiplier[1] = multiplier
    with pytest.raises(ModelError, match="multiplier"):
        layer.check()


@pytest.mark.parametrize("seen", [4, 8])
def test_the_scale_network_gives_table_indexes_and_its_export_the_same_ones(seen):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ScaleNetwork(4, [*passes_over(slice(0, 8), 4), *passes_over(slice(8, 12), 2)], 16, seen)
        for layer in network.modules():
            if isinstance(layer, TrainableIntegerConv):
                torch.nn.init.normal_(layer.bias.anchors, std=0.3)
    generator = torch.Generator().manual_seed(0)
    h = torch.randint(-99, 100, (2, 4, 3, 2), generator=generator).float()
    magnitudes = magnitude_code(torch.randint(-9999, 9999, (2, seen, 6, 4), generator=generator))
    level = torch.tensor([0, 255])

    def indexes():
        f, direct = network.start(h, level)
        found = [network.index(0, f, direct, level)]
        for n in range(1, 6):
            f = network.extend(n, f, magnitudes if n < 5 else magnitudes[:, :4], level)
            found.append(network.index(n, f, direct, level))
        return torch.cat(found, 1)

    trained = indexes().detach()
    assert torch.equal(trained, trained.round()) and trained.min() >= 0 and trained.max() <= 63
    assert trained.unique().numel() > 10
    convert_layers(network, TrainableIntegerConv.export)
    check_layers(network)
    assert torch.equal(indexes(), trained)


@pytest.mark.parametrize("ways", [2, 4])
def test_the_hyper_network_gives_laws_in_integers_from_what_is_known_and_its_export_the_same_ones(ways):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = HyperNetwork(8, ways)
        for layer in network.modules():
            if isinstance(layer, TrainableIntegerConv):
                torch.nn.init.normal_(layer.weight, std=0.3)
                torch.nn.init.normal_(layer.bias.anchors, std=0.5)
    generator, level = torch.Generator().manual_seed(0), torch.tensor([0, 255])
    h = torch.randint(-400, 400, (2, 8, 5, 4), generator=generator) / HYPER_UNIT

    def laws():
        return torch.cat([value for n in range(ways) for value in network.law(n, h, level)], 1).detach()

    trained = laws()
    means, indexes = trained.view(2, ways, 2, 8 // ways, 5, 4).transpose(0, 2).flatten(1)
    assert torch.equal(HYPER_UNIT * means, (HYPER_UNIT * means).round()) and means.unique().numel() > 10
    assert torch.equal(indexes, indexes.round()) and indexes.min() >= 0 and indexes.max() <= 63
    assert torch.equal(network.law(0, h, level)[1], network.law(0, 0 * h, level)[1])
    convert_layers(network, TrainableIntegerConv.export)
    check_layers(network)
    assert torch.equal(laws(), trained)


def test_magnitudes_are_integer_logarithms():
    codes = magnitude_code(torch.arange(256))
    assert torch.equal(codes, codes.round()) and (codes.diff() >= 0).all()
    exponents = [(k + 1).bit_length() - 1 for k in range(256)]
    assert codes.tolist() == [min(255, 32 * e + (32 * (k + 1 - (1 << e)) >> e)) for k, e in enumerate(exponents)]
    symbols = torch.tensor([0, 1, -1, 3, -(2**31) + 1, 2**31 - 1], dtype=torch.int32)
    assert magnitude_code(symbols).tolist() == [0, 32, 32, 64, 255, 255]
