"""Analysis g_a, a linear lapped transform, and synthesis g_s, its like in parallel with residual convolutions.

Both linear transforms start as the principal components of 16×16 blocks, lapped by a filter across their borders: the
codec compresses from its first step, and the convolutions learn what a linear transform cannot do. They work at 1/16
and 1/8 of the picture's size, so that all arithmetic is on few, wide pixels, which a CPU likes best.

      x ─► lap ─► 16×16 block components ─► · gain(level) ─► z
      z ─► · gain(level) ─► 16×16 blocks ──────────────────────────────────► + ─► lap ─► x
                     └───► blocks ─► unfold 2 ─► blocks ─► unfold 8 ───────►┘     (not in small codecs)

The analysis has no convolutions since they learn next to nothing there: six blocks, trained for 40,000 steps, gave 0.1
to 0.5 % of the power of z, and without them the loss was 0.3 % larger before any step to make up for it.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayesq.networks.rate import Interpolated

BLOCK = 16
LAPPED = 1
"""Blocks on each side that the filter across their borders mixes with one."""
FELT = 3
"""Blocks on each side that convolutions let bear on one; from farther off no pixel moves by 0.25 of an 8-bit step."""
AT_ONCE = 1 << 18
"""Values of a picture that are filtered at once: as many as stay in a processor's cache."""
leaky_relu = partial(F.leaky_relu, negative_slope=0.1, inplace=True)
"""Rectified units without a slope die by the hundred in residual branches that nothing normalises.

In place, which saves new memory; what convolutions give is not needed for their gradients.
"""


class Pointwise(nn.Conv2d):
    """A 1×1 convolution, as the matrix product that it is.

    oneDNN's convolutions take up to a millisecond to begin with, which is a tenth of the time of a small picture.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__(inputs, outputs, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_tracing():
            return super().forward(x)
        return F.linear(x.movedim(1, -1), self.weight.flatten(1), self.bias).movedim(-1, 1)


def quieten(layer: nn.Conv2d, deviation: float) -> None:
    """Starts a layer at weights of that deviation and without a bias."""
    assert layer.bias is not None
    nn.init.normal_(layer.weight, std=deviation)
    nn.init.zeros_(layer.bias)


class Bottleneck(nn.Module):
    """Residual block 1×1 → 3×3 → 1×1 at half width, modulated by the quality after the first convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // 2
        self.reduce = Pointwise(channels, inner)
        self.scale, self.shift = Interpolated(inner, 1.0), Interpolated(inner)
        self.spatial = nn.Conv2d(inner, inner, 3, padding=1)
        self.expand = Pointwise(inner, channels)
        quieten(self.expand, 0.3 * inner**-0.5)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        inner = leaky_relu(torch.addcmul(self.shift(level), self.reduce(x), self.scale(level)))
        return self.expand(leaky_relu(self.spatial(inner))).add_(x)


class Stack(nn.Module):
    """Bottleneck blocks in sequence."""

    def __init__(self, channels: int, count: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Bottleneck(channels) for _ in range(count))

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, level)
        return x


def precisely(layer: nn.Module, x: Tensor) -> Tensor:
    """What a convolution makes of x in the precision of its weights, autocast or not.

    Latents are up to hundreds of steps of their quantizer: bfloat16 would round them more coarsely than it does.
    """
    assert isinstance(layer.weight, Tensor)
    with torch.autocast(x.device.type, enabled=False):
        return layer(x.to(layer.weight))


def patches(x: Tensor, factor: int) -> Tensor:
    """``fold`` for pictures, whose few channels lie one after the other in memory: several times as fast."""
    squares = x.unflatten(-1, (-1, factor)).unflatten(-3, (-1, factor))
    return squares.permute(0, 2, 4, 1, 3, 5).flatten(3).movedim(-1, 1)


def unpatches(x: Tensor, factor: int) -> Tensor:
    """The inverse of ``patches``, again several times as fast as ``unfold``."""
    squares = x.movedim(1, -1).unflatten(-1, (-1, factor, factor))
    return squares.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def fold(x: Tensor, factor: int) -> Tensor:
    """Pixel unshuffle, channels last in memory: ``(B, C, H, W)`` to ``(B, C·f², H/f, W/f)``."""
    return F.pixel_unshuffle(x, factor).contiguous(memory_format=torch.channels_last)


def unfold(x: Tensor, factor: int) -> Tensor:
    """The inverse of ``fold``."""
    return F.pixel_shuffle(x, factor).contiguous(memory_format=torch.channels_last)


