"""Pictures in and out: files, pipes, Pillow images, tensors.

Pixels are taken as stored and the EXIF orientation is kept beside them (Pillow itself turns TIFF pictures upright).
A path of ``"-"`` means standard input or standard output.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from secrets import token_hex
from threading import Lock
from typing import IO, TYPE_CHECKING, Any, BinaryIO

from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngInfo

from bayesq.bitstream import MAX_PIXELS
from bayesq.errors import BayesqError, ImageError

if TYPE_CHECKING:
    from torch import Tensor

PIPE = "-"
SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
"""What files are taken for pictures where a whole folder is meant."""
METADATA = ("icc_profile", "exif", "xmp")
"""What goes along with a picture's pixels, by Pillow's names."""
_opening = Lock()
# Decoded pictures should not be compressed with loss a second time, or as little as the format can.
_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95},
    "WEBP": {"lossless": True},
    "AVIF": {"quality": 95},
}


def read_image(path: str | Path) -> Image.Image:
    """Reads a picture, the first frame if there are several, in any format that Pillow reads.

    Raises:
        ImageError: there is no such file, it is no picture, it is damaged, or has more than 8 bits a sample or more
            than ``bayesq.bitstream.MAX_PIXELS`` pixels (Pillow's own limit does not count).
    """
    name = "standard input" if str(path) == PIPE else str(path)
    try:
        with BytesIO(sys.stdin.buffer.read()) if str(path) == PIPE else open(path, "rb") as source:
            return _loaded(source, name)
    except OSError as error:
        raise ImageError(f"{name}: {error.strerror}") from error


def unlimited_open(source: IO[bytes]) -> ImageFile.ImageFile:
    """Opens a picture of any size, without its pixels: Pillow's limit does not count. Raises what Pillow raises."""
    with _opening:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(source)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def parse_image(data: bytes, name: str) -> Image.Image:
    """Reads a picture as ``read_image`` does, from what a file called ``name`` holds."""
    return _loaded(BytesIO(data), name)


def _loaded(source: BinaryIO, name: str) -> Image.Image:
    try:
        image = unlimited_open(source)
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} × {image.height} pixels exceed the limit of {MAX_PIXELS}")
        if any(_is_deep(str(tile[3])) for tile in image.tile):
            raise ValueError("has 16 bits a sample, and only 8 are coded; convert it first")
        image.load()
    except Exception as error:  # Pillow's format plugins raise nearly anything on damaged data
        reason = "not a picture that Pillow can open" if isinstance(error, Image.UnidentifiedImageError) else error
        raise ImageError(" ".join(f"{name}: {reason}".split())) from error
    return image


def write_image(image: Image.Image, path: str | Path) -> None:
    """Writes a picture with its ICC profile, EXIF and XMP in the format of the path's extension, PNG on a pipe.

    The file appears at once and whole, or not at all.

    Raises:
        ImageError: the extension is unknown, or its format cannot hold this kind of picture.
        BayesqError: the file cannot be written.
    """
    suffix = ".png" if str(path) == PIPE else Path(path).suffix.lower()
    Image.preinit()  # the common formats; the others take longer to import than a small picture to write
    form = Image.EXTENSION.get(suffix) or Image.registered_extensions().get(suffix, "")
    if form not in Image.SAVE:
        raise ImageError(f"{path}: no picture format is called {suffix!r}")
    options = _SAVE_OPTIONS.get(form, {}) | {key: image.info[key] for key in METADATA if image.info.get(key)}
    if form == "PNG" and "xmp" in options:
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", options["xmp"].decode("utf-8", "replace"))
    try:
        if str(path) == PIPE:
            buffer = BytesIO()
            image.save(buffer, form, **options)
            sys.stdout.buffer.write(buffer.getbuffer())
            sys.stdout.buffer.flush()
        else:
            with atomic_open(path) as file:
                image.save(file, form, **options)
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: {error}") from error


