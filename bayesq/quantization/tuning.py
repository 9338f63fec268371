"""Training with quantised layers: block by block, then all at once.

Layers learn from rate and distortion and from the floating-point codec's pictures. Blocks first and everything after is
the order of EfficientQAT (arXiv 2407.11062), whose second phase trains scales alone, and of block-wise reconstruction
(BRECQ, arXiv 2102.05426), here with the codec's own loss. Steps that follow what comes in (ASQ, arXiv 2504.17263) are
not learned: tiles of a picture would be decoded by networks that differ, and show seams. What may depend on a tile is
its precision, which the file tells; see ``bayesq.quantization.dynamic``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from tqdm import tqdm

from bayesq.codec import Codec
from bayesq.networks.rate import LAMBDA_MAX, rate_weight
from bayesq.quantization.draft import Draft
from bayesq.quantization.layers import layer_called, replace
from bayesq.quantization.learned import LearnedConv
from bayesq.quantization.oscillation import Oscillations
from bayesq.quantization.recipes import Tuning
from bayesq.training.data import Crops
from bayesq.training.loss import BALANCE, RateDistortionLoss, draw_levels

WARM = 10
"""Steps in which rates rise, a quarter of a phase at most."""


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
    freezers: list[Oscillations] = []
    for layer in members:
        assert isinstance(layer, LearnedConv)
        if settings.freeze is not None:
            freezers.append(Oscillations(layer, settings.freeze))
        groups += layer.groups(settings.rate, settings.rate / 20, settings.weights)
    optimiser = torch.optim.Adam(groups, betas=(0.9, 0.99))
    warm = min(WARM, steps // 4 + 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1, (step + 1) / warm) * (1 - step / max(steps, 1))
    )
    with torch.enable_grad():
        for _ in range(steps):
            pictures = crops.draw(settings.batch, settings.crop, generator)
            levels = draw_levels(settings.batch, generator)
            optimiser.zero_grad()
            _loss(codec, original, pictures, levels, settings.distillation, generator).backward()
            optimiser.step()
            schedule.step()
            for freeze in freezers:
                freeze()
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
