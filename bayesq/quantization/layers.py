"""Quantised convolutions: integers where there were weights, and integers for what comes in.

    x ─► − shift ─► · scale ─► rotate ─┬─► round to codes ─► convolution with decoded weights ─► + bias ─► y
                                       └─► two thin convolutions of low rank ─────────────────► +

What is not asked for is left out. The state of such a layer is what a weights file holds of it: packed codes and the
parameters that decode them. Ranges are fixed, so that tiles of a picture see the same network.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayesq.errors import ModelError
from bayesq.quantization.formats import Affine, Format, Parameters, as_json, from_json
from bayesq.quantization.formats.affine import ClippedLattice
from bayesq.quantization.formats.base import Grid, Scaled, half
from bayesq.runtime import bytes_add_up_in_words

GRID = "grid_"
Inputs = tuple[int, Tensor, Tensor]
"""Bits, step and zero point of what comes in, the latter of shape ``(1,)``."""


Activation = int | Format | None
"""What comes in: integers of so many bits, levels of a format, or floats."""


def bits_of(activation: Activation) -> float:
    """Of one number that comes in, 32 of a float."""
    return 32 if activation is None else activation if isinstance(activation, int) else activation.bits


@dataclass(frozen=True)
class Spec:
    """How a convolution is quantised.

    Attributes:
        format: Of the weights.
        shape: Of the weights, ``(O, I, k, k)``.
        activation: What comes in: integers of so many bits, or levels of a format with one scale; None for floating
            point.
        rotation: Channels in a row that are mixed by a Hadamard matrix; 1 for none.
        precisions: Bits of what comes in, in each further precision; see ``bayesq.quantization.dynamic``.
    """

    format: Format
    shape: tuple[int, int, int, int]
    activation: Activation = None
    rotation: int = 1
    precisions: tuple[int, ...] = ()

    def as_json(self) -> dict[str, Any]:
        content: dict[str, Any] = {"format": as_json(self.format), "shape": list(self.shape)}
        levels = as_json(self.activation) if isinstance(self.activation, Format) else self.activation
        content |= {"activation": levels, "rotation": self.rotation}
        return content | ({"precisions": list(self.precisions)} if self.precisions else {})

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Spec:
        """The inverse of ``as_json``. Raises KeyError, TypeError, ValueError or ModelError if it is none."""
        outputs, inputs, height, width = map(int, content["shape"])
        bits, rotation = content["activation"], int(content["rotation"])
        if isinstance(bits, dict):
            levels = from_json(bits)
            if not isinstance(levels, Scaled) or levels.group is not None:
                raise ValueError(f"{levels} is no format of inputs")
            return cls(from_json(content["format"]), (outputs, inputs, height, width), levels, rotation)
        precisions = tuple(map(int, content.get("precisions", ())))
        widths = [int(width) for width in (bits, *precisions) if width is not None]
        if not all(2 <= width <= 16 for width in widths) or rotation < 1 or inputs % rotation:
            raise ValueError("bits or rotation out of range")
        return cls(from_json(content["format"]), (outputs, inputs, height, width), bits, rotation, precisions)


def hadamard(size: int) -> Tensor:
    """The symmetric orthogonal matrix of signs of a size that is a power of two (Sylvester 1867)."""
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / size**0.5


def rotated(x: Tensor, size: int) -> Tensor:
    """x ``(B, C, …)`` with every ``size`` channels in a row multiplied by the Hadamard matrix; its own inverse."""
    if size == 1:
        return x
    parts = x.unflatten(1, (-1, size))
    return torch.einsum("bgc...,cd->bgd...", parts, hadamard(size).to(x)).flatten(1, 2)


class QuantizedConv(nn.Module):
    """A convolution with quantised weights.

    Args:
        spec: How it is quantised.
        padding: Zeros around its input.
        tensors: Its state: ``codes``, ``grid_…`` (parameters of the format) and, where there are such, ``bias``
            ``(O,)``, ``input_shift`` and ``input_scale`` ``(1, I, 1, 1)``, ``step`` and ``zero`` of what comes in,
            ``(1,)`` or ``(I,)``, ``low_in`` ``(r, I, k, k)`` and ``low_out`` ``(O, r, 1, 1)``, ``steps`` and ``zeros``
            of further precisions, ``(P,)``.

    Raises:
        ModelError: the codes are not those of such weights.
    """

    OPTIONAL = ("bias", "input_shift", "input_scale", "step", "zero", "low_in", "low_out", "steps", "zeros")
    codes: Tensor
    weight: Tensor
    bias: Tensor | None
    input_shift: Tensor | None
    input_scale: Tensor | None
    step: Tensor | None
    zero: Tensor | None
    low_in: Tensor | None
    low_out: Tensor | None
    steps: Tensor | None
    zeros: Tensor | None

    def __init__(self, spec: Spec, padding: tuple[int, int], tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.spec, self.padding = spec, padding
        for name, tensor in tensors.items():
            self.register_buffer(name, half(tensor) if tensor.is_floating_point() else tensor)
        for name in self.OPTIONAL:
            if name not in tensors:
                self.register_buffer(name, None)
        weight = self.grid.value(self.grid.unpack(self.codes, spec.shape))
        self.register_buffer("weight", weight.contiguous(memory_format=torch.channels_last), persistent=False)

    def extra_repr(self) -> str:
        return f"{self.spec}, padding={self.padding}"

    @property
    def grid(self) -> Grid:
        """The quantizer of the weights."""
        return self.spec.format.grid(self.grid_parameters)

    @property
    def grid_parameters(self) -> Parameters:
        """What decodes the codes."""
        return {name[len(GRID) :]: buffer for name, buffer in self.named_buffers() if name.startswith(GRID)}

    def shaped(self, x: Tensor) -> Tensor:
        """The input padded, shifted, scaled and rotated, before it is rounded."""
        (rows, columns), shift, scale = self.padding, self.input_shift, self.input_scale
        x = F.pad(x, (columns, columns, rows, rows)) if rows or columns else x
        x = x if shift is None else x - shift
        x = x if scale is None else _scaled(x, scale)
        return rotated(x, self.spec.rotation)

    def rounded(self, x: Tensor) -> Tensor:
        """The shaped input as its codes stand for it."""
        if self.spec.activation is None or self.step is None:
            return x
        if isinstance(self.spec.activation, Format):
            grid = self.spec.activation.grid({"scale": self.step[:, None]})
            return grid.value(grid.index(x)) if torch.jit.is_tracing() else grid.straight_through(x)
        if self.zero is None:
            return x
        top = 2**self.spec.activation - 1
        if len(self.step) == 1:
            return torch.fake_quantize_per_tensor_affine(x, self.step, self.zero, 0, top)
        return torch.fake_quantize_per_channel_affine(x, self.step, self.zero, 1, 0, top)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shaped(x)
        weight = self._traced_weight() if torch.jit.is_tracing() else self.weight
        y = F.conv2d(self.rounded(x), weight, self.bias)
        return (
            y if self.low_in is None or self.low_out is None else y + F.conv2d(F.conv2d(x, self.low_in), self.low_out)
        )

    def at(self, precision: int) -> QuantizedConv:
        """The layer in one of its further precisions, counted from 1; weights are shared."""
        assert self.steps is not None and self.zeros is not None
        bits, place = self.spec.precisions[precision - 1], slice(precision - 1, precision)
        other = copy.copy(self)
        own = {"step": self.steps[place].clone(), "zero": self.zeros[place].clone(), "steps": None, "zeros": None}
        other._buffers = {**self._buffers, **own}
        other.spec = dataclasses.replace(self.spec, activation=bits, precisions=())
        return other

    def with_precisions(self, inputs: Sequence[Inputs]) -> QuantizedConv:
        """The layer with these further precisions, each with one range for all channels; weights are shared."""
        other = copy.copy(self)
        steps, zeros = (torch.cat(parts) for parts in zip(*((step, zero) for _, step, zero in inputs), strict=True))
        other._buffers = {**self._buffers, "steps": half(steps), "zeros": zeros}
        other.spec = dataclasses.replace(self.spec, precisions=tuple(bits for bits, *_ in inputs))
        return other

    def _traced_weight(self) -> Tensor:
        """The weights as what is traced for an inference engine shows them: rounded once more, if they are eight-bit
        integers with one step a channel, so that the engine finds them to be such and takes its integer kernels."""
        if not in_integers(self.spec.format, self.spec.activation):
            return self.weight
        grid = self.grid
        assert isinstance(grid, ClippedLattice)
        step, zero = grid.step[:, 0], grid.zero[:, 0].int()
        return torch.fake_quantize_per_channel_affine(self.weight, step, zero, 0, 0, 2**grid.width - 1)


def _scaled(x: Tensor, scale: Tensor) -> Tensor:
    """x ``(B, C, h, w)`` times the scale of each channel, ``(1, C, 1, 1)``.

    Traced as a convolution of single pixels: OpenVINO (2026.4) would draw a product into the rounding after it, where
    it then scales eight channels alike.
    """
    return F.conv2d(x, scale.movedim(1, 0), groups=scale.shape[1]) if torch.jit.is_tracing() else x * scale


def in_integers(form: Format, activation: Activation) -> bool:
    """Whether inference engines have integer kernels for such weights and inputs that are right on this processor.

    They take eight bits and a step a channel. Without instructions that add up in 32 bits, sums saturate.
    """
    return fits_bytes(form, activation) and bytes_add_up_in_words()


def fits_bytes(form: Format, activation: Activation) -> bool:
    """Whether engines may take integer kernels for such weights and inputs."""
    return isinstance(form, Affine) and form.width <= 8 and form.group == 0 and activation == 8


def quantized(codec: nn.Module) -> Iterator[tuple[str, QuantizedConv]]:
    """The quantised layers of a codec and their names."""
    return ((name, layer) for name, layer in codec.named_modules() if isinstance(layer, QuantizedConv))


def layer_called(codec: nn.Module, name: str) -> QuantizedConv:
    """The quantised layer of that name."""
    layer = codec.get_submodule(name)
    assert isinstance(layer, QuantizedConv)
    return layer


def replace(codec: nn.Module, name: str, layer: nn.Module) -> None:
    """Puts a layer in the place of that name."""
    parent, _, last = name.rpartition(".")
    setattr(codec.get_submodule(parent), last, layer)


def described(codec: nn.Module) -> str:
    """JSON of the quantised layers' specifications by name, for the head of a weights file; empty without any."""
    layers = {name: layer.spec.as_json() for name, layer in quantized(codec)}
    return json.dumps(layers) if layers else ""


def install(codec: nn.Module, description: str, state: Mapping[str, Tensor]) -> None:
    """Replaces the convolutions that ``described`` tells of by the quantised ones of a state, in place.

    Raises:
        ModelError: a layer is not one of the codec's, or its tensors do not fit.
    """
    try:
        for name, content in json.loads(description).items():
            conv, spec = codec.get_submodule(name), Spec.from_json(content)
            if not isinstance(conv, nn.Conv2d) or tuple(conv.weight.shape) != spec.shape:
                raise ModelError(f"{name} is no convolution of shape {spec.shape}")
            tensors = {key[len(name) + 1 :]: value for key, value in state.items() if key.startswith(name + ".")}
            floats = {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}
            replace(codec, name, QuantizedConv(spec, _sides(conv), floats))
        if (bias := state.get("selector.head.bias")) is not None:
            from bayesq.quantization.dynamic import Selector

            codec.selector = Selector(len(bias))
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
        raise ModelError(f"the quantised layers do not fit the model ({error})") from error


def _sides(conv: nn.Conv2d) -> tuple[int, int]:
    assert not isinstance(conv.padding, str)
    rows, columns = conv.padding
    return rows, columns
