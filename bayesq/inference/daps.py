"""Inference on pixels by annealing, with a denoiser that knows its error for prior."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, TypeGuard, cast

import torch
import torch.nn.functional as F
from deepinv.physics import (
    Blur,
    BlurFFT,
    Decolorize,
    Demosaicing,
    Denoising,
    Downsampling,
    Inpainting,
    LinearPhysics,
    Physics,
    StructuredRandom,
)
from torch import Tensor

from bayesq import zoo
from bayesq.cells import Cell
from bayesq.denoiser import Denoiser
from bayesq.errors import OperatorError
from bayesq.inference.base import Info, Posterior
from bayesq.inference.texture import error_field
from bayesq.likelihoods import DecoderError, Mixture, NearlyGaussian, gaussian_near, noise_level
from bayesq.operators import BicubicDownsampling, has_start
from bayesq.operators.conditioning import condition

LEAST = 1 / 255
SYMMETRIES = 8
STRIDE = 5
"""Coprime to ``SYMMETRIES``: neighbouring steps see the picture in orientations that are far apart."""
NEARBY = 5
PICKING = Inpainting, Demosaicing, Decolorize, StructuredRandom
"""Operators that show part of the values, and those as they are."""
TOLERANCE = 0.1
"""Of draws, in their deviations."""


@dataclass(frozen=True)
class Annealed:
    """State of an annealing.

    Attributes:
        picture: The estimate so far ``(B, 3, H, W)``.
        ahead: Where the next step starts from.
        count: Steps taken.
    """

    picture: Tensor
    ahead: Tensor
    count: int = 0


@dataclass(frozen=True)
class DAPS:
    """Posterior sampling by decoupled annealing, for noise that is nearly Gaussian behind a linear operator.

    A step of the search takes, at a falling level of noise σ, the picture that fits both the estimate so far, with
    deviation σ / √weight, and the measurement, and denoises it: half-quadratic splitting. What that changes the next
    step carries on by ``momentum``, which makes a step worth two where pixels are missing. Every step turns or
    mirrors the picture otherwise before it asks the denoiser, whose faults would add up. A measurement of less noise
    than the denoiser is ever told, 1/255, is fitted once more at the end. Where noise is all that is the matter the
    estimate is the mean over all eight ways, of the denoiser told how strong it is where; the estimate so far hardly
    counts then but in place of values that say nothing.

    Samples around it are drawn from the denoiser's law of a picture given a noisy one, of deviation s. Where noise is
    all that is the matter that law is the posterior, and errors hang together as ``bayesq.inference.texture`` says.
    Behind an operator the denoiser is asked once, of the estimate with noise of ``breadth``, and its law is conditioned
    on the measurement: what is measured weakly or not at all is as uncertain as the denoiser finds it. That law is
    treated as if values were independent, which they are not: what noisy measurements say is believed too readily. So s
    counts ``doubt`` times. Those samples are in pairs mirrored at the estimate. Samples are moved to have the search's
    estimate for mean, which errs less than theirs. Nothing is propagated back through the denoiser.

    What the noise owes to the picture or to chance (the photons' number, a level that is not known, outliers) is found
    along with it: before every step its law is taken as that of Gaussian noise, given the picture so far
    (``NearlyGaussian``).

    The three equal channels of a grey measurement, each of a third of the weight, say what three channels of white
    noise would, and no more once noise is added that does not change their mean. The denoiser knows only the latter.

    Sources: for the search, Zhang et al., "Plug-and-play image restoration with deep denoiser prior", 2021; for samples
    by a Gaussian law around a denoiser's answer, conditioned on the measurement, Zhang et al., "Improving diffusion
    inverse problem solving with decoupled noise annealing", CVPR 2025, in which the deviation depends on the level
    alone and a chain of such draws leads to a sample; for mirrored pairs, Knollmüller and Enßlin, "Metric Gaussian
    variational inference", 2019.

    Attributes:
        posterior: Measurement and likelihood; the codec and the prior's weight are not used.
        steps: Length of the search.
        denoiser: By default the shipped one.
        coarsest: σ at the start of the search, image units; at least the measurement's. By default 0.2, and 0.3 for
            operators of which ``initial_image`` knows no kind: what A⁺y leaves black takes longer to fill.
        last: σ at the end of the search; by default the measurement's, and half of it where pixels are missing; at
            least 1/255. Where noise varies, its level is that of the mean precision.
        weight: How much the estimate counts in the search, as against the measurement. From 1/4 up no component of the
            measurement's noise passes stronger than the denoiser is told; with much less the search diverges at blurs.
            By default 0.23, and 0.1 where values are picked or averaged.
        momentum: How much of a step's change is added to it before the next, at first; it fades evenly to nothing.
        faint: The weight where noise is all that is the matter.
        breadth: σ of the law behind an operator.
        doubt: What s is multiplied by there.

    Raises:
        OperatorError: the noise is not nearly Gaussian, or the operator is not linear.
    """

    posterior: Posterior
    steps: int
    denoiser: Denoiser = field(default_factory=zoo.denoiser)
    coarsest: float | None = None
    last: float | None = None
    weight: float | None = None
    momentum: float = 1.0
    faint: float = 0.03
    breadth: float = 0.15
    doubt: float = 1.5
    on_pixels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.takes(self.posterior.likelihood):
            raise OperatorError("DAPS takes noise that is nearly Gaussian behind a linear operator")

    @staticmethod
    def default_steps(physics: Physics) -> int:
        """After how many steps a search has found what it will find: 8 for blurs, 16 where values are missing."""
        return 8 if isinstance(physics, Blur | BlurFFT) else 16

    @staticmethod
    def takes(likelihood: object) -> TypeGuard[NearlyGaussian]:
        """Whether a likelihood is one that DAPS can condition on."""
        if isinstance(likelihood, Mixture):
            return all(DAPS.takes(part) for part in likelihood.parts)
        return isinstance(likelihood, NearlyGaussian) and isinstance(likelihood.physics, LinearPhysics)

    def init(self, x0: Tensor) -> Annealed:
        return Annealed(x0, x0)

    def cells(self, state: Annealed) -> list[Cell]:
        """None: pixels have no cells."""
        return []

    @torch.no_grad()
    def step(self, state: Annealed, generator: torch.Generator) -> tuple[Annealed, Info]:
        """One iteration; white noise alone takes a single one. The generator is used for grey measurements alone."""
        x, ahead, place = state.picture, state.ahead, state.count
        y, noise = self._measured(x, generator)
        share = 0.5 if isinstance(self._likelihood.physics, PICKING) else 1
        last = max(share * self._level(x), LEAST) if self.last is None else self.last
        first = self.coarsest or (0.2 if has_start(self._likelihood.physics) else 0.3)
        sigma = _levels(max(first, last), last, self.steps)[min(place, self.steps - 1)]
        if self._white_noise_alone:
            picture = x if place else self._mean_of_all_ways(y, noise)
        elif self._noise_alone:
            local, over = _local_level(noise, x), sigma / last
            fitting = self._fit(y, noise, ahead, over * local / self.faint**0.5)
            ended = place >= self.steps - 1
            picture = self._mean_of_all_ways(fitting, local) if ended else self._mean(fitting, over * local, place)
        else:
            fitting = self._fit(y, noise, ahead, x.new_tensor(sigma / self._weight**0.5))
            picture = self._mean(fitting, sigma, place)
            if place == self.steps - 1 and self._level(x) < LEAST:
                picture = self._fit(y, noise, picture, x.new_tensor(LEAST))
        ahead = picture + self.momentum * max(0.0, 1 - (place + 1) / self.steps) * (picture - ahead)
        log_likelihood = self.posterior.log_likelihood_of_picture(picture).sum()
        return Annealed(picture, ahead, state.count + 1), Info(math.nan, float(log_likelihood), math.nan)

    @torch.no_grad()
    def sample(self, state: Annealed, n: int, generator: torch.Generator) -> Tensor:
        x = state.picture
        samples = self._denoised(x, n, generator) if self._noise_alone else self._behind(x, n, generator)
        moved = x - samples.mean(0) if n > 1 and state.count else 0
        return (samples + moved).clamp(0, 1)

    def _denoised(self, x: Tensor, n: int, generator: torch.Generator) -> Tensor:
        y, noise = self._measured(x, generator)
        local = _local_level(noise, x)
        asked = y if self._white_noise_alone else self._fit(y, noise, x, local / self.faint**0.5)
        mean, std = self._moments(asked, local, 0)
        level = self._level(x)
        return torch.stack([mean + std * error_field(x.shape, level, generator) for _ in range(n)])

    def _behind(self, x: Tensor, n: int, generator: torch.Generator) -> Tensor:
        sigma = max(self.breadth, self._level(x))
        _, std = self._moments(x + sigma * _noise(x, generator), sigma, 0)
        nothing = torch.zeros_like(x)
        draws: list[Tensor] = []
        while len(draws) < n:
            y, noise = self._measured(x, generator, drawn=True)
            physics, zeros = self._likelihood.physics, torch.zeros_like(y)
            away = condition(nothing, self.doubt * std, zeros, physics, noise, generator, TOLERANCE)
            draws += [x + away, x - away]
        return torch.stack(draws[:n])

    def _moments(self, x: Tensor, sigma: float | Tensor, turn: int) -> tuple[Tensor, Tensor]:
        """The denoiser's, asked in one of eight orientations."""
        way = turn * STRIDE % SYMMETRIES
        if isinstance(sigma, Tensor) and sigma.ndim == 4:
            sigma = sigma.flatten() if sigma.shape[-2:] == (1, 1) else _turned(sigma, way)
        mean, std = self.denoiser.moments(_turned(x, way), sigma)
        return _turned_back(mean, way), _turned_back(std, way)

    def _mean(self, x: Tensor, sigma: float | Tensor, turn: int) -> Tensor:
        return self._moments(x, sigma, turn)[0]

    def _mean_of_all_ways(self, x: Tensor, sigma: Tensor) -> Tensor:
        return torch.stack([self._mean(x, sigma, turn) for turn in range(SYMMETRIES)]).mean(0)

    @property
    def _likelihood(self) -> NearlyGaussian:
        return cast(NearlyGaussian, self.posterior.likelihood)  # __post_init__ has seen to it

    @property
    def _noise_alone(self) -> bool:
        return isinstance(self._likelihood.physics, Denoising)

    @property
    def _white_noise_alone(self) -> bool:
        return self._noise_alone and DecoderError.takes(self._likelihood)

    @property
    def _weight(self) -> float:
        light = isinstance(self._likelihood.physics, (*PICKING, BicubicDownsampling, Downsampling))
        return self.weight or (0.1 if light else 0.23)

    def _level(self, x: Tensor) -> float:
        return noise_level(self._likelihood, self.posterior.y, x)

    def _measured(self, x: Tensor, generator: torch.Generator, drawn: bool = False) -> tuple[Tensor, Tensor]:
        """Values and deviations of Gaussian noise that say what the measurement does, for pictures near x."""
        y, sigma = gaussian_near(self._likelihood, self.posterior.y, x, generator if drawn else None)
        if self._grey:
            noise = _noise(y, generator)
            y = y + sigma * (noise - noise.mean(1, keepdim=True))
        return y, sigma

    @property
    def _grey(self) -> bool:
        y = self.posterior.y
        return y.ndim == 4 and y.shape[1] == 3 and torch.equal(y[:, :2], y[:, 1:])

    def _fit(self, y: Tensor, sigma: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        return condition(mean, std, y, self._likelihood.physics, sigma)


def _levels(first: float, last: float, count: int) -> list[float]:
    """So many levels of noise in geometric progression."""
    return [first * (last / first) ** (place / max(1, count - 1)) for place in range(count)]


def _local_level(sigma: Tensor, like: Tensor) -> Tensor:
    """Deviation of white noise like that nearby, ``(B, 1, H, W)``, or ``(B, 1, 1, 1)`` or a scalar where it is even.

    It has the mean precision of ``NEARBY``² pixels, so that outliers do not count, and the mean variance of the
    channels, which the denoiser does not tell apart.
    """
    if sigma.ndim < 4:
        return sigma
    if sigma.shape[-2:] == (1, 1):
        return sigma.square().mean(1, keepdim=True).sqrt()
    precision = F.pad(sigma.square().reciprocal().expand_as(like), [NEARBY // 2] * 4, mode="replicate")
    return F.avg_pool2d(precision, NEARBY, 1).reciprocal().mean(1, keepdim=True).sqrt()


def _noise(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator).to(x)


def _turned(x: Tensor, way: int) -> Tensor:
    """One of the eight symmetries of a square: quarter turns, then perhaps a reflection."""
    x = x.rot90(way % 4, (2, 3))
    return x.flip(3) if way >= 4 else x


def _turned_back(x: Tensor, way: int) -> Tensor:
    x = x.flip(3) if way >= 4 else x
    return x.rot90(-(way % 4), (2, 3))
