"""A convolution on its way to be quantised."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayesq.errors import ModelError
from bayesq.quantization.calibration import Seen
from bayesq.quantization.formats import Affine, Format, Parameters, Range
from bayesq.quantization.formats.base import Scaled, whole_range
from bayesq.quantization.layers import GRID, Activation, QuantizedConv, Spec

COLUMNS = 4096
"""Positions that weights are reconstructed on, at most, a layer."""
HEADROOM = 4
"""How much farther than what calibration saw inputs of more than eight bits reach. Latents that few crops have at all
go far beyond, and two of 16 bits are nothing beside what is lost where inputs are clipped."""


def _form_of(activation: int | Format, by_channel: bool = False) -> Format:
    if isinstance(activation, int):
        return Affine(activation, 0 if by_channel else None, symmetric=False)
    if not isinstance(activation, Scaled) or activation.group is not None:
        raise ModelError(f"{activation}: inputs are levels with one scale, without groups")
    return activation


@dataclass(frozen=True)
class Draft:
    """Weights, what they see, and what is done to both before they are rounded; see ``QuantizedConv``.

    Attributes:
        weight: ``(O, I, k, k)`` as it meets the shaped input.
        bias: ``(O,)``.
        padding: Zeros around the input.
        inputs: ``(n, I, h, w)`` padded and shaped, calibrated in floating point.
        sensitivity: Squared gradients of the loss with respect to them.
        fisher: Squared gradients with respect to the weights.
        positions: Outputs a pixel of the picture.
        shift, scale: ``(1, I, 1, 1)``, None for none.
        rotation: Channels that are rotated together.
        low: Two thin convolutions whose sum with ``weight`` is the layer, None for none.
        activation: Bits of the inputs, or their format; None for floating point.
        step, zero: Of the inputs' codes; the scale of a format's levels, which have no zero point.
    """

    weight: Tensor
    bias: Tensor
    padding: tuple[int, int]
    inputs: Tensor
    sensitivity: Tensor
    fisher: Tensor
    positions: float
    shift: Tensor | None = None
    scale: Tensor | None = None
    rotation: int = 1
    low: tuple[Tensor, Tensor] | None = None
    activation: Activation = None
    step: Tensor | None = None
    zero: Tensor | None = None

    @classmethod
    def of(cls, conv: nn.Conv2d, seen: Seen) -> Draft:
        """The layer as it is. Only convolutions of stride 1 and one group, padded with zeros, are known here."""
        assert conv.stride == (1, 1) and conv.groups == 1 and conv.dilation == (1, 1) and conv.padding_mode == "zeros"
        assert not isinstance(conv.padding, str)
        weight = conv.weight.detach().clone(memory_format=torch.contiguous_format)
        bias = torch.zeros(len(weight)) if conv.bias is None else conv.bias.detach().clone()
        rows, columns = conv.padding
        inputs, sensitivity = (
            F.pad(x, (columns, columns, rows, rows)).contiguous() for x in (seen.inputs, seen.sensitivity)
        )
        return cls(weight, bias, (rows, columns), inputs, sensitivity, seen.fisher.contiguous(), seen.positions)

    @property
    def importance(self) -> Tensor:
        """Of the weights' squared errors: ``fisher``, no weight counting for nothing."""
        return self.fisher + 1e-2 * self.fisher.mean() + 1e-30

    @property
    def rounded(self) -> Tensor:
        """The inputs as their codes stand for them."""
        if self.activation is None or self.step is None:
            return self.inputs
        parameters = {"scale": self.step[:, None]} | ({} if self.zero is None else {"zero": self.zero[:, None]})
        grid = _form_of(self.activation).grid(parameters)
        return grid.straight_through(self.inputs.transpose(0, 1).contiguous()).transpose(0, 1)

    def with_activation(self, activation: int | Format, by_channel: bool = False, span: Range = whole_range) -> Draft:
        """With inputs of so many bits, in one range for all or one for each channel; errors count by sensitivity.

        Inputs of a format's levels have one range, and no zero point.
        """
        form = _form_of(activation, by_channel)
        values, weights = (x.transpose(0, 1).contiguous() for x in (self.inputs, self.sensitivity))
        fitted = form.fit(values * (HEADROOM if form.bits > 8 else 1), weights + 1e-30, span)
        zero = fitted["zero"][:, 0].int() if "zero" in fitted else None
        return replace(self, activation=activation, step=fitted["scale"][:, 0], zero=zero)

    @property
    def importance_of_columns(self) -> Tensor:
        """How much the loss minds each of the columns, ``(positions,)``: its sensitivity, mean one."""
        weights = self.columns(self.sensitivity.mean(1, keepdim=True).expand_as(self.inputs)).mean(0)
        return weights / weights.mean().clamp_min(1e-30)

    def columns(self, inputs: Tensor) -> Tensor:
        """Inputs as the layer's matrix sees them, ``(I·k·k, positions)``, at most ``COLUMNS`` of them."""
        columns = F.unfold(inputs, self.weight.shape[-2:]).transpose(0, 1).flatten(1)
        return columns[:, :: -(-columns.shape[1] // COLUMNS)]


@dataclass(frozen=True)
class Reconstruction:
    """A draft and codes for its weights.

    Attributes:
        draft: What the codes were chosen for.
        form, parameters: What decodes them.
        codes: int32 of the weights' shape.
    """

    draft: Draft
    form: Format
    parameters: Parameters
    codes: Tensor

    @property
    def weight(self) -> Tensor:
        """The weights as their codes stand for them."""
        return self.form.grid(self.parameters).value(self.codes)

    def layer(self) -> QuantizedConv:
        """The quantised layer."""
        draft = self.draft
        outputs, inputs, height, width = draft.weight.shape
        spec = Spec(self.form, (outputs, inputs, height, width), draft.activation, draft.rotation)
        low_in, low_out = draft.low or (None, None)
        optional = {
            "bias": draft.bias,
            "input_shift": draft.shift,
            "input_scale": draft.scale,
            "step": draft.step,
            "zero": draft.zero,
            "low_in": low_in,
            "low_out": low_out,
        }
        tensors = {GRID + name: tensor for name, tensor in self.parameters.items()}
        tensors["codes"] = self.form.grid(self.parameters).pack(self.codes)
        return QuantizedConv(spec, draft.padding, tensors | {k: v for k, v in optional.items() if v is not None})
