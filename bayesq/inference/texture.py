"""How a denoiser's errors hang together: between colours, and from pixel to pixel.

In units of the deviation that the denoiser tells, its errors on photographs have, in luma (the channels' mean) and in
what differs from it, spectra like those of Wiener's filter for pictures of spectrum S(f) = a f^−p, f in cycles a pixel,

    P(f) ∝ 1 / (1 / S(f) + 1 / σ²),

flat where pictures are stronger than the noise σ and falling as they do beyond. The same a and p describe them from 5
to 100/255, within a seventh; luma has six times the power of either direction of chroma. They were read off 24
photographs of CID22's validation set and 24 of BSDS500's, whose spectra of chroma differ: half of those pictures have
none that is fine. ``tests/test_texture.py`` holds the shipped denoiser to them.
"""

from __future__ import annotations

import torch
from scipy.fft import next_fast_len
from torch import Tensor

LUMA, CHROMA = 2.25, 0.375
"""Variances along grey and along either other direction, of three channels whose mean variance is 1."""
LUMA_SPECTRUM = 7.6e-5, 2.0
CHROMA_SPECTRUM = 2.9e-6, 2.6
"""a, for values in image units, and p."""
MARGIN = 32
"""Pixels by which a field is drawn larger than it is asked for, for it is periodic."""


def error_field(shape: tuple[int, ...], sigma: float, generator: torch.Generator) -> Tensor:
    """Draws errors of a denoiser, in units of its deviation.

    Args:
        shape: ``(…, 3, H, W)``.
        sigma: Standard deviation of the noise that it took away, image units, positive.
        generator: Source of the draw.

    Returns:
        Values of mean 0 and variance 1, stationary, of such a shape.
    """
    height, width = shape[-2:]
    size = tuple(next_fast_len(side + MARGIN, real=True) for side in (height, width))
    modes = torch.fft.rfft2(torch.randn(*shape[:-2], *size, generator=generator))
    luma = modes.mean(-3, keepdim=True)
    chroma = modes - luma
    luma, chroma = luma * _gain(size, sigma, *LUMA_SPECTRUM), chroma * _gain(size, sigma, *CHROMA_SPECTRUM)
    field = torch.fft.irfft2(LUMA**0.5 * luma + CHROMA**0.5 * chroma, s=size)
    return field[..., :height, :width]


def _gain(size: tuple[int, ...], sigma: float, a: float, p: float) -> Tensor:
    """Of the modes of ``rfft2``; the mean square of all modes is 1."""
    rows, columns = (torch.fft.fftfreq(side) for side in size)
    frequency = torch.hypot(rows[:, None], columns).clamp_min(0.5 / max(size))
    power = 1 / (frequency**p / a + 1 / sigma**2)
    return (power / power.mean()).sqrt()[:, : size[1] // 2 + 1]
