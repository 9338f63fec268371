"""JPEG as an operator: colours, subsampling and block DCT are linear, and rounding is the noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from deepinv.physics import LinearPhysics
from torch import Tensor

from bayesq import jpegfile
from bayesq.operators.classes import SMOOTHING, Rounding

if TYPE_CHECKING:
    from bayesq.jpegfile import JPEGFile
    from bayesq.operators.parse import Size

_FROM_RGB = torch.tensor([[0.299, 0.587, 0.114], [-0.299, -0.587, 0.886], [0.701, -0.587, -0.114]])
_FROM_RGB[1] /= 1.772
_FROM_RGB[2] /= 1.402
_GREY = torch.full((1, 3), 1 / 3)
_LEVEL_SHIFT = 8 * 128 / 255
_k = torch.arange(8.0)
_DCT = torch.cos(math.pi / 8 * _k[:, None] * (_k + 0.5)) / 2
_DCT[0] /= math.sqrt(2)


class JPEG(LinearPhysics):
    """The DCT coefficients that a JPEG encoder rounds: Y, Cb and Cr, averaged where subsampled, in blocks of 8 x 8.

    y (B, N) holds the coefficients, orthonormal and in image units, plane after plane, block after block; the level
    shift of 128 is left out of them, so that A is linear, and is the offset of the lattice that they are rounded to.
    Chroma is taken to be subsampled by averaging, as libjpeg does, and pictures to be continued by their edges. A grey
    file says the mean of the channels.

    Args:
        size: (H, W) of the picture.
        tables: quantisation steps (8, 8) of each plane, one (grey) or three, in 8-bit levels.
        sampling: pixels to a sample, down and across, of each plane.
        sigma: standard deviation of white noise that the picture had before it was coded, image units. What it makes
            of Y, Cb and Cr is taken to be independent, which it is not quite.
    """

    def __init__(self, size: Size, tables: Sequence[Tensor], sampling: Sequence[tuple[int, int]], sigma: float = 0.0):
        super().__init__(img_size=(3, *size))
        self.register_buffer("colours", _FROM_RGB if len(tables) == 3 else _GREY)
        self.sampling = list(sampling)
        self.blocks = [
            tuple(-(-side // (8 * k)) for side, k in zip(size, factors, strict=True)) for factors in sampling
        ]
        counts = [64 * rows * columns for rows, columns in self.blocks]
        steps = torch.cat([t.flatten().repeat(n // 64) / 255 for t, n in zip(tables, counts, strict=True)])
        gains = self.colours.norm(dim=1) / torch.tensor([math.sqrt(down * across) for down, across in sampling])
        noise = (SMOOTHING**2 + (sigma * gains) ** 2).sqrt().repeat_interleave(torch.tensor(counts))
        offset = torch.zeros(1, sum(counts))
        offset[0, : counts[0] : 64] = _LEVEL_SHIFT
        self.noise_model = Rounding(steps[None], offset, noise[None], math.hypot(_harm(tables[0]), sigma))

    def A(self, x: Tensor, **_: object) -> Tensor:
        """Maps pictures (B, 3, H, W) to coefficients (B, N)."""
        planes = torch.einsum("pc,bchw->bphw", self.colours, x)
        parts = []
        for plane, (down, across), (rows, columns) in zip(planes.unbind(1), self.sampling, self.blocks, strict=True):
            margins = (0, 8 * across * columns - x.shape[-1], 0, 8 * down * rows - x.shape[-2])
            samples = F.avg_pool2d(F.pad(plane[:, None], margins, mode="replicate"), (down, across))
            blocks = samples.view(len(x), rows, 8, columns, 8)
            parts.append(torch.einsum("ui,brick,vk->brcuv", _DCT, blocks, _DCT).flatten(1))
        return torch.cat(parts, 1)

    def A_dagger(self, y: Tensor, **_: object) -> Tensor:
        """The picture as a decoder shows it: chroma enlarged by bilinear interpolation. An estimate, not A⁺."""
        height, width = self.img_size[-2:]
        planes = []
        for part, (down, across), (rows, columns) in zip(
            y.split([64 * r * c for r, c in self.blocks], 1), self.sampling, self.blocks, strict=True
        ):
            blocks = part.view(len(y), rows, columns, 8, 8)
            samples = torch.einsum("ui,brcuv,vk->brick", _DCT, blocks, _DCT).reshape(len(y), 1, 8 * rows, 8 * columns)
            samples = samples[..., : math.ceil(height / down), : math.ceil(width / across)]
            if (down, across) != (1, 1):
                samples = F.interpolate(samples, scale_factor=(down, across), mode="bilinear")
            planes.append(samples[..., :height, :width])
        return torch.einsum("cp,bphw->bchw", torch.linalg.pinv(self.colours), torch.cat(planes, 1))


def open_jpeg(file: bytes | JPEGFile, sigma: float = 0.0) -> tuple[Tensor, JPEG]:
    """Reads a JPEG file as a measurement y (1, N) and its operator, which carries the rounding as its noise.

    Args:
        file: what it holds, or its coefficients if they are read already.
        sigma: standard deviation of white noise that the picture had before it was coded, image units.

    Raises:
        ImageError: as ``bayesq.jpegfile.read``.
    """
    file = jpegfile.read(file) if isinstance(file, bytes) else file
    tables = [torch.from_numpy(plane.table).float() for plane in file.planes]
    physics = JPEG((file.height, file.width), tables, [plane.sampling for plane in file.planes], sigma)
    codes = torch.cat([torch.from_numpy(plane.codes).float().flatten() for plane in file.planes])[None]
    noise = physics.noise_model
    return codes * noise.step + noise.offset, physics


def _harm(table: Tensor) -> float:
    """Root mean square error of a picture coded with a luma table, as measured on photographs; image units.

    It grows with a low power of the steps of the lowest frequencies, since coarser ones lose what was small anyway.
    """
    step = float(table.flatten()[[1, 8, 9, 2, 16]].mean()) / 255
    return 0.077 * step**0.385
