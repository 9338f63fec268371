"""What the processes of ``bayesq.bench.exactness`` run: codecs in one setting, which write files and read others'."""

from __future__ import annotations

import hashlib
import json
import sys
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bayesq.bench.exactness import COMPRESSAI, SIDE, STEP, Setting
from bayesq.errors import BayesqError

if TYPE_CHECKING:
    from torch import Tensor

    from bayesq import prior


class Subject(Protocol):
    """A codec under test."""

    def write(self, x: Tensor) -> bytes:
        """The file of a picture ``(1, 3, H, W)``."""

    def read(self, data: bytes, height: int, width: int) -> tuple[Tensor, Tensor]:
        """The symbols of a file, and its picture."""


class Ours:
    """bayesq's codec."""

    def __init__(self, model: str, quality: float, setting: Setting) -> None:
        import torch

        from bayesq import runtime, zoo
        from bayesq.quality import level_of

        self.codec, self.level = zoo.load(model), level_of(quality)
        if setting.other_layout:
            self.codec.to(memory_format=torch.contiguous_format)
        if setting.runtime == "compile":
            plain = runtime.plain(self.codec)
            self.codec.runtime = runtime.Runtime("compile", plain.analysis, torch.compile(self.codec.synthesis))
        else:
            self.codec.runtime = runtime.RUNTIMES[setting.runtime](self.codec)

    def write(self, x: Tensor) -> bytes:
        return self.codec.compress(x, self.level)

    def read(self, data: bytes, height: int, width: int) -> tuple[Tensor, Tensor]:
        import torch

        from bayesq import prior
        from bayesq.networks.integer import exact_arithmetic

        walk = lambda: self.codec.walk(1, height, width, torch.tensor([self.level]))  # noqa: E731
        symbols = []

        def answer(part: int, conditional: prior.Conditional) -> Tensor:
            symbols.append(conditional.quantizer().index(values[part]).flatten())
            return values[part]

        with exact_arithmetic(), torch.inference_mode():
            values = prior.decode(walk(), data)
            prior.drive(walk(), answer)
        return torch.cat(symbols), self.codec.decompress(data, height, width, self.level)


class CompressAI:
    """``mbt2018-mean`` (N = 128, M = 192), as CompressAI codes with it.

    Its weights are random, but for gains by which latents and scales take the range that those of trained models do.
    """

    LATENT_GAIN, SCALE_GAIN = 256.0, 256.0

    def __init__(self, setting: Setting) -> None:
        import torch
        from compressai.models import MeanScaleHyperprior

        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = MeanScaleHyperprior(128, 192).eval().requires_grad_(False)
        model.g_a[-1].weight.mul_(self.LATENT_GAIN)
        model.h_s[-1].weight.mul_(self.SCALE_GAIN)
        model.update()
        self.model = model.to(memory_format=torch.channels_last) if setting.other_layout else model

    def write(self, x: Tensor) -> bytes:
        y, z = self.model.compress(x)["strings"]
        return len(y[0]).to_bytes(4, "little") + y[0] + z[0]

    def read(self, data: bytes, height: int, width: int) -> tuple[Tensor, Tensor]:
        size = int.from_bytes(data[:4], "little")
        y, z, model = data[4 : 4 + size], data[4 + size :], self.model
        z_hat = model.entropy_bottleneck.decompress([z], (height // 64, width // 64))
        scales, means = model.h_s(z_hat).chunk(2, 1)
        indexes = model.gaussian_conditional.build_indexes(scales)
        y_hat = model.gaussian_conditional.decompress([y], indexes, means=means)
        return (y_hat - means).round().int().flatten(), model.g_s(y_hat).clamp(0, 1)


def build(setting: Setting, codec: str, quality: float) -> Subject:
    """A codec in a setting."""
    return CompressAI(setting) if codec == COMPRESSAI else Ours(codec, quality, setting)


def work(subject: Subject, job: dict[str, Any]) -> None:
    """Writes files or, if some are named, reads them. Prints a line of JSON on each."""
    import numpy as np
    import torch

    from bayesq.io import read_image, to_tensor

    folder = Path(job["folder"])
    with torch.inference_mode():
        if "files" not in job:
            for path in job["pictures"]:
                image = read_image(path)
                width, height = (min(SIDE, side // 64 * 64) or side for side in image.size)
                left, top = (image.width - width) // 2, (image.height - height) // 2
                data = subject.write(to_tensor(image.crop((left, top, left + width, top + height))))
                name = hashlib.sha256(data).hexdigest()
                symbols, picture = subject.read(data, height, width)
                if not (folder / name).exists():
                    (folder / name).write_bytes(data)
                    np.savez(folder / f"{name}.npz", symbols=symbols.numpy(), picture=picture.numpy())
                _tell({"file": name, "symbols": symbols.numel(), "error": ""})
        for name in job.get("files", ()):
            expected = np.load(folder / f"{name}.npz")
            try:
                symbols, picture = subject.read((folder / name).read_bytes(), *expected["picture"].shape[-2:])
            except (BayesqError, RuntimeError, ValueError) as error:
                _tell({"file": name, "symbols": None, "deviation": None, "error": str(error)})
                continue
            difference = np.abs(picture.numpy() - expected["picture"])
            deviation = np.nan_to_num(difference, nan=1.0).max() / STEP  # garbled latents may overflow
            differing = np.count_nonzero(symbols.numpy() != expected["symbols"])
            _tell({"file": name, "symbols": differing, "deviation": float(deviation), "error": ""})


def serve(setting: Setting) -> None:
    """Does the jobs that come as lines of JSON. Says after each how it failed, with an empty text if it did not."""
    import torch

    torch.set_num_threads(setting.threads)
    subject = lru_cache(maxsize=1)(partial(build, setting))
    for line in sys.stdin:
        job, failed = json.loads(line), ""
        try:
            work(subject(job["codec"], job["quality"]), job)
        except Exception as error:
            failed = f"{type(error).__name__}: {error}"
        _tell({"failed": failed})


def _tell(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    serve(Setting(**json.loads(sys.argv[1])))
