"""The methods that restoration is compared with: scikit-image's, BM3D, and those of deepinv.

Each has at most one parameter, and is given the value of its grid that restores best on tuning pictures, which are
restored with knowledge of the truth: an oracle's choice, in the rivals' favour.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import numpy as np
import torch
from deepinv.models import ConvDecoder, DeepImagePrior
from deepinv.optim import DPIR, FISTA, HQS, L2, PnP, Prior, ScorePrior, TVPrior, WaveletPrior
from deepinv.physics import LinearPhysics
from deepinv.sampling import sampling_builder
from numpy.typing import NDArray
from skimage import restoration, transform
from torch import Tensor

from bayesq.bench.denoisers import DnCNN, FFDNet
from bayesq.metrics import psnr
from bayesq.operators import initial_image

LEAST = 1 / 255
"""Deviation that noise is taken to have at least, where a method needs some."""
TASKS = "denoise", "deblur", "superres", "inpaint"
SAMPLES = 32

Picture = NDArray[np.float64]
Problem = tuple[Tensor, Tensor, LinearPhysics]
"""Truth (1, 3, H, W), measurement, operator."""


@dataclass(frozen=True)
class Rival:
    """A method of restoration.

    Attributes:
        name: What tables call it.
        tasks: Names of the tasks that it can do.
        grid: Values of its parameter to choose from; a single one where it has none.
        run: Restores one measurement: ``run(y, physics, parameter)`` is (1, 3, H, W), or samples (n, 1, 3, H, W).
        package: What has to be installed for it, as it is imported.
    """

    name: str
    tasks: tuple[str, ...]
    grid: tuple[float, ...]
    run: Callable[[Tensor, LinearPhysics, float], Tensor]
    package: str = "torch"

    def at(self, value: float) -> Callable[[Tensor, LinearPhysics], Tensor]:
        """The method with its parameter set."""
        return lambda y, physics: self.run(y, physics, value)


def available() -> list[Rival]:
    """The rivals that can run here; the log tells what is left out for want of a package."""
    found = [rival for rival in RIVALS if find_spec(rival.package)]
    for rival in RIVALS:
        if rival not in found:
            logging.getLogger(__name__).warning("%s left out: %s is not installed", rival.name, rival.package)
    return found


def tune(rival: Rival, problems: Sequence[Problem]) -> float:
    """The parameter of the grid with the best mean PSNR over the problems."""
    if len(rival.grid) == 1:
        return rival.grid[0]
    return max(rival.grid, key=lambda value: _mean_psnr(rival, value, problems))


def _mean_psnr(rival: Rival, value: float, problems: Sequence[Problem]) -> float:
    return sum(float(psnr(rival.run(y, physics, value).clamp(0, 1), x)) for x, y, physics in problems)


def total_variation(y: Tensor, physics: LinearPhysics, weight: float) -> Tensor:
    """argmin_x ½ ‖A x − y‖² + weight · Σ ‖∇x‖, the inner problem solved with warm restarts."""
    prior = TVPrior(def_crit=1e-6, n_it_max=10)
    prior.TVModel.tau = max(0.01, 3e-4 / weight)  # primal step; the default suits strong weights only
    return _least(y, physics, prior, weight)


def _sparse_wavelets(y: Tensor, physics: LinearPhysics, weight: float) -> Tensor:
    """argmin_x ½ ‖A x − y‖² + weight · Σ |details of x| in three wavelet bases at once."""
    prior = WaveletPrior(level=3, wv=["db1", "db4", "sym8"])
    return _least(y, physics, prior, 10 * weight)  # its proximal map thresholds at a tenth of what it is told


def _least(y: Tensor, physics: LinearPhysics, prior: Prior, weight: float) -> Tensor:
    """argmin_x ½ ‖A x − y‖² + weight · prior(x) by deepinv's FISTA."""
    start = initial_image(y, physics)
    step = 1 / float(physics.compute_sqnorm(start, tol=1e-3, verbose=False))
    solver = FISTA(L2(), prior, lambda_reg=weight, stepsize=step, max_iter=100, thres_conv=1e-4, early_stop=True)
    with torch.no_grad():
        return solver(y, physics, init=(start, start))


