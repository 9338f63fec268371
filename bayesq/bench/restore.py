"""Restoration of pictures degraded on purpose: posterior means, the point estimate, and rivals, side by side.

All methods of a run see the same measurements. PSNR and SSIM are of pictures clipped to [0, 1], without the border
that is asked to be left out; coverage is of the noise-free truth by central intervals of the posterior samples.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any, NoReturn

import torch
from deepinv.physics import Denoising, LinearPhysics, PoissonNoise
from torch import Tensor
from tqdm import tqdm

from bayesq import metrics, operators
from bayesq.bench import table
from bayesq.bench.rivals import TASKS, Problem, Rival, tune
from bayesq.choice import choose
from bayesq.codec import Codec
from bayesq.inference import DAPS, VBLE, MAPz
from bayesq.io import read_image, to_tensor
from bayesq.likelihoods import SIGMA_FLOOR
from bayesq.operators import Size, degrade, initial_image
from bayesq.resources import data_dir
from bayesq.restore import Restoration, restore

log = logging.getLogger(__name__)
Method = Callable[[Tensor, LinearPhysics], Tensor | Restoration]
"""A picture (1, 3, H, W), samples (n, 1, 3, H, W), or a restoration."""
QUALITIES = 40.0, 60.0, 80.0, 100.0
"""Among which an oracle chooses."""
POINT = "MAP-z"
"""The method of ours without samples: those of its restorations are points, one for each grid."""
OURS = "start", "DAPS", "VBLE", POINT
CHOSEN, TUNED = "VBLE, chosen by held-out values", "VBLE, quality tuned"
Build = Callable[[Size, float, torch.Generator], LinearPhysics]


@dataclass(frozen=True)
class Task:
    """A degradation.

    Attributes:
        name: Its kind, as ``Rival.tasks`` says it.
        setting: What it does, in words.
        sigma: Standard deviation of its noise, image units.
        build: The operator for a size, a noise level and a source of randomness.
    """

    name: str
    setting: str
    sigma: float
    build: Build

    @property
    def label(self) -> str:
        """Tells it from others of its kind."""
        return f"{self.name}, {self.setting}, {255 * self.sigma:.3g}/255"

    def problem(self, x: Tensor, seed: int) -> Problem:
        """Degrades a picture ``(1, 3, H, W)``."""
        generator = torch.Generator().manual_seed(seed)
        physics = self.build((x.shape[-2], x.shape[-1]), self.sigma, generator)
        return x, degrade(x, physics, generator), physics


def _half_mask(size: Size, sigma: float, generator: torch.Generator) -> LinearPhysics:
    return operators.inpaint(torch.rand(size, generator=generator) < 0.5, size, sigma)


def _noise(sigma: float) -> Task:
    return Task("denoise", "noise alone", sigma, lambda size, sigma, _: operators.denoise(size, sigma))


def _reduction(factor: int, sigma: float) -> Task:
    setting = f"bicubic x{factor}"
    return Task("superres", setting, sigma, lambda size, sigma, _: operators.downsample(factor, size, sigma))


SUITE = [
    _noise(25 / 255),
    Task("deblur", "gaussian:1.6", 2.55 / 255, lambda size, sigma, _: operators.blur("gaussian:1.6", size, sigma)),
    _reduction(2, 2.55 / 255),
    Task("inpaint", "50 % of the pixels at random", 2.55 / 255, _half_mask),
]


def vble_suite(motion: str) -> list[Task]:
    """The problems of the field's table for variational latent estimation (Biquard et al., arXiv 2311.17744).

    Three blurs at two noise levels, two reductions, half of the pixels lost; and denoising at three levels.

    Args:
        motion: The kernel of the motion blur, as ``operators.parse_kernel`` takes it.
    """

    def blur(kernel: str) -> Build:
        return lambda size, sigma, _: operators.blur(kernel, size, sigma)

    kernels = {"gaussian:1": "gaussian:1", "gaussian:3": "gaussian:3", "motion": motion}
    noise = (2.55, 7.65)
    return [
        *(Task("deblur", name, sigma / 255, blur(kernel)) for sigma in noise for name, kernel in kernels.items()),
        *(_reduction(factor, 0.0) for factor in (2, 4)),
        Task("inpaint", "50 % of the pixels at random", 2.55 / 255, _half_mask),
        *(_noise(sigma / 255) for sigma in (15, 25, 50)),
    ]


def _photons(count: int) -> Task:
    """Noise of photons, so many from a white pixel; its deviation is that at mid-grey."""
    gain = 1 / count

    def build(size: Size, _: float, generator: torch.Generator) -> LinearPhysics:
        return Denoising(PoissonNoise(gain=gain))

    return Task("denoise", f"{count} photons", math.sqrt(gain / 2), build)


def calibration_suite(motion: str) -> list[Task]:
    """The problems that stand for all others when error bars are fitted.

    Those of ``vble_suite``, some between them, and some of no noise or hardly any.
    """
    mosaic = Task("demosaic", "Bayer", 2.55 / 255, lambda size, sigma, _: operators.demosaic(size, sigma))
    reductions = [_reduction(factor, 2.55 / 255) for factor in (2, 4)]
    shake = str(data_dir() / "motion.png")
    shaken = Task("deblur", "motion.png", 5 / 255, lambda size, sigma, _: operators.blur(shake, size, sigma))
    suite = vble_suite(motion)
    between = [*reductions, _noise(5 / 255), mosaic, SUITE[1], shaken]
    faint = [replace(task, sigma=sigma / 255) for task in (suite[0], SUITE[3], mosaic) for sigma in (0, 0.5)]
    return [*suite, *between, *(_photons(count) for count in (1000, 100, 10)), *faint]


@dataclass(frozen=True)
class Uncertainty:
    """What posterior samples are worth: one entry a picture.

    Attributes:
        coverage: Share of the values inside the intervals of each of ``metrics.LEVELS``.
        width: Mean width of the 90 % interval, image units: the narrower, the sharper.
        crps: Mean continuous ranked probability score, image units.
        std: Mean posterior standard deviation, to be compared with ``rmse``.
        rmse: Root mean square error of the mean.
    """

    coverage: list[list[float]] = field(default_factory=list)
    width: list[float] = field(default_factory=list)
    crps: list[float] = field(default_factory=list)
    std: list[float] = field(default_factory=list)
    rmse: list[float] = field(default_factory=list)

    def add(self, samples: Tensor, mean: Tensor, truth: Tensor, border: int) -> None:
        """Adds a picture's entries."""
        samples, mean, x = (metrics.crop_border(v, border) for v in (samples, mean, truth))
        self.coverage.append(metrics.coverage(samples, x).tolist())
        self.width.append(metrics.interval_widths(samples, [0.9]).mean().item())
        self.crps.append(metrics.crps(samples, x).mean().item())
        self.std.append(samples.std(0).mean().item())
        self.rmse.append((mean - x).square().mean().sqrt().item())


