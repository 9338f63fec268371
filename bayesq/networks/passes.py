"""The passes that share out z: each codes a part of a group of channels, some of them at every pixel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import EllipsisType

from torch import Tensor

Places = tuple[EllipsisType, slice, slice]
"""Every other row and every other column of a tensor ``(…, h, w)``."""


@dataclass(frozen=True)
class Pass:
    """One of the passes over a group of channels.

    Attributes:
        group: The channels of z.
        ways: How many passes share the group out, 2 or 4.
        turn: Which of them it is, from 0.
    """

    group: slice
    ways: int
    turn: int

    @property
    def channels(self) -> int:
        """How many the group has."""
        return self.group.stop - self.group.start


def passes_over(group: slice, ways: int) -> list[Pass]:
    """All passes of a group."""
    return [Pass(group, ways, turn) for turn in range(ways)]


def squares(ways: int, turn: int) -> list[tuple[Places, slice]]:
    """The four places in squares of 2 × 2, and which channels of its group a pass holds there.

    Of each ``ways`` neighbouring channels it is, where the colour is q, the (turn xor q)-th. Colours are those of a
    checkerboard, or the four places, those on a diagonal following each other.
    """
    found: list[tuple[Places, slice]] = []
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        colour = (row + column) % 2 if ways == 2 else (row + column) % 2 * 2 + row
        found.append(((..., slice(row, None, 2), slice(column, None, 2)), slice(turn ^ colour, None, ways)))
    return found


def weave(piece: Callable[[Places, slice], Tensor], ways: int, turn: int, height: int, width: int) -> Tensor:
    """What a pass holds, ``(B, M/ways, h, w)``, from a function that gives it for the items of ``squares``."""
    pieces = [(places, piece(places, channels)) for places, channels in squares(ways, turn)]
    batch, channels = pieces[0][1].shape[:2]
    result = pieces[0][1].new_empty(batch, height, width, channels).movedim(-1, 1)
    for places, values in pieces:
        result[places] = values
    return result


def part(z: Tensor, ways: int, turn: int) -> Tensor:
    """What a pass holds of a group z ``(B, M, h, w)``: ``(B, M/ways, h, w)``."""
    return weave(lambda places, channels: z[:, channels][places], ways, turn, *z.shape[-2:])


def merge(parts: Sequence[Tensor], ways: int) -> Tensor:
    """The group whose first passes hold ``parts``, with zeros for the passes that are missing."""
    batch, channels, height, width = parts[0].shape
    z = parts[0].new_zeros(batch, height, width, channels * ways).movedim(-1, 1)
    for turn, values in enumerate(parts):
        for places, mine in squares(ways, turn):
            z[:, mine][places] = values[places]
    return z
