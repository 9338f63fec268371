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


def squares(ways: int, turn: int) -> list[tuple[slice, list[Places]]]:
    """Which channels of its group a pass holds, and in which of the four places in squares of 2 × 2.

    Of each ``ways`` neighbouring channels it is, where the colour is q, the (turn xor q)-th. Colours are those of a
    checkerboard, or the four places, those on a diagonal following each other.
    """
    found: list[list[Places]] = [[] for _ in range(ways)]
    for row, column in ((0, 0), (1, 1), (0, 1), (1, 0)):
        colour = (row + column) % 2 if ways == 2 else (row + column) % 2 * 2 + row
        found[colour].append((..., slice(row, None, 2), slice(column, None, 2)))
    return [(slice(turn ^ colour, None, ways), places) for colour, places in enumerate(found)]


def weave(
    pieces: Callable[[slice, list[Places]], Sequence[Tensor]], ways: int, turn: int, height: int, width: int
) -> Tensor:
    """What a pass holds, ``(B, M/ways, h, w)``, from a function that gives it for the items of ``squares``."""
    found = [
        (place, piece)
        for channels, places in squares(ways, turn)
        for place, piece in zip(places, pieces(channels, places), strict=True)
    ]
    batch, channels = found[0][1].shape[:2]
    result = found[0][1].new_empty(batch, height, width, channels).movedim(-1, 1)
    for place, piece in found:
        result[place] = piece
    return result


def part(z: Tensor, ways: int, turn: int) -> Tensor:
    """What a pass holds of a group z ``(B, M, h, w)``: ``(B, M/ways, h, w)``."""

    def pieces(channels: slice, places: list[Places]) -> list[Tensor]:
        return [z[:, channels][place] for place in places]

    return weave(pieces, ways, turn, *z.shape[-2:])


def merge(parts: Sequence[Tensor], ways: int) -> Tensor:
    """The group whose first passes hold ``parts``, with zeros for the passes that are missing."""
    batch, channels, height, width = parts[0].shape
    z = parts[0].new_zeros(batch, height, width, channels * ways).movedim(-1, 1)
    for turn, values in enumerate(parts):
        for mine, places in squares(ways, turn):
            for place in places:
                z[:, mine][place] = values[place]
    return z
