"""Forward operators: what a person types, made into a deepinv ``Physics``.

Every builder returns a linear operator A acting on pictures (B, 3, H, W) in [0, 1] and carrying its white Gaussian
noise of standard deviation ``sigma`` (same units), so that one object says all that is known of y = A x + n. Any other
deepinv operator is as welcome as these: only :func:`initial_image` treats the common ones specially.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from deepinv.physics import Blur, Denoising, Downsampling, GaussianNoise, Inpainting, LinearPhysics, Physics
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

from bayesq.errors import OperatorError

Size = tuple[int, int]


class BicubicDownsampling(LinearPhysics):
    """Anti-aliased bicubic reduction by an integer factor, the field's super-resolution operator.

    The Keys kernel (a = -1/2) stretched by the factor, as in Pillow and in Matlab's ``imresize``: low-resolution pixel
    i is centred on (i + 1/2) * factor - 1/2, and the weights are renormalised where the kernel leaves the picture, so
    that no pixel beyond the border is invented. A remainder of H or W smaller than the factor is observed only
    through the tails of the last kernels. (deepinv's own ``Downsampling`` is centred half a pixel off the origin
    whatever the factor, and transforms its filter anew at each call.)

    Args:
        factor: the reduction, at least 1.
        size: (H, W) of the picture sought.
        noise_model: a deepinv noise model.
    """

    def __init__(self, factor: int, size: Size, noise_model: torch.nn.Module):
        super().__init__(img_size=(3, *size), noise_model=noise_model)
        self.factor = factor

    def A(self, x: Tensor, **_: object) -> Tensor:
        """Reduces (B, 3, H, W) to (B, 3, H // factor, W // factor)."""
        return F.interpolate(x, scale_factor=1 / self.factor, mode="bicubic", antialias=True)


def denoise(size: Size, sigma: float | str) -> LinearPhysics:
    """Builds the identity operator with noise; ``size`` is (H, W), unused, and there for the builders to agree."""
    return Denoising(GaussianNoise(parse_noise(sigma)))


def blur(kernel: str | Path | ArrayLike | Tensor, size: Size, sigma: float | str) -> LinearPhysics:
    """Builds a convolution whose output has the picture's size.

    Beyond the border the scene is taken to repeat its edge pixel (``padding="replicate"``): unlike a circular
    convolution it never mixes opposite edges, and unlike a "valid" one it leaves y the size of the picture. The
    likelihood then is exact for pictures degraded this way, and an approximation within half a kernel of the border for
    a camera's, which does see beyond the edge.

    Args:
        kernel: whatever :func:`parse_kernel` accepts.
        size: (H, W) of the picture.
        sigma: noise standard deviation, as :func:`parse_noise` accepts it.

    Raises:
        OperatorError: the kernel is malformed or larger than the picture.
    """
    taps = parse_kernel(kernel)
    if taps.shape[-2] > size[0] or taps.shape[-1] > size[1]:
        raise OperatorError(f"the {_by(taps.shape[-2:])} kernel is larger than the {_by(size)} picture")
    fast_by_fft = taps.shape[-2] * taps.shape[-1] > 100
    padding = "valid" if taps.numel() == 1 else "replicate"
    return Blur(taps, padding=padding, use_fft=fast_by_fft, noise_model=GaussianNoise(parse_noise(sigma)))


def downsample(factor: int, size: Size, sigma: float | str) -> LinearPhysics:
    """Builds the bicubic reduction by ``factor`` of a picture of ``size`` (H, W), with noise.

    Raises:
        OperatorError: the factor is not an integer from 1 to the smaller side of the picture.
    """
    if not isinstance(factor, int) or factor < 1:
        raise OperatorError(f"the scale must be an integer of at least 1: {factor}")
    if factor > min(size):
        raise OperatorError(f"a {_by(size)} picture is too small for a scale of {factor}")
    return BicubicDownsampling(factor, size, GaussianNoise(parse_noise(sigma)))


def inpaint(mask: str | Path | ArrayLike | Tensor, size: Size, sigma: float | str) -> LinearPhysics:
    """Builds the operator that keeps the pixels where the mask is 1 and blanks the others.

    Args:
        mask: whatever :func:`parse_mask` accepts.
        size: (H, W) of the picture.
        sigma: noise standard deviation of the kept pixels, as :func:`parse_noise` accepts it.
    """
    observed = parse_mask(mask, size)
    return Inpainting((3, *size), mask=observed, noise_model=GaussianNoise(parse_noise(sigma)))


def degrade(x: Tensor, physics: Physics, generator: torch.Generator) -> Tensor:
    """Draws a measurement y of ``x`` (B, 3, H, W) from the operator and its noise, leaving ``physics`` as it was."""
    noise, own = physics.noise_model, physics.noise_model.rng
    noise.rng = generator
    try:
        with torch.no_grad():
            return physics(x)
    finally:
        noise.rng = own


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
    values = _array(mask, "mask")
    values = values[0] if values.ndim == 4 and len(values) == 1 else values
    values = values[None] if values.ndim == 2 else values
    if values.ndim == 3 and values.shape[1:] != tuple(size):
        values = np.moveaxis(values, -1, 0)
    if values.ndim != 3 or values.shape[0] not in (1, 3) or values.shape[1:] != tuple(size):
        raise OperatorError(f"the mask, of shape {values.shape}, does not fit the {_by(size)} picture")
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


def initial_image(y: Tensor, physics: Physics) -> Tensor:
    """Computes a quick first estimate of the picture, where iterative restoration starts.

    The measurement itself for denoising; a pull-push filling of the holes for inpainting; for deblurring and
    super-resolution a Tikhonov-regularised inverse around the measurement or its bicubic enlargement; for any other
    operator A⁺y, or Aᵀy where that is not finite.

    Args:
        y: measurement, (B, 3, h, w) for the usual operators.
        physics: the operator that made it.

    Returns:
        Tensor (B, 3, H, W) in [0, 1].
    """
    with torch.no_grad():
        for task in TASKS.values():
            if isinstance(physics, task.operators):
                return task.start(y, physics).clamp(0, 1)
        x = physics.A_dagger(y)
        return (x if x.isfinite().all() else physics.A_adjoint(y)).clamp(0, 1)


def fill_holes(y: Tensor, observed: Tensor) -> Tensor:
    """Fills the unobserved pixels of a picture smoothly, by pull-push over a pyramid (Gortler et al., 1996).

    Observed pixels are averaged over 2x2 blocks until no hole is left; on the way back each level's holes are filled
    by enlarging the level above, then smoothed by two Jacobi steps towards the harmonic filling (Laplace's equation).

    Args:
        y: pictures (B, C, H, W); what stands in the holes is ignored.
        observed: 1 where a pixel is known, 0 in holes, broadcastable to y; each picture has a known pixel a channel.
    """
    known = observed.expand_as(y)
    if bool(known.all()):
        return y
    if max(y.shape[-2:]) == 1:
        return y * known
    weight = F.avg_pool2d(known, 2, ceil_mode=True)
    total = F.avg_pool2d(y * known, 2, ceil_mode=True)
    coarse = fill_holes(total / weight.clamp_min(1e-6), (weight > 0).to(y))
    x = F.interpolate(coarse, scale_factor=2, mode="bilinear")[..., : y.shape[-2], : y.shape[-1]]
    x = torch.where(known > 0, y, x)
    for _ in range(2):
        z = F.pad(x, (1, 1, 1, 1), mode="replicate")
        mean = (z[..., :-2, 1:-1] + z[..., 2:, 1:-1] + z[..., 1:-1, :-2] + z[..., 1:-1, 2:]) / 4
        x = torch.where(known > 0, y, mean)
    return x


def sharpen(x: Tensor, y: Tensor, physics: LinearPhysics) -> Tensor:
    """Computes argmin_u ‖A u − y‖² / σ² + ‖u − x‖² / τ², by ten steps of conjugate gradients from u = x.

    A picture is taken to differ from x by τ = 0.1: what the measurement fixes within its noise is taken from it, and
    the rest stays as it is in x. Started here, a posterior search on a blurred picture needs a fraction of the steps.

    Args:
        x: first guess (B, 3, H, W).
        y: measurement.
        physics: a linear operator with Gaussian noise.
    """
    ridge = max(_sigma(physics), 1 / 255) ** 2 / 0.1**2
    step = torch.zeros_like(x)
    residual = physics.A_adjoint(y - physics.A(x))
    direction, energy = residual, _inner(residual, residual)
    for _ in range(10):
        image = physics.A_adjoint(physics.A(direction)) + ridge * direction
        rate = energy / _inner(direction, image).clamp_min(1e-20)
        step, residual = step + rate * direction, residual - rate * image
        energy, before = _inner(residual, residual), energy
        direction = residual + energy / before.clamp_min(1e-20) * direction
    return x + step


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1).view(-1, *[1] * (a.ndim - 1))


