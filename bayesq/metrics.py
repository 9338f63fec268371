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
