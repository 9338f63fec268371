"""The latent prior as a walk, and the drivers that turn one walk into rate, density, codes and samples.

A prior is written once, as a generator: it yields the conditional law of the next latent and is sent that latent's
value. Whatever is done with the prior is a short driver of this generator, so that no two uses can disagree about
the order or the context of anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from bayesq.cells import Cell
from bayesq.coder import Decoder, Encoder
from bayesq.conditionals import Conditional

Walk = Generator[Conditional, Tensor, None]


class LatentPrior(Protocol):
    """p(h) p(z | h) …, and the inference of h from z that goes with it."""

    def walk(self, size: tuple[int, int, int], level: Tensor) -> Walk:
        """Yields p(next | past) and is sent the next value.

        Args:
            size: Batch, height and width of the image latent z.
            level: ``(B,)`` quality levels.
        """
        ...

    def targets(self, z: Tensor, level: Tensor) -> list[Tensor]:
        """What the encoder would send along the walk for the image latent z, before quantisation."""
        ...

    def image_latent(self, values: Sequence[Tensor]) -> Tensor:
        """z ``(B, M, h, w)`` from the values of a whole walk; the inverse of ``targets`` as far as z goes."""
        ...


def drive(walk: Walk, answer: Callable[[int, Conditional], Tensor]) -> list[Tensor]:
    """Runs a walk to its end, answering its n-th conditional with ``answer(n, conditional)``; returns the answers."""
    values: list[Tensor] = []
    try:
        conditional = next(walk)
        while True:
            values.append(answer(len(values), conditional))
            conditional = walk.send(values[-1])
    except StopIteration:
        return values


def _per_image(elementwise: Tensor) -> Tensor:
    return elementwise.flatten(1).sum(1)


def log_density(walk: Walk, values: Sequence[Tensor]) -> Tensor:
    """log p(values), nats, ``(B,)``, differentiable: the density of the unit-cell-smoothed prior."""
    total: list[Tensor] = []

    def answer(n: int, conditional: Conditional) -> Tensor:
        total.append(_per_image(conditional.log_density(values[n])))
        return values[n]

    drive(walk, answer)
    return torch.stack(total).sum(0)


@dataclass(frozen=True)
class Relaxed:
    """A quantised walk that gradients can pass: straight-through values and the log density of dithered ones."""

    values: list[Tensor]
    log_density: Tensor


def relax(walk: Walk, targets: Sequence[Tensor], generator: torch.Generator | None = None) -> Relaxed:
    """The training driver: noise for the rate, straight-through rounding for context and decoder.

    Ballé et al. 2017 for the noise, Minnen & Singh 2020 for the mixed scheme.
    """
    total: list[Tensor] = []

    def answer(n: int, conditional: Conditional) -> Tensor:
        lattice = conditional.quantizer()
        total.append(_per_image(conditional.log_density(lattice.dither(targets[n], generator))))
        return lattice.straight_through(targets[n])

    return Relaxed(drive(walk, answer), torch.stack(total).sum(0))


@dataclass(frozen=True)
class Coded:
    """A walk on its lattices.

    Attributes:
        symbols: Integer codes (int32), in the order of the walk.
        cells: The cell of each code; infinitely wide where a code is 0 by definition.
        nats: ``(B,)`` −log probability of the codes.
    """

    symbols: list[Tensor]
    cells: list[Cell]
    nats: Tensor

    @property
    def values(self) -> list[Tensor]:
        return [cell.value for cell in self.cells]


def quantize(walk: Walk, targets: Sequence[Tensor]) -> Coded:
    """The cells that hold ``targets``, each predicted from the codes before it."""
    symbols: list[Tensor] = []
    cells: list[Cell] = []
    nats: list[Tensor] = []

    def answer(n: int, conditional: Conditional) -> Tensor:
        lattice = conditional.quantizer()
        symbols.append(lattice.index(targets[n]))
        cells.append(lattice.cell(symbols[-1]))
        nats.append(-_per_image(conditional.log_mass(cells[-1])))
        return cells[-1].value

    drive(walk, answer)
    return Coded(symbols, cells, torch.stack(nats).sum(0))


def sample(walk: Walk, generator: torch.Generator | None = None) -> list[Tensor]:
    """An unconditional draw of all latents (ancestral sampling)."""
    return drive(walk, lambda n, conditional: conditional.sample(generator))


def sample_within(
    walk: Walk, values: Sequence[Tensor], n: int, generator: torch.Generator | None = None
) -> list[list[Tensor]]:
    """n draws of all latents from the prior restricted to the cells of decoded values, which are the context."""
    draws: list[list[Tensor]] = [[] for _ in range(n)]

    def answer(part: int, conditional: Conditional) -> Tensor:
        lattice = conditional.quantizer()
        cell = lattice.cell(lattice.index(values[part]))
        for draw in draws:
            draw.append(conditional.sample_within(cell, generator))
        return values[part]

    drive(walk, answer)
    return draws


def information(walk: Walk, values: Sequence[Tensor]) -> list[Tensor]:
    """What every element of decoded values takes in the stream, nats: −log of its share of the coder's table.

    That is ``−log_mass`` where the tables are fine enough; what is less likely than their precision costs less.
    """
    nats: list[Tensor] = []

    def answer(part: int, conditional: Conditional) -> Tensor:
        rows, tables = conditional.tables()
        symbols = conditional.quantizer().index(values[part])
        nats.append(_shaped(tables.bits(_flat(symbols), _flat(rows)) * math.log(2), rows))
        return values[part]

    drive(walk, answer)
    return nats


def write(conditional: Conditional, target: Tensor, encoder: Encoder) -> Tensor:
    """Appends the codes of a target to a stream; returns what they are decoded to."""
    lattice, (rows, tables) = conditional.quantizer(), conditional.tables()
    symbols = lattice.index(target)
    encoder.put(_flat(symbols), _flat(rows), tables)
    return lattice.value(symbols)


def read(conditional: Conditional, decoder: Decoder) -> Tensor:
    """The value whose codes come next in a stream. Raises BitstreamError as the decoder does."""
    rows, tables = conditional.tables()
    return conditional.quantizer().value(_shaped(decoder.get(_flat(rows), tables), rows))


def encode(walk: Walk, targets: Sequence[Tensor]) -> bytes:
    """The codes of ``quantize`` as one entropy-coded stream, about ``Coded.nats`` long."""
    encoder = Encoder()
    drive(walk, lambda n, conditional: write(conditional, targets[n], encoder))
    return encoder.finish()


def decode(walk: Walk, data: bytes) -> list[Tensor]:
    """The values that ``encode`` wrote. Raises BitstreamError if the stream is not one that this walk wrote."""
    decoder = Decoder(data)
    values = drive(walk, lambda _, conditional: read(conditional, decoder))
    decoder.check()
    return values


def _flat(x: Tensor) -> np.ndarray:
    """The order in a stream: pixel by pixel, which is that in memory of what networks put out."""
    return x.detach().cpu().movedim(1, -1).reshape(-1).numpy()


def _shaped(flat: np.ndarray, like: Tensor) -> Tensor:
    """The inverse of ``_flat``, laid out in memory like another tensor: networks round by that differently."""
    shaped = torch.from_numpy(flat).view(like.movedim(1, -1).shape).movedim(-1, 1)
    return torch.empty_like(like, dtype=shaped.dtype).copy_(shaped)
