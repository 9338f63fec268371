"""What every inference algorithm shares: the posterior it is after, and the shape of its loop.

algorithm = VBLE(posterior)
state = algorithm.init(x0)
for _ in range(100):
    state, info = algorithm.step(state, generator)
pictures = algorithm.sample(state, 32, generator)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from bayesq.cells import Cell
from bayesq.codec import Codec
from bayesq.likelihoods import DecoderError, Likelihood
from bayesq.prior import Walk, log_density

State = TypeVar("State")
AT_ONCE = 1 << 17
"""Pixels of the pictures that are decoded at once, of one picture at least."""


@dataclass(frozen=True)
class Info:
    """What is worth watching in a step, summed over the batch.

    Attributes:
        elbo: Evidence lower bound (for a point estimate, the log of the joint density), nats; NaN where the prior is
            known by its gradient alone.
        log_likelihood: log p(y | x), nats.
        bits: −log₂ of the prior's density, bits; NaN as above.
    """

    elbo: float
    log_likelihood: float
    bits: float


@dataclass(frozen=True)
class Posterior:
    """p(z | y) ∝ p(y | g_s(z)) p(z): a measurement, its likelihood, and a codec as prior.

    Attributes:
        y: The measurement, whatever shape the likelihood takes; the first dimension is the batch.
        likelihood: p(y | x).
        codec: Decoder and prior of the latents; None for algorithms on pixels, which may have priors of their own.
        level: ``(B,)`` quality level of the prior: its bitrate, VBLE's α.
        size: Height and width of the picture.
        prior_weight: Power of the prior; 1 is Bayes' rule.
        offset: Rows and columns by which the picture is moved down and right on the codec's grid, which starts above
            and left of it. The prior is not quite invariant under translation; see ``bayesq.restore``.
    """

    y: Tensor
    likelihood: Likelihood
    codec: Codec | None
    level: Tensor
    size: tuple[int, int]
    prior_weight: float = 1.0
    offset: tuple[int, int] = (0, 0)

    @property
    def _grid_size(self) -> tuple[int, int]:
        return self.size[0] + self.offset[0], self.size[1] + self.offset[1]

    @property
    def model(self) -> Codec:
        """The codec, of algorithms that need one."""
        assert self.codec is not None
        return self.codec

    def picture(self, values: Sequence[Tensor]) -> Tensor:
        """g_s of latents in the order of the walk: ``(B, 3, H, W)``, not clipped."""
        top, left = self.offset
        return self.model.picture(values, *self._grid_size, self.level)[..., top:, left:]

    @torch.no_grad()
    def pictures(self, draws: Sequence[Tensor]) -> Tensor:
        """g_s of n draws of all latents in the order of the walk, by the runtime that decodes files.

        Args:
            draws: Each ``(n, B, C, h, w)``.

        Returns:
            ``(n, B, 3, H, W)``, not clipped.
        """
        (top, left), (height, width) = self.offset, self._grid_size
        z = self.model.prior.image_latent([values.flatten(0, 1) for values in draws])
        levels = self.level.repeat(len(draws[0]))
        count = max(1, AT_ONCE // (height * width))
        parts = zip(z.split(count), levels.split(count), strict=True)
        found = [self.model.runtime.synthesis(*part)[..., top:height, left:width] for part in parts]
        return torch.cat(found).unflatten(0, draws[0].shape[:2])

    def complete(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """From x = g_s(z) to draws of p(x | y, z), without a generator its means, where the decoder is said to err."""
        if not isinstance(self.likelihood, DecoderError):
            return x
        return self.likelihood.complete(self.y, x, generator)

    def log_likelihood(self, values: Sequence[Tensor]) -> Tensor:
        """log p(y | g_s(z)), nats, ``(B,)``; pictures are clipped to [−0.1, 1.1] as in VBLE's code."""
        return self.likelihood.log_prob(self.y, self.picture(values).clamp(-0.1, 1.1))

    def log_likelihood_of_picture(self, x: Tensor) -> Tensor:
        """log p(y | x) of pictures, in which no decoder errs, clipped to the same range; nats, ``(B,)``."""
        likelihood = self.likelihood.likelihood if isinstance(self.likelihood, DecoderError) else self.likelihood
        return likelihood.log_prob(self.y, x.clamp(-0.1, 1.1))

    def walk(self) -> Walk:
        """The prior's walk for the pictures of the batch."""
        return self.model.walk(len(self.level), *self._grid_size, self.level)

    def log_prior(self, values: Sequence[Tensor]) -> Tensor:
        """log p(z), nats, ``(B,)``."""
        return log_density(self.walk(), values)

    @torch.no_grad()
    def encode(self, x: Tensor) -> list[Tensor]:
        """The encoder's latents for pictures ``(B, 3, H, W)``: where a search may start."""
        top, left = self.offset
        x = F.pad(x, (left, 0, top, 0), mode="replicate")
        return [target.clone() for target in self.model.targets(x, self.level)]


class Algorithm(Protocol, Generic[State]):
    """An inference algorithm; the caller owns the loop.

    A class that searches pixels, which have no place on a codec's grid, says so by ``on_pixels = True``.
    """

    def init(self, x0: Tensor) -> State:
        """State that starts from pictures ``(B, 3, H, W)`` in [0, 1]."""
        ...

    def step(self, state: State, generator: torch.Generator) -> tuple[State, Info]:
        """One iteration."""
        ...

    def cells(self, state: State) -> list[Cell]:
        """The current approximation as cells of the latents, in the order of the walk; empty where it is no cells."""
        ...

    def sample(self, state: State, n: int, generator: torch.Generator) -> Tensor:
        """n pictures ``(n, B, 3, H, W)`` in [0, 1] from the current posterior approximation."""
        ...
