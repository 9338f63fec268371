"""Lossy image formats behind one interface, so that all are measured by the same code."""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image

from bayesq import files
from bayesq.errors import BayesqError

if TYPE_CHECKING:
    from bayesq.codec import Codec


class Format(Protocol):
    """A lossy image format: RGB pictures to the bytes of a file and back."""

    @property
    def name(self) -> str: ...

    @property
    def description(self) -> str: ...

    @property
    def qualities(self) -> Sequence[float]:
        """The qualities measured unless told otherwise, rising."""

    def encode(self, image: Image.Image, quality: float) -> bytes:
        """The whole file."""
        ...

    def decode(self, data: bytes) -> Image.Image:
        """The RGB picture in a file."""
        ...


def _quality(quality: float) -> dict[str, object]:
    return {"quality": round(quality)}


def _compression(bpp: float) -> dict[str, object]:
    return {"quality_layers": [24 / bpp]}


@dataclass(frozen=True)
class Pillow:
    """A format that Pillow writes and reads.

    Attributes:
        name, description, qualities: See ``Format``.
        format: Pillow's name of it.
        variants: Option sets of its encoder, all at equal distortion; the smallest file counts.
        setting: The options that stand for a quality.
    """

    name: str
    description: str
    format: str
    variants: Sequence[dict[str, object]]
    qualities: Sequence[float] = (5, 10, 15, 20, 30, 40, 50, 60, 70, 80, 85, 90, 95)
    setting: Callable[[float], dict[str, object]] = _quality

    def encode(self, image: Image.Image, quality: float) -> bytes:
        return min((self._save(image, self.setting(quality) | options) for options in self.variants), key=len)

    def _save(self, image: Image.Image, options: dict[str, object]) -> bytes:
        file = io.BytesIO()
        try:
            image.save(file, self.format, **options)
        except (KeyError, OSError) as error:
            raise BayesqError(f"this Pillow writes no {self.format} ({error})") from error
        return file.getvalue()

    def decode(self, data: bytes) -> Image.Image:
        return Image.open(io.BytesIO(data)).convert("RGB")


@dataclass(frozen=True)
class JpegXL:
    """JPEG XL by libjxl, whose efforts above 7 tune for Butteraugli and score worse in PSNR."""

    name: str = "jxl"
    description: str = "libjxl by imagecodecs, effort 7"
    qualities: Sequence[float] = (5, 10, 20, 30, 45, 60, 70, 80, 88, 94, 97)

    def encode(self, image: Image.Image, quality: float) -> bytes:
        distance = _butteraugli_distance(quality)
        return bytes(_imagecodecs().jpegxl_encode(np.asarray(image), distance=distance, lossless=False, effort=7))

    def decode(self, data: bytes) -> Image.Image:
        return Image.fromarray(_imagecodecs().jpegxl_decode(data))


def _butteraugli_distance(quality: float) -> float:
    """The distance that libjxl takes a quality for (``JxlEncoderDistanceFromQuality``)."""
    if quality >= 30:
        return 0.1 + 0.09 * (100 - quality)
    return 53 / 3000 * quality**2 - 23 / 20 * quality + 25


def _imagecodecs() -> ModuleType:
    try:
        return importlib.import_module("imagecodecs")
    except ImportError as error:
        raise BayesqError("JPEG XL needs imagecodecs: pip install 'bayesq[bench]'") from error


@dataclass(frozen=True)
class Bayesq:
    """The ``.bq`` format with one codec; ``effort`` as in ``bayesq.encode``."""

    codec: Codec
    qualities: Sequence[float] = (0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100)
    effort: int = 1

    @property
    def name(self) -> str:
        return f"bayesq-{self.codec.name}" + (f"-e{self.effort}" if self.effort > 1 else "")

    @property
    def description(self) -> str:
        return f"whole .bq files, effort {self.effort}"

    def encode(self, image: Image.Image, quality: float) -> bytes:
        return files.encode(image, self.codec, quality, self.effort)

    def decode(self, data: bytes) -> Image.Image:
        return files.decode(data, self.codec).convert("RGB")


def _jpeg(name: str, subsampling: str) -> Pillow:
    options = {"optimize": True, "subsampling": subsampling}
    description = f"Pillow, {subsampling}, optimised, the smaller of sequential and progressive"
    return Pillow(name, description, "JPEG", [options | {"progressive": flag} for flag in (False, True)])


_RIVALS: list[Format] = [
    _jpeg("jpeg", "4:2:0"),
    _jpeg("jpeg-444", "4:4:4"),
    Pillow("webp", "Pillow, method 6", "WEBP", [{"method": 6}]),
    Pillow(
        "jpeg2000",
        "Pillow, irreversible, bare codestream, quality in bits per pixel",
        "JPEG2000",
        [{"irreversible": True, "mct": 1, "no_jp2": True}],
        (0.08, 0.15, 0.25, 0.4, 0.6, 0.8, 1.1, 1.5, 2, 2.5),
        _compression,
    ),
    Pillow(
        "avif",
        "Pillow, libaom speed 0, 4:4:4, tuned for PSNR",
        "AVIF",
        [{"speed": 0, "subsampling": "4:4:4", "advanced": {"tune": "psnr"}}],
        (10, 25, 40, 55, 70, 80, 90),
    ),
    JpegXL(),
]
RIVALS = {form.name: form for form in _RIVALS}
"""The classical formats, at the settings that score best in PSNR."""
