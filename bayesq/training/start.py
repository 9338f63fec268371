"""A start that already compresses: principal components, analytic gains, and measured scales.

- g_a's linear branch projects 16×16 blocks on their principal components, g_s's is the transpose.
- Gains are 1/Δ, the inverse of the step that is optimal at high rate (``high_rate_step``).
- h starts as the principal components of the latents' log-energies, and the scale network's direct path from h as
  the regression of the latents' log-scales on them; its bias as the latents' own mean log-scales.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from bayesq.codec import Codec
from bayesq.conditionals import SCALE_STEP, index_of
from bayesq.hyperprior import Hyperprior, log_energy
from bayesq.networks.rate import ANCHORS, LEVELS, high_rate_step, rate_weight
from bayesq.networks.scale import HYPER_UNIT, INDEX_UNIT
from bayesq.networks.transforms import BLOCK
from bayesq.training.data import Crops

HYPER_COMPONENTS_MAX = 24
HYPER_DEVIATION = 5.0


def principal_blocks(pictures: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Principal components of the 16×16 blocks of ``(n, 3, H, W)``: rows ``(count, 768)`` and their variances."""
    blocks = F.pixel_unshuffle(pictures - 0.5, BLOCK).transpose(0, 1).flatten(1).double()
    variances, vectors = torch.linalg.eigh(blocks @ blocks.T / blocks.shape[1])
    return vectors.flip(1)[:, :count].T.float(), variances.flip(0)[:count].float()


@torch.no_grad()
def initialise(codec: Codec, crops: Crops, generator: torch.Generator, count: int = 3072) -> None:
    """Sets a newly built codec to the start described above, in place.

    Args:
        codec: As ``Codec.build`` returns it.
        crops: The training pictures.
        generator: Source of the crops that the statistics are taken from.
        count: How many crops of 128 × 128 these are.
    """
    prior = codec.prior
    assert isinstance(prior, Hyperprior)
    pictures = torch.cat([crops.draw(64, 128, generator) for _ in range(math.ceil(count / 64))])
    components, variances = principal_blocks(pictures, codec.architecture.latents)
    codec.analysis.linear.weight.copy_(components[:, :, None, None])
    codec.synthesis.linear.weight.copy_(components.T[:, :, None, None])
    for network in (codec.analysis, codec.synthesis):
        network.head.weight.mul_(0.1)
        network.head.bias.zero_()

    levels = torch.linspace(0, LEVELS - 1, ANCHORS)
    log_gains = -torch.log(high_rate_step(rate_weight(levels)))
    codec.analysis.log_gain.anchors.copy_(log_gains[:, None].expand(ANCHORS, len(components)))
    codec.synthesis.log_gain.anchors.copy_(-codec.analysis.log_gain.anchors)
    prior.means.log_out.anchors.copy_(log_gains[:, None] + variances.log() / 2)
    prior.means.log_in.anchors.copy_(-prior.means.log_out.anchors)

    latent = F.conv2d(F.pixel_unshuffle(pictures[:1024] - 0.5, BLOCK), components[:, :, None, None])
    energies, log_scales = zip(*(_block_statistics(latent * gain) for gain in log_gains.exp()), strict=True)
    _start_prior(prior, torch.stack(energies), torch.stack(log_scales))


def _block_statistics(z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean log-energy and log root-mean-square of 2×2 blocks of z, both ``(blocks, M)``."""
    power = F.avg_pool2d(z.square(), 2) + 0.02
    return F.avg_pool2d(log_energy(z), 2).transpose(0, 1).flatten(1).T, power.log().transpose(0, 1).flatten(1).T / 2


def _start_prior(prior: Hyperprior, energies: Tensor, log_scales: Tensor) -> None:
    """Sets h and the scale network from block statistics, each ``(ANCHORS, blocks, M)``."""
    mean_energy, mean_scale = energies.mean(1), log_scales.mean(1)
    centred = (energies - mean_energy[:, None]).flatten(0, 1)
    variances, vectors = torch.linalg.eigh(centred.T.double() @ centred.double() / len(centred))
    count = min(HYPER_COMPONENTS_MAX, prior.hyper, len(variances))
    step = variances[-1].sqrt().float() / HYPER_DEVIATION
    projection = vectors.flip(1)[:, :count].T.float() / step
    h = centred @ projection.T
    residual = (log_scales - mean_scale[:, None]).flatten(0, 1)
    regression = torch.linalg.lstsq(h, residual).solution.T / SCALE_STEP

    prior.analysis.linear.weight[:count].copy_(projection[:, :, None, None])
    prior.analysis.shift.anchors[:, :count].copy_(-mean_energy @ projection.T)
    spread = h.view(ANCHORS, -1, count).square().mean(1).sqrt()
    prior.hyper_index.value.anchors.fill_(float(index_of(torch.tensor(0.2))) / INDEX_UNIT)
    prior.hyper_index.value.anchors[:, :count].copy_(index_of(spread + 0.2) / INDEX_UNIT)
    for layer in (prior.scales.first, prior.scales.second):
        direct = layer.weight[:, -prior.hyper :, 0, 0]
        direct[:, :count] = regression / (HYPER_UNIT * layer.weight_unit)
        layer.bias.anchors.copy_((mean_scale / SCALE_STEP + index_of(torch.ones(()))) / layer.bias_unit)