def atomic_write(path: str | Path, data: bytes) -> None:
    """Writes a whole file as ``atomic_open`` does.

    Raises:
        BayesqError: the file cannot be written.
    """
    with atomic_open(path) as file:
        file.write(data)


@contextmanager
def atomic_open(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write beside its place, renamed when all went well, so that no one ever sees half of it.

    A device or pipe (``/dev/stdout``) is written directly; a symbolic link stays one.

    Raises:
        BayesqError: the file cannot be written.
    """
    target = Path(os.path.realpath(path))
    scratch = target.with_name(f".{target.name}.{token_hex(4)}.tmp")
    try:
        if target.exists() and not target.is_file():
            with target.open("wb") as file:
                yield file
            return
        try:
            with scratch.open("x+b") as file:
                yield file
            scratch.replace(target)
        finally:
            scratch.unlink(missing_ok=True)
    except OSError as error:
        if error.strerror is None:  # not the file's fault
            raise
        raise BayesqError(f"{path}: {error.strerror}") from error


def normalized(image: Image.Image) -> Image.Image:
    """The picture in one of the modes L, LA, RGB and RGBA, whichever holds it: itself if it is in that mode.

    Palettes, CMYK and other colour spaces become RGB, bilevel pictures L, a transparent colour an alpha plane.

    Raises:
        ImageError: the picture has more than 8 bits a sample, or no pixels.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise ImageError(f"the picture has more than 8 bits a sample (mode {image.mode}), and only 8 are coded")
    if not image.width or not image.height:
        raise ImageError("the picture has no pixels")
    image.load()
    colours = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    mode = colours + ("A" if image.has_transparency_data else "")
    return image if image.mode == mode else image.convert(mode)


def to_tensor(image: Image.Image) -> Tensor:
    """The colours of a picture, without its alpha: float32 (1, 3, H, W) in [0, 1].

    Raises:
        ImageError: the picture has more than 8 bits a sample, or no pixels.
    """
    import numpy as np
    import torch

    samples = np.array(normalized(image).convert("RGB"))
    return torch.from_numpy(samples).permute(2, 0, 1)[None].to(torch.float32).div_(255)


def to_image(x: Tensor) -> Image.Image:
    """The nearest 8-bit picture; values outside [0, 1] are clamped.

    Args:
        x: (1, 3, H, W), or (1, 1, H, W) for a grey picture.
    """
    import torch

    rounded = ((plane * 255).round_().clamp_(0, 255).to(torch.uint8) for plane in x[0].detach())
    planes = [Image.fromarray(plane.cpu().numpy()) for plane in rounded]
    return planes[0] if len(planes) == 1 else Image.merge("RGB", planes)


def is_grey(image: Image.Image) -> bool:
    """Whether a picture has no colours."""
    return normalized(image).mode.startswith("L")


def like(x: Tensor, image: Image.Image) -> Image.Image:
    """A picture in the manner of another: grey where that is, with its metadata, and its alpha resized to fit.

    Args:
        x: (1, 3, H, W), or (1, 1, H, W) for a grey picture, in [0, 1].
        image: the picture of which x is another version.
    """
    original = normalized(image)
    picture = to_image(x.mean(1, keepdim=True) if original.mode.startswith("L") else x)
    if original.mode.endswith("A"):
        picture.putalpha(original.getchannel("A").resize(picture.size, Image.Resampling.BICUBIC))
    foreign = {"icc_profile"} if image.mode in ("CMYK", "LAB") else set()  # a profile of other colours
    picture.info |= {key: image.info[key] for key in {*METADATA} - foreign if image.info.get(key)}
    return picture


def _is_deep(raw_mode: str) -> bool:
    """Whether Pillow's name of a file's sample layout says 16 bits a sample (``BGR;16`` is 16 bits a pixel)."""
    return ";16" in raw_mode and not raw_mode.startswith("BGR")
