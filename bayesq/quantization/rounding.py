"""From weights to codes: functions (draft, format, range) → reconstruction."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from bayesq.errors import ModelError
from bayesq.quantization.draft import Draft, Reconstruction
from bayesq.quantization.formats import Format, Parameters, Pyramid, Range, Sparse

BLOCK = 64
"""Columns that GPTQ rounds before it updates all later ones."""


class Rounding(Protocol):
    """A way to choose the codes of a layer's weights."""

    def __call__(self, draft: Draft, form: Format, span: Range) -> Reconstruction:
        """Codes and the parameters that decode them, of the draft or of one with another bias or range of inputs.

        Raises:
            ModelError: weights of this format have no codes of their own.
        """
        ...


def nearest(draft: Draft, form: Format, span: Range) -> Reconstruction:
    """Each weight to its nearest code."""
    parameters = form.fit(draft.weight, draft.importance, span)
    return Reconstruction(draft, form, parameters, form.grid(parameters).index(draft.weight))


def corrected(made: Reconstruction, draft: Draft) -> Reconstruction:
    """With a bias that makes up for the mean error of weights and inputs (Nagel et al., arXiv 1906.04721).

    Args:
        made: What became of the draft.
        draft: The layer as it should be.
    """
    exact, rounded = draft.columns(draft.inputs).mean(1), draft.columns(made.draft.rounded).mean(1)
    bias = draft.bias + draft.weight.flatten(1) @ exact - made.weight.flatten(1) @ rounded
    return replace(made, draft=replace(made.draft, bias=bias))


def _one_by_one(form: Format) -> None:
    if isinstance(form, Pyramid | Sparse):
        raise ModelError(f"{form}: weights are not rounded one by one, as this reconstruction does")


def _of_column(parameters: Parameters, outputs: int, column: int, columns: int) -> Parameters:
    """Parameters of one column of the weights' matrix, of so many."""

    def chosen(p: Tensor) -> Tensor:
        groups = len(p) // outputs if p.dim() == 2 and p.shape[1] == 1 else 1
        return p.view(outputs, groups)[:, column * groups // columns, None] if groups > 1 else p

    return {name: chosen(p) for name, p in parameters.items()}


@dataclass(frozen=True)
class GPTQ:
    """Column by column, the rest making up for the error of each (arXiv 2210.17323), convolutions being unfolded.

    Positions count by the loss' sensitivity to them, so that what is kept is rate and distortion.

    Attributes:
        damping: Added to the diagonal of the inputs' second moments, in units of its mean.
    """

    damping: float = 0.01

    def __call__(self, draft: Draft, form: Format, span: Range) -> Reconstruction:
        _one_by_one(form)
        parameters = form.fit(draft.weight, draft.importance, span)
        outputs = len(draft.weight)
        columns = draft.columns(draft.rounded)
        columns = columns * draft.importance_of_columns.sqrt()
        moments = (columns @ columns.T).double()
        moments += self.damping * moments.diagonal().mean().clamp_min(1e-30) * torch.eye(len(moments))
        order = moments.diagonal().argsort(descending=True)
        inverse = torch.linalg.inv(moments[order][:, order])
        factor = torch.linalg.cholesky(inverse, upper=True).float()
        weight = draft.weight.flatten(1)[:, order].contiguous()
        codes = torch.zeros(weight.shape, dtype=torch.int32)
        for start in range(0, len(order), BLOCK):
            block = slice(start, min(start + BLOCK, len(order)))
            errors = torch.zeros_like(weight[:, block])
            for j in range(block.start, block.stop):
                column = int(order[j])
                grid = form.grid(_of_column(parameters, outputs, column, len(order)))
                now = weight[:, j : j + 1]
                codes[:, column : column + 1] = grid.index(now)
                error = (now - grid.value(codes[:, column : column + 1])) / factor[j, j]
                weight[:, j : block.stop] -= error * factor[j, j : block.stop]
                errors[:, j - start : j - start + 1] = error
            weight[:, block.stop :] -= errors @ factor[block, block.stop :]
        return Reconstruction(draft, form, parameters, codes.view(draft.weight.shape))


@dataclass(frozen=True)
class AdaRound:
    """Each weight down or up, whichever is better for the layer's output (arXiv 2004.10568).

    Attributes:
        steps: Of Adam.
        rate: Its learning rate.
        columns: Positions of a step.
        push: Weight of the term that drives choices to 0 or 1, relative to the output's error at the start.
    """

    steps: int = 120
    rate: float = 0.1
    columns: int = 512
    push: float = 1.0

    def __call__(self, draft: Draft, form: Format, span: Range) -> Reconstruction:
        _one_by_one(form)
        parameters = form.fit(draft.weight, draft.importance, span)
        grid, weight = form.grid(parameters), draft.weight
        near = grid.index(weight)
        far = torch.where(grid.value(near) < weight, near + 1, near - 1)
        far = far.clamp(grid.index(torch.full_like(weight, -1e9)), grid.index(torch.full_like(weight, 1e9)))
        low, high = (torch.minimum(near, far), torch.maximum(near, far))
        bottom, top = grid.value(low), grid.value(high)
        share = ((weight - bottom) / (top - bottom).clamp_min(1e-12)).clamp(0.01, 0.99)
        logit = torch.logit(share).requires_grad_()  # as if not stretched: further from ½ at the start, it errs less
        x, target = draft.columns(draft.rounded), weight.flatten(1) @ draft.columns(draft.inputs)
        start = float(F.mse_loss(grid.value(near).flatten(1) @ x, target)) + 1e-30
        generator = torch.Generator().manual_seed(0)
        optimiser = torch.optim.Adam([logit], self.rate)
        with torch.enable_grad():
            for step in range(self.steps):
                picked = torch.randint(x.shape[1], (min(self.columns, x.shape[1]),), generator=generator)
                up = (1.2 * torch.sigmoid(logit) - 0.1).clamp(0, 1)
                output = (bottom + (top - bottom) * up).flatten(1) @ x[:, picked]
                sharp = 20 - 18 * step / self.steps
                undecided = (1 - (2 * up - 1).abs() ** sharp).sum()
                loss = F.mse_loss(output, target[:, picked]) / start
                optimiser.zero_grad()
                (loss + self.push * (step > 0.2 * self.steps) * undecided / len(weight)).backward()
                optimiser.step()
        return Reconstruction(draft, form, parameters, torch.where(logit.detach() > 0, high, low))
