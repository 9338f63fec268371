"""Latents refined for one picture: what higher encoding efforts do.

Coding is inference: the picture is measured by the identity, the decoder's rate–distortion trade-off says with which
noise, and the posterior is made of cells of the codec's own width, each coded by its centre. The evidence bound of such
cells is then, up to signs and constants,

    L = rate + λ · 255² · MSE,

the loss that the codec was trained with, here lowered by the codes of a single picture: by simulated annealing, drawn
from exp(−L / T) while the temperature T falls to zero. A draw of all codes at once takes a model of L that falls apart
into latents: what a code costs by the coder's tables, plus a parabola for all else, the distortion and what the latent
tells of later ones, from a gradient at the codes that were drawn last ("Gibbs with gradients", Grathwohl et al. 2021;
Yang et al. 2020 anneal latents of a codec by a Gumbel-softmax law instead). As every draw is a file, the best is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from bayesq.bitstream import Box
from bayesq.codec import Codec
from bayesq.coder import Tables
from bayesq.conditionals import Conditional
from bayesq.errors import ModelError
from bayesq.networks.integer import exact_arithmetic
from bayesq.networks.rate import rate_weight
from bayesq.prior import drive
from bayesq.tiling import TileCodec

Choice = Callable[[Conditional, Tensor], Tensor]
"""Codes from the law that they are coded by and the bottoms of their parabolas."""
FIRST_STEPS = 2
"""Steps at effort 2; every further effort doubles them."""
CURVATURE = 12.0
"""Of the parabola, nats, by high-rate theory: at an error of D = 1/12 the rate −½ log D falls by 6 nats a unit of D, so
that squared errors are worth 6 nats each; their curvature is twice that."""
WARMTH = 0.2
"""Temperature at the start, nats, for each doubling of the steps, and for two more; it falls linearly to 0."""
PACE = 0.4
"""How far a parabola's bottom follows a new gradient: all latents move at once, and by the whole they overshoot."""


def steps_of(effort: int) -> int:
    """Steps of the search at an effort of 1 to 9: 0, then 2, 4, 8 … 256. Raises ModelError for others."""
    if effort not in range(1, 10):
        raise ModelError(f"the effort must be 1 to 9, not {effort}")
    return FIRST_STEPS * 2 ** (effort - 2) if effort > 1 else 0


def compress(
    codec: TileCodec, effort: int, x: Tensor, level: int, window: Box | None = None, progress: bool = False
) -> bytes:
    """What ``codec.compress`` gives back, smaller or closer to x by the effort: never worse by the codec's own loss.

    Args:
        codec: A codec of bayesq's own design.
        effort: 1 to 9; see ``steps_of``.
        x, level, window: As for ``Codec.compress``.
        progress: Show a progress bar on stderr.

    Raises:
        ModelError: there is no such effort, or the codec has no rate–distortion trade-off that is known.
        ImageError: the picture holds NaN or infinity.
    """
    steps, window = steps_of(effort), window or (0, 0, x.shape[-1], x.shape[-2])
    if not steps:
        return codec.compress(x, level, window)
    if not isinstance(codec, Codec) or codec.architecture is None:
        raise ModelError("only codecs of bayesq's own design can be refined")
    with exact_arithmetic():
        tile = _Tile.of(codec, codec.checked(x), level, window)
        best = search(tile, steps, progress)
    return codec.pack(best, *tile.size, level)


@dataclass(frozen=True)
class _Tile:
    """A window of a picture, to be coded; the latents of what is around it stay what g_a says."""

    codec: Codec
    x: Tensor
    level: Tensor
    window: Box
    around: Tensor

    @classmethod
    def of(cls, codec: Codec, x: Tensor, level: int, window: Box) -> _Tile:
        levels = torch.tensor([level])
        with torch.no_grad():
            around = codec.analyse(x, levels)
        return cls(codec, x, levels, window, around)

    @property
    def size(self) -> tuple[int, int]:
        left, top, right, bottom = self.window
        return bottom - top, right - left

    @torch.no_grad()
    def start(self) -> list[Tensor]:
        """What g_a and h_a would send along the walk."""
        return self.codec.prior.targets(self.around[self.codec.place(self.window)], self.level)

    def distortion(self, values: list[Tensor]) -> Tensor:
        """λ · 255² · MSE · pixels, in nats, of the decoded window."""
        z = self.around.clone()
        z[self.codec.place(self.window)] = self.codec.prior.image_latent(values)
        left, top, right, bottom = self.window
        rows, columns = slice(top, bottom), slice(left, right)
        error = self.codec.synthesis(z, self.level)[..., rows, columns].clamp(0, 1) - self.x[..., rows, columns]
        return math.log(2) * rate_weight(self.level) * 255**2 * error.square().sum() / 3


