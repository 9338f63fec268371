"""A start that already compresses: principal components, analytic gains, and measured scales.

- The lapping across block borders is that of largest coding gain for the pictures' covariance along rows and columns.
- g_a projects the lapped 16×16 blocks on their principal components, g_s's linear branch is the transpose.
- Gains are 1/Δ, the inverse of the step that is optimal at high rate (``high_rate_step``), over the norm of what a
  latent of 1 adds to the picture.
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
from bayesq.networks.integer import TrainableIntegerConv
from bayesq.networks.rate import ANCHORS, LEVELS, high_rate_step, rate_weight
from bayesq.networks.scale import HYPER_UNIT
from bayesq.networks.transforms import BLOCK, Analysis, Lapping, Synthesis
from bayesq.training.data import Crops

HYPER_COMPONENTS_MAX = 24
HYPER_DEVIATION = 5.0
COARSE_NOISE = (8 / 255) ** 2


def best_lapping(pictures: Tensor) -> Tensor:
    """The kernel (8, 8) of ``Lapping`` with the largest coding gain for rows and columns of ``(n, 3, H, W)``.

    It minimises Σ log(σ²‖s‖² + ε) over the principal components of a lapped block of 16 pixels: σ² is a component's
    variance, s what it adds to the picture (32 pixels, after the inverse lapping), ε the noise of a coarse quantiser.
    """
    half = BLOCK // 2
    centred = torch.cat([pictures, pictures.transpose(-1, -2)], 2) - 0.5
    windows = centred.unfold(3, 2 * BLOCK, BLOCK).flatten(0, -2).double()
    covariance = windows.T @ windows / len(windows)
    covariance = (covariance + covariance.flip(0, 1)) / 2
    unit, mirror = torch.eye(half).double(), torch.eye(half).double().flip(0)

    def filtered(kernel: Tensor) -> Tensor:
        correction = torch.cat([kernel, -mirror @ kernel]) @ torch.cat([unit, -mirror], 1)
        border = torch.eye(BLOCK).double() + correction
        return torch.block_diag(border, border)

    def cost() -> Tensor:
        forward, inverse = filtered(kernel)[half:-half], filtered(inverse_lapping(kernel))[:, half:-half]
        variances, vectors = torch.linalg.eigh(forward @ covariance @ forward.T)
        return torch.log(variances * (inverse @ vectors).square().sum(0) + COARSE_NOISE).sum()

    kernel = torch.zeros(half, half).double().requires_grad_()
    optimiser = torch.optim.LBFGS([kernel], max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = cost()
        value.backward()
        return value

    with torch.enable_grad():
        optimiser.step(closure)
    return kernel.detach().float()


def inverse_lapping(kernel: Tensor) -> Tensor:
    """The kernel whose ``Lapping`` undoes that of the given one."""
    unit = torch.eye(len(kernel), dtype=kernel.dtype)
    return (torch.linalg.inv(unit + 2 * kernel) - unit) / 2


def principal_blocks(pictures: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Principal components of the 16×16 blocks of ``(n, 3, H, W)``: rows ``(count, 768)`` and their variances."""
    blocks = F.pixel_unshuffle(pictures, BLOCK).transpose(0, 1).flatten(1).double()
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
    assert isinstance(prior, Hyperprior) and codec.architecture is not None
    assert isinstance(codec.analysis, Analysis) and isinstance(codec.synthesis, Synthesis)
    assert codec.analysis.linear.bias is not None
    pictures = torch.cat([crops.draw(64, 128, generator) for _ in range(math.ceil(count / 64))])
    kernel = best_lapping(pictures[:512])
    codec.analysis.lapping.kernel.copy_(kernel)
    codec.synthesis.lapping.kernel.copy_(inverse_lapping(kernel))
    lapped = codec.analysis.lapping(pictures - 0.5)
    components, variances = principal_blocks(lapped, codec.architecture.latents)
    codec.analysis.linear.weight.copy_(components[:, :, None, None])
    codec.analysis.linear.bias.zero_()
    codec.synthesis.linear.weight.copy_(components.T[:, :, None, None])
    if not codec.synthesis.is_linear:
        head = codec.synthesis.head
        assert head.bias is not None
        head.weight.mul_(0.1)
        head.bias.zero_()

    levels = torch.linspace(0, LEVELS - 1, ANCHORS)
    log_gains = (
        basis_norms(codec.synthesis.lapping, components).log() - high_rate_step(rate_weight(levels)).log()[:, None]
    )
    codec.analysis.log_gain.anchors.copy_(log_gains)
    codec.synthesis.log_gain.anchors.copy_(-codec.analysis.log_gain.anchors)
    prior.log_out.anchors.copy_(log_gains + variances.log() / 2)
    prior.log_in.anchors.copy_(-prior.log_out.anchors)

    latent = F.conv2d(F.pixel_unshuffle(lapped[:1024], BLOCK), components[:, :, None, None])
    gains = log_gains.exp()[:, None, :, None, None]
    energies, log_scales = zip(*(_block_statistics(latent * gain) for gain in gains), strict=True)
    _start_prior(prior, torch.stack(energies), torch.stack(log_scales))


def basis_norms(lapping: Lapping, components: Tensor) -> Tensor:
    """Norms of what one unit of each component adds to a picture, ``(count,)``."""
    alone = F.pixel_shuffle(components[:, :, None, None], BLOCK)
    return lapping(F.pad(alone, (BLOCK,) * 4)).flatten(1).norm(dim=1)


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
    for layer in prior.laws.indexes:
        assert isinstance(layer, TrainableIntegerConv)
        layer.bias.anchors.fill_(float(index_of(torch.tensor(0.2))) / layer.bias_unit)
        layer.bias.anchors[:, :count].copy_(index_of(spread + 0.2) / layer.bias_unit)
    for head, channels in zip(prior.scales.heads, (p.group for p in prior.passes), strict=True):
        assert isinstance(head, TrainableIntegerConv)
        head.weight[:, -prior.hyper :, 0, 0][:, :count] = regression[channels] / (HYPER_UNIT * head.weight_unit)
        start = mean_scale[:, channels] / SCALE_STEP + index_of(torch.ones(()))
        head.bias.anchors.copy_(start / head.bias_unit)
