"""Quantised convolutions in training, whose export computes what they compute.

Weights, scales, biases, and the steps and zero points of inputs learn; what is rounded is passed straight through.
Unlike learned step size quantisation (LSQ, Esser et al., arXiv 1902.08153), what is rounded is the weight over its
scale: a scale that moves carries its row along and leaves the codes as they are. Many belong to weights at the border
of their cells, where GPTQ put them so that errors make up for one another. LSQ divides the gradients of steps by
√(N · Q), N weights of Q codes; under Adam, which measures gradients by their own size, this changes nothing.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayesq.quantization.formats import Format
from bayesq.quantization.formats.base import SCALE_MIN, half
from bayesq.quantization.gradients import rounded
from bayesq.quantization.layers import GRID, QuantizedConv, bits_of

INSIDE = 0.25
"""Of a cell's width: weights that start no farther from its middle keep their codes for a while."""


class LearnedConv(nn.Module):
    """A quantised convolution in training; it computes what its export will compute, but for half precision.

    Args:
        layer: What it starts as.
        weight: The weights behind the codes, of the shaped layer. They start within the cells of their codes.
        sharpness: Of the gradient of rounded inputs, see ``rounded``.
        reach: How far from the middle of its cell a weight starts at most, in widths of the cell.
    """

    def __init__(
        self, layer: QuantizedConv, weight: Tensor, sharpness: float | None = None, reach: float = INSIDE
    ) -> None:
        super().__init__()
        self.layer = copy.deepcopy(layer)
        cell = layer.grid.cell(layer.grid.unpack(layer.codes, layer.spec.shape))
        far = reach * cell.width
        self.weight = nn.Parameter(torch.maximum(torch.minimum(weight, cell.centre + far), cell.centre - far))
        self.log_scale = nn.Parameter(layer.grid_parameters["scale"].log())
        self.bias = nn.Parameter(torch.zeros(layer.spec.shape[0]) if layer.bias is None else layer.bias.clone())
        self.log_step = None if layer.step is None else nn.Parameter(layer.step.log())
        self.zero = None if layer.zero is None else nn.Parameter(layer.zero.float())
        self.grain, self.sharpness = float(cell.width.mean()), sharpness

    def groups(self, rate: float, scales: float, weights: bool = True) -> list[dict]:
        """What learns, for an optimiser, with its learning rates.

        Args:
            rate: Of weights, biases and zero points, in steps of their grids.
            scales: Of the logarithms of scales and steps.
            weights: Whether weights, their scales and biases learn too, not only the steps and zero points of inputs.
        """
        rates = {self.log_step: scales, self.zero: rate}
        if weights:
            rates |= {self.weight: rate * self.grain, self.bias: rate * self.grain, self.log_scale: scales}
        return [{"params": [p.requires_grad_()], "lr": own} for p, own in rates.items() if p is not None]

    def decoded(self) -> Tensor:
        """The weights as their codes stand for them; gradients as described above."""
        grid, first = self.layer.grid, self.layer.grid_parameters["scale"]
        codes = grid.index(self.weight)
        value, inside = grid.value(codes), grid.cell(codes).contains(self.weight.detach()).float()
        straight = value + inside * (self.weight - self.weight.detach())
        growth = self.log_scale.exp() / first
        return (straight.view(len(first), -1) * growth.view(len(first), -1)).view(value.shape)

    def rounded(self, x: Tensor) -> Tensor:
        """Shaped inputs as their codes stand for them."""
        activation = self.layer.spec.activation
        if self.log_step is None or activation is None:
            return x
        step = self.log_step.exp().view(1, -1, 1, 1)
        if isinstance(activation, Format):
            grid = activation.grid({"scale": torch.ones(1, 1)})
            return step * grid.straight_through((x / step).clamp(-1, 1))
        if self.zero is None:
            return x
        zero = rounded(self.zero).view(1, -1, 1, 1)
        return step * (rounded((x / step + zero).clamp(0, 2**activation - 1), self.sharpness) - zero)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer.shaped(x)
        y = F.conv2d(self.rounded(x), self.decoded(), self.bias)
        if self.layer.low_in is None or self.layer.low_out is None:
            return y
        return y + F.conv2d(F.conv2d(x, self.layer.low_in), self.layer.low_out)

    @torch.no_grad()
    def export(self) -> QuantizedConv:
        """The layer with what it learned, as it is stored."""
        scale, grid = half(self.log_scale.exp().clamp_min(SCALE_MIN)), self.layer.grid
        state = {name: buffer for name, buffer in self.layer.state_dict().items() if buffer is not None}
        state |= {GRID + "scale": scale, "codes": grid.pack(grid.index(self.weight)), "bias": self.bias.detach()}
        if self.log_step is not None:
            state["step"] = self.log_step.exp()
        if self.zero is not None:
            state["zero"] = self.zero.round().clamp(0, 2 ** bits_of(self.layer.spec.activation) - 1).int()
        return QuantizedConv(self.layer.spec, self.layer.padding, state)
