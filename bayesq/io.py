"""Pictures in and out: files, pipes, Pillow images, tensors.

Pixels are taken as stored and the EXIF orientation is kept beside them (Pillow itself turns TIFF pictures upright).
A path of ``"-"`` means standard input or standard output.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from secrets import token_hex
from threading import Lock
from typing import IO, TYPE_CHECKING, Any, BinaryIO

from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngInfo

from bayesq.bitstream import MAX_PIXELS
from bayesq.errors import ImageError, OutputError

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)
PIPE = "-"
SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
"""What files are taken for pictures where a whole folder is meant."""
METADATA = ("icc_profile", "exif", "xmp")
"""What goes along with a picture's pixels, by Pillow's names."""
_opening = Lock()
_ASIDES = ("MPO", "PSD")
"""Formats whose other frames are previews and layers of the first."""
# Decoded pictures should not be compressed with loss a second time, or as little as the format can.
_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95},
    "WEBP": {"lossless": True},
    "AVIF": {"quality": 95},
}


def read_image(path: str | Path) -> Image.Image:
    """Reads a picture in any format that Pillow reads; the first frame if there are several, with a warning in the log.

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


def read_size(path: str | Path) -> tuple[int, int]:
    """Width and height of a picture file, without its pixels.

    Raises:
        ImageError: as ``read_image``, but for damage to the pixels.
    """
    try:
        with open(path, "rb") as source, _blaming(str(path)):
            return _opened(source).size
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}") from error


def unlimited_open(source: IO[bytes]) -> ImageFile.ImageFile:
    """Opens a picture of any size, without its pixels: Pillow's limit does not count. Raises what Pillow raises."""
    with _opening:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(source)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def tell_of_frames(image: Image.Image, name: str) -> None:
    """Warns where a file holds more pictures than the first, which alone is read."""
    with suppress(Exception):  # that another frame is damaged does not matter
        if image.format not in _ASIDES and getattr(image, "is_animated", False):
            log.warning("%s: only the first of several frames or pages is read", name)


def parse_image(data: bytes, name: str) -> Image.Image:
    """Reads a picture as ``read_image`` does, from what a file called ``name`` holds."""
    return _loaded(BytesIO(data), name)


def _loaded(source: BinaryIO, name: str) -> Image.Image:
    with _blaming(name):
        image = _opened(source)
        tell_of_frames(image, name)
        image.load()
        return image


def _opened(source: BinaryIO) -> ImageFile.ImageFile:
    image = unlimited_open(source)
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width} × {image.height} pixels exceed the limit of {MAX_PIXELS}")
    if _is_deep(image, source):
        raise ValueError("has more than 8 bits a sample, and only 8 are coded; convert it first")
    return image


@contextmanager
def _blaming(name: str) -> Iterator[None]:
    """Puts a file's name before whatever goes wrong with reading it."""
    try:
        yield
    except Exception as error:  # Pillow's format plugins raise nearly anything on damaged data
        reason = "not a picture that Pillow can open" if isinstance(error, Image.UnidentifiedImageError) else error
        raise ImageError(" ".join(f"{name}: {reason}".split())) from error


def format_of(path: str | Path) -> str:
    """Pillow's name of the format in which ``write_image`` writes to a path. Raises OutputError if there is none."""
    suffix = ".png" if str(path) == PIPE else Path(path).suffix.lower()
    Image.preinit()  # the common formats; the others take longer to import than a small picture to write
    form = Image.EXTENSION.get(suffix) or Image.registered_extensions().get(suffix, "")
    if form not in Image.SAVE:
        raise OutputError(f"{path}: no picture format is called {suffix!r}")
    return form


def check_format(path: str | Path, mode: str) -> None:
    """Raises the OutputError with which ``write_image`` would refuse a picture of that mode for its format."""
    form = format_of(path)
    try:
        Image.new(mode, (1, 1)).save(BytesIO(), form)
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: {error}") from error


