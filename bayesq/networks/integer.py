"""Integer convolutions that give the same result on every machine, and can be trained.

A layer computes ``clamp(⌊(m·(w ∗ x) + b) / 2²⁰ + ½⌋)`` with int8 weights w, integer inputs |x| ≤ 255, and one integer
multiplier m and bias b per output channel. Why this is exact although it runs on floating-point units:

- ``w ∗ x`` is a float32 matrix product of integers. Each partial sum, in whatever order and with or without fused
  multiply-add, is an integer of magnitude at most 255·Σ|w| ≤ 2²⁴ (enforced when weights are quantised, checked when a
  model is exported or loaded), hence a float32 number, hence never rounded.
- ``m·acc + b + 2¹⁹`` is evaluated in float64, in units of 2⁻²⁰, which only change the exponent: |m·acc| ≤ 2⁵¹ and
  |b| < 2⁵¹ keep product and sum integers below 2⁵³ of these units, and floor and clamp are exact.

Convolutions are written as matrix products, because convolution routines may use Winograd's or Fourier transforms,
which round. ``exact_arithmetic`` forbids the reduced-precision products (TF32, bfloat16) that a user may
have allowed globally.

Where the processor has instructions for them, the products are those of bytes, added up in 32 bits: the same integers,
several times as fast.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayesq.errors import ModelError
from bayesq.networks.rate import LEVELS, Interpolated
from bayesq.quantizers import Clamp, LeakyClamp, StraightThrough
from bayesq.runtime import bytes_add_up_in_words

SHIFT = 20
INPUT_MAX = 255
ACCUMULATOR_MAX = 2**24
MULTIPLIER_MAX = 2**27
BIAS_MAX = 2**31 - 1
EVERY = slice(None)
_Operands = tuple[Tensor, Tensor, Tensor]
LIMITS = "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"
"""Environment variables that keep torch from using a processor's instructions."""


class _FullPrecision:
    """Sets torch's global precision of matrix products for as long as any thread is inside."""

    def __init__(self) -> None:
        self.lock, self.inside, self.before = Lock(), 0, "highest"

    def __enter__(self) -> None:
        with self.lock:
            if not self.inside:
                self.before = torch.get_float32_matmul_precision()
                torch.set_float32_matmul_precision("highest")
            self.inside += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside:
                torch.set_float32_matmul_precision(self.before)


_full_precision = _FullPrecision()


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """Full float32 matrix products within the block, whatever precision is set globally; no autocast."""
    with _full_precision, torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield


def integer_convolution(x: Tensor, weight: Tensor, multiplier: Tensor, bias: Tensor, low: int, high: int) -> Tensor:
    """The layer of the module docstring, with straight-through gradients for rounding.

    Args:
        x: ``(B, I, h, w)`` float32 holding integers in ±255.
        weight: ``(O, I, k, k)`` float32 or int8 holding integers in ±127; k odd, zero padding keeps the size.
        multiplier: ``(O,)`` float64 holding positive integers.
        bias: ``(B, O, 1, 1)`` float64 holding integers.
        low, high: Output range; 0 and 255 are those of hidden units, whose gradients pass ``LeakyClamp``.

    Returns:
        ``(B, O, h, w)`` float32 holding integers in [low, high].
    """
    scaled_bias, scaled_multiplier = _scaled(multiplier, bias.movedim(1, -1))
    if not torch.is_grad_enabled():
        return _layer(x, _elements(weight), scaled_multiplier, scaled_bias, low, high)
    real = torch.addcmul(scaled_bias, _Correlation.apply(x.movedim(1, -1), weight), scaled_multiplier)
    rounded = StraightThrough.apply(torch.floor(real.detach()), real)
    hidden = (low, high) == (0, INPUT_MAX)
    return (LeakyClamp if hidden else Clamp).apply(rounded, low, high).float().movedim(-1, 1)


