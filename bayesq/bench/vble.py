"""Time of a restoration with posterior samples, beside variational latent estimation at its authors' settings.

Theirs (Biquard et al., arXiv 2311.17744): CompressAI's autoregressive ``mbt2018``, N = 192, M = 320, of which the
density is evaluated in parallel, 300 steps of Adam, 100 samples, through the same loop as ours. Its weights are random,
which changes what it finds and not what it costs; and since it takes long, some of its steps and samples are timed and
multiplied.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor

from bayesq import metrics, operators
from bayesq.bench import table
from bayesq.codec import Codec
from bayesq.inference import VBLE, Posterior
from bayesq.likelihoods import from_physics
from bayesq.restore import STEPS, restore

KERNEL, SIGMA = "gaussian:1", 2.55 / 255
THEIR_STEPS = 300
SAMPLES = 100
BORDER = 5


@dataclass(frozen=True)
class Run:
    """One way to restore.

    Attributes:
        name: What was run.
        seconds: Of inference and sampling; of theirs, multiplied up.
        psnr: dB, without the border; None where weights are random.
    """

    name: str
    seconds: float
    psnr: float | None


@dataclass(frozen=True)
class Report:
    """Runs on one picture: ours by default, our VBLE by default and at their number of steps, theirs.

    Attributes:
        height, width: Of the picture.
        threads: Of torch.
        timed_steps, timed_samples: Of theirs, that were in fact run.
        runs: The four, in that order.
    """

    height: int
    width: int
    threads: int
    timed_steps: int
    timed_samples: int
    runs: list[Run]

    @property
    def ratio(self) -> float:
        """How many times as long as our default theirs takes."""
        return self.runs[-1].seconds / self.runs[0].seconds

    def text(self) -> str:
        """A Markdown table."""
        theirs = self.runs[-1].seconds
        rows = [
            [
                run.name,
                f"{run.seconds:.1f}",
                f"{theirs / run.seconds:.1f}",
                "–" if run.psnr is None else f"{run.psnr:.2f}",
            ]
            for run in self.runs
        ]
        return "\n\n".join(
            [
                f"{self.width} x {self.height}, blur {KERNEL}, noise {255 * SIGMA:.3g}/255, {SAMPLES} samples, "
                f"{self.threads} threads. VBLE's time is {THEIR_STEPS} times that of a step and {SAMPLES} times that "
                f"of a sample, means of {self.timed_steps} and {self.timed_samples}.",
                table(["", "seconds", "times as fast", "PSNR dB"], rows),
            ]
        )


def mbt2018(features: int = 192, latents: int = 320) -> Codec:
    """CompressAI's autoregressive model of N features and M latents, with random weights, as a prior."""
    from compressai.models import JointAutoregressiveHierarchicalPriors

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Codec.from_compressai(JointAutoregressiveHierarchicalPriors(features, latents))


def run(
    codec: Codec,
    x: Tensor,
    rival: Codec,
    *,
    steps: int = STEPS,
    timed_steps: int = 3,
    timed_samples: int = 3,
    clock: Callable[[], float] = perf_counter,
) -> Report:
    """Blurs a picture and restores it in all four ways.

    Args:
        codec: Ours, for VBLE.
        x: The picture ``(1, 3, H, W)``.
        rival: Theirs, such as ``mbt2018()``.
        steps: Of our VBLE by default.
        timed_steps, timed_samples: How many of theirs to run.
        clock: Tells seconds, such as ``time.process_time`` on a busy machine.
    """
    size = x.shape[-2], x.shape[-1]
    physics = operators.blur(KERNEL, size, SIGMA)
    y = operators.degrade(x, physics, torch.Generator().manual_seed(0))

    def ours(name: str, **settings: Any) -> Run:
        start = clock()
        result = restore(y, physics, samples=SAMPLES, **settings)
        seconds = clock() - start
        pair = metrics.crop_border(result.mean, BORDER), metrics.crop_border(x, BORDER)
        return Run(name, seconds, metrics.psnr(*pair).item())

    runs = [
        ours("bayesq"),
        ours("bayesq, VBLE", codec=codec, steps=steps),
        ours(f"bayesq, VBLE, {THEIR_STEPS} steps on one grid", codec=codec, steps=THEIR_STEPS, grids=1),
    ]
    seconds = _theirs(y, physics, rival, size, timed_steps, timed_samples, clock)
    theirs = Run("VBLE, mbt2018", seconds, None)
    return Report(*size, torch.get_num_threads(), timed_steps, timed_samples, [*runs, theirs])


def _theirs(
    y: Tensor,
    physics: LinearPhysics,
    rival: Codec,
    size: tuple[int, int],
    steps: int,
    samples: int,
    clock: Callable[[], float],
) -> float:
    """Seconds that a whole search and its samples would take; a first step is not counted."""
    posterior = Posterior(y, from_physics(physics), rival, torch.zeros(1, dtype=torch.int64), size)
    search, generator = VBLE(posterior, THEIR_STEPS), torch.Generator().manual_seed(0)
    state, _ = search.step(search.init(y), generator)
    start = clock()
    for _ in range(steps):
        state, _ = search.step(state, generator)
    middle = clock()
    search.sample(state, samples, generator)
    return THEIR_STEPS * (middle - start) / steps + SAMPLES * (clock() - middle) / samples
