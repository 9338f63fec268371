"""Random crops from folders of photographs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bayesq.errors import TrainingError
from bayesq.io import SUFFIXES

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
    """A picture as uint8 ``(3, H, W)``."""
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()


class Crops:
    """Random square crops with random flips and transposition, uniform over the pixels of all pictures.

    Decoded pictures stay in memory up to ``CACHE_PIXELS`` in all. What is drawn depends on the generator alone.

    Args:
        paths: Picture files; those smaller than a crop are left out.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        self._cache: dict[int, Tensor] = {}
        self._cached_pixels = 0
        sizes = []
        for path in self.paths:
            with Image.open(path) as image:
                sizes.append(image.size)
        self._sizes = torch.tensor(sizes)

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
        numbers = torch.multinomial(weights, count, replacement=True, generator=generator)
        crops = []
        for number in numbers.tolist():
            picture = self._picture(number)
            top, left = (int(torch.randint(extent - size + 1, (), generator=generator)) for extent in picture.shape[1:])
            crop = picture[:, top : top + size, left : left + size]
            flip, turn = torch.randint(2, (2,), generator=generator).tolist()
            crop = crop.flip(2) if flip else crop
            crops.append(crop.transpose(1, 2) if turn else crop)
        return torch.stack(crops).float() / 255
