"""Figures of merit: of pictures, of rate-distortion curves, and of error bars."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.interpolate import PchipInterpolator
from torch import Tensor, nn

from bayesq.errors import BayesqError, ImageError

LEVELS = (0.5, 0.8, 0.9, 0.95)


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Computes the peak signal-to-noise ratio −10 log₁₀ MSE of pictures (B, C, H, W) in [0, 1]; (B,) in dB."""
    return -10 * (x - y).square().flatten(1).mean(1).log10()


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Computes the structural similarity of pictures (B, C, H, W) in [0, 1], the mean over their channels; (B,).

    The constants of Wang et al. (2004): Gaussian window of 11 pixels and deviation 1.5, by scikit-image.

    Raises:
        ImageError: a side is shorter than the window.
    """
    from skimage.metrics import structural_similarity

    if min(x.shape[-2:]) < 11:
        raise ImageError("SSIM needs pictures of at least 11x11 pixels")
    constants = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    pairs = zip(x.detach().cpu().double().numpy(), y.detach().cpu().double().numpy(), strict=True)
    return torch.tensor([structural_similarity(a, b, channel_axis=0, **constants) for a, b in pairs])


def ms_ssim(x: Tensor, y: Tensor) -> Tensor:
    """Computes the multi-scale structural similarity (Wang et al., 2003) of pictures (B, C, H, W) in [0, 1]; (B,).

    Raises:
        ImageError: a side is shorter than the 161 pixels that five scales take.
    """
    from pytorch_msssim import ms_ssim as measure

    if min(x.shape[-2:]) <= 160:
        raise ImageError("MS-SSIM needs pictures of at least 161x161 pixels")
    return measure(x, y, data_range=1.0, size_average=False)


def lpips(x: Tensor, y: Tensor, network: str = "vgg") -> Tensor | None:
    """Computes the learned perceptual distance (Zhang et al., 2018) of pictures (B, 3, H, W) in [0, 1]; (B,).

    Nothing is ever downloaded: without torchvision's weights of the network in ``torch.hub``'s cache, the result is
    None and the log says once which file is missing.

    Args:
        x: pictures.
        y: pictures, which may be swapped with x.
        network: ``"vgg"``, ``"alex"`` or ``"squeeze"``.
    """
    measure = _lpips(network, Path(torch.hub.get_dir(), "checkpoints"))
    if measure is None:
        return None
    with torch.no_grad():
        return measure.to(x.device)(x, y, normalize=True).flatten()


@cache
def _lpips(network: str, folder: Path) -> nn.Module | None:
    from torchvision import models

    weights = {
        "vgg": models.VGG16_Weights.IMAGENET1K_V1,
        "alex": models.AlexNet_Weights.IMAGENET1K_V1,
        "squeeze": models.SqueezeNet1_1_Weights.IMAGENET1K_V1,
    }[network]
    file = folder / weights.url.rpartition("/")[2]
    if not file.exists():
        logging.getLogger(__name__).warning("LPIPS left out: its %s weights are not at %s", network, file)
        return None
    from lpips import LPIPS

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")
        warnings.filterwarnings("ignore", category=FutureWarning, module="lpips")
        return LPIPS(net=network, verbose=False)


def crop_border(x: Tensor, pixels: int) -> Tensor:
    """Leaves out the outermost ``pixels`` on each side of pictures (..., H, W), as restoration papers do."""
    return x[..., pixels : x.shape[-2] - pixels, pixels : x.shape[-1] - pixels]


def bd_rate(anchor_bpp: ArrayLike, anchor_psnr: ArrayLike, bpp: ArrayLike, psnr: ArrayLike) -> float:
    """Computes the Bjøntegaard rate difference: how many percent more bits than the anchor, at equal quality.

    The mean over the common PSNR range of log rate, each curve interpolated by monotone cubics (PCHIP), as in
    ITU-T HSTP-VID-WPOM (2020).

    Args:
        anchor_bpp: rates of the reference curve, in any unit.
        anchor_psnr: its qualities in dB, in any order, all different.
        bpp: rates of the curve under test, in the same unit.
        psnr: its qualities.

    Raises:
        BayesqError: a curve has fewer than two points, a repeated quality, or a rate that is not positive; or the
            curves have no quality in common.
    """
    curves = [_log_rate(anchor_bpp, anchor_psnr), _log_rate(bpp, psnr)]
    low, high = max(c.x[0] for c in curves), min(c.x[-1] for c in curves)
    if not low < high:
        raise BayesqError("the two rate-distortion curves have no quality in common")
    anchor, test = (float(c.integrate(low, high)) / (high - low) for c in curves)
    return 100 * math.expm1(test - anchor)


def _log_rate(bpp: ArrayLike, psnr: ArrayLike) -> PchipInterpolator:
    rates, qualities = np.asarray(bpp, dtype=float), np.asarray(psnr, dtype=float)
    valid = rates.shape == qualities.shape and rates.ndim == 1 and len(rates) > 1
    if not valid or not np.isfinite([rates, qualities]).all() or rates.min() <= 0:
        raise BayesqError("a rate-distortion curve is two or more points of positive rate and finite quality")
    order = np.argsort(qualities)
    if not np.diff(qualities[order]).all():
        raise BayesqError("a rate-distortion curve has two points of the same quality")
    return PchipInterpolator(qualities[order], np.log(rates[order]))


def coverage(samples: Tensor, truth: Tensor, levels: Sequence[float] = LEVELS) -> Tensor:
    """Measures how often the truth lies in the central interval of posterior samples.

    The truth and n samples of a calibrated posterior are exchangeable, so that the truth lies between the a-th smallest
    and the a-th largest sample with probability 1 − 2a / (n + 1); a level between two such values is interpolated.
    A calibrated posterior thus scores its levels whatever n. Ties (clipped pixels) count as inside.

    Args:
        samples: (n, B, C, H, W), or any (n, *shape).
        truth: (B, C, H, W), or shape.
        levels: nominal probabilities, in [1 / (n + 1), 1].

    Returns:
        Fraction of the pixels inside, of shape (len(levels),).
    """
    depth = torch.minimum((samples <= truth).sum(0), (samples >= truth).sum(0))
    fractions = []
    for level in levels:
        rank = (1 - level) * (len(samples) + 1) / 2
        below = math.floor(rank)
        inside = [(depth >= a).double().mean() for a in (below, below + 1)]
        fractions.append(torch.lerp(inside[0], inside[1], rank - below))
    return torch.stack(fractions).float()


def gaussian_coverage(mean: Tensor, std: Tensor, truth: Tensor, levels: Sequence[float] = LEVELS) -> Tensor:
    """Measures how often the truth lies in mean ± z std, z being the normal law's quantile of each level.

    Args:
        mean: (B, C, H, W).
        std: the same shape.
        truth: the same shape.
        levels: nominal probabilities, in [0, 1).

    Returns:
        Fraction of the pixels inside, of shape (len(levels),).
    """
    z = torch.special.ndtri((1 + torch.tensor(levels, dtype=torch.float64)) / 2).to(mean)
    error = (truth - mean).abs()
    return torch.stack([(error <= quantile * std).float().mean() for quantile in z])


def interval_widths(samples: Tensor, levels: Sequence[float] = LEVELS) -> Tensor:
    """Measures how wide the intervals of ``coverage`` are on average: their sharpness; (len(levels),), image units."""
    ordered, n = samples.sort(0).values, len(samples)
    widths = []
    for level in levels:
        rank = min(max((1 - level) * (n + 1) / 2, 1.0), n / 2)
        inside = [(ordered[n - a] - ordered[a - 1]).mean() for a in (math.floor(rank), math.ceil(rank))]
        widths.append(torch.lerp(inside[0], inside[1], rank - math.floor(rank)))
    return torch.stack(widths)


def crps(samples: Tensor, truth: Tensor) -> Tensor:
    """Computes the continuous ranked probability score, E|X − t| − E|X − X'| / 2, from samples; less is better.

    The fair estimate, without the bias of few samples (Ferro, "Fair scores for ensemble forecasts", 2014).

    Args:
        samples: (n, *shape), n at least 2.
        truth: shape.

    Returns:
        Scores in image units, of the truth's shape.
    """
    n = len(samples)
    place = 2 * torch.arange(1, n + 1, dtype=samples.dtype, device=samples.device) - n - 1
    spread = (place.view(-1, *[1] * truth.ndim) * samples.sort(0).values).sum(0) / (n * (n - 1))
    return (samples - truth).abs().mean(0) - spread


def gaussian_crps(mean: Tensor, std: Tensor, truth: Tensor) -> Tensor:
    """Computes the continuous ranked probability score of normal laws (Gneiting and Raftery, 2007), elementwise."""
    std = std.clamp_min(1e-6)
    z = (truth - mean) / std
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    return std * (z * (2 * torch.special.ndtr(z) - 1) + 2 * density - 1 / math.sqrt(math.pi))


def pit_histogram(samples: Tensor, truth: Tensor, generator: torch.Generator, bins: int = 10) -> Tensor:
    """Counts where the truth lies among the samples: shares (bins,) of sum 1, all alike for a calibrated posterior.

    A histogram that is high at both ends tells of samples too much alike, a hump of samples spread too widely. The
    place is (rank + U) / (n + 1), with ties broken at random (Gneiting et al., 2007; Talagrand's rank histogram).
    """
    ties = (samples == truth).sum(0)
    below = (samples < truth).sum(0)
    uniform = torch.rand((2, *truth.shape), generator=generator, device=truth.device)
    rank = below + (uniform[0] * (ties + 1)).floor()
    place = (rank + uniform[1]) / (len(samples) + 1)
    return torch.histc(place.float(), bins, 0, 1) / place.numel()


def sparsification(mean: Tensor, std: Tensor, truth: Tensor, points: int = 20) -> tuple[Tensor, Tensor]:
    """Computes the error that is left when the most uncertain pixels are left out (Ilg et al., ECCV 2018).

    Args:
        mean: estimate, any shape.
        std: its uncertainty, the same shape.
        truth: the same shape.
        points: how many shares to leave out, from 0 to 1 − 1/points.

    Returns:
        Root mean square errors (points,) of the rest relative to that of all, ordered by std, and by the error itself,
        which no uncertainty can beat. The mean difference of the two is ``ause``.
    """
    error = (truth - mean).square().flatten().double()
    order = std.flatten().argsort(descending=True)
    curves = []
    for ordered in (error[order], error.sort(descending=True).values):
        rest = ordered.flip(0).cumsum(0).flip(0)
        first = (torch.arange(points) * len(error)) // points
        curves.append((rest[first] / (len(error) - first)).sqrt() / error.mean().sqrt())
    return curves[0].float(), curves[1].float()


def ause(mean: Tensor, std: Tensor, truth: Tensor) -> float:
    """Computes the area between the two curves of ``sparsification``: 0 for an uncertainty that orders all errors."""
    by_std, by_error = sparsification(mean, std, truth)
    return float((by_std - by_error).mean())


def spatial_correlation(error: Tensor, lags: int = 8) -> Tensor:
    """Computes the correlation of errors (..., H, W) with those 1 … lags pixels to the right and below; (lags,).

    To be compared between truth − mean and sample − mean: a posterior whose samples err as the mean does is believable
    in what it says of areas, not of pixels alone.
    """
    energy = error.square().mean().clamp_min(1e-20)
    pairs = [
        (error[..., lag:, :] * error[..., :-lag, :]).mean() + (error[..., lag:] * error[..., :-lag]).mean()
        for lag in range(1, lags + 1)
    ]
    return torch.stack(pairs) / (2 * energy)
