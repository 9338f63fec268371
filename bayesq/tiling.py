"""Pictures in tiles that show no seams: coded one by one, analysed and synthesised with their surroundings.

The encoder analyses each tile with pixels around it and codes the tile's own latents. The decoder reads each tile's
latents by themselves, puts those of its neighbours around them, and synthesises all that: across a border it sees what
it would see in a picture of one tile. Nothing is coded twice, and no more than two rows of tiles are held at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from bayesq.bitstream import Box, Header
from bayesq.errors import BitstreamError

if TYPE_CHECKING:
    from types import EllipsisType

    from torch import Tensor

TILE = 768
"""Longest side of the tiles that are written, pixels; it bounds the memory that coding takes."""


class Transform(Protocol):
    """What tiling must know of a codec."""

    @property
    def reduction(self) -> int:
        """Pixels per latent."""

    @property
    def multiple(self) -> int:
        """Sides of padded pictures, pixels; a multiple of ``reduction``."""

    @property
    def margin(self) -> int:
        """Latents around a tile that bear on its pixels."""

    @property
    def context(self) -> int:
        """Latents around a tile whose pixels bear on its latents."""


class TileCodec(Transform, Protocol):
    """What a file needs of a codec."""

    @property
    def model_id(self) -> bytes:
        """The first 8 bytes of the SHA-256 of the weights file."""

    def compress(self, x: Tensor, level: int, window: Box) -> bytes:
        """Codes that window of x, (1, 3, H, W) in [0, 1], at one of 256 quality levels; the rest of x is context."""

    def latents(self, payload: bytes, height: int, width: int, level: int) -> Tensor:
        """The coded latents, (1, M, h, w), of a picture or tile of that size, padded."""

    def synthesize(self, z: Tensor, level: int) -> Tensor:
        """Pictures of latents, (B, 3, H, W) in [0, 1]."""


def tile_side(length: int, multiple: int) -> int:
    """Side of the fewest tiles of about equal size that cover a length: all of it, or a multiple of ``multiple``."""
    count = -(-length // TILE)
    return min(length, _round_up(-(-length // count), multiple))


def surroundings(box: Box, header: Header, codec: Transform) -> tuple[Box, Box]:
    """A tile with the pixels around it that g_a should see, and the tile's place in there."""
    reach = _round_up(codec.context * codec.reduction, codec.multiple)
    left, top = max(box[0] - reach, 0), max(box[1] - reach, 0)
    right, bottom = min(box[2] + reach, header.width), min(box[3] + reach, header.height)
    return (left, top, right, bottom), (box[0] - left, box[1] - top, box[2] - left, box[3] - top)


Index = tuple["EllipsisType", slice, slice]
"""Rows and columns of an array whose last two axes are those of a picture."""


@dataclass(frozen=True)
class Part:
    """Some pixels of one tile and what g_s needs for them.

    Attributes:
        tile: Number of the tile.
        box: Place of the pixels in the picture.
        z: ``(1, M, h, w)`` latents of the pixels and of their surroundings.
        own: Where in z those of the tile itself are.
        own_part: Which of the tile's latents these are.
        crop: Where the pixels are in the synthesis of z.
    """

    tile: int
    box: Box
    z: Tensor
    own: Index
    own_part: Index
    crop: Index


@dataclass(frozen=True)
class Mosaic:
    """The tiles of a file, on the codec's grid of latents.

    Raises:
        BitstreamError: the tiles do not fit the codec's grid.
    """

    header: Header
    codec: Transform

    def __post_init__(self) -> None:
        h, multiple = self.header, self.codec.multiple
        if (h.columns > 1 and h.tile_width % multiple) or (h.rows > 1 and h.tile_height % multiple):
            raise BitstreamError(f"tiles of {h.tile_width} × {h.tile_height} pixels do not fit the model")

    def parts(self, region: Box, latents: Callable[[int], Tensor | None], by_rows: bool = False) -> Iterator[Part]:
        """A region in pieces, one for each tile that it shares pixels with and that is not lost.

        Args:
            region: Inside the picture.
            latents: The latents ``(1, M, h, w)`` of a tile, None if it is lost: zeros stand in for it around its
                neighbours. Is asked once for each tile that is needed, and for no other.
            by_rows: From top to bottom, even where going from left to right would hold fewer latents.
        """
        h = self.header
        order = [(_common(box, region), tile) for tile, box in enumerate(h.boxes())]
        order = [(box, tile) for box, tile in order if box[0] < box[2] and box[1] < box[3]]
        if h.columns > h.rows and not by_rows:
            order.sort()
        needs = {tile: self._under(self._around(box)) for box, tile in order}
        last = {other: tile for _, tile in order for other in needs[tile]}
        held: dict[int, Tensor | None] = {}
        for box, tile in order:
            held |= {other: latents(other) for other in needs[tile] if other not in held}
            mine = held[tile]
            if mine is not None:
                yield self._part(tile, box, mine, held)
            held = {other: z for other, z in held.items() if last[other] != tile}

    def _part(self, tile: int, box: Box, mine: Tensor, held: dict[int, Tensor | None]) -> Part:
        around, place = self._around(box), self._place(tile)
        unit = self.codec.reduction
        z = mine
        if around != place:
            z = mine.new_zeros(1, (around[3] - around[1]) // unit, (around[2] - around[0]) // unit, mine.shape[1])
            z = z.movedim(-1, 1)
            for other in self._under(around):
                values, theirs = held[other], self._place(other)
                common = _common(theirs, around)
                if values is not None:
                    z[_index(common, around, unit)] = values[_index(common, theirs, unit)]
        own = _common(place, around)
        return Part(tile, box, z, _index(own, around, unit), _index(own, place, unit), _index(box, around))

    def _around(self, box: Box) -> Box:
        """Some pixels with those whose latents bear on them, as far as the padded picture goes."""
        unit, reach = self.codec.reduction, self.codec.margin * self.codec.reduction
        width, height = (_round_up(side, self.codec.multiple) for side in (self.header.width, self.header.height))
        left, top, right, bottom = box
        return (
            max(left // unit * unit - reach, 0),
            max(top // unit * unit - reach, 0),
            min(_round_up(right, unit) + reach, width),
            min(_round_up(bottom, unit) + reach, height),
        )

    def _place(self, tile: int) -> Box:
        """The pixels whose latents a tile holds: its own, padded."""
        h, multiple = self.header, self.codec.multiple
        row, column = divmod(tile, h.columns)
        right, bottom = min((column + 1) * h.tile_width, h.width), min((row + 1) * h.tile_height, h.height)
        return column * h.tile_width, row * h.tile_height, _round_up(right, multiple), _round_up(bottom, multiple)

    def _under(self, box: Box) -> list[int]:
        """The tiles that hold the latents of some pixels of the padded picture."""
        h = self.header
        rows = range(box[1] // h.tile_height, min(-(-box[3] // h.tile_height), h.rows))
        columns = range(box[0] // h.tile_width, min(-(-box[2] // h.tile_width), h.columns))
        return [row * h.columns + column for row in rows for column in columns]


def _round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def _common(a: Box, b: Box) -> Box:
    """What two boxes share: right is not beyond left, or bottom not beyond top, if that is nothing."""
    return max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])


def _index(box: Box, frame: Box, unit: int = 1) -> Index:
    """A box within another, as index of an array of which an element is ``unit`` pixels wide and high."""
    left, top, right, bottom = ((edge - frame[n % 2]) // unit for n, edge in enumerate(box))
    return ..., slice(top, bottom), slice(left, right)
