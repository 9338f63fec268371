"""Files of a wanted rate, size or fidelity: a search over the quality levels.

Neighbouring levels differ by little more than a per cent in rate, so that one of them is near any target within the
codec's range.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from PIL import Image

from bayesq import files
from bayesq.errors import ModelError
from bayesq.io import to_tensor
from bayesq.quality import LEVELS, quality_of

if TYPE_CHECKING:
    from bayesq.files import Picture
    from bayesq.tiling import TileCodec

TOLERANCE = 0.02
"""Largest relative deviation from the target."""
CORRECTIONS = 3
"""How often the aim is corrected for what higher efforts change."""


@dataclass(frozen=True)
class Target:
    """What a file should measure, in which unit, and how that is measured; it rises with the quality."""

    value: float
    unit: str
    measure: Callable[[bytes], float]

    def met_by(self, value: float) -> bool:
        return abs(value - self.value) <= TOLERANCE * self.value


def encode_to(
    image: Picture,
    codec: TileCodec,
    *,
    bpp: float | None = None,
    psnr: float | None = None,
    size: float | None = None,
    effort: int = 1,
    progress: bool = False,
) -> bytes:
    """The bytes of a ``.bq`` file that comes closest to one target.

    Args:
        image: as for ``bayesq.encode``.
        codec: the model.
        bpp: bits per pixel of the whole file.
        psnr: peak signal-to-noise ratio of the decoded colours, dB.
        size: bytes of the whole file.
        effort, progress: as for ``bayesq.encode``.

    Raises:
        ValueError: not exactly one target is given.
        ModelError: no file is within 2 % of it.
        ImageError: as in ``bayesq.encode``.
    """
    width, height = image.size
    targets = [
        Target(value, unit, measure)
        for value, unit, measure in (
            (bpp, "bpp", lambda data: 8 * len(data) / (width * height)),
            (psnr, "dB", lambda data: _psnr(image, data, codec)),
            (size, "bytes", len),
        )
        if value is not None
    ]
    if len(targets) != 1:
        raise ValueError("give one of bpp, psnr and size")

    def encode(level: int, effort: int) -> bytes:
        return files.encode(image, codec, quality_of(level), effort, progress=progress)

    return _search(targets[0], encode, effort)


def _search(target: Target, encode: Callable[[int, int], bytes], effort: int) -> bytes:
    """Finds the level with files of effort 1, then aims so much higher or lower as the wanted effort falls off."""

    @cache
    def measured(level: int, effort: int) -> tuple[float, bytes]:
        data = encode(level, effort)
        return target.measure(data), data

    aim = target.value
    tried = set()
    for _ in range(CORRECTIONS):
        level = _nearest(aim, lambda level: measured(level, 1)[0])
        value, data = measured(level, effort)
        tried.add((abs(value - target.value), value, level))
        if target.met_by(value):
            return data
        aim *= target.value / value
    _, value, level = min(tried)
    raise ModelError(
        f"{target.value:g} {target.unit} is out of reach: the nearest is {value:.4g} {target.unit}, "
        f"at quality {quality_of(level):.4g}"
    )


def _nearest(aim: float, value_of: Callable[[int], float]) -> int:
    """The level whose value is nearest to the aim, the values rising."""
    above = min(bisect_left(range(LEVELS), aim, key=value_of), LEVELS - 1)
    return min([above, max(above - 1, 0)], key=lambda level: abs(value_of(level) - aim))


def _psnr(image: Picture, data: bytes, codec: TileCodec) -> float:
    from bayesq.metrics import psnr

    whole = image if isinstance(image, Image.Image) else image.crop((0, 0, *image.size))
    return psnr(to_tensor(files.decode(data, codec)), to_tensor(whole)).item()
