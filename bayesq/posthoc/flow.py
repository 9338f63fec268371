"""From the posterior's mean to one realistic picture: a rectified flow.

The mean is the estimate of least error, and smoother than any photograph. With Z₀ = mean + σ n and the true picture
Z₁, a network v is trained on points of the straight lines between them,

    min E ‖ v(t Z₁ + (1 − t) Z₀, t) − (Z₁ − Z₀) ‖²,    t uniform on [0, 1],

and pictures follow dz/dt = v(z, t) from Z₀ to time 1. Those have the law of true pictures, at about the least distance
from the mean at which that is possible.

Source: Ohayon, Michaeli and Elad, "Posterior-mean rectified flow: towards minimum MSE photo-realistic image
restoration", ICLR 2025.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bayesq.errors import OperatorError
from bayesq.posthoc.fit import convolutions


class Flow(nn.Module):
    """The velocity v(z, t), by a few 3×3 convolutions that are told the time in one more channel.

    Args:
        noise: σ, standard deviation added to the mean, image units; positive.
        channels: Of the pictures.
        width: Of the hidden layers.
        depth: Number of convolutions, at least 2.
    """

    def __init__(self, noise: float = 0.025, channels: int = 3, width: int = 32, depth: int = 4) -> None:
        super().__init__()
        self.noise = noise
        self.network = convolutions(channels + 1, torch.zeros(channels), width, depth)

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        """Velocity ``(B, C, H, W)`` at points z of the same shape and times t ``(B,)`` in [0, 1]."""
        time = t.view(-1, 1, 1, 1).expand(-1, 1, *z.shape[2:])
        return self.network(torch.cat([z, time.to(z)], 1))

    def start(self, mean: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Z₀ of posterior means ``(B, C, H, W)``."""
        return mean + self.noise * torch.randn(mean.shape, generator=generator)

    def loss(self, mean: Tensor, truth: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Mean squared error of the velocity between means and true pictures ``(B, C, H, W)``; times are stratified."""
        count = len(mean)
        t = (torch.arange(count) + torch.rand(count, generator=generator)) / count
        z0, at = self.start(mean, generator), t.view(-1, 1, 1, 1)
        return (self(at * truth + (1 - at) * z0, t) - (truth - z0)).square().mean()

    @torch.no_grad()
    def sample(self, mean: Tensor, steps: int = 20, generator: torch.Generator | None = None) -> Tensor:
        """Realistic pictures for posterior means ``(B, C, H, W)``, by so many Euler steps; not clipped.

        Raises:
            OperatorError: there is no step.
        """
        if steps < 1:
            raise OperatorError(f"a flow takes at least 1 step, not {steps}")
        z = self.start(mean, generator)
        for step in range(steps):
            z = z + self(z, torch.full((len(z),), step / steps)) / steps
        return z
