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

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bayesq.errors import OperatorError
from bayesq.networks.unet import UNet
from bayesq.posthoc.overlay import Overlay
from bayesq.quality import LEVELS

TEMPERATURE = 0.8


class Flow(Overlay):
    """The velocity v(z, t) of colour pictures, by a U-Net that is told the time; 0 at first.

    Args:
        noise: σ, standard deviation added to the mean, image units; positive.
        widths: Channels at 1/2, 1/4, … of the size.
        depth: Blocks on each way at every size, and at the smallest.
    """

    kind = "flow"

    def __init__(self, noise: float = 0.025, widths: Sequence[int] = (32, 48, 64), depth: int = 2) -> None:
        super().__init__(noise=noise, widths=list(widths), depth=depth)
        self.noise = noise
        self.network = UNet(3, tuple(widths), depth, depth)
        self.multiple = self.network.multiple
        torch.nn.init.zeros_(self.network.head.weight)
        self.to(memory_format=torch.channels_last)

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        """Velocity ``(B, 3, H, W)`` at points z of the same shape, any size, and times t ``(B,)`` in [0, 1]."""
        height, width = z.shape[-2:]
        padded = F.pad(z - 0.5, (0, -width % self.multiple, 0, -height % self.multiple), mode="replicate")
        share = torch.zeros_like(t)
        return self.network(padded, (LEVELS - 1) * t, share)[..., :height, :width]

    def start(self, mean: Tensor, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        """Z₀ of posterior means ``(B, 3, H, W)``, its noise multiplied by the temperature."""
        return mean + temperature * self.noise * torch.randn(mean.shape, generator=generator)

    def loss(self, mean: Tensor, truth: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Mean squared error of the velocity between means and true pictures ``(B, 3, H, W)``; times are stratified."""
        count = len(mean)
        t = (torch.arange(count) + torch.rand(count, generator=generator)) / count
        z0, at = self.start(mean, generator), t.view(-1, 1, 1, 1)
        return (self(at * truth + (1 - at) * z0, t) - (truth - z0)).square().mean()

    @torch.no_grad()
    def sample(
        self,
        mean: Tensor,
        steps: int = 20,
        generator: torch.Generator | None = None,
        temperature: float = TEMPERATURE,
    ) -> Tensor:
        """Realistic pictures for posterior means ``(B, 3, H, W)``; not clipped.

        Args:
            mean: The means.
            steps: Of Euler's method.
            generator: Source of the noise at the start.
            temperature: What that noise is multiplied by; 1 is as in training. What a small network leaves of it looks
                like grain; with less there is less of it, and of texture.

        Raises:
            OperatorError: there is no step.
        """
        if steps < 1:
            raise OperatorError(f"a flow takes at least 1 step, not {steps}")
        z = self.start(mean, generator, temperature)
        for step in range(steps):
            z = z + self(z, torch.full((len(z),), step / steps)) / steps
        return z
