"""Random kernels of blurs: ``(SIDE, SIDE)``, of sum one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SIDE = 33
AXIS = torch.arange(SIDE) - SIDE // 2
DEVIATIONS = 0.4, 4.0
WAVES = 6
"""Of which the path of a motion blur is the sum."""


def gaussian(generator: torch.Generator) -> Tensor:
    """A Gaussian, as often round as longer one way, deviations in ``DEVIATIONS``."""
    low, high = DEVIATIONS
    draws = torch.rand(4, generator=generator).tolist()
    along, across = (low * (high / low) ** draw for draw in draws[:2])
    across = along if draws[2] < 0.5 else across
    cos, sin = math.cos(math.pi * draws[3]), math.sin(math.pi * draws[3])
    u, v = cos * AXIS[:, None] + sin * AXIS, cos * AXIS - sin * AXIS[:, None]
    return _normalised(torch.exp(-((u / along).square() + (v / across).square()) / 2))


def motion(generator: torch.Generator) -> Tensor:
    """The path of a shaking hand: a sum of a few random waves, 4 to 28 pixels long, about as thick as a pixel."""
    wildness, size, thickness = torch.rand(3, generator=generator).tolist()
    order = torch.arange(1, WAVES + 1).view(-1, 1, 1)
    strength = torch.exp(-order / (0.5 + 2.5 * wildness)) * torch.randn(2, WAVES, 2, 1, generator=generator)
    phase = math.pi * order * torch.linspace(0, 1, 400)
    path = (strength[0] * phase.cos() + strength[1] * phase.sin()).sum(0)
    path = path - (path.amax(1, keepdim=True) + path.amin(1, keepdim=True)) / 2
    path = path / path.abs().max().clamp_min(1e-6) * (2 + 12 * size)
    rows, columns = torch.exp(-((AXIS[:, None] - path[:, None]) / (0.3 + 0.7 * thickness)).square() / 2)
    return _normalised(rows @ columns.T)


def bicubic(factor: int) -> Tensor:
    """The cubic (Keys 1981, a = -1/2) stretched ``factor`` times, centred on the pixels that are reduced to one."""
    t = ((AXIS + (factor - 1) / 2 % 1) / factor).abs()
    near, far = 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    line = torch.where(t <= 1, near, torch.where(t < 2, far, 0.0))
    return _normalised(line[:, None] * line)


def _normalised(kernel: Tensor) -> Tensor:
    return kernel / kernel.sum()
