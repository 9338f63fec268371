"""What is done to a layer and its input, leaving their product, so that both are easier to round.

Each piece maps a ``Draft`` to a ``Draft``. They follow the order of the layer: centre, smooth, rotate, absorb.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from bayesq.quantization.draft import Draft
from bayesq.quantization.formats.base import half
from bayesq.quantization.layers import rotated


class Shape(Protocol):
    """A change of a layer and its input that leaves what the layer computes."""

    def __call__(self, draft: Draft) -> Draft: ...


def _by_channel(x: Tensor) -> Tensor:
    return x.transpose(0, 1).flatten(1)


@dataclass(frozen=True)
class Centre:
    """Takes the middle of its range from every input channel and adds what it amounts to to the bias.

    Source: the bias of smoothing in MPTQ-ViT, arXiv 2401.14895.
    """

    def __call__(self, draft: Draft) -> Draft:
        assert draft.scale is None and draft.rotation == 1
        channels = _by_channel(draft.inputs)
        shift = half(((channels.amax(1) + channels.amin(1)) / 2).view(1, -1, 1, 1))
        bias = draft.bias + (draft.weight.sum((2, 3)) * shift.view(1, -1)).sum(1)
        return replace(draft, inputs=draft.inputs - shift, shift=shift, bias=bias)


@dataclass(frozen=True)
class Smooth:
    """Divides input channels by max|x|^α / max|w|^(1 − α) and multiplies their weights (SmoothQuant, arXiv 2211.10438).

    With α = 1, and ``Centre`` before it, all channels have one range: steps and zero points of each channel, folded
    into weights and bias, so that integer kernels can compute with them. This is RepQ-ViT's reparametrisation of scales
    (Li et al., arXiv 2212.08254), x ↦ (x + s ∘ r₂) / r₁ with r₁ the ratio of a channel's step to the mean one.

    Attributes:
        strength: α, how much of the inputs' spread the weights take.
    """

    strength: float = 0.5

    def __call__(self, draft: Draft) -> Draft:
        assert draft.rotation == 1
        tiny = 1e-5
        activation = _by_channel(draft.inputs).abs().amax(1).clamp_min(tiny)
        weight = _by_channel(draft.weight).abs().amax(1).clamp_min(tiny)
        factor = activation**self.strength / weight ** (1 - self.strength)
        factor = factor / factor.log().mean().exp()
        scale = half((1 / factor).clamp(1e-3, 1e3).view(1, -1, 1, 1))
        return replace(
            draft,
            weight=draft.weight / scale,
            inputs=draft.inputs * scale,
            sensitivity=draft.sensitivity / scale.square(),
            fisher=draft.fisher * scale.square(),
            scale=scale,
        )


@dataclass(frozen=True)
class Rotate:
    """Mixes input channels by Hadamard matrices, which spread outliers (QuaRot, arXiv 2404.00456).

    Attributes:
        size: Channels in a row that are mixed at most, a power of two.
    """

    size: int = 64

    def __call__(self, draft: Draft) -> Draft:
        channels = draft.weight.shape[1]
        size = min(self.size, channels & -channels)

        def mixed(x: Tensor) -> Tensor:
            """Squared gradients of rotated tensors, were they independent."""
            parts = x.unflatten(1, (-1, size))
            return parts.mean(2, keepdim=True).expand_as(parts).flatten(1, 2)

        return replace(
            draft,
            weight=rotated(draft.weight, size),
            inputs=rotated(draft.inputs, size),
            sensitivity=mixed(draft.sensitivity),
            fisher=mixed(draft.fisher),
            rotation=size,
        )


@dataclass(frozen=True)
class Absorb:
    """Takes the largest singular components of the weights into a half-precision branch (SVDQuant, arXiv 2411.05007).

    Attributes:
        rank: How many.
    """

    rank: int = 8

    def __call__(self, draft: Draft) -> Draft:
        outputs, inputs, height, width = draft.weight.shape
        rank = min(self.rank, outputs, inputs)
        left, values, right = torch.linalg.svd(draft.weight.flatten(1), full_matrices=False)
        root = values[:rank].sqrt()
        thin_out = half(left[:, :rank] * root)
        thin_in = half(root[:, None] * right[:rank])
        rest = draft.weight - (thin_out @ thin_in).view_as(draft.weight)
        low = thin_in.view(rank, inputs, height, width), thin_out.view(outputs, rank, 1, 1)
        return replace(draft, weight=rest, low=low)


@dataclass(frozen=True)
class Noise:
    """Adds a fixed noise to inputs before they are rounded and takes what it amounts to from the bias (NoisyQuant).

    A number a channel, added at no cost, moves the channel's values within the cells of the common grid: where they
    crowd between two codes, away from there. Instead of one noise for all channels out of many that are drawn, each
    channel has the offset that is best for it. It goes after the range of the inputs is known.

    Source: Liu et al., arXiv 2211.16056.

    Attributes:
        tried: Offsets, equally spaced over one step and none of them.
    """

    tried: int = 16

    def __call__(self, draft: Draft) -> Draft:
        assert draft.rotation == 1
        if draft.step is None or len(draft.step) > 1:
            return draft
        scale = torch.ones(1) if draft.scale is None else draft.scale
        old = torch.zeros(1) if draft.shift is None else draft.shift
        best = self._shifts(draft, old, scale)
        moved = (best - old) * scale
        bias = draft.bias + (draft.weight.sum((2, 3)) * moved.view(1, -1)).sum(1)
        return replace(draft, inputs=draft.inputs - moved, shift=best, bias=bias)

    def _shifts(self, draft: Draft, old: Tensor, scale: Tensor) -> Tensor:
        """``(1, I, 1, 1)``, each channel's of least error."""
        assert draft.step is not None
        best = (old + torch.zeros_like(draft.inputs[:1, :, :1, :1])).clone()
        least = torch.full_like(best, torch.inf)
        for part in range(self.tried):
            offset = ((part + self.tried // 2) % self.tried / self.tried - 0.5) * draft.step
            shift = half(old + offset / scale).expand_as(best)
            inputs = draft.inputs - (shift - old) * scale
            error = (replace(draft, inputs=inputs).rounded - inputs).square() * (draft.sensitivity + 1e-30)
            error = error.sum((0, 2, 3), keepdim=True)
            best, least = torch.where(error < least, shift, best), torch.minimum(error, least)
        return best
