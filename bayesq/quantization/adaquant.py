"""Layers that learn to give what they gave: weights, biases, scales, and the range of inputs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from bayesq.quantization.draft import Draft, Reconstruction
from bayesq.quantization.formats import Format, Range
from bayesq.quantization.layers import QuantizedConv, bits_of
from bayesq.quantization.learned import LearnedConv
from bayesq.quantization.rounding import Rounding, nearest

WIDE = 8
"""Bits of inputs beyond which their range is left as it is, which is wider than what was seen."""
LOOK = 20
"""Steps after which the error of all windows is known again."""


@dataclass(frozen=True)
class AdaQuant:
    """Weights that change by any amount, beside all else that a layer can learn (Hubara et al., arXiv 2006.10518).

    The least squared error between the layer's outputs and those of quantised weights and inputs,

        min ‖W x + b − Q(W + V) Q(x) − b'‖²   over V, b', the weights' scales, the inputs' step and zero point,

    where AdaRound's V goes no farther than to either neighbour and all else stays. Positions count by the loss'
    sensitivity to them. The best of what is found on the way is taken, the start among it.

    Attributes:
        steps: Of Adam.
        rate, scales: Its learning rates at the start, of weights in steps of their grid, and of scales' logarithms.
        windows: Positions of a step.
        first: What it starts from.
    """

    steps: int = 200
    rate: float = 0.001
    scales: float = 0.005
    windows: int = 512
    first: Rounding = nearest

    def __call__(self, draft: Draft, form: Format, span: Range) -> Reconstruction:
        wide = bits_of(draft.activation) > WIDE
        start = self.first(replace(draft, activation=None) if wide else draft, form, span)
        nearby = form.grid(start.parameters).cell(start.codes).contains(draft.weight)
        learned = LearnedConv(start.layer(), torch.where(nearby, draft.weight, start.weight), reach=0.5)
        x, importance = draft.columns(draft.inputs).T.unflatten(1, draft.weight.shape[1:]), draft.importance_of_columns
        goal = F.linear(x.flatten(1), draft.weight.flatten(1), draft.bias)

        def error(layer: LearnedConv, picked: Tensor | slice = slice(None)) -> Tensor:
            y = F.linear(layer.rounded(x[picked]).flatten(1), layer.decoded().flatten(1), layer.bias)
            return ((y - goal[picked]).square().mean(1) * importance[picked]).mean()

        best: QuantizedConv | None = None
        generator = torch.Generator().manual_seed(0)
        optimiser = torch.optim.Adam(learned.groups(self.rate, self.scales))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / self.steps)
        with torch.no_grad():
            unit = least = error(learned) + 1e-30
        for step in range(self.steps):
            picked = torch.randint(len(x), (min(self.windows, len(x)),), generator=generator)
            with torch.enable_grad():
                optimiser.zero_grad()
                (error(learned, picked) / unit).backward()
            optimiser.step()
            schedule.step()
            if (step + 1) % LOOK == 0:
                made = learned.export()
                with torch.no_grad():
                    now = error(LearnedConv(made, made.weight))
                if now < least:
                    best, least = made, now
        if best is None:
            return replace(start, draft=draft)
        assert best.bias is not None
        draft = replace(draft, bias=best.bias)
        draft = draft if wide else replace(draft, step=best.step, zero=best.zero)
        return Reconstruction(draft, form, best.grid_parameters, best.grid.unpack(best.codes, best.spec.shape))
