"""The scale network: from decoded integers to table indexes, in integers all the way; and its float sibling for means.

Both are drawn for a hyper-latent h of N channels at half the size of the latent z. z is coded in passes, and every pass
sees what those before it decoded: features f that start from h take in the newest codes, and foretell the next.

    h ─► 1×1 ─► 3×3 ─► ×2 ─► f₀          f₀, h ─► index of pass 0
    codes known before pass n ─► log₂ magnitude ─► 3×3 ─► c          1×1(fₙ₋₁, c) ─► fₙ          fₙ, h ─► index of it
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayesq.conditionals import SCALE_COUNT
from bayesq.networks.integer import IntegerConv, TrainableIntegerConv
from bayesq.networks.transforms import leaky_relu

HYPER_UNIT, HYPER_MAX = 4, 63
INDEX_UNIT = 8.0
STRONGEST = 128


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


@dataclass(frozen=True)
class Pass:
    """What a pass of the walk sees and foretells.

    Attributes:
        known: Channels of z in which codes are known by then; 0 before the first pass.
        outputs: Channels of z of which it codes a part.
    """

    known: int
    outputs: int


class ScaleNetwork(nn.Module):
    """Table indexes of all passes, exact on every machine (see ``bayesq.networks.integer``).

    Args:
        hyper: N, channels of h.
        passes: Of the walk.
        width: Hidden channels.
    """

    def __init__(self, hyper: int, passes: Sequence[Pass], width: int) -> None:
        super().__init__()
        self.inlet = TrainableIntegerConv(hyper, width, 1, 0, 255, weight_unit=2)
        self.middle = TrainableIntegerConv(width, width, 3, 0, 255)
        self.expand = TrainableIntegerConv(width, 4 * width, 1, 0, 255)
        context = width // 2
        self.contexts = nn.ModuleList(TrainableIntegerConv(p.known, context, 3, 0, 255) for p in passes[1:])
        self.merges = nn.ModuleList(TrainableIntegerConv(width + context, width, 1, 0, 255) for _ in passes[1:])
        self.heads = nn.ModuleList(
            TrainableIntegerConv(
                width + hyper, p.outputs, 1, 0, SCALE_COUNT - 1, weight_unit=0.25, bias_unit=INDEX_UNIT, gain=0.1
            )
            for p in passes
        )

    def start(self, h: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """From integers h ``(B, N, h/2, w/2)`` to the features f₀ ``(B, width, h, w)`` and 4h at the size of z."""
        h = HYPER_UNIT * h.clamp(-HYPER_MAX, HYPER_MAX)
        f = self.expand(self.middle(self.inlet(h, level), level), level)
        return F.pixel_shuffle(f, 2), double(h)

    def extend(self, n: int, f: Tensor, symbols: Tensor, level: Tensor) -> Tensor:
        """fₙ from fₙ₋₁ and the codes that pass n knows ``(B, known, h, w)``, zero where not yet known."""
        context = self.contexts[n - 1](magnitude_code(symbols.detach()), level)
        return self.merges[n - 1](torch.cat([f, context], 1), level)

    def index(self, n: int, f: Tensor, h: Tensor, level: Tensor) -> Tensor:
        """Indexes ``(B, outputs, h, w)`` of pass n from its features and 4h."""
        return self.heads[n](torch.cat([f, h], 1), level)

    def export(self, convert: Callable[[TrainableIntegerConv], IntegerConv] = TrainableIntegerConv.export) -> None:
        """Replaces every layer by its integers, in place."""
        for module in (self, self.contexts, self.merges, self.heads):
            for name, layer in list(module.named_children()):
                if isinstance(layer, TrainableIntegerConv):
                    setattr(module, name, convert(layer))

    def check(self) -> None:
        """Raises ModelError unless every exported layer keeps the exactness bounds."""
        for layer in self.modules():
            if isinstance(layer, IntegerConv):
                layer.check()


class MeanNetwork(nn.Module):
    """Predicted means of z, in floating point: a last-bit difference moves a picture by a last bit and no code.

    It works on latents divided by their gain, so that one network serves all qualities.

    Args:
        hyper: N, channels of h.
        passes: Of the walk.
        width: Hidden channels.
    """

    def __init__(self, hyper: int, passes: Sequence[Pass], width: int) -> None:
        super().__init__()
        self.inlet = nn.Conv2d(hyper, width, 3, padding=1)
        self.expand = nn.Conv2d(width, 4 * width, 1)
        seen = [min(p.known, STRONGEST) for p in passes[1:]]
        self.contexts = nn.ModuleList(nn.Conv2d(known, width, 3, padding=1) for known in seen)
        self.merges = nn.ModuleList(nn.Conv2d(2 * width, width, 1) for _ in seen)
        self.heads = nn.ModuleList(nn.Conv2d(width, p.outputs, 1) for p in passes)
        for layer in self.heads:
            nn.init.normal_(layer.weight, std=0.1 * width**-0.5)
            nn.init.zeros_(layer.bias)

    def start(self, h: Tensor) -> Tensor:
        """From h ``(B, N, h/2, w/2)`` to features ``(B, width, h, w)``."""
        hidden = leaky_relu(self.inlet(h / 4))
        return leaky_relu(F.pixel_shuffle(self.expand(hidden), 2))

    def extend(self, n: int, features: Tensor, known: Tensor) -> Tensor:
        """Features of pass n from those before and the values it knows, over their gain, zero where not yet known."""
        context = leaky_relu(self.contexts[n - 1](known[:, :STRONGEST]))
        return leaky_relu(self.merges[n - 1](torch.cat([features, context], 1)))

    def mean(self, n: int, features: Tensor) -> Tensor:
        """Means of pass n over their gain ``(B, outputs, h, w)``."""
        return self.heads[n](features)
