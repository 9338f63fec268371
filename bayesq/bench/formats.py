"""Lossy image formats behind one interface, so that all are measured by the same code."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from PIL import Image

if TYPE_CHECKING:
    from bayesq.codec import Codec


class Format(Protocol):
    """A lossy image format: RGB pictures to the bytes of a file and back."""

    name: str
    description: str
    qualities: Sequence[float]
    """The qualities measured unless told otherwise, rising."""

    def encode(self, image: Image.Image, quality: float) -> bytes:
        """The whole file."""
        ...

    def decode(self, data: bytes) -> Image.Image:
        """The RGB picture in a file."""
        ...


@dataclass(frozen=True)
class Pillow:
    """A format that Pillow writes and reads, with the options that make its files smallest."""

    name: str
    description: str
    format: str
    options: dict[str, object]
    qualities: Sequence[float] = (5, 10, 15, 20, 30, 40, 50, 60, 70, 80, 85, 90, 95)

    def encode(self, image: Image.Image, quality: float) -> bytes:
        file = io.BytesIO()
        image.save(file, self.format, quality=round(quality), **self.options)
        return file.getvalue()

    def decode(self, data: bytes) -> Image.Image:
        return Image.open(io.BytesIO(data)).convert("RGB")


@dataclass(frozen=True)
class Bayesq:
    """The ``.bq`` format with one codec."""

    codec: Codec
    qualities: Sequence[float] = (0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100)
    description: str = "whole .bq files"

    @property
    def name(self) -> str:
        return f"bayesq-{self.codec.name}"

    def encode(self, image: Image.Image, quality: float) -> bytes:
        from bayesq import files

        return files.encode(image, self.codec, quality)

    def decode(self, data: bytes) -> Image.Image:
        from bayesq import files

        return files.decode(data, self.codec).convert("RGB")


PILLOW = {
    form.name: form
    for form in [
        Pillow("jpeg", "Pillow, optimised, 4:2:0", "JPEG", {"optimize": True, "subsampling": "4:2:0"}),
        Pillow("jpeg-444", "Pillow, optimised, 4:4:4", "JPEG", {"optimize": True, "subsampling": "4:4:4"}),
        Pillow("webp", "Pillow, method 6", "WEBP", {"method": 6}),
    ]
}
"""The rivals that need nothing but Pillow."""
