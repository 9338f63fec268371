"""Operators and noise that deepinv lacks, as deepinv's own are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from deepinv.physics import Blur, LinearPhysics, NoiseModel
from scipy.fft import next_fast_len
from torch import Tensor

from bayesq.likelihoods.base import parameter
from bayesq.operators.parse import Size
from bayesq.quantizers import Lattice

SMOOTHING = 0.5 / 255
"""Noise before the rounding of a coefficient, image units: what the rounding of an encoder's input amounts to."""


class BicubicDownsampling(LinearPhysics):
    """Anti-aliased bicubic reduction by an integer factor, the field's super-resolution operator.

    The Keys kernel (a = -1/2) stretched by the factor, as in Pillow and in Matlab's ``imresize``: low-resolution pixel
    i is centred on (i + 1/2) * factor - 1/2, and the weights are renormalised where the kernel leaves the picture, so
    that no pixel beyond the border is invented. A remainder of H or W smaller than the factor is observed only
    through the tails of the last kernels. (deepinv's own ``Downsampling`` is centred half a pixel off the origin
    whatever the factor, and transforms its filter anew at each call.)

    Args:
        factor: the reduction, at least 1.
        size: (H, W) of the picture sought.
        noise_model: a deepinv noise model.
    """

    def __init__(self, factor: int, size: Size, noise_model: torch.nn.Module):
        super().__init__(img_size=(3, *size), noise_model=noise_model)
        self.factor = factor

    def A(self, x: Tensor, **_: object) -> Tensor:
        """Reduces (B, 3, H, W) to (B, 3, H // factor, W // factor)."""
        if x.shape[-1] // self.factor == 1:  # torch 2.14's result is wrong if one column is left, and right for a row
            return self._reduced(x.mT).mT
        return self._reduced(x)

    def _reduced(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=1 / self.factor, mode="bicubic", antialias=True)


class EdgeBlur(Blur):
    """Convolution with a kernel, the picture's edge pixels repeated beyond its borders; y has the picture's size.

    deepinv's ``Blur`` with ``padding="replicate"``, faster, since transforms have lengths that suit them and not, say,
    491, which is prime; and with the right transpose for kernels of one row or column.

    Args:
        filter: the kernel, (1, 1, h, w).
        noise_model: a deepinv noise model.
    """

    def __init__(self, filter: Tensor, noise_model: torch.nn.Module):
        super().__init__(filter, padding="replicate", noise_model=noise_model)
        self._transform: tuple[Tensor, list[int], Tensor] | None = None

    def A(self, x: Tensor, filter: Tensor | None = None, **kwargs: object) -> Tensor:
        """Convolves (B, C, H, W); another kernel given here is kept."""
        self.update_parameters(filter=filter, **kwargs)
        (height, width), (rows, columns) = x.shape[-2:], self._margins
        padded = F.pad(x, (columns, columns, rows, rows), mode="replicate")
        lengths, spectrum = self._spectrum(padded.shape[-2:])
        full = torch.fft.irfft2(torch.fft.rfft2(padded, lengths) * spectrum, lengths)
        return full[..., 2 * rows : 2 * rows + height, 2 * columns : 2 * columns + width].contiguous()

    def A_adjoint(self, y: Tensor, filter: Tensor | None = None, **kwargs: object) -> Tensor:
        """The transpose: what came from beyond a border adds to the border."""
        self.update_parameters(filter=filter, **kwargs)
        (height, width), (rows, columns) = y.shape[-2:], self._margins
        lengths, spectrum = self._spectrum((height + 2 * rows, width + 2 * columns))
        full = F.pad(y, (2 * columns, lengths[1] - width - 2 * columns, 2 * rows, lengths[0] - height - 2 * rows))
        padded = torch.fft.irfft2(torch.fft.rfft2(full) * spectrum.conj(), lengths)
        padded = _fold(padded[..., : width + 2 * columns], columns)
        return _fold(padded[..., : height + 2 * rows, :].mT, rows).mT.contiguous()

    @property
    def _margins(self) -> tuple[int, int]:
        return self.filter.shape[-2] // 2, self.filter.shape[-1] // 2

    def _spectrum(self, size: Sequence[int]) -> tuple[list[int], Tensor]:
        """Lengths of transforms for padded pictures of a size, and the kernel's transform."""
        lengths = [next_fast_len(side) for side in size]
        kept = self._transform
        if kept is None or kept[0] is not self.filter or kept[1] != lengths:
            kept = self._transform = self.filter, lengths, torch.fft.rfft2(self.filter, lengths)
        return lengths, kept[2]


def _fold(x: Tensor, margin: int) -> Tensor:
    """The transpose of repeating the first and the last column ``margin`` times."""
    if not margin:
        return x
    inner = x[..., margin:-margin].clone()
    inner[..., 0] += x[..., :margin].sum(-1)
    inner[..., -1] += x[..., -margin:].sum(-1)
    return inner


class Rounding(NoiseModel):
    """Rounding to a lattice, as a deepinv noise model: y is the lattice point nearest to A x + n, n ~ N(0, diag s²).

    Args:
        step: distance of the lattice's points, image units; broadcasts to the measurement.
        offset: where one of its points lies.
        smoothing: s, the noise before the rounding, image units; broadcasts to the measurement.
        sigma: standard deviation of white noise that would do as much harm: a hint for choosing a prior. By default
            that of an error uniform over a cell, step / √12, averaged over the values.
        rng: source of randomness.

    Raises:
        OperatorError: a step or the smoothing is not positive and finite.
    """

    def __init__(
        self,
        step: float | Tensor,
        offset: float | Tensor = 0.0,
        smoothing: float | Tensor = SMOOTHING,
        sigma: float | None = None,
        rng: torch.Generator | None = None,
    ):
        super().__init__(rng=rng)
        self.register_buffer("step", parameter(step, "the step of a rounded measurement"))
        self.register_buffer("offset", torch.as_tensor(offset, dtype=torch.float32))
        self.register_buffer("smoothing", parameter(smoothing, "the noise before rounding"))
        hint = (self.step.square().mean() / 12).sqrt() if sigma is None else torch.tensor(float(sigma))
        self.register_buffer("sigma", hint)

    def forward(self, input: Tensor, **_: object) -> Tensor:
        """Draws a rounded measurement."""
        noise = torch.randn(input.shape, generator=self.rng, device=input.device, dtype=input.dtype)
        lattice = Lattice(self.step, self.offset)
        return lattice.cell(lattice.index(input + self.smoothing * noise)).centre
