"""Random crops from folders of photographs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bayesq.errors import TrainingError
from bayesq.io import SUFFIXES, read_image, read_size

CACHE_PIXELS = 2**30


def find_pictures(folders: Sequence[Path]) -> list[Path]:
    """All picture files below the folders, sorted.

    Raises:
        TrainingError: a folder does not exist or there are no pictures.
    """
    for folder in folders:
        if not Path(folder).is_dir():
            raise TrainingError(f"{folder}: no such folder")
    paths = sorted(p for folder in folders for p in Path(folder).rglob("*") if p.suffix.lower() in SUFFIXES)
    if not paths:
        raise TrainingError(f"no pictures in {', '.join(map(str, folders))}")
    return paths


def read_rgb(path: Path) -> Tensor:
    """A picture as uint8 ``(3, H, W)``. Raises ImageError as ``bayesq.io.read_image``."""
    return torch.from_numpy(np.array(read_image(path).convert("RGB"))).permute(2, 0, 1).contiguous()


def detail(crop: Tensor) -> float:
    """Mean absolute difference between neighbouring pixels of ``(3, H, W)`` uint8."""
    x = crop.int()
    return float((x.diff(dim=1).abs().sum() + x.diff(dim=2).abs().sum()) / x.numel())


class Crops:
    """Random square crops with random scale, flips and transposition.

    Pictures are drawn by their number of pixels; half of all crops are shrunk, by up to 2, since photographs come in
    all sizes and a shrunk one holds more detail a pixel. Decoded pictures stay in memory up to ``CACHE_PIXELS`` in all.
    What is drawn depends on the generator alone.

    Args:
        paths: Picture files; those smaller than a crop are left out.
        rich: Of every two candidates take the one with more detail: skies are plenty in photographs, and soon learned
            by a codec.
    """

    def __init__(self, paths: Sequence[Path], rich: bool = True) -> None:
        self.paths, self.rich = list(paths), rich
        self._cache: dict[int, Tensor] = {}
        self._cached_pixels = 0
        self._sizes = torch.tensor([read_size(path) for path in self.paths])

    def _picture(self, number: int) -> Tensor:
        if number in self._cache:
            return self._cache[number]
        picture = read_rgb(self.paths[number])
        pixels = picture[0].numel()
        if self._cached_pixels + pixels <= CACHE_PIXELS:
            self._cache[number] = picture
            self._cached_pixels += pixels
        return picture

    def draw(self, count: int, size: int, generator: torch.Generator) -> Tensor:
        """``(count, 3, size, size)`` float32 in [0, 1].

        Raises:
            TrainingError: no picture is as large as a crop.
        """
        weights = (self._sizes.prod(1) * (self._sizes.amin(1) >= size)).double()
        if not weights.any():
            raise TrainingError(f"no picture is as large as a crop of {size} x {size}")
        of = 2 if self.rich else 1
        numbers = torch.multinomial(weights, of * count, replacement=True, generator=generator)
        crops = [self._candidate(number, size, generator) for number in numbers.tolist()]
        chosen = [max(crops[place : place + of], key=detail) for place in range(0, len(crops), of)]
        return torch.stack(chosen).float() / 255

    def _candidate(self, number: int, size: int, generator: torch.Generator) -> Tensor:
        picture = self._picture(number)
        largest = min(2.0, min(picture.shape[1:]) / size)
        shrink = max(1.0, largest ** float(2 * torch.rand((), generator=generator) - 1))
        side = round(size * shrink)
        top, left = (int(torch.randint(extent - side + 1, (), generator=generator)) for extent in picture.shape[1:])
        crop = picture[:, top : top + side, left : left + side]
        if side > size:
            crop = F.interpolate(crop[None], (size, size), mode="bicubic", antialias=True)[0]
        flip, turn = torch.randint(2, (2,), generator=generator).tolist()
        crop = crop.flip(2) if flip else crop
        return crop.transpose(1, 2) if turn else crop
