"""Sizes of the codec's networks, and those that have names."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Architecture:
    """Sizes of a codec's networks.

    Attributes:
        latents: Channels of z, even.
        hyper: Channels of h.
        widths: Channels of g_s at 1/8 and 1/16 of the picture's size.
        depths: Its residual blocks at those sizes; without any it is linear.
        prior_width: Hidden channels of the prior's networks.
        leading: Channels of z that are coded first, a multiple of 4; 0 if all are coded alike.
        ways: Passes over h and over the leading channels, 2 or 4.
        seen: Channels of a group, at most, whose codes later passes see; a multiple of 4.
        certain: At table indexes below this a code is 0 by definition. At 7 it would be another once in 2000 times; a
            third of all codes need not be written, which saves time rather than bits.
    """

    latents: int = 448
    hyper: int = 64
    widths: tuple[int, int] = (192, 320)
    depths: tuple[int, int] = (5, 3)
    prior_width: int = 128
    leading: int = 64
    ways: int = 4
    seen: int = 384
    certain: int = 7

    @classmethod
    def from_json(cls, text: str) -> Architecture:
        """The sizes as ``asdict`` and JSON keep them. Raises TypeError or ValueError if these are not sizes."""
        sizes = json.loads(text)
        if not isinstance(sizes, dict):
            raise TypeError("the architecture is not a JSON object")
        fields: dict[str, Any] = {name: tuple(size) if isinstance(size, list) else size for name, size in sizes.items()}
        return cls(**fields)


ARCHITECTURES = {
    "base": Architecture(),
    "fast": Architecture(
        latents=288,
        hyper=32,
        widths=(0, 0),
        depths=(0, 0),
        prior_width=64,
        leading=0,
        ways=2,
        seen=64,
        certain=9,
    ),
}
