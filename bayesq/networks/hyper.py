"""The laws of the hyper-latent h, in integers, since h stands before all other laws: no machine may differ in it.

h is coded in two or four passes, and every pass but the first sees what those before it decoded.

    4h known so far, its log₂ magnitude ─► 3×3 ─► fₙ ─► 4 × mean of pass n, its table index
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bayesq.conditionals import SCALE_COUNT
from bayesq.networks.integer import TrainableIntegerConv
from bayesq.networks.passes import part, passes_over
from bayesq.networks.scale import HYPER_MAX, HYPER_UNIT, INDEX_UNIT, magnitude_code
from bayesq.quantizers import StraightThrough


def in_units(h: Tensor) -> Tensor:
    """h in units of 1/4, in which it and its means are integers: rounded, with the gradient of the identity."""
    return StraightThrough.apply(torch.round(HYPER_UNIT * h.detach()), HYPER_UNIT * h)


class HyperNetwork(nn.Module):
    """Means and table indexes of the passes over h, exact on every machine (see ``bayesq.networks.integer``).

    Args:
        hyper: N, channels of h.
        ways: How many passes there are.
    """

    def __init__(self, hyper: int, ways: int) -> None:
        super().__init__()
        self.ways = ways
        self.passes = passes_over(slice(0, hyper), ways)
        later = self.passes[1:]
        self.contexts = nn.ModuleList(TrainableIntegerConv(2 * hyper, hyper, 3, 0, 255) for _ in later)
        self.means = nn.ModuleList(
            TrainableIntegerConv(hyper, hyper, 1, -255, 255, weight_unit=0.25, gain=0.1) for _ in later
        )
        self.indexes = nn.ModuleList(
            TrainableIntegerConv(hyper, hyper, 1, 0, SCALE_COUNT - 1, weight_unit=0.25, bias_unit=INDEX_UNIT, gain=0.1)
            for _ in self.passes
        )

    def law(self, n: int, h: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """Means and table indexes of pass n, ``(B, N/ways, h, w)`` each, from h, zero where not yet known.

        The first pass knows nothing: its means are 0, its indexes the biases.
        """
        mean, features = torch.zeros_like(h), torch.zeros_like(h)
        if n > 0:
            known = in_units(h.clamp(-HYPER_MAX, HYPER_MAX))
            features = self.contexts[n - 1](torch.cat([known, magnitude_code(known.detach())], 1), level)
            mean = self.means[n - 1](features, level) / HYPER_UNIT
        return part(mean, self.ways, n), part(self.indexes[n](features, level), self.ways, n)
