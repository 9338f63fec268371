"""Precision that depends on the picture: inputs of g_s in fewer bits where that does not show (DynaQuant).

A quantised codec gets *precisions*: 0 is its own, each further one an allocation of bits to the inputs of g_s's layers
with a mean to keep to, ranges of its own, and scales and zero points that may be trained by rate and distortion. The
encoder's selector sees a tile and says with which of them it should be decoded; the file tells it, a byte a tile, in a
chunk that decoders may ignore, since the full precision decodes every file.

Source: arXiv 2511.07903, whose selector chooses for each layer and repeats its choice in the decoder. There, a float
that differs in its last bit could choose otherwise; here nothing is chosen twice.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayesq.errors import ModelError
from bayesq.networks.rate import LEVELS
from bayesq.quantization.allocation import integer_program
from bayesq.quantization.calibration import Batch, losses
from bayesq.quantization.layers import Inputs, QuantizedConv, bits_of, layer_called, quantized
from bayesq.quantization.layers import replace as put
from bayesq.quantization.sensitivity import input_relevance

if TYPE_CHECKING:
    from bayesq.codec import Codec
    from bayesq.quantization.draft import Draft
    from bayesq.quantization.recipes import Dynamic, Recipe
    from bayesq.training.data import Crops

POOLED, HIDDEN, FULL = 5, 16, 8
ROUNDS, RATE, DECAY, WARMTH = 400, 0.01, 0.02, 0.1


class Selector(nn.Module):
    """From a picture and its quality level to a precision: two layers on detail and brightness in 5 × 5 parts.

    Args:
        precisions: How many there are, the full one included.
    """

    def __init__(self, precisions: int) -> None:
        super().__init__()
        self.precisions = precisions
        self.hidden = nn.Linear(2 * POOLED**2 + 1, HIDDEN)
        self.head = nn.Linear(HIDDEN, precisions)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """Logits ``(B, P)`` of pictures ``(B, 3, H, W)`` in [0, 1] and levels ``(B,)``."""
        padded = F.pad(x, (0, 1, 0, 1), mode="replicate")
        detail = (padded.diff(dim=-1)[..., :-1, :].abs() + padded.diff(dim=-2)[..., :-1].abs()).mean(1)
        seen = [F.adaptive_avg_pool2d(part, POOLED).flatten(1) for part in (detail, x.mean(1))]
        known = [(seen[0] + 1e-3).log2() / 4, seen[1], level[:, None] / (LEVELS - 1)]
        return self.head(torch.tanh(self.hidden(torch.cat(known, 1))))

    @torch.inference_mode()
    def choose(self, x: Tensor, level: int) -> int:
        """The precision for one picture ``(1, 3, H, W)``."""
        return int(self(x, torch.tensor([level])).argmax())


def at(codec: Codec, precision: int) -> Codec:
    """A codec with g_s in that one of its precisions, a copy; the rest is shared."""
    other = copy.copy(codec)
    other._modules = {**codec._modules, "synthesis": copy.deepcopy(codec.synthesis)}
    other.selector = None
    for name, layer in list(quantized(other)):
        if layer.spec.precisions:
            put(other, name, layer.at(precision))
    return other


def mean_bits(codec: Codec, macs: Mapping[str, float]) -> float:
    """Of the inputs of g_s, by multiply–adds."""
    layers = [(name, layer) for name, layer in quantized(codec) if name in macs]
    return sum(macs[name] * bits_of(layer.spec.activation) for name, layer in layers) / sum(macs[n] for n, _ in layers)


def adapt(
    codec: Codec, original: Codec, drafts: Mapping[str, Draft], recipe: Recipe, batch: Batch, crops: Crops
) -> None:
    """Gives a quantised codec precisions and a selector, in place.

    Args:
        codec: With quantised inputs of g_s.
        original: The floating-point codec.
        drafts: Its layers, with what they see.
        recipe: Its ``dynamic`` says what to do, its ``tuning`` how scales and zero points are trained, if at all.
        batch: Crops to choose bits with, and to train the selector.
        crops: Training pictures.

    Raises:
        ModelError: no layer of g_s has inputs of eight bits.
    """
    settings = recipe.dynamic
    assert settings is not None
    names = [n for n, layer in quantized(codec) if n.startswith("synthesis.") and layer.spec.activation == FULL]
    if not names:
        raise ModelError("the model gets no precisions: none of g_s's layers has inputs of eight bits")
    choices = {name: {bits: drafts[name].with_activation(bits) for bits in settings.bits} for name in names}
    macs = {name: drafts[name].weight.numel() * drafts[name].positions for name in names}
    picked = [_allocated(choices, macs, settings, mean) for mean in settings.means]
    _give(codec, [{name: _inputs(choices[name][bits[name]]) for name in names} for bits in picked])
    if recipe.tuning is not None:
        from bayesq.quantization.tuning import tune

        trained = [at(codec, n + 1) for n in range(len(picked))]
        for one in trained:
            tune(one, original, {name: drafts[name] for name in names}, replace(recipe.tuning, weights=False), crops)
        _give(codec, [{name: _inputs(layer_called(one, name)) for name in names} for one in trained])
    codec.selector = _trained(codec, macs, settings, batch)


def _inputs(source: Draft | QuantizedConv) -> Inputs:
    bits = source.spec.activation if isinstance(source, QuantizedConv) else source.activation
    assert isinstance(bits, int) and source.step is not None and source.zero is not None
    return bits, source.step, source.zero


def _give(codec: Codec, precisions: Sequence[Mapping[str, Inputs]]) -> None:
    for name in precisions[0]:
        put(codec, name, layer_called(codec, name).with_precisions([inputs[name] for inputs in precisions]))


def _allocated(
    choices: Mapping[str, Mapping[int, Draft]], macs: Mapping[str, float], settings: Dynamic, mean: float
) -> dict[str, int]:
    """Bits of each layer, to second order of least harm for that mean."""
    harm = np.array([[input_relevance(draft) for draft in row.values()] for row in choices.values()])
    cost = np.array([[macs[name] * bits for bits in settings.bits] for name in choices])
    picked = integer_program(harm, cost[None], np.array([mean * sum(macs.values())]))
    return {name: settings.bits[k] for name, k in zip(choices, picked, strict=True)}


def _trained(codec: Codec, macs: Mapping[str, float], settings: Dynamic, batch: Batch) -> Selector:
    """A selector that descends the mean of loss, relative to the full precision's, and of the price of bits.

    The loss of every crop in every precision is known, so that the mean over choices is taken exactly instead of by
    draws from relaxed ones; their entropy keeps a choice that is best on average from being made before pictures are
    told apart.
    """
    codecs = [codec, *(at(codec, n + 1) for n in range(len(settings.means)))]
    with torch.no_grad():
        harm = torch.stack([torch.cat([losses(one, crop) for crop in batch.split()]) for one in codecs], 1)
    bits = torch.tensor([mean_bits(one, macs) for one in codecs])
    cost = harm / harm[:, :1] - 1 + settings.price * bits
    with torch.random.fork_rng():
        torch.manual_seed(0)
        selector = Selector(len(codecs))
    optimiser = torch.optim.AdamW(selector.parameters(), RATE, weight_decay=DECAY)
    unit = cost.std().clamp_min(1e-9)
    with torch.enable_grad():
        for _ in range(ROUNDS):
            optimiser.zero_grad()
            chance = selector(batch.pictures, batch.levels).log_softmax(1)
            (chance.exp() * (cost / unit + WARMTH * chance)).sum(1).mean().backward()
            optimiser.step()
    return selector.requires_grad_(False)