def _deep_image_prior(y: Tensor, physics: LinearPhysics, iterations: float) -> Tensor:
    """deepinv's, with a decoder of 32 channels that is given noise at an eighth of the size."""
    height, width = initial_image(y, physics).shape[-2:]
    coarse = (-(-height // 8), -(-width // 8))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        decoder = ConvDecoder((3, height, width), coarse, layers=4, channels=32)
        return DeepImagePrior(decoder, (32, *coarse), int(iterations), learning_rate=0.01)(y, physics).detach()


def _sigma(physics: LinearPhysics) -> float:
    return float(physics.noise_model.sigma)


def _on_array(method: Callable[[Picture, LinearPhysics, float], Picture]) -> Callable[..., Tensor]:
    """Lets a method for arrays (H, W, 3) take and return tensors (1, 3, H, W)."""

    def run(y: Tensor, physics: LinearPhysics, parameter: float) -> Tensor:
        result = method(y[0].permute(1, 2, 0).double().numpy(), physics, parameter)
        return torch.from_numpy(np.ascontiguousarray(result)).permute(2, 0, 1)[None].float()

    return run


# Denoising ---------------------------------------------------------------------------------------------------------


@_on_array
def _bayes_shrink(y: Picture, physics: LinearPhysics, factor: float) -> Picture:
    return _wavelets(y, "BayesShrink", factor * _sigma(physics))


@_on_array
def _visu_shrink(y: Picture, physics: LinearPhysics, factor: float) -> Picture:
    return _wavelets(y, "VisuShrink", factor * _sigma(physics))


def _wavelets(y: Picture, method: str, sigma: float) -> Picture:
    """Shrinks luma and chroma, averaged over 16 shifts of the picture."""
    options = {"sigma": sigma, "method": method, "convert2ycbcr": True, "channel_axis": -1}
    shifts = list(product(range(4), range(4)))
    spun = (restoration.denoise_wavelet(np.roll(y, shift, (0, 1)), **options) for shift in shifts)
    return np.mean([np.roll(x, (-i, -j), (0, 1)) for (i, j), x in zip(shifts, spun, strict=True)], axis=0)


@_on_array
def _chambolle(y: Picture, physics: LinearPhysics, weight: float) -> Picture:
    return restoration.denoise_tv_chambolle(y, weight=weight, eps=1e-5, max_num_iter=500, channel_axis=-1)


@_on_array
def _bm3d(y: Picture, physics: LinearPhysics, factor: float) -> Picture:
    from bm3d import bm3d_rgb

    return bm3d_rgb(y, factor * _sigma(physics))


@_on_array
def _non_local_means(y: Picture, physics: LinearPhysics, factor: float) -> Picture:
    sigma = _sigma(physics)
    return restoration.denoise_nl_means(y, 5, 10, factor * sigma, sigma=sigma, channel_axis=-1)


# Deblurring --------------------------------------------------------------------------------------------------------


def _deconvolver(method: Callable[[Picture, Picture, float], Picture]) -> Callable[..., Tensor]:
    """Applies a periodic deconvolution (H, W) channel by channel to the picture's mirror images, which are periodic."""

    @_on_array
    def run(y: Picture, physics: LinearPhysics, parameter: float) -> Picture:
        kernel = physics.filter[0, 0].double().numpy()
        top, left = y.shape[0] // 2, y.shape[1] // 2
        margins = ((top, y.shape[0] - top), (left, y.shape[1] - left))
        channels = [
            method(np.pad(channel, margins, "symmetric"), kernel, parameter) for channel in np.moveaxis(y, 2, 0)
        ]
        return np.stack(channels, 2)[top : top + y.shape[0], left : left + y.shape[1]]

    return run


@_deconvolver
def _wiener(y: Picture, kernel: Picture, balance: float) -> Picture:
    return restoration.wiener(y, kernel, balance, clip=False)


@_deconvolver
def _unsupervised_wiener(y: Picture, kernel: Picture, _: float) -> Picture:
    return restoration.unsupervised_wiener(y, kernel, clip=False, rng=0)[0]


@_deconvolver
def _richardson_lucy(y: Picture, kernel: Picture, count: float) -> Picture:
    return restoration.richardson_lucy(y.clip(1e-6), kernel, num_iter=int(count), clip=False)


# Super-resolution and inpainting -----------------------------------------------------------------------------------


@_on_array
def _spline(y: Picture, physics: LinearPhysics, order: float) -> Picture:
    return transform.resize(y, physics.img_size[-2:], order=int(order), mode="edge", anti_aliasing=False)


@_on_array
def _biharmonic(y: Picture, physics: LinearPhysics, _: float) -> Picture:
    return restoration.inpaint_biharmonic(y, physics.mask[0, 0].numpy() == 0, channel_axis=-1)


# Pretrained denoisers ----------------------------------------------------------------------------------------------


def pretrained(folder: Path) -> list[Rival]:
    """Denoisers whose weights are in a folder, alone and as deepinv's plug-and-play prior (DPIR's schedule).

    Raises:
        ModelError: the weights are missing or damaged.
    """
    ffdnet = FFDNet(folder / "ffdnet_color.npz")
    dncnn = {level: DnCNN(folder / f"dncnn_color{level}.npz") for level in (25, 50)}

    def denoise(y: Tensor, physics: LinearPhysics, factor: float) -> Tensor:
        return ffdnet(y, factor * _sigma(physics))

    def plug(y: Tensor, physics: LinearPhysics, factor: float) -> Tensor:
        level = factor * max(_sigma(physics), LEAST)
        with torch.no_grad():
            return DPIR(level, ffdnet)(y, physics, init=initial_image(y, physics))

    def plug_one_level(y: Tensor, physics: LinearPhysics, step: float) -> Tensor:
        with torch.no_grad():
            solver = HQS(L2(), PnP(dncnn[25]), stepsize=step, g_first=False, max_iter=24)
            return solver(y, physics, init=initial_image(y, physics))

    def denoise_at_trained_level(y: Tensor, physics: LinearPhysics, _: float) -> Tensor:
        return dncnn[min(dncnn, key=lambda level: abs(level - 255 * _sigma(physics)))](y, _sigma(physics))

    def langevin(y: Tensor, physics: LinearPhysics, iterations: float) -> Tensor:
        sigma, start = max(_sigma(physics), LEAST), initial_image(y, physics)
        steepness = float(physics.compute_sqnorm(start, tol=1e-3, verbose=False)) / sigma**2
        smoothing, count = 10 / 255, int(iterations)
        sampler = sampling_builder(
            "ULA",
            L2(sigma=sigma),
            ScorePrior(ffdnet),
            {"step_size": 1 / (steepness + 1 / smoothing**2), "alpha": 1.0, "sigma": smoothing},
            max_iter=count,
            burnin_ratio=0.3,
            thinning=int(0.7 * count) // SAMPLES,
            history_size=SAMPLES,
            thresh_conv=0.0,
            clip=(-1.0, 2.0),
        )
        with torch.no_grad():
            sampler(y, physics, x_init=start, seed=0)
        return torch.stack([state["x"] for state in sampler.get_chain()])

    return [
        Rival("FFDNet", ("denoise",), (1.0,), denoise),
        Rival("DnCNN of 25 or 50", ("denoise",), (1.0,), denoise_at_trained_level),
        Rival("PnP with FFDNet (deepinv's DPIR)", TASKS[1:], (0.7, 1.0, 1.5, 2.5), plug),
        Rival("PnP with DnCNN of 25 (deepinv's HQS)", TASKS[1:], (30, 100, 300, 1000), plug_one_level),
        Rival("PnP-ULA (deepinv)", TASKS, (1000,), langevin),
    ]


def _ladder(low: float, high: float, count: int) -> tuple[float, ...]:
    return tuple(float(f"{value:.2g}") for value in np.geomspace(low, high, count))


RIVALS = [
    Rival("BayesShrink (scikit-image)", ("denoise",), (0.7, 0.85, 1.0, 1.2), _bayes_shrink, "pywt"),
    Rival("VisuShrink (scikit-image)", ("denoise",), (0.25, 0.35, 0.5, 0.7), _visu_shrink, "pywt"),
    Rival("BM3D", ("denoise",), (1.0,), _bm3d, "bm3d"),
    Rival("TV, Chambolle (scikit-image)", ("denoise",), _ladder(0.04, 0.2, 8), _chambolle),
    Rival("non-local means (scikit-image)", ("denoise",), (0.3, 0.4, 0.5, 0.6, 0.8), _non_local_means),
    Rival("Wiener (scikit-image)", ("deblur",), _ladder(3e-4, 0.3, 10), _wiener),
    Rival("unsupervised Wiener (scikit-image)", ("deblur",), (0.0,), _unsupervised_wiener),
    Rival("Richardson-Lucy (scikit-image)", ("deblur",), (5, 10, 20, 40, 80), _richardson_lucy),
    Rival("spline (scikit-image)", ("superres",), (1, 2, 3, 4, 5), _spline),
    Rival("biharmonic (scikit-image)", ("inpaint",), (0.0,), _biharmonic),
    Rival("TV (deepinv)", ("denoise",), _ladder(0.05, 0.15, 5), total_variation),
    Rival("TV (deepinv)", TASKS[1:], _ladder(2e-4, 5e-3, 5), total_variation),
    Rival("wavelets (deepinv)", ("denoise",), _ladder(0.05, 0.2, 5), _sparse_wavelets, "ptwt"),
    Rival("wavelets (deepinv)", TASKS[1:], (3e-4, 1e-4, 3e-5), _sparse_wavelets, "ptwt"),
    Rival("deep image prior (deepinv)", TASKS, (500,), _deep_image_prior),
]
