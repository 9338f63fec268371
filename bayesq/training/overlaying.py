"""Training of what is laid over a restorer: the shipped denoiser, told the level of white noise."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bayesq import zoo
from bayesq.posthoc import BayesCap, Flow

SIGMAS = 10 / 255, 75 / 255
"""Between which the level of noise is drawn, evenly in its logarithm."""


class OverlayLoss(nn.Module):
    """The loss of a network laid over pictures that were noisy, each at a level of its own.

    Args:
        model: What is trained.
    """

    def __init__(self, model: BayesCap | Flow) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Mean loss of pictures ``(B, 3, H, W)``."""
        places = (torch.arange(len(x)) + torch.rand(len(x), generator=generator)) / len(x)
        sigma = SIGMAS[0] * (SIGMAS[1] / SIGMAS[0]) ** places
        return self.of(denoised(x, sigma, generator), x, sigma, generator)

    def of(self, restored: Tensor, truth: Tensor, sigma: Tensor, generator: torch.Generator) -> Tensor:
        """Mean loss for restored and true pictures, by the levels ``(B,)`` of the noise; caps are told them."""
        if isinstance(self.model, Flow):
            return self.model.loss(restored, truth, generator)
        return self.model.loss(restored, truth, sigma if self.model.told else None)


@torch.no_grad()
def denoised(x: Tensor, sigma: Tensor, generator: torch.Generator) -> Tensor:
    """What the denoiser makes of pictures in noise of levels ``(B,)``."""
    noisy = x + sigma.view(-1, 1, 1, 1) * torch.randn(x.shape, generator=generator)
    return zoo.denoiser().moments(noisy, sigma)[0].clamp(0, 1)