def _scaled(multiplier: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Bias, with the half by which floor rounds, and multiplier, over 2²⁰: a power of two, so that this is exact."""
    unit = 2.0**-SHIFT
    return (bias.double() + 2 ** (SHIFT - 1)) * unit, multiplier.double() * unit


def _layer(x: Tensor, elements: Tensor, multiplier: Tensor, bias: Tensor, low: int, high: int) -> Tensor:
    """The layer without gradients; multiplier and bias, which broadcasts to ``(B, h, w, O)``, are ``_scaled``."""
    real = _correlation(x.movedim(1, -1), elements).double()
    torch.addcmul(bias, real, multiplier, out=real)
    return real.floor_().float().clamp_(low, high).movedim(-1, 1)


@cache
def bytes_are_exact() -> bool:
    """Whether torch's matrix products of bytes are right and fast on this processor, under this environment."""
    limited = any(name in os.environ for name in LIMITS)
    if limited or not bytes_add_up_in_words() or not hasattr(torch, "_int_mm"):
        return False
    x, weight = torch.full((64, 256), INPUT_MAX, dtype=torch.uint8), torch.full((256, 64), 127, dtype=torch.int8)
    return bool((torch._int_mm(x, weight) == 256 * INPUT_MAX * 127).all())


class _Correlation(torch.autograd.Function):
    """w ∗ x in float64 for x ``(B, h, w, I)``; gradients are a convolution's, in bfloat16 under autocast."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, weight)
        ctx.dtype = torch.bfloat16 if torch.is_autocast_enabled(x.device.type) else torch.float32
        with torch.autocast(x.device.type, enabled=False):
            return _correlation(x, _elements(weight)).double()

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[no-untyped-def]
        x, weight = ctx.saved_tensors
        args = (t.to(ctx.dtype) for t in (gradient.movedim(-1, 1), x.movedim(-1, 1), weight))
        reach, wanted = weight.shape[-1] // 2, [*ctx.needs_input_grad, False]
        one, none = [1, 1], [0, 0]
        dx, dw, _ = torch.ops.aten.convolution_backward(*args, None, one, [reach] * 2, one, False, none, 1, wanted)
        return None if dx is None else dx.movedim(1, -1).to(x), None if dw is None else dw.to(weight)


def _elements(weight: Tensor) -> Tensor:
    """A matrix ``(I, O)`` for each element of the kernel ``(O, I, k, k)``, in the type in which it will be used."""
    kind = torch.int8 if _in_bytes(weight) else torch.float32
    return weight.permute(2, 3, 1, 0).flatten(0, 1).to(kind).contiguous()


def _in_bytes(x: Tensor) -> bool:
    return x.device.type == "cpu" and bytes_are_exact()


def _correlation(x: Tensor, elements: Tensor) -> Tensor:
    """w ∗ x for x ``(B, h, w, I)``, without gradients: the sum of a matrix product for each of w's ``_elements``.

    Seen as a row of pixels, the pictures under an element of the kernel are the padded pictures from some pixel on;
    what comes out beyond their borders is cut off.
    """
    in_bytes = _in_bytes(x)
    if in_bytes:
        if x.amin() < 0:
            x, elements = torch.cat([x, -x], -1).clamp_min_(0), torch.cat([elements, -elements], 1)
        x = x.to(torch.uint8)
    (height, width), size = x.shape[1:3], math.isqrt(len(elements))
    x = F.pad(x, (0, 0, *[size // 2] * 4)) if size > 1 else x
    pixels = x.flatten(0, 2)
    starts = [row * x.shape[2] + column for row in range(size) for column in range(size)]
    count, multiply = len(pixels) - starts[-1], torch._int_mm if in_bytes else torch.mm
    total = multiply(pixels[:count], elements[0])
    for start, element in zip(starts[1:], elements[1:], strict=True):
        seen = pixels[start : start + count]
        total = total.add_(multiply(seen, element)) if in_bytes else total.addmm_(seen, element)
    total = F.pad(total, (0, 0, 0, starts[-1])) if size > 1 else total
    return total.unflatten(0, x.shape[:3])[:, :height, :width]


def _check_bound(weight: Tensor) -> None:
    if INPUT_MAX * int(weight.abs().flatten(1).sum(1).max()) > ACCUMULATOR_MAX:
        raise ModelError("integer layer: a sum of weights is too large for exact accumulation")


class IntegerConv(nn.Module):
    """An exported layer: integers only, with a bias for each of the 256 quality levels."""

    weight: Tensor
    multiplier: Tensor
    bias: Tensor

    def __init__(self, inputs: int, outputs: int, size: int, low: int, high: int) -> None:
        super().__init__()
        self.low, self.high = low, high
        self.register_buffer("weight", torch.zeros(outputs, inputs, size, size, dtype=torch.int8))
        self.register_buffer("multiplier", torch.ones(outputs, dtype=torch.int32))
        self.register_buffer("bias", torch.zeros(LEVELS, outputs, dtype=torch.int32))
        self._kept: tuple[Any, dict[Any, _Operands]] = None, {}

    def check(self) -> None:
        """Raises ModelError unless the bounds that make the layer exact hold."""
        _check_bound(self.weight.int())
        if int(self.multiplier.min()) < 1 or int(self.multiplier.max()) > MULTIPLIER_MAX:
            raise ModelError("integer layer: a multiplier is out of range")

    def forward(self, x: Tensor, level: Tensor, channels: slice = EVERY) -> Tensor:
        """Of all output channels or of some."""
        if torch.is_grad_enabled():
            multiplier, bias = self.multiplier[channels].double(), self.bias[level, channels].double()[:, :, None, None]
            return integer_convolution(x, self.weight[channels], multiplier, bias, self.low, self.high)
        elements, multiplier, biases = self._operands(channels)
        return _layer(x, elements, multiplier, biases[level][:, None, None], self.low, self.high)

    def _operands(self, channels: slice) -> _Operands:
        """What ``_layer`` takes, with biases for all levels; kept until the integers change or move."""
        integers = self.weight, self.multiplier, self.bias
        if any(tensor.is_inference() for tensor in integers):  # which do not tell whether they changed
            return self._prepared(channels)
        stamp = bytes_are_exact(), *((t.data_ptr(), t.device, t._version) for t in integers)
        if self._kept[0] != stamp:
            self._kept = stamp, {}
        kept, key = self._kept[1], (channels.start, channels.stop, channels.step)
        if key not in kept:
            kept[key] = self._prepared(channels)
        return kept[key]

    def _prepared(self, channels: slice) -> _Operands:
        biases, multiplier = _scaled(self.multiplier[channels], self.bias[:, channels])
        return _elements(self.weight[channels]), multiplier, biases


class TrainableIntegerConv(nn.Module):
    """The same layer with real weights behind it; it computes what its export will compute.

    Args:
        inputs, outputs: Channels.
        size: Kernel size, odd.
        low, high: Output range.
        weight_unit, bias_unit: What a stored 1 stands for. Integer activations are tens where those of an ordinary
            network are ones, and an optimiser's step is the same for all parameters, so they are kept in natural size.
        gain: Standard deviation of the initial weights relative to He's.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        low: int,
        high: int,
        weight_unit: float = 1.0,
        bias_unit: float = 32.0,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.low, self.high, self.weight_unit, self.bias_unit = low, high, weight_unit, bias_unit
        self.weight = nn.Parameter(torch.randn(outputs, inputs, size, size) * gain * (2 / (inputs * size**2)) ** 0.5)
        self.bias = Interpolated(outputs)

    def _integers(self) -> tuple[Tensor, Tensor]:
        weight = self.weight * self.weight_unit
        flat = weight.detach().flatten(1)
        step = torch.maximum(flat.abs().amax(1) / 127, flat.abs().sum(1) * (1.05 * INPUT_MAX / ACCUMULATOR_MAX))
        multiplier = torch.clamp(torch.ceil(step.double() * 2**SHIFT), 1, MULTIPLIER_MAX)
        real = weight / (multiplier * 2.0**-SHIFT).float().view(-1, 1, 1, 1)
        return StraightThrough.apply(torch.round(real.detach()), real), multiplier

    def _integer_bias(self, level: Tensor) -> Tensor:
        real = self.bias(level).double() * (self.bias_unit * 2**SHIFT)
        return StraightThrough.apply(torch.round(real.detach()).clamp(-BIAS_MAX, BIAS_MAX), real)

    def forward(self, x: Tensor, level: Tensor, channels: slice = EVERY) -> Tensor:
        """Of all output channels or of some."""
        (weight, multiplier), bias = self._integers(), self._integer_bias(level)[:, channels]
        return integer_convolution(x, weight[channels], multiplier[channels], bias, self.low, self.high)

    @torch.no_grad()
    def adopt(self, layer: IntegerConv) -> None:
        """Takes over the integers of an exported layer of the same shape: exports to it again, but for roundings."""
        multiplier = layer.multiplier.view(-1, 1, 1, 1) * 2.0**-SHIFT
        self.weight.copy_(layer.weight * multiplier / self.weight_unit)
        self.bias.fit(layer.bias / (self.bias_unit * 2**SHIFT))

    def blank(self) -> IntegerConv:
        """An exported layer of the same shape, for other integers."""
        outputs, inputs, size, _ = self.weight.shape
        return IntegerConv(inputs, outputs, size, self.low, self.high)

    @torch.no_grad()
    def export(self) -> IntegerConv:
        """The layer in integers. Raises ModelError if its exactness bound does not hold."""
        layer = self.blank()
        weight, multiplier = self._integers()
        if int(weight.abs().max()) > 127:
            raise ModelError("integer layer: a weight is too large for eight bits")
        layer.weight.copy_(weight)
        layer.multiplier.copy_(multiplier)
        layer.bias.copy_(self._integer_bias(torch.arange(LEVELS))[:, :, 0, 0])
        layer.check()
        return layer


def convert_layers(module: nn.Module, convert: Callable[[TrainableIntegerConv], IntegerConv]) -> None:
    """Replaces every trainable integer layer within a module, in place."""
    for name, child in list(module.named_children()):
        if isinstance(child, TrainableIntegerConv):
            setattr(module, name, convert(child))
        else:
            convert_layers(child, convert)


def check_layers(module: nn.Module) -> None:
    """Raises ModelError unless every exported layer within a module keeps the bounds that make it exact."""
    for layer in module.modules():
        if isinstance(layer, IntegerConv):
            layer.check()