@dataclass(frozen=True)
class Scores:
    """One method on one task: one entry a picture.

    Attributes:
        task: Name of the task.
        label: What tells it from others of that name.
        method: Name of the method.
        parameter: What an oracle chose for a rival.
        psnr: dB.
        ssim: Structural similarity.
        lpips: Perceptual distance; None where its weights are not on disk.
        seconds: Time taken.
        uncertainty: For posterior samples.
    """

    task: str
    label: str
    method: str
    parameter: float | None
    psnr: list[float]
    ssim: list[float]
    lpips: list[float] | None
    seconds: list[float]
    uncertainty: Uncertainty | None = None


def read(path: Path, crop: int | None = None) -> Tensor:
    """A picture ``(1, 3, H, W)``, its middle at most ``crop`` pixels a side."""
    x = to_tensor(read_image(path))
    height, width = (min(side, crop or side) for side in x.shape[-2:])
    top, left = (x.shape[-2] - height) // 2, (x.shape[-1] - width) // 2
    return x[..., top : top + height, left : left + width]


def measure(
    codec: Codec,
    task: Task,
    pictures: Sequence[Tensor],
    *,
    rivals: Sequence[Rival] = (),
    tuning: Sequence[Tensor] = (),
    words: Sequence[str] = ("",),
    choices: bool = False,
    seed: int = 0,
    quality: float | None = None,
    steps: int | None = None,
    samples: int,
    border: int = 0,
    progress: bool = False,
) -> list[Scores]:
    """Degrades every picture, and restores it by every method.

    Args:
        codec: Prior of ours.
        task: The degradation.
        pictures: Each ``(1, 3, H, W)`` in [0, 1].
        rivals: Methods to compare with; those that cannot do the task are left out.
        tuning: Pictures on which the rivals' parameters are chosen.
        choices: Also run VBLE with quality and weight chosen by held-out measurements, where there is noise enough, and
            with the quality that an oracle chooses as it chooses a rival's parameter.
        words: Only methods whose names hold one of these, in capitals or not.
        seed: Of the first picture's mask and noise, and of the inference; the n-th picture's is n more.
        quality: Of the prior; by default ``restore``'s choice.
        steps: Iterations of VBLE and MAP-z; by default ``restore``'s.
        samples: Posterior samples.
        border: Pixels on each side that do not count.
        progress: Show a bar on standard error where it is a terminal.

    Returns:
        The starting point (the measurement, enlarged or filled), DAPS, VBLE, MAP-z, then the rivals.
    """
    problems = [task.problem(x, seed + n) for n, x in enumerate(pictures)]
    trials = [task.problem(x, seed + n) for n, x in enumerate(tuning)]

    def wanted(name: str) -> bool:
        return any(word.lower() in name.lower() for word in words)

    def ours(y: Tensor, physics: LinearPhysics, algorithm: type[DAPS | VBLE | MAPz], **options: Any) -> Restoration:
        return restore(
            y,
            physics,
            codec=codec,
            algorithm=algorithm,
            steps=None if algorithm is DAPS else steps,
            samples=samples,
            generator=torch.Generator().manual_seed(seed),
            **{"quality": quality, **options},
        )

    def chosen(y: Tensor, physics: LinearPhysics) -> Restoration:
        choice = choose(y, physics, codec=codec)
        return ours(y, physics, VBLE, quality=choice.quality, prior_weight=choice.prior_weight)

    start, *named = OURS
    all_ours: dict[str, Method] = {start: initial_image}
    all_ours |= {name: partial(ours, algorithm=kind) for name, kind in zip(named, (DAPS, VBLE, MAPz), strict=True)}
    if choices:
        all_ours |= {CHOSEN: chosen} if task.sigma > SIGMA_FLOOR else {}
        tuned = Rival(TUNED, TASKS, QUALITIES, lambda y, physics, q: ours(y, physics, VBLE, quality=q).mean)
        rivals = [tuned, *rivals]
    methods = {name: run for name, run in all_ours.items() if wanted(name)}
    rivals = [rival for rival in rivals if task.name in rival.tasks and wanted(rival.name)]
    scores = []
    total = (len(methods) + len(rivals)) * len(problems)
    with tqdm(total=total, desc=task.name, disable=None if progress else True, leave=False) as bar:
        for name, run in methods.items():
            scores.append(_score(task, name, None, problems, run, border, bar))
        for rival in rivals:
            value = tune(rival, trials)
            scores.append(_score(task, rival.name, value, problems, rival.at(value), border, bar))
    return scores


