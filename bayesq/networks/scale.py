"""The scale network: from decoded integers to table indexes, in integers all the way; and its float sibling for means.

Both are drawn for a hyper-latent h of N channels at half the size of the latent z. z is coded in passes, and every pass
sees what those before it decoded: features f that start from h take in the newest codes, and foretell the next.

    h ─► 1×1 ─► 3×3 ─► ×2 ─► f₀          f₀, h ─► index of pass 0
    codes known before pass n ─► log₂ magnitude ─► 3×3 ─► c          1×1(fₙ₋₁, c) ─► fₙ          fₙ, h ─► index of it
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayesq.conditionals import SCALE_COUNT
from bayesq.networks.integer import TrainableIntegerConv
from bayesq.networks.passes import Pass, Places, weave
from bayesq.networks.transforms import Pointwise, leaky_relu, precisely, quieten

HYPER_UNIT, HYPER_MAX = 4, 63
INDEX_UNIT = 8.0


def magnitude_code(symbols: Tensor) -> Tensor:
    """Integer logarithm 32·log₂(1 + |k|), linear between powers of two and rounded down, at most 255.

    The exponent and the first five digits of the mantissa of the float 1 + |k|, hence exact.
    """
    floats = 1 + symbols.abs().clamp_max(255).float()
    return ((floats.view(torch.int32) >> 18) - (127 << 5)).clamp_max(255).float()


class ScaleNetwork(nn.Module):
    """Table indexes of all passes, exact on every machine (see ``bayesq.networks.integer``).

    Args:
        hyper: N, channels of h.
        passes: Of the walk.
        width: Hidden channels.
        seen: Channels of a group, at most, whose codes later passes see.
    """

    def __init__(self, hyper: int, passes: Sequence[Pass], width: int, seen: int) -> None:
        super().__init__()
        self.inlet = TrainableIntegerConv(hyper, width, 1, 0, 255, weight_unit=2)
        self.middle = TrainableIntegerConv(width, width, 3, 0, 255)
        self.expand = TrainableIntegerConv(width, 4 * width, 1, 0, 255)
        context = width // 2
        self.passes, self.seen = passes, seen
        known = [min(p.channels, seen) for p in passes[:-1]]
        self.contexts = nn.ModuleList(TrainableIntegerConv(count, context, 3, 0, 255) for count in known)
        self.merges = nn.ModuleList(TrainableIntegerConv(width + context, width, 1, 0, 255) for _ in passes[1:])
        self.heads = nn.ModuleList(
            TrainableIntegerConv(
                width + hyper, p.channels, 1, 0, SCALE_COUNT - 1, weight_unit=0.25, bias_unit=INDEX_UNIT, gain=0.1
            )
            for p in passes
        )

    def start(self, h: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """From h ``(B, N, h/2, w/2)`` to the features f₀ ``(B, width, h, w)`` and integers 4h, of h's size."""
        h = HYPER_UNIT * h.clamp(-HYPER_MAX, HYPER_MAX).contiguous(memory_format=torch.channels_last)
        f = self.expand(self.middle(self.inlet(h, level), level), level)
        return F.pixel_shuffle(f, 2), h

    def extend(self, n: int, f: Tensor, magnitudes: Tensor, level: Tensor) -> Tensor:
        """fₙ from fₙ₋₁ and ``magnitude_code`` of the first codes in the group of pass n − 1, zero if not yet known."""
        context = self.contexts[n - 1](magnitudes, level)
        return self.merges[n - 1](torch.cat([f, context], 1), level)

    def index(self, n: int, f: Tensor, h: Tensor, level: Tensor) -> Tensor:
        """Indexes of what pass n holds, ``(B, channels / ways, h, w)``, from its features and 4h.

        Each of the four places in squares of 2 × 2 has the size of h, whose element stands for the whole square.
        """
        head, this = self.heads[n], self.passes[n]

        def pieces(channels: slice, places: list[Places]) -> Sequence[Tensor]:
            known = torch.cat([torch.cat([f[place], h], 1) for place in places])
            return head(known, level.repeat(len(places)), channels).chunk(len(places))

        return weave(pieces, this.ways, this.turn, *f.shape[-2:])


class MeanNetwork(nn.Module):
    """Predicted means of z, in floating point: a last-bit difference moves a picture by a last bit and no code.

    It works on latents divided by their gain, so that one network serves all qualities.

    Args:
        hyper: N, channels of h.
        passes: Of the walk.
        width: Hidden channels.
        seen: Channels of a group, at most, whose values later passes see.
    """

    def __init__(self, hyper: int, passes: Sequence[Pass], width: int, seen: int) -> None:
        super().__init__()
        self.seen = seen
        self.inlet = nn.Conv2d(hyper, width, 3, padding=1)
        self.expand = Pointwise(width, 4 * width)
        known = [min(p.channels, seen) for p in passes[:-1]]
        self.contexts = nn.ModuleList(nn.Conv2d(count, width, 3, padding=1) for count in known)
        self.merges = nn.ModuleList(Pointwise(2 * width, width) for _ in known)
        heads = [Pointwise(width, p.channels) for p in passes]
        for layer in heads:
            quieten(layer, 0.1 * width**-0.5)
        self.heads = nn.ModuleList(heads)

    def start(self, h: Tensor) -> Tensor:
        """From h ``(B, N, h/2, w/2)`` to features ``(B, width, h, w)``."""
        hidden = leaky_relu(self.inlet(h / 4))
        return leaky_relu(F.pixel_shuffle(self.expand(hidden), 2))

    def extend(self, n: int, features: Tensor, known: Tensor) -> Tensor:
        """Features of pass n from those before and the first values in the group of pass n − 1.

        The values are over their gain, and zero where not yet known.
        """
        context = leaky_relu(self.contexts[n - 1](known))
        return leaky_relu(self.merges[n - 1](torch.cat([features, context], 1)))

    def mean(self, n: int, features: Tensor) -> Tensor:
        """Means of the group of pass n over their gain, ``(B, channels, h, w)``."""
        return precisely(self.heads[n], features)