@torch.inference_mode(False)
@torch.enable_grad()
def search(tile: _Tile, steps: int, progress: bool = False) -> list[Tensor]:
    """Values along the walk of the least loss that were met in so many steps from those of one pass."""
    tables = tile.codec.own_prior.tables
    assert tables is not None
    prices = prices_of(tables)
    generator = torch.Generator().manual_seed(0)
    bottoms, best, least = tile.start(), [], math.inf
    choose: Choice = nearest
    warmest = WARMTH * math.log2(4 * steps)
    for step in tqdm(range(steps + 1), unit="step", leave=False, disable=None if progress else True):
        values, rate, foretold = visit(tile, bottoms, choose, prices)
        distortion = tile.distortion(values)
        loss = rate + float(distortion.detach())
        if loss < least:
            best, least = [value.detach() for value in values], loss
        if step < steps:
            gradients = torch.autograd.grad(distortion + foretold, values)
            for bottom, value, gradient in zip(bottoms, values, gradients, strict=True):
                bottom.lerp_(value.detach() - gradient / CURVATURE, PACE)
            temperature = warmest * (1 - (step + 1) / steps)
            choose = partial(draw, prices=prices, temperature=temperature, generator=generator)
    return best


def visit(tile: _Tile, bottoms: list[Tensor], choose: Choice, prices: Tensor) -> tuple[list[Tensor], float, Tensor]:
    """The values that a choice of codes makes of the bottoms along the walk, and their rate, nats.

    The rate is given twice: as the coder's tables have it, and as an expression whose gradients say what each value
    changes of the rate of later ones, themselves held fast.
    """
    rate: list[Tensor] = []
    foretold: list[Tensor] = []

    def answer(n: int, conditional: Conditional) -> Tensor:
        codes = choose(conditional, bottoms[n])
        cell = conditional.quantizer().cell(codes)
        rate.append(price_of(codes, conditional, prices).sum())
        foretold.append(-conditional.log_mass(replace(cell, centre=cell.centre.detach())).sum())
        return cell.value.detach().requires_grad_()

    values = drive(tile.codec.walk(1, *tile.size, tile.level), answer)
    return values, float(torch.stack(rate).sum()), torch.stack(foretold).sum()


def nearest(conditional: Conditional, bottom: Tensor) -> Tensor:
    """The codes of one pass: those whose cells hold the bottoms."""
    return conditional.quantizer().index(bottom)


@torch.no_grad()
def draw(
    conditional: Conditional, bottom: Tensor, prices: Tensor, temperature: float, generator: torch.Generator
) -> Tensor:
    """Codes drawn from exp(−loss / T), where the loss is price + ½ CURVATURE (value − bottom)².

    Args:
        conditional: The law that they are coded by.
        bottom: Of the parabola, any shape; only the code nearest to it and its neighbours can be drawn.
        prices: As ``prices_of`` gives them.
        temperature: T; 0 for the codes of least loss.
        generator: Of the draw.
    """
    quantizer = conditional.quantizer()
    codes = quantizer.index(bottom) + torch.tensor([-1, 0, 1], dtype=torch.int32).view(-1, *[1] * bottom.ndim)
    loss = price_of(codes, conditional, prices) + CURVATURE / 2 * (quantizer.value(codes) - bottom).square()
    if temperature > 0:  # by Gumbel's trick
        loss += temperature * torch.empty_like(loss).exponential_(generator=generator).log()
    return codes.gather(0, loss.argmin(0, keepdim=True))[0]


def price_of(codes: Tensor, conditional: Conditional, prices: Tensor) -> Tensor:
    """What codes cost in the stream, nats, elementwise; infinite where only 0 is coded and they are not."""
    reach, (rows, _) = prices.shape[1] // 2, conditional.tables()
    return prices[rows.int(), codes.clamp(-reach, reach) + reach]


def prices_of(tables: Tables) -> Tensor:
    """What each code costs by each table, nats: ``(T + 1, 2R + 3)``, one column more at either end for all beyond R.

    The last row is that of elements of table −1, which are 0 by definition.
    """
    beyond, rows = tables.radius + 1, len(tables.cdf)
    codes = np.arange(-beyond, beyond + 1, dtype=np.int32)
    bits = tables.bits(np.tile(codes, rows), np.repeat(np.arange(rows), len(codes))).reshape(rows, -1)
    certain = np.where(codes == 0, 0.0, np.inf)[None]
    return torch.from_numpy(math.log(2) * np.concatenate([bits, certain])).float()
