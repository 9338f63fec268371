"""A start for inference: half-quadratic splitting with the codec as the denoiser."""

from __future__ import annotations

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor

from bayesq.codec import Codec
from bayesq.networks.rate import level_of_noise
from bayesq.operators.proximal import proximal

ITERATIONS = 12
COARSEST, FINEST = 0.2, 0.01
COUPLING = 0.12
EXCESS = 1.4


@torch.no_grad()
def split(y: Tensor, physics: LinearPhysics, sigma: float, codec: Codec, x0: Tensor) -> Tensor:
    """Alternates between coding the picture coarsely and making it fit the measurement.

    The codec's quality rises from that for noise of 0.2 to that for the measurement's. An iteration takes a forward
    pass of the codec, a fraction of a step of ``VBLE``, and moves along directions that a blur has all but erased,
    which a gradient search takes hundreds of steps for.

    Source: Zhang et al., "Plug-and-play image restoration with deep denoiser prior" (DPIR), 2021. The coupling of the
    two and the codec's excess of noise were chosen on held-out photographs.

    Args:
        y: measurement.
        physics: a linear operator.
        sigma: standard deviation of its noise, image units, positive.
        codec: the denoiser.
        x0: first estimate ``(B, 3, H, W)``.

    Returns:
        Tensor (B, 3, H, W) in [0, 1].
    """
    x, finest = x0, max(sigma, FINEST)
    for k in range(ITERATIONS):
        noise = COARSEST * (finest / COARSEST) ** (k / (ITERATIONS - 1))
        coded, _ = codec.reconstruct(x, level_of_noise(EXCESS * noise))
        x = proximal(coded, y, physics, (noise / sigma) ** 2 / COUPLING)
    return x.clamp(0, 1)
