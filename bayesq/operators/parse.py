"""What a person types for a noise level, a kernel or a mask, made into numbers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

from bayesq.errors import OperatorError

Size = tuple[int, int]


def parse_noise(text: str | float) -> float:
    """Reads a noise level in [0, 1] image units: a number, ``"0.05"``, or a fraction, ``"25/255"``."""
    numerator, slash, denominator = str(text).partition("/")
    try:
        sigma = float(numerator) / float(denominator) if slash else float(numerator)
    except (ValueError, ZeroDivisionError):
        raise OperatorError(f"the noise level must be a number or a fraction such as 25/255: {text}") from None
    if not 0 <= sigma <= 1:
        raise OperatorError(f"the noise level must be between 0 and 1 (for 8-bit units, write 25/255): {text}")
    return sigma


def parse_kernel(kernel: str | Path | ArrayLike | Tensor) -> Tensor:
    """Reads a blur kernel and normalises its sum to 1.

    Args:
        kernel: ``"gaussian:S"`` (standard deviation S in pixels, cut at 3 S), ``"motion:L,A"`` (a uniform stroke L
            pixels long, A degrees anticlockwise from the horizontal), the path of a ``.npy``, ``.npz``
            (``file.npz:key`` if it holds several arrays) or picture file, or a 2-D array.

    Returns:
        Float32 tensor (1, 1, kh, kw); kh and kw are odd for the named kernels, and as given otherwise.

    Raises:
        OperatorError: unknown words, an unreadable file, or values that are not finite or do not have a positive sum.
    """
    if isinstance(kernel, str) and kernel.startswith("gaussian:"):
        taps = _gaussian(*_numbers(kernel, count=1))
    elif isinstance(kernel, str) and kernel.startswith("motion:"):
        taps = _stroke(*_numbers(kernel, count=2))
    else:
        taps = _array(kernel, "kernel")
    taps = np.squeeze(taps) if taps.ndim > 2 else taps
    if taps.ndim != 2 or taps.size == 0:
        raise OperatorError(f"a kernel is a 2-D array, not one of shape {taps.shape}")
    if not np.isfinite(taps).all() or taps.sum() <= 1e-12:
        raise OperatorError("a kernel must have finite values and a positive sum")
    return torch.from_numpy(taps / taps.sum()).float()[None, None]


def parse_mask(mask: str | Path | ArrayLike | Tensor, size: Size) -> Tensor:
    """Reads a mask of observed pixels; those above half its largest value are observed.

    Args:
        mask: path of a picture, ``.npy`` or ``.npz`` file, or an array (H, W), (1 or 3, H, W) or (H, W, 1 or 3).
        size: (H, W) of the picture.

    Returns:
        Float32 tensor (1, 1, H, W) or, when the channels differ, (1, 3, H, W) of 0 and 1.

    Raises:
        OperatorError: an unreadable file, another size than the picture's, values that are not finite, or no
            observed pixel.
    """
    given = values = _array(mask, "mask")
    values = values[0] if values.ndim == 4 and len(values) == 1 else values
    values = values[None] if values.ndim == 2 else values
    if values.ndim == 3 and values.shape[1:] != tuple(size):
        values = np.moveaxis(values, -1, 0)
    if values.ndim != 3 or values.shape[0] not in (1, 3) or values.shape[1:] != tuple(size):
        raise OperatorError(f"the mask, of shape {given.shape}, does not fit the picture, of shape {tuple(size)}")
    if not np.isfinite(values).all() or values.max() <= 0:
        raise OperatorError("the mask must have finite values and at least one observed pixel")
    observed = values > values.max() / 2
    observed = observed[:1] if (observed == observed[:1]).all() else observed
    return torch.from_numpy(observed).float()[None]


def random_mask(text: str, size: Size, generator: torch.Generator) -> Tensor:
    """Draws the mask ``"random:P"``, (1, 1, H, W) of 0 and 1: each pixel is observed with probability P.

    Raises:
        OperatorError: P is not a number in (0, 1].
    """
    try:
        share = float(text.removeprefix("random:"))
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise OperatorError(f"a random mask is written random:P, with a share P of observed pixels in (0, 1]: {text}")
    return (torch.rand(1, 1, *size, generator=generator) < share).float()


def by(size: tuple[int, ...]) -> str:
    return f"{size[0]}x{size[1]}"


def _gaussian(sigma: float) -> NDArray[np.float64]:
    if not 0 < sigma <= 100:
        raise OperatorError(f"the standard deviation of a Gaussian kernel must be in (0, 100] pixels: {sigma:g}")
    t = np.arange(-math.ceil(3 * sigma), math.ceil(3 * sigma) + 1)
    row = np.exp(-(t**2) / (2 * sigma**2))
    return np.outer(row, row)


def _stroke(length: float, degrees: float) -> NDArray[np.float64]:
    """Rasterises a segment: points 1/64 pixel apart, each shared among its four pixels bilinearly."""
    if not 0 <= length <= 1000:
        raise OperatorError(f"the length of a motion kernel must be in [0, 1000] pixels: {length:g}")
    count = 64 * max(1, math.ceil(length))
    t = length * ((np.arange(count) + 0.5) / count - 0.5)
    angle = math.radians(degrees)
    rx, ry = (math.ceil(round(abs(length / 2 * c), 6)) for c in (math.cos(angle), math.sin(angle)))
    x, y = rx + t * math.cos(angle), ry - t * math.sin(angle)
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    taps = np.zeros((2 * ry + 2, 2 * rx + 2))
    for i in (0, 1):
        for j in (0, 1):
            weight = np.abs(1 - i - (y - top)) * np.abs(1 - j - (x - left))
            np.add.at(taps, (top + i, left + j), weight)
    return taps[:-1, :-1]


def _numbers(text: str, count: int) -> list[float]:
    try:
        values = [float(word) for word in text.partition(":")[2].split(",")]
    except ValueError:
        values = []
    if len(values) != count or not all(math.isfinite(v) for v in values):
        raise OperatorError(f"a kernel is written gaussian:STD, motion:LENGTH,ANGLE or as a file: {text}")
    return values


def _array(source: str | Path | ArrayLike | Tensor, what: str) -> NDArray[np.float64]:
    """Reads a file, or converts an array, to float64."""
    try:
        if isinstance(source, str | Path):
            return np.asarray(_read(str(source)), dtype=np.float64)
        return np.asarray(source, dtype=np.float64)
    except (OSError, ValueError, TypeError, EOFError, KeyError) as error:
        name = str(source) if isinstance(source, str | Path) else "array"
        raise OperatorError(f"cannot read the {what} {name}: {' '.join(str(error).split())}") from None


def _read(path: str) -> ArrayLike:
    file, _, key = path.rpartition(":") if ".npz:" in path else (path, "", "")
    if file.endswith(".npy"):
        return np.load(file, allow_pickle=False)
    if file.endswith(".npz"):
        with np.load(file, allow_pickle=False) as archive:
            if not key and len(archive.files) != 1:
                raise ValueError(f"it holds several arrays, choose one as {file}:{archive.files[0]}")
            return archive[key or archive.files[0]]
    with Image.open(file) as image:
        return np.asarray(image if image.mode in ("1", "L", "I", "I;16", "F") else image.convert("L"))