def write_image(image: Image.Image, path: str | Path) -> None:
    """Writes a picture with its ICC profile, EXIF and XMP in the format of the path's extension, PNG on a pipe.

    The file appears at once and whole, or not at all.

    Raises:
        OutputError: the extension is unknown, its format cannot hold this kind of picture, or the file cannot be
            written.
    """
    form = format_of(path)
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
        raise OutputError(f"{path}: {error}") from error


def atomic_write(path: str | Path, data: bytes) -> None:
    """Writes a whole file as ``atomic_open`` does.

    Raises:
        OutputError: the file cannot be written.
    """
    with atomic_open(path) as file:
        file.write(data)


@contextmanager
def atomic_open(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write beside its place, renamed when all went well, so that no one ever sees half of it.

    A device or pipe (``/dev/stdout``) is written directly; a symbolic link stays one.

    Raises:
        OutputError: the file cannot be written.
    """
    target = Path(os.path.realpath(path))
    scratch = target.with_name(f".{target.name}.{token_hex(4)}.tmp")
    try:
        if os.path.exists(path) and not target.is_file():
            with open(path, "wb") as file:
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
        raise OutputError(f"{path}: {error.strerror}") from error


def normalized(image: Image.Image) -> Image.Image:
    """The picture in one of the modes L, LA, RGB and RGBA, whichever holds it: itself if it is in that mode.

    Palettes, CMYK and other colour spaces become RGB, bilevel pictures L, a transparent colour an alpha plane.

    Raises:
        ImageError: the picture has more than 8 bits a sample, or no pixels.
    """
    if _is_deep_mode(image.mode):
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

    Its colour profile is left out where the one has colours and the other none.

    Args:
        x: (1, 3, H, W), or (1, 1, H, W) for a grey picture, in [0, 1].
        image: the picture of which x is another version.
    """
    original = normalized(image)
    picture = to_image(x.mean(1, keepdim=True) if original.mode.startswith("L") else x)
    if original.mode.endswith("A"):
        picture.putalpha(original.getchannel("A").resize(picture.size, Image.Resampling.BICUBIC))
    other_colours = image.mode in ("CMYK", "LAB") or picture.mode.startswith("L") != original.mode.startswith("L")
    kept = set(METADATA) - ({"icc_profile"} if other_colours else set())
    picture.info |= {key: image.info[key] for key in kept if image.info.get(key)}
    return picture


def _is_deep_mode(mode: str) -> bool:
    return mode in ("I", "F") or mode.startswith("I;")


def _is_deep(image: ImageFile.ImageFile, source: BinaryIO) -> bool:
    """Whether a file has more than 8 bits a sample, which Pillow does not always tell."""
    if image.format in ("AVIF", "JPEG2000"):
        place = source.seek(0, os.SEEK_CUR)
        source.seek(0)
        data = source.read()
        source.seek(place)
        return _is_deep_avif(data) if image.format == "AVIF" else _is_deep_jpeg2000(data)
    for codec, _, _, args in image.tile:
        layout, *rest = args if isinstance(args, tuple) and args else (args,)
        if ";16" in str(layout) and not str(layout).startswith("BGR"):  # BGR;16 is 16 bits a pixel
            return True
        if codec in ("ppm", "ppm_plain") and rest and rest[0] > 255:
            return True
    return _is_deep_mode(image.mode)


def _is_deep_avif(data: bytes) -> bool:
    """Whether any picture in a file is coded with 10 or 12 bits, as its configuration box says (AV1-ISOBMFF 2.3)."""
    return re.search(rb"av1C\x81.[\x40-\x7f\xc0-\xff]", data, re.DOTALL) is not None


def _is_deep_jpeg2000(data: bytes) -> bool:
    """Whether any component has more than 8 bits, as the size marker says (ISO/IEC 15444-1 A.5.1)."""
    start = data.index(b"\xff\x4f\xff\x51") + 40
    count = int.from_bytes(data[start : start + 2], "big")
    return any(depth & 127 > 7 for depth in data[start + 2 : start + 2 + 3 * count : 3])