class Lapping(nn.Module):
    """A filter across the borders of 16×16 blocks, which turns a block transform into a lapped one.

    With u the eight pixels before a border, v those after it in mirrored order and d = u − v, the filter adds K·d to u
    and takes it from v, along rows and columns. So it leaves flat pictures as they are, and the filter whose
    I + 2K is the inverse matrix undoes it. It starts as the identity, K = 0.

    Source: pre- and post-filtering in the time domain, Tran, Liang & Tu, "Lapped transform via time-domain pre- and
    post-filtering", IEEE Trans. Signal Processing 2003.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.zeros(BLOCK // 2, BLOCK // 2))

    def forward(self, x: Tensor, owned: bool = False) -> Tensor:
        """Maps ``(B, C, H, W)``, H and W multiples of 16, to the same shape, in the precision of the kernel.

        What is ``owned`` may be overwritten: new memory for a picture takes longer than the filter.
        """
        half, (rows, columns) = BLOCK // 2, (side // BLOCK - 1 for side in x.shape[-2:])
        with torch.autocast(x.device.type, enabled=False):
            x, matrix = x.to(self.kernel), self._matrix()
            if not (torch.is_grad_enabled() or torch.jit.is_tracing()):
                x = x if owned and x.is_contiguous() else x.clone(memory_format=torch.contiguous_format)
                _across_borders(x, matrix, -1)
                _across_borders(x, matrix, -2)
                return x
            left, inner, right = x.split([half, columns * BLOCK, half], -1)
            x = torch.cat([left, (inner.unflatten(-1, (columns, BLOCK)) @ matrix.T).flatten(-2), right], -1)
            top, inner, bottom = x.split([half, rows * BLOCK, half], -2)
            return torch.cat([top, (matrix @ inner.unflatten(-2, (rows, BLOCK))).flatten(-3, -2), bottom], -2)

    def _matrix(self) -> Tensor:
        """What the eight pixels on either side of a border, 16 in a row, are multiplied by."""
        unit = torch.eye(BLOCK).to(self.kernel)
        change = self.kernel @ (unit - unit.flip(0))[: BLOCK // 2]
        return unit + torch.cat([change, -change.flip(0)])


def _across_borders(x: Tensor, matrix: Tensor, dim: int) -> None:
    """Multiplies, in place, the 16 values, or lines, around each border between blocks by a matrix.

    Pictures written out as one row of numbers have all borders in the middle of blocks of that row, shifted by half a
    block: they need not be cut out and put back, which took most of the time. The ends of lines, which adjoin the next
    line's there, stay as they are.

    Args:
        x: ``(B, C, H, W)``, contiguous.
        matrix: ``(16, 16)``.
        dim: -1 for borders between columns, -2 for those between rows.
    """
    half, step = BLOCK // 2, 1 if dim == -1 else x.shape[-1]
    ends = [x.narrow(dim, place, half) for place in (0, x.shape[dim] - half)]
    kept = [end.clone() for end in ends]
    count = x.numel() // (BLOCK * step) - 1
    borders = x.view(-1)[half * step :][: count * BLOCK * step].view(count, BLOCK, step)
    for some in borders.split(max(1, AT_ONCE // (BLOCK * step))):
        if step == 1:
            some[..., 0] = some[..., 0] @ matrix.T
        else:
            some.copy_(torch.bmm(matrix.expand(len(some), -1, -1), some))
    for end, values in zip(ends, kept, strict=True):
        end.copy_(values)


class Analysis(nn.Module):
    """g_a: picture ``(B, 3, H, W)`` in [0, 1], H and W multiples of 16, to latent ``(B, M, H/16, W/16)``.

    Args:
        latents: M, latent channels.
    """

    reach = LAPPED
    """How far off pixels may be that bear on a latent, latents."""

    def __init__(self, latents: int) -> None:
        super().__init__()
        self.lapping = Lapping()
        self.linear = Pointwise(3 * BLOCK**2, latents)
        self.log_gain = Interpolated(latents)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        if torch.is_grad_enabled() or torch.jit.is_tracing():
            centred = x - 0.5
        else:  # planes one after the other, whatever those of x are, without another copy
            centred = torch.sub(x, 0.5, out=torch.empty_like(x, memory_format=torch.contiguous_format))
        blocks = patches(self.lapping(centred, owned=True), BLOCK)
        return precisely(self.linear, blocks) * torch.exp(self.log_gain(level))


class Synthesis(nn.Module):
    """g_s: latent ``(B, M, h, w)`` to picture ``(B, 3, 16h, 16w)``, not clipped.

    Args:
        latents: M, latent channels.
        widths: Channels at 1/8 and at 1/16.
        depths: Blocks at 1/8 and at 1/16; without any the transform is the linear one alone.
    """

    def __init__(self, latents: int, widths: tuple[int, int], depths: tuple[int, int]) -> None:
        super().__init__()
        fine, coarse = widths
        self.log_gain = Interpolated(latents)
        self.linear = Pointwise(latents, 3 * BLOCK**2, bias=False)
        self.is_linear = not any(depths)
        self.reach = LAPPED if self.is_linear else FELT
        """How far off latents may be that bear on a pixel, latents."""
        if not self.is_linear:
            self.stem = Pointwise(latents, coarse)
            self.coarse = Stack(coarse, depths[1])
            self.up = Pointwise(coarse, 4 * fine)
            self.fine = Stack(fine, depths[0])
            self.head = Pointwise(fine, 3 * 64)
        self.lapping = Lapping()

    def forward(self, z: Tensor, level: Tensor) -> Tensor:
        z = z * torch.exp(self.log_gain(level))
        x = unpatches(precisely(self.linear, z), BLOCK)
        if not self.is_linear:
            features = self.coarse(self.stem(z), level)
            features = self.fine(unfold(self.up(features), 2), level)
            x = x.add_(unpatches(self.head(features), 8))
        return self.lapping(x, owned=True).add_(0.5)
