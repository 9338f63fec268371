"""The loss of a denoiser that is to serve a search."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bayesq.denoiser import SIGMAS, SPREAD, Denoiser
from bayesq.training.problems import Problem, draw_problem

ERROR_WEIGHT = 0.1
ERROR_FLOOR = 1e-4
COARSEST, FINEST = 0.2, 1 / 255
"""Levels of noise between which a search goes, image units; it starts and ends no lower than the measurement's."""
STEPS = 3, 6
"""How many a search takes here: fewer than it will, so that asking costs less than learning."""
WEIGHTS = 0.25, 0.5
"""Between which the weight of its regularisation is drawn."""


class DenoisingLoss(nn.Module):
    """Log of the mean square error of each crop, and the likelihood of the errors under the deviations foretold.

    Half of the crops are in white noise. What a half-quadratic search for a blurred, reduced or incomplete picture asks
    a denoiser about is not: noise that a kernel has let through is coloured, and what it has taken away is missing. So
    the others are what such a search, of the denoiser as it is, would ask next. That is to the search what Ross et al.,
    "A reduction of imitation learning and structured prediction to no-regret online learning", 2011, is to imitation.
    These come with the deviation of the noise left in them, so that the denoiser can tell them from white noise. A
    search gains most by what they teach when it asks as if its noise were white, as ``DAPS`` does: told otherwise, the
    denoiser gives the best guess at once, and steps after that add less.

    The logarithm makes all levels of noise, and all crops, count alike, as their PSNR does. Errors in the likelihood,
    which is of white noise only, are taken as given, so that the mean is not drawn to what is easy to foretell.

    Args:
        denoiser: What is trained.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Mean loss of pictures ``(B, 3, H, W)``, each at a level of its own."""
        white = (len(x) + 1) // 2
        low, high = SIGMAS
        places = (torch.arange(white) + torch.rand(white, generator=generator)) / white
        sigma = low * (high / low) ** places
        noisy = x[:white] + sigma.view(-1, 1, 1, 1) * torch.randn(x[:white].shape, generator=generator)
        noise = sigma
        if white < len(x):
            problems = [draw_problem(crop, generator) for crop in x[white:]]
            level, left, asked = ask(self.denoiser, problems, generator)
            noisy, sigma, noise = torch.cat([noisy, asked]), torch.cat([sigma, level]), torch.cat([sigma, left])
        mean, std = self.denoiser.moments(noisy, sigma, noise)
        error, scale = (mean - x).square(), sigma.square() / (1 + (sigma / SPREAD).square())
        relative = error.flatten(1).mean(1) / scale
        foretold = error[:white].detach() / (2 * std[:white].square()) + std[:white].log()
        surprise = foretold.flatten(1).mean(1) - scale[:white].log() / 2
        return (relative + ERROR_FLOOR).log().mean() + ERROR_WEIGHT * surprise.sum() / len(x)


@torch.no_grad()
def ask(denoiser: Denoiser, problems: list[Problem], generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Levels ``(B,)``, deviations of noise ``(B,)`` and pictures ``(B, 3, H, W)`` that a search would ask about.

    Half of the time those of its last step, else those of any. Number of steps, weight and momentum, as ``DAPS`` has
    them, are drawn too.
    """
    draws = torch.rand(4, generator=generator).tolist()
    progress = 1.0 if draws[0] < 0.5 else draws[1]
    count = round(progress * int(torch.randint(STEPS[0], STEPS[1] + 1, (), generator=generator)))
    weight = WEIGHTS[0] * (WEIGHTS[1] / WEIGHTS[0]) ** draws[2]
    first = torch.tensor([max(COARSEST, problem.sigma) for problem in problems])
    last = torch.tensor([max(problem.finest * problem.sigma, FINEST) for problem in problems])
    ahead = torch.stack([problem.start() for problem in problems])
    for place in range(count + 1):
        level = first * (last / first) ** (progress * place / max(1, count))
        stds = (level / weight**0.5).tolist()
        asked = torch.stack([problem.fit(x, std) for problem, x, std in zip(problems, ahead, stds, strict=True)])
        noise = torch.tensor([problem.noise(std) for problem, std in zip(problems, stds, strict=True)])
        if place < count:
            picture = denoiser(asked, level, noise)
            ahead = picture + draws[3] * (1 - progress * (place + 1) / (count + 1)) * (picture - ahead)
    return level, noise, asked