def _score(
    task: Task,
    method: str,
    parameter: float | None,
    problems: Sequence[Problem],
    run: Method,
    border: int,
    bar: tqdm[NoReturn],
) -> Scores:
    psnr: list[float] = []
    ssim: list[float] = []
    lpips: list[float] = []
    seconds: list[float] = []
    uncertainty = Uncertainty()
    for x, y, physics in problems:
        start = perf_counter()
        result = run(y, physics)
        seconds.append(perf_counter() - start)
        if isinstance(result, Restoration):
            samples, estimate = result.samples, result.mean
        else:
            samples, estimate = result, result.mean(0) if result.ndim == 5 else result
        if samples.ndim == 5 and method != POINT:
            uncertainty.add(samples, estimate, x, border)
        estimate = estimate.clamp(0, 1)
        pair = metrics.crop_border(estimate, border), metrics.crop_border(x, border)
        psnr.append(metrics.psnr(*pair).item())
        ssim.append(metrics.ssim(*pair).item())
        lpips += [value.item() for value in [metrics.lpips(*pair)] if value is not None]
        log.info("%s, %s: picture %d of %d, %.2f dB", task.label, method, len(psnr), len(problems), psnr[-1])
        bar.update()
    return Scores(
        task.name,
        task.label,
        method,
        parameter,
        psnr,
        ssim,
        lpips or None,
        seconds,
        uncertainty if uncertainty.rmse else None,
    )


def report(task: Task, scores: Sequence[Scores]) -> str:
    """A Markdown table of the methods on a task, means over the pictures."""
    rows = [
        [
            score.method,
            "" if score.parameter is None else f"{score.parameter:g}",
            f"{fmean(score.psnr):.2f}",
            f"{fmean(score.ssim):.4f}",
            "–" if score.lpips is None else f"{fmean(score.lpips):.4f}",
            f"{fmean(score.seconds):.2f}",
        ]
        for score in scores
    ]
    head = ["method", "parameter", "PSNR dB", "SSIM", "LPIPS", "seconds"]
    return f"{task.name}: {task.setting}, noise {255 * task.sigma:.3g}/255\n\n{table(head, rows)}"


def report_uncertainty(scores: Sequence[Scores]) -> str:
    """A table of how often the truth was inside, how sharp and how good the samples are, and what error they foretell.

    Widths, scores, deviations and errors are in image units.
    """
    rows = []
    for score in scores:
        found = score.uncertainty
        if not found:
            continue
        shares = [f"{100 * fmean(column):.1f} %" for column in zip(*found.coverage, strict=True)]
        means = [f"{fmean(column):.4f}" for column in (found.width, found.crps, found.std, found.rmse)]
        rows.append([score.label, score.method, *shares, *means])
    levels = [f"{level:.0%}" for level in metrics.LEVELS]
    head = ["truth within the central", "by", *levels, "width of 90%", "CRPS", "mean std", "RMSE"]
    return table(head, rows)
