"""The scale network: from decoded integers to table indexes, in integers all the way; and its float sibling for means.

Both are drawn for a hyper-latent h of N channels at half the size of the latent z of M channels. z is coded in two
passes of half the elements each; the second pass also sees what the first one decoded.

    h ─► 1×1 ─► 3×3 ─► ×2 ─► f          index₁ = out₁(f, h)
    codes of pass 1 ─► log₂ magnitude ─► 3×3 ─► c          index₂ = out₂(1×1(f, c), h)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayesq.conditionals import SCALE_COUNT
from bayesq.networks.integer import IntegerConv, TrainableIntegerConv
from bayesq.networks.rate import Interpolated
from bayesq.networks.transforms import leaky_relu

CONTEXT_CHANNELS = 128
HYPER_UNIT, HYPER_MAX = 4, 63
INDEX_UNIT = 8.0


def _magnitude(k: int) -> int:
    exponent = (k + 1).bit_length() - 1
    return min(255, 32 * exponent + (32 * (k + 1 - (1 << exponent)) >> exponent))


MAGNITUDES = torch.tensor([_magnitude(k) for k in range(256)], dtype=torch.float32)


def magnitude_code(symbols: Tensor) -> Tensor:
    """Integer logarithm 32·log₂(1 + |k|), linear between powers of two, at most 255; a table, hence exact."""
    places = symbols.abs().clamp_max(255).int()
    return MAGNITUDES.to(symbols.device).index_select(0, places.flatten()).view(places.shape)


def double(x: Tensor) -> Tensor:
    """Each pixel repeated 2×2."""
    return x.repeat_interleave(2, -1).repeat_interleave(2, -2)


class ScaleNetwork(nn.Module):
    """Table indexes of both passes, exact on every machine (see ``bayesq.networks.integer``).

    Args:
        hyper: N, channels of h.
        latents: M, channels of z.
        width: Hidden channels.
    """

    def __init__(self, hyper: int, latents: int, width: int) -> None:
        super().__init__()
        top = SCALE_COUNT - 1
        self.inlet = TrainableIntegerConv(hyper, width, 1, 0, 255, weight_unit=2)
        self.middle = TrainableIntegerConv(width, width, 3, 0, 255)
        self.expand = TrainableIntegerConv(width, 4 * width, 1, 0, 255)
        self.first = TrainableIntegerConv(
            width + hyper, latents, 1, 0, top, weight_unit=0.25, bias_unit=INDEX_UNIT, gain=0.1
        )
        self.context = TrainableIntegerConv(latents, width, 3, 0, 255)
        self.merge = TrainableIntegerConv(2 * width, width, 1, 0, 255)
        self.second = TrainableIntegerConv(
            width + hyper, latents, 1, 0, top, weight_unit=0.25, bias_unit=INDEX_UNIT, gain=0.1
        )

    def features(self, h: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """From integers h ``(B, N, h/2, w/2)`` to the features f ``(B, width, h, w)`` and 4h at the size of z."""
        h = HYPER_UNIT * h.clamp(-HYPER_MAX, HYPER_MAX)
        f = self.expand(self.middle(self.inlet(h, level), level), level)
        return F.pixel_shuffle(f, 2), double(h)

    def first_pass(self, features: tuple[Tensor, Tensor], level: Tensor) -> Tensor:
        """Indexes ``(B, M, h, w)`` given h alone."""
        return self.first(torch.cat(features, 1), level)

    def second_pass(self, features: tuple[Tensor, Tensor], symbols: Tensor, level: Tensor) -> Tensor:
        """Indexes given h and the codes of the first pass ``(B, M, h, w)``, zero where not yet known."""
        f, h = features
        context = self.context(magnitude_code(symbols.detach()), level)
        return self.second(torch.cat([self.merge(torch.cat([f, context], 1), level), h], 1), level)

    def export(self, convert: Callable[[TrainableIntegerConv], IntegerConv] = TrainableIntegerConv.export) -> None:
        """Replaces every layer by its integers, in place."""
        for name, layer in list(self.named_children()):
            if isinstance(layer, TrainableIntegerConv):
                setattr(self, name, convert(layer))

    def check(self) -> None:
        """Raises ModelError unless every exported layer keeps the exactness bounds."""
        for layer in self.children():
            if isinstance(layer, IntegerConv):
                layer.check()


class MeanNetwork(nn.Module):
    """Predicted means of z, in floating point: a last-bit difference moves a picture by a last bit and no code.

    It works on latents divided by their gain, so that one network serves all qualities.

    Args:
        hyper: N, channels of h.
        latents: M, channels of z.
        width: Hidden channels.
    """

    def __init__(self, hyper: int, latents: int, width: int) -> None:
        super().__init__()
        self.log_in, self.log_out = Interpolated(latents), Interpolated(latents)
        self.inlet = nn.Conv2d(hyper, width, 3, padding=1)
        self.expand = nn.Conv2d(width, 4 * width, 1)
        self.first = nn.Conv2d(width, latents, 1)
        self.strongest = min(latents, CONTEXT_CHANNELS)
        self.context = nn.Conv2d(self.strongest, 2 * width, 3, padding=1)
        self.merge = nn.Conv2d(3 * width, 2 * width, 1)
        self.second = nn.Conv2d(2 * width, latents, 1)
        for layer in (self.first, self.second):
            nn.init.normal_(layer.weight, std=0.1 * layer.in_channels**-0.5)
            nn.init.zeros_(layer.bias)

    def features(self, h: Tensor) -> Tensor:
        """From h ``(B, N, h/2, w/2)`` to features ``(B, width, h, w)``."""
        hidden = leaky_relu(self.inlet(h / 4))
        return leaky_relu(F.pixel_shuffle(self.expand(hidden), 2))

    def first_pass(self, features: Tensor, level: Tensor) -> Tensor:
        return self.first(features) * torch.exp(self.log_out(level))

    def second_pass(self, features: Tensor, known: Tensor, level: Tensor) -> Tensor:
        """Means given h and the values of the first pass ``(B, M, h, w)``, zero where not yet known."""
        normal = known * torch.exp(self.log_in(level))
        context = leaky_relu(self.context(normal[:, : self.strongest]))
        hidden = leaky_relu(self.merge(torch.cat([features, context], 1)))
        return self.second(hidden) * torch.exp(self.log_out(level))