def _sigma(physics: Physics) -> float:
    noise = physics.noise_model
    return float(noise.sigma.max()) if isinstance(noise, GaussianNoise) else 0.0


def _start_denoise(y: Tensor, physics: Physics) -> Tensor:
    return y


def _start_deblur(y: Tensor, physics: Blur) -> Tensor:
    x = y
    if physics.padding == "valid":
        kh, kw = physics.filter.shape[-2:]
        x = F.pad(y, ((kw - 1) // 2, kw // 2, (kh - 1) // 2, kh // 2), mode="replicate")
    return sharpen(x, y, physics)


def _start_superres(y: Tensor, physics: BicubicDownsampling | Downsampling) -> Tensor:
    height, width = physics.A_adjoint(y).shape[-2:]
    x = F.interpolate(y, scale_factor=physics.factor, mode="bicubic")[..., :height, :width]
    return sharpen(F.pad(x, (0, width - x.shape[-1], 0, height - x.shape[-2]), mode="replicate"), y, physics)


def _start_inpaint(y: Tensor, physics: Inpainting) -> Tensor:
    return fill_holes(y, physics.mask)


@dataclass(frozen=True)
class Task:
    """A restoration problem.

    Attributes:
        build: makes the operator: ``build(*setting, size, sigma)``.
        start: first estimate from (y, physics), see :func:`initial_image`.
        operators: the deepinv classes for which ``start`` is meant.
    """

    build: Callable[..., LinearPhysics]
    start: Callable[[Tensor, Physics], Tensor]
    operators: tuple[type[Physics], ...]


TASKS = {
    "denoise": Task(denoise, _start_denoise, (Denoising,)),
    "deblur": Task(blur, _start_deblur, (Blur,)),
    "superres": Task(downsample, _start_superres, (BicubicDownsampling, Downsampling)),
    "inpaint": Task(inpaint, _start_inpaint, (Inpainting,)),
}


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


def _by(size: tuple[int, ...]) -> str:
    return f"{size[0]}x{size[1]}"
