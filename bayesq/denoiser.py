"""A denoiser of photographs for all levels of noise, that says how much it errs.

Given x + σ n it estimates the mean and the deviation of every value of x: the first two moments of the posterior for
white noise, and by Tweedie's formula the gradient of the law of pictures. That makes it a prior for any other operator
(``bayesq.inference.daps``).

    x̂ = c_skip (x + σ n) + c_out F(c_in (x + σ n), σ),     log s = log c_out + G(c_in (x + σ n), σ),

F and G one network (``bayesq.networks.unet``), with the weights of Karras et al., "Elucidating the design space of
diffusion-based generative models", 2022, around mid-grey.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import shorten

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayesq.errors import ModelError
from bayesq.io import atomic_write
from bayesq.networks.unet import UNet
from bayesq.quality import LEVELS
from bayesq.runtime import bfloat16_is_fast
from bayesq.weights import pack, unpack

FORMAT = "bayesq-denoiser-3"
SIGMAS = 0.004, 0.5
"""Levels of noise that the network is trained for, image units; beyond, it takes the nearer one."""
SPREAD = 0.25
"""Deviation that values of pictures are reckoned to have, image units."""
MOST = 8.0
"""Times that the noise may be stronger or fainter than the doubt; beyond, it is taken as that."""
BOUNDS = -5.0, 2.0
"""Logarithms of s / c_out between which deviations stay."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of the network; see ``UNet``."""

    widths: tuple[int, ...] = (64, 64, 96)
    depth: int = 3
    middle: int = 3

    @classmethod
    def from_json(cls, text: str) -> Sizes:
        """The sizes as ``asdict`` and JSON keep them. Raises TypeError or ValueError if these are not sizes."""
        sizes = json.loads(text)
        return cls(tuple(sizes["widths"]), sizes["depth"], sizes["middle"])


class Denoiser(nn.Module):
    """The posterior's moments for pictures in white noise; called like the denoisers of deepinv.

    Where the processor has instructions for bfloat16, all convolutions but the first use it: 1.5 times as fast, and
    0.001 dB worse at noise of 1/255.

    Args:
        sizes: Of the network.
    """

    def __init__(self, sizes: Sizes | None = None) -> None:
        super().__init__()
        self.sizes = sizes or Sizes()
        self.network = UNet(4, self.sizes.widths, self.sizes.depth, self.sizes.middle)
        self.multiple = self.network.multiple
        self.reduced = bfloat16_is_fast()
        self.to(memory_format=torch.channels_last)
        self.name = "unnamed"
        self.model_id = bytes(8)
        self.folder: Path | None = None

    def forward(self, x: Tensor, sigma: float | Tensor, noise: float | Tensor | None = None, **_: object) -> Tensor:
        """The mean of the pictures ``(B, 3, H, W)`` without their noise; arguments as for ``moments``."""
        return self.moments(x, sigma, noise)[0]

    def moments(self, x: Tensor, sigma: float | Tensor, noise: float | Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and deviation of pictures, given them in noise.

        Args:
            x: ``(B, 3, H, W)``, any size.
            sigma: The noise's standard deviation, image units, positive; one for all, ``(B,)``, or a map
                ``(B, 1, H, W)``, which the network was not trained with and takes well where it varies slowly.
            noise: For pictures that a search has made of a measurement, the deviation of the noise that came over,
                which is coloured, one for all or ``(B,)``; sigma, no map, is how far on the search is then. By default,
                white noise of deviation sigma.

        Returns:
            The mean ``(B, 3, H, W)``, not clipped, and the deviation ``(B, 1, H, W)`` of each of its pixels' values.
        """
        height, width = x.shape[-2:]
        margins = (0, -width % self.multiple, 0, -height % self.multiple)
        sigma = torch.as_tensor(sigma, dtype=x.dtype)
        sigma = F.pad(sigma, margins, mode="replicate") if sigma.ndim == 4 else sigma.expand(len(x))
        level = (LEVELS - 1) * ((sigma / SIGMAS[0]).log() / math.log(SIGMAS[1] / SIGMAS[0])).clamp(0, 1)
        share = torch.full((len(x),), (LEVELS - 1) / 2).to(x)
        if noise is not None:
            excess = (torch.as_tensor(noise, dtype=x.dtype) / sigma).log() / math.log(MOST)
            share = share * (1 + excess.clamp(-1, 1))
        spread = sigma if sigma.ndim == 4 else sigma.view(-1, 1, 1, 1)
        total = (spread.square() + SPREAD**2).sqrt()
        padded = F.pad(x, margins, mode="replicate")
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.reduced and x.dtype == torch.float32):
            found = self.network((padded - 0.5) / total, level, share)[..., :height, :width].to(x.dtype)
        spread, total = (v[..., :height, :width] for v in (spread, total))
        error = spread * SPREAD / total
        mean = 0.5 + (SPREAD / total).square() * (x - 0.5) + error * found[:, :3]
        return mean, error * (found[:, 3:] - 1).clamp(*BOUNDS).exp()

    # Files -----------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Writes the weights, in half precision, and the sizes to a safetensors file, atomically."""
        header = {"format": FORMAT, "sizes": json.dumps(asdict(self.sizes))}
        atomic_write(path, pack({name: tensor.half() for name, tensor in self.state_dict().items()}, header))

    @classmethod
    def load(cls, path: str | Path) -> Denoiser:
        """Reads what ``save`` wrote, ready for inference.

        Raises:
            ModelError: the file is missing, damaged, or holds something else.
        """
        path = Path(path)
        state, header = unpack(path)
        if header.get("format") != FORMAT:
            raise ModelError(f"{path}: not the weights of a denoiser of this version")
        try:
            denoiser = cls(Sizes.from_json(header["sizes"]))
            denoiser.load_state_dict(state)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ModelError(f"{path}: the weights do not fit their sizes ({shorten(str(error), 200)})") from error
        denoiser.name, denoiser.folder = path.parent.name, path.resolve().parent
        denoiser.model_id = hashlib.sha256(path.read_bytes()).digest()[:8]
        return denoiser.eval().requires_grad_(False)
