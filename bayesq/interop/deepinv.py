"""bayesq where deepinv expects a reconstructor or a denoiser."""

from __future__ import annotations

from typing import Any

import torch
from deepinv.models import Denoiser, Reconstructor
from deepinv.physics import Denoising, GaussianNoise, Physics
from torch import Tensor

from bayesq import zoo
from bayesq.codec import Codec
from bayesq.inference.score import denoise_by_coding
from bayesq.restore import SAMPLES, Restoration, restore


class PosteriorReconstructor(Reconstructor):
    """Posterior mean and variance by ``bayesq.restore``, as deepinv's samplers give them.

    Args:
        codec: Prior of the pictures; by default the best for the problem (``bayesq.restore.default_algorithm``).
        **options: Keywords of ``bayesq.restore``: ``quality``, ``steps``, ``algorithm``, …
    """

    def __init__(self, codec: Codec | None = None, **options: Any) -> None:
        super().__init__()
        self.codec, self.options = codec, options

    def forward(self, y: Tensor, physics: Physics, seed: int = 0) -> Tensor:
        """The posterior mean ``(B, 3, H, W)`` of measurements y."""
        return self._restore(y, physics, SAMPLES, seed).mean

    def sample(self, y: Tensor, physics: Physics, n: int = SAMPLES, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Mean and variance of n posterior samples, each ``(B, 3, H, W)``."""
        restoration = self._restore(y, physics, n, seed)
        return restoration.mean, restoration.std.square()

    def _restore(self, y: Tensor, physics: Physics, n: int, seed: int) -> Restoration:
        generator = torch.Generator().manual_seed(seed)
        return restore(y, physics, codec=self.codec, samples=n, generator=generator, **self.options)


class CodingDenoiser(Denoiser):
    """A picture coded so coarsely that its noise is lost: four passes of the codec, for plug-and-play iterations.

    Args:
        codec: By default the shipped base model.
    """

    def __init__(self, codec: Codec | None = None) -> None:
        super().__init__()
        self.codec = codec or zoo.shared()

    def forward(self, x: Tensor, sigma: float | Tensor, **_: Any) -> Tensor:
        """Denoises x ``(B, 3, H, W)``; sigma in image units, one for all or ``(B,)``."""
        return denoise_by_coding(self.codec, x, torch.as_tensor(sigma).flatten().expand(len(x)))


class CodecDenoiser(Denoiser):
    """The posterior mean of a picture in white Gaussian noise, under the codec's prior: better, and slower.

    Args:
        codec: Prior of the pictures; by default the shipped base model.
        **options: Keywords of ``bayesq.restore``.
    """

    def __init__(self, codec: Codec | None = None, **options: Any) -> None:
        super().__init__()
        self.reconstructor = PosteriorReconstructor(codec or zoo.shared(), **options)

    def forward(self, x: Tensor, sigma: float | Tensor, **_: Any) -> Tensor:
        """Denoises x ``(B, 3, H, W)``; sigma in image units, one for all or ``(B,)``."""
        return self.reconstructor(x, Denoising(GaussianNoise(sigma)))
