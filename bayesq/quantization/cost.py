"""What a codec's networks cost: bits stored and bit operations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from bayesq.codec import Codec
from bayesq.hyperprior import Hyperprior
from bayesq.networks.integer import IntegerConv
from bayesq.prior import quantize
from bayesq.quantization.layers import QuantizedConv, bits_of

FLOAT, STORED_FLOAT, INTEGER = 32, 16, 8
SIDE = 64


@dataclass(frozen=True)
class LayerCost:
    """Of one convolution.

    Attributes:
        weights: How many.
        bits: Stored of them, with what decodes them.
        macs: Multiply–adds a pixel of the picture.
        width, activation: Bits of the two factors: of a code, or of a float that is computed with.
    """

    weights: int
    bits: int
    macs: float
    width: float
    activation: float

    @property
    def operations(self) -> float:
        """Bit operations a pixel: multiply–adds times the bits of both factors."""
        return self.macs * self.width * self.activation


def stored_bits(tensors: Sequence[Tensor]) -> int:
    """Of tensors in a weights file, where floats are kept in half precision."""
    return sum(t.numel() * (STORED_FLOAT if t.is_floating_point() else 8 * t.element_size()) for t in tensors)


def cost_of(layer: nn.Module, positions: float) -> LayerCost:
    """Of a convolution with so many outputs a pixel of the picture."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    count, macs = weight.numel(), weight.numel() * positions
    if isinstance(layer, QuantizedConv):
        kept = [buffer for name, buffer in layer.state_dict().items() if name != "bias"]
        if layer.low_in is not None and layer.low_out is not None:
            macs += (layer.low_in.numel() + layer.low_out.numel()) * positions
        return LayerCost(count, stored_bits(kept), macs, layer.spec.format.factor, bits_of(layer.spec.activation))
    if isinstance(layer, IntegerConv):
        return LayerCost(count, INTEGER * count, macs, INTEGER, INTEGER)
    return LayerCost(count, STORED_FLOAT * count, macs, FLOAT, FLOAT)


def layer_costs(codec: Codec) -> dict[str, LayerCost]:
    """Of every convolution of an exported codec, by name."""
    kinds = nn.Conv2d | QuantizedConv | IntegerConv
    layers = {name: layer for name, layer in codec.named_modules() if isinstance(layer, kinds)}
    positions: Counter[str] = Counter()

    def look(name: str, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        positions[name] += output[0].numel()  # layers may be called in parts, and for some channels

    hooks = [layer.register_forward_hook(partial(look, name)) for name, layer in layers.items()]
    with torch.no_grad():
        z = codec.analysis(torch.zeros(1, 3, SIDE, SIDE), level := torch.tensor([128]))
        coded = quantize(codec.walk(1, SIDE, SIDE, level), codec.prior.targets(z, level))
        codec.picture(coded.values, SIDE, SIDE, level)
    for hook in hooks:
        hook.remove()
    return {n: cost_of(layers[n], count / _outputs(layers[n]) / SIDE**2) for n, count in positions.items()}


def _outputs(layer: nn.Module) -> int:
    assert isinstance(layer.weight, Tensor)
    return len(layer.weight)


@dataclass(frozen=True)
class Cost:
    """Of a whole codec.

    Attributes:
        bytes: Of its tensors in a weights file.
        weight_bits: Stored a weight, mean over all convolutions.
        quantised_bits: The same over those that are quantised, the integer scale path apart.
        activation_bits: Mean over the multiply–adds of g_a and g_s, which alone may have quantised inputs.
        operations: Bit operations to encode and decode one pixel.
    """

    bytes: int
    weight_bits: float
    quantised_bits: float
    activation_bits: float
    operations: float


def cost(codec: Codec) -> Cost:
    """What an exported codec costs."""
    layers = layer_costs(codec)
    chosen = {name: layers[name] for name, m in codec.named_modules() if isinstance(m, QuantizedConv)}
    transforms = [layer for name, layer in layers.items() if not name.startswith("prior.")]
    state = list(codec.state_dict().values())
    assert isinstance(codec.prior, Hyperprior) and codec.prior.tables is not None
    return Cost(
        bytes=stored_bits(state) // 8 + codec.prior.tables.cdf.nbytes,
        weight_bits=_mean_bits(list(layers.values())),
        quantised_bits=_mean_bits(list(chosen.values()) or list(layers.values())),
        activation_bits=sum(x.macs * x.activation for x in transforms) / sum(x.macs for x in transforms),
        operations=sum(layer.operations for layer in layers.values()),
    )


def _mean_bits(layers: Sequence[LayerCost]) -> float:
    return sum(layer.bits for layer in layers) / sum(layer.weights for layer in layers)
