"""Latents refined for one picture: what higher encoding efforts do.

Coding is inference: the picture is measured by the identity, the decoder's rate–distortion trade-off says with which
noise, and the posterior is approximated by cells of the codec's own width, 1. The evidence bound is then, up to signs
and constants,

    rate + λ · 255² · MSE,

the loss that the codec was trained with, here descended by the latents of a single picture. A cell of width 1 is
coded by its centre alone, and that has to be on the lattice. So the cells shrink while the lattice hardens around them:
uniform noise between two soft roundings (Agustsson & Theis 2020), its law drawn together to a point and the
temperature lowered as in C3 (Kim et al. 2024); Yang et al. 2020 anneal a Gumbel-softmax law to the same end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from bayesq.bitstream import Box
from bayesq.codec import Codec
from bayesq.conditionals import Conditional
from bayesq.errors import ModelError
from bayesq.networks.integer import exact_arithmetic
from bayesq.networks.rate import rate_weight
from bayesq.prior import drive, quantize
from bayesq.quantizers import Quantizer
from bayesq.tiling import TileCodec

FIRST_STEPS = 4
"""Steps at effort 2; every further effort doubles them."""
RATE = 0.025
"""Learning rate at the start, in units of the latents' step."""
TEMPERATURES = 0.5, 0.2
"""Of the soft rounding, at the start and at the end."""
CONCENTRATION = 4.0
"""The noise ends as the fifth power, sign kept, of the uniform law it starts from."""


def steps_of(effort: int) -> int:
    """Steps of the search at an effort of 1 to 9: 0, then 4, 8, 16 … 512. Raises ModelError for others."""
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
        candidates = [tile.start(), _descend(tile, steps, progress)]
        _, best = min((tile.coded(candidate) for candidate in candidates), key=lambda coded: coded[0])
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
        return self.codec.prior.targets(self.around[self.codec.place(self.window)], self.level)

    def loss(self, values: list[Tensor], nats: Tensor) -> Tensor:
        """Rate in bits + λ · 255² · MSE · pixels, of the decoded window."""
        z = self.around.clone()
        z[self.codec.place(self.window)] = self.codec.prior.image_latent(values)
        left, top, right, bottom = self.window
        rows, columns = slice(top, bottom), slice(left, right)
        error = self.codec.synthesis(z, self.level)[..., rows, columns].clamp(0, 1) - self.x[..., rows, columns]
        return nats / math.log(2) + rate_weight(self.level) * 255**2 * error.square().sum() / 3

    @torch.no_grad()
    def coded(self, targets: list[Tensor]) -> tuple[float, list[Tensor]]:
        """The loss of targets once they are quantised, and the values that they become."""
        cells = quantize(self.codec.walk(1, *self.size, self.level), targets)
        return self.loss(cells.values, cells.nats).item(), cells.values


@torch.inference_mode(False)
@torch.enable_grad()
def _descend(tile: _Tile, steps: int, progress: bool) -> list[Tensor]:
    """Targets along the walk after so many steps of Adam on the annealed loss, from those of g_a and h_a."""
    targets = [target.clone().requires_grad_() for target in tile.start()]
    optimiser = torch.optim.Adam(targets)
    generator = torch.Generator().manual_seed(0)
    for step in tqdm(range(steps), unit="step", leave=False, disable=None if progress else True):
        optimiser.param_groups[0]["lr"] = RATE * (0.02 + 0.98 * (1 + math.cos(math.pi * step / steps)) / 2)
        nats: list[Tensor] = []

        def answer(n: int, conditional: Conditional, done: float = step / steps, nats: list[Tensor] = nats) -> Tensor:
            value = soften(conditional.quantizer(), targets[n], done, generator)
            nats.append(-conditional.log_density(value).sum())
            return value

        values = drive(tile.codec.walk(1, *tile.size, tile.level), answer)
        optimiser.zero_grad()
        tile.loss(values, torch.stack(nats).sum()).backward()
        optimiser.step()
    return [target.detach() for target in targets]


def soften(quantizer: Quantizer, value: Tensor, done: float, generator: torch.Generator) -> Tensor:
    """``value`` almost quantised: the relaxation that hardens from noise (done = 0) to rounding (1), differentiable.

    Args:
        quantizer: The lattice.
        value: Any shape.
        done: Share of the search that is over, in [0, 1].
        generator: Of the noise.
    """
    warm, cold = TEMPERATURES
    temperature = warm * (cold / warm) ** done

    def soft_round(v: Tensor) -> Tensor:
        cell = quantizer.cell(quantizer.index(v.detach()))
        above = v.detach() > cell.value
        reach = torch.where(above, cell.upper - cell.value, cell.lower - cell.value).nan_to_num(posinf=1, neginf=-1)
        place = (v - cell.value) / reach
        step = (torch.tanh((place - 1) / (2 * temperature)) / math.tanh(0.5 / temperature) + 1) / 2
        return cell.value + 2 * reach * step

    uniform = 2 * torch.rand(value.shape, generator=generator, device=value.device, dtype=value.dtype) - 1
    noise = uniform * uniform.abs() ** (CONCENTRATION * done) / 2
    cell = quantizer.cell(quantizer.index(value.detach()))
    soft = soft_round(soft_round(value) + cell.width.nan_to_num(posinf=1) * noise)
    return torch.where(cell.width.isinf(), cell.value, soft)  # an infinite cell is that of the only code
