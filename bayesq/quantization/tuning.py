"""Training with quantised layers: block by block, then all at once.

Weights, scales, biases, and the steps and zero points of inputs learn from rate and distortion and from the
floating-point codec's pictures; what is rounded is passed straight through. Unlike learned step size quantisation (LSQ,
Esser et al., arXiv 1902.08153), what is rounded is the weight over its scale: a scale that moves carries its row along
and leaves the codes as they are. Many belong to weights at the border of their cells, where GPTQ put them so that
errors make up for one another. Blocks first and everything after is the order of EfficientQAT (arXiv 2407.11062) and of
block-wise reconstruction (BRECQ, arXiv 2102.05426), here with the codec's own loss.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from bayesq.codec import Codec
from bayesq.networks.rate import LAMBDA_MAX, rate_weight
from bayesq.quantization.draft import Draft
from bayesq.quantization.formats.base import SCALE_MIN, half
from bayesq.quantization.gradients import rounded
from bayesq.quantization.layers import GRID, QuantizedConv, layer_called, replace
from bayesq.quantization.recipes import Tuning
from bayesq.training.data import Crops
from bayesq.training.loss import BALANCE, RateDistortionLoss, draw_levels

INSIDE = 0.25
"""How far from the middle of its cell a weight starts at most, in widths of the cell."""


class LearnedConv(nn.Module):
    """A quantised convolution in training; it computes what its export will compute, but for half precision.

    Args:
        layer: What it starts as.
        weight: The weights behind the codes, of the shaped layer. They start within the cells of their codes, no nearer
            to the border than ``INSIDE`` says.
        sharpness: Of the gradient of rounded inputs, see ``rounded``.
    """

    def __init__(self, layer: QuantizedConv, weight: Tensor, sharpness: float | None = None) -> None:
        super().__init__()
        self.layer = copy.deepcopy(layer)
        cell = layer.grid.cell(layer.grid.unpack(layer.codes, layer.spec.shape))
        reach = INSIDE * cell.width
        self.weight = nn.Parameter(torch.maximum(torch.minimum(weight, cell.centre + reach), cell.centre - reach))
        self.log_scale = nn.Parameter(layer.grid_parameters["scale"].log())
        self.bias = nn.Parameter(torch.zeros(layer.spec.shape[0]) if layer.bias is None else layer.bias.clone())
        self.log_step = None if layer.step is None else nn.Parameter(layer.step.log())
        self.zero = None if layer.zero is None else nn.Parameter(layer.zero.float())
        self.grain, self.sharpness = float(cell.width.mean()), sharpness

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
        bits = self.layer.spec.activation
        if self.log_step is None or bits is None or self.zero is None:
            return x
        step, zero = self.log_step.exp().view(1, -1, 1, 1), rounded(self.zero).view(1, -1, 1, 1)
        return step * (rounded((x / step + zero).clamp(0, 2**bits - 1), self.sharpness) - zero)

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
            state["zero"] = self.zero.round().clamp(0, 2 ** (self.layer.spec.activation or 8) - 1).int()
        return QuantizedConv(self.layer.spec, self.layer.padding, state)


def block_of(name: str) -> str:
    """The block that a layer is in: a residual block, or the layer itself."""
    parent = name.rpartition(".")[0]
    return parent if parent.rpartition(".")[2].isdigit() else name


def tune(
    codec: Codec, original: Codec, drafts: Mapping[str, Draft], settings: Tuning, crops: Crops, progress: bool = False
) -> None:
    """Trains quantised layers of a codec, in place.

    Args:
        codec: With quantised layers.
        original: The floating-point codec, whose pictures are copied to some extent.
        drafts: The layers that are trained, by name, with their weights in floating point.
        settings: How long, and how fast.
        crops: Training pictures.
        progress: Show a bar on stderr.
    """
    names = list(drafts)
    for name in names:
        replace(codec, name, LearnedConv(layer_called(codec, name), drafts[name].weight, settings.sharpness))
    generator = torch.Generator().manual_seed(1)
    blocks = list(dict.fromkeys(map(block_of, names))) if settings.block_steps else []
    phases = [([n for n in names if block_of(n) == block], settings.block_steps) for block in blocks]
    phases.append((names, settings.steps))
    bar = tqdm(total=sum(steps for _, steps in phases), desc="tuning", disable=None if progress else True, leave=False)
    with bar:
        for members, steps in phases:
            _train(codec, original, [codec.get_submodule(n) for n in members], steps, settings, crops, generator, bar)
    for name in names:
        learned = codec.get_submodule(name)
        assert isinstance(learned, LearnedConv)
        replace(codec, name, learned.export())
    codec.requires_grad_(False)


def _train(
    codec: Codec,
    original: Codec,
    members: list[nn.Module],
    steps: int,
    settings: Tuning,
    crops: Crops,
    generator: torch.Generator,
    bar: tqdm,
) -> None:
    codec.requires_grad_(False)
    groups: list[dict] = []
    for layer in members:
        assert isinstance(layer, LearnedConv)
        rates = {layer.log_step: settings.rate / 20, layer.zero: settings.rate}
        if settings.weights:
            coarse = settings.rate * layer.grain
            rates |= {layer.weight: coarse, layer.bias: coarse, layer.log_scale: settings.rate / 20}
        groups += [{"params": [p.requires_grad_()], "lr": rate} for p, rate in rates.items() if p is not None]
    optimiser = torch.optim.Adam(groups, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1, (step + 1) / 10) * (1 - step / max(steps, 1))
    )
    with torch.enable_grad():
        for _ in range(steps):
            pictures = crops.draw(settings.batch, settings.crop, generator)
            levels = draw_levels(settings.batch, generator)
            optimiser.zero_grad()
            _loss(codec, original, pictures, levels, settings.distillation, generator).backward()
            optimiser.step()
            schedule.step()
            bar.update()


def _loss(
    codec: Codec, original: Codec, x: Tensor, levels: Tensor, distillation: float, generator: torch.Generator
) -> Tensor:
    """Rate and distortion, and how far g_s is from the original's g_s on the original's latents."""
    loss = RateDistortionLoss(codec)(x, levels, generator).loss.mean()
    if not distillation:
        return loss
    with torch.no_grad():
        z = original.analysis(x, levels).round()
        goal = original.synthesis(z, levels)
    drift = (codec.synthesis(z, levels) - goal).square().flatten(1).mean(1)
    weight = rate_weight(levels)
    return loss + distillation * (weight * 255**2 * drift * (LAMBDA_MAX / weight) ** BALANCE).mean()
