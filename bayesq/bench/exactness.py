"""Does every machine read what any other wrote? Settings of one machine stand in for them, each in its own processes.

Every setting writes files of some pictures, then every setting reads the files of all. Beside bayesq's codec goes
CompressAI's ``mbt2018-mean``, whose probability tables are chosen by floating-point networks. This module is also what
the processes run.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Protocol

from bayesq.bench import table
from bayesq.errors import BayesqError

if TYPE_CHECKING:
    from torch import Tensor

SIDE = 256
"""Longest side of the parts of pictures that are coded."""
COMPRESSAI = "mbt2018-mean"
STEP = 1 / 255


@dataclass(frozen=True)
class Setting:
    """How a process runs the networks.

    Attributes:
        name: For people.
        threads: Of torch and OpenVINO.
        environment: Variables that choose instructions.
        other_layout: Whether weights are laid out channels first where a codec has them last, and the other way round.
        runtime: One of ``bayesq.runtime``, or ``compile``: torch.compile for g_s.
        needs: What must be there: an instruction set as the system calls it, ``c++`` or ``openvino``.
        tolerance: How far its pixels may be from others', in 8-bit steps; None if that is not bounded.
    """

    name: str
    threads: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)
    other_layout: bool = False
    runtime: str = "torch"
    needs: str = ""
    tolerance: float | None = 1.0


def _instructions(onednn: str, aten: str, mkl: str) -> dict[str, str]:
    return {"ONEDNN_MAX_CPU_ISA": onednn, "ATEN_CPU_CAPABILITY": aten, "MKL_CBWR": mkl}


SSE41 = _instructions("SSE41", "default", "COMPATIBLE")
SETTINGS = [
    Setting("threads-1"),
    Setting("threads-2", threads=2),
    Setting("threads-4", threads=4),
    Setting("sse4.1", environment=SSE41, needs="sse4_1"),
    Setting("sse4.1-threads-4", threads=4, environment=SSE41, needs="sse4_1"),
    Setting("avx2", environment=_instructions("AVX2", "avx2", "AVX2"), needs="avx2"),
    Setting("avx512", environment=_instructions("AVX512_CORE", "avx512", "AVX512"), needs="avx512bw"),
    Setting("vnni", environment=_instructions("AVX512_CORE_VNNI", "avx512", "AVX512"), needs="avx512_vnni"),
    Setting("amx", environment=_instructions("AVX512_CORE_AMX", "avx512", "AVX512"), needs="amx_tile"),
    Setting("layout", other_layout=True),
    Setting("compile", runtime="compile", needs="c++"),
    Setting("openvino", runtime="openvino", needs="openvino"),
    Setting("bfloat16", runtime="bfloat16", tolerance=None),
]


@dataclass(frozen=True)
class Outcome:
    """What a setting read in the files of another, as against what the writer reads in them itself.

    Attributes:
        symbols: How many symbols differ, of all files; None if one was not read.
        deviation: Largest difference of a pixel, in 8-bit steps, 255 where it is no number; None likewise.
        error: Why a file was not read.
    """

    symbols: int | None
    deviation: float | None
    error: str = ""


@dataclass(frozen=True)
class Report:
    """The matrix of one codec.

    Attributes:
        codec: Its name.
        settings: Those that wrote and read, in the order of the matrix.
        absent: Why others did not, by name.
        outcomes: By reader, then by writer.
        files: How many different files were written.
        symbols: Symbols of a writer's files.
    """

    codec: str
    settings: list[Setting]
    absent: dict[str, str]
    outcomes: dict[str, dict[str, Outcome]]
    files: int
    symbols: int

    @property
    def pairs(self) -> list[tuple[Setting, Outcome]]:
        """All outcomes, with their readers."""
        return [(reader, outcome) for reader in self.settings for outcome in self.outcomes[reader.name].values()]

    @property
    def garbled(self) -> int:
        """Pairs of a writer and a reader that differ in a symbol, or in which a file was not read."""
        return sum(outcome.symbols != 0 for _, outcome in self.pairs)

    @property
    def deviating(self) -> int:
        """Pairs whose pixels differ by more than the reader's tolerance, or in which a file was not read."""
        return sum(
            outcome.deviation is None or (reader.tolerance is not None and not outcome.deviation <= reader.tolerance)
            for reader, outcome in self.pairs
        )

    def text(self) -> str:
        """Markdown: the matrix of deviations, and what it comes to."""
        names = [setting.name for setting in self.settings]
        rows = [[name, *(_cell(self.outcomes[name][writer]) for writer in names)] for name in names]
        count = len(self.pairs)
        lines = [
            f"{self.codec}: largest deviation in 8-bit steps, by reader (rows) and writer (columns).",
            "",
            table(["", *names], rows),
            "",
            f"{count} pairs, {self.files} different files, {self.symbols:,} symbols of each writer. Symbols differ in "
            f"{self.garbled} pairs ({self.garbled / max(count, 1):.0%}), pixels by more than they may in "
            f"{self.deviating} ({self.deviating / max(count, 1):.0%}).",
        ]
        errors = {outcome.error for _, outcome in self.pairs} - {""}
        return "\n".join(lines + [f"Not read: {error}." for error in sorted(errors)])


def _cell(outcome: Outcome) -> str:
    if outcome.symbols is None or outcome.deviation is None:
        return "failed"
    return f"{outcome.deviation:.4f}" + (f" ({outcome.symbols} ≠)" if outcome.symbols else "")


def missing(setting: Setting) -> str:
    """Why a setting cannot be had here; nothing if it can."""
    if not setting.needs:
        return ""
    if setting.needs == "c++":
        return "" if shutil.which(os.environ.get("CXX", "c++")) else "there is no C++ compiler"
    if setting.needs == "openvino":
        return "" if find_spec("openvino") else "OpenVINO is not installed"
    try:
        flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split()
    except OSError:
        return f"this system ({platform.system()}) does not tell whether the processor has {setting.needs}"
    return "" if setting.needs in flags else f"the processor has no {setting.needs}"


def run(
    codec: str,
    pictures: Sequence[Path],
    quality: float = 60,
    settings: Sequence[Setting] = SETTINGS,
    progress: Callable[[list[Setting]], Iterable[Setting]] = iter,
) -> Report:
    """The matrix of one codec.

    Pixels of a model whose g_s is quantised are not bounded: a difference in the last bit of a layer's input may move
    what it is rounded to by a step. Its symbols are, as those of any other.

    Args:
        codec: A model as ``bayesq.load`` takes it, or ``mbt2018-mean`` for CompressAI's with random weights.
        pictures: Picture files, of which the middle is coded.
        quality: 0 to 100, of bayesq's files.
        settings: Which of them.
        progress: Wraps the settings, which are gone through twice.
    """
    absent = {setting.name: reason for setting in settings if (reason := missing(setting))}
    present = [setting for setting in settings if setting.name not in absent]
    if codec == COMPRESSAI:
        present = [setting for setting in present if setting.runtime == "torch"]
    elif _is_quantised(codec):
        present = [replace(setting, tolerance=None) for setting in present]
    with TemporaryDirectory() as folder:
        sources = [str(Path(path).resolve()) for path in pictures]
        job: dict[str, Any] = {"codec": codec, "pictures": sources, "quality": quality, "folder": folder}
        written: dict[str, list[str]] = {}
        errors: dict[str, str] = {}
        symbols = 0
        for setting in progress(present):
            lines, errors[setting.name] = _process(setting, job)
            written[setting.name] = [line["file"] for line in lines]
            symbols = max(symbols, sum(line["symbols"] for line in lines))
        job["files"] = list(dict.fromkeys(file for files in written.values() for file in files))
        outcomes = {}
        for setting in progress(present):
            lines, error = _process(setting, job)
            read = {line.pop("file"): Outcome(**line) for line in lines}
            outcomes[setting.name] = {
                writer: _together([read.get(file, Outcome(None, None, error)) for file in files], errors[writer])
                for writer, files in written.items()
            }
    return Report(codec, present, absent, outcomes, len(job["files"]), symbols)


def _is_quantised(model: str) -> bool:
    from bayesq import zoo
    from bayesq.quantization.layers import quantized

    return any(quantized(zoo.load(model).synthesis))


def _together(outcomes: list[Outcome], error: str) -> Outcome:
    """The outcomes of a writer's files as one; not one is a success if writing them failed."""
    errors = [error, *(outcome.error for outcome in outcomes)]
    numbers = [(it.symbols, it.deviation) for it in outcomes if it.symbols is not None and it.deviation is not None]
    if any(errors) or not outcomes or len(numbers) < len(outcomes):
        return Outcome(None, None, next(filter(None, errors), "no file was written"))
    return Outcome(sum(symbols for symbols, _ in numbers), max(deviation for _, deviation in numbers))


def _process(setting: Setting, job: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """What a new process says of a job in a setting, line by line, and how it failed if it did."""
    threads = {name: str(setting.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    fixed = {"MKL_DYNAMIC": "FALSE", "OMP_DYNAMIC": "FALSE", "TORCHINDUCTOR_CACHE_DIR": job["folder"]}
    environment = {**os.environ, **threads, **fixed, **setting.environment}
    command = [sys.executable, "-m", __name__ if __name__ != "__main__" else "bayesq.bench.exactness"]
    task = json.dumps({"setting": asdict(setting), **job})
    done = subprocess.run(command, input=task, capture_output=True, text=True, env=environment)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode == 0:
        return lines, ""
    said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    return lines, f"{setting.name}: the process died: {said[-1][:200]}"


# In the processes --------------------------------------------------------------------------------------------------


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


def work(task: dict[str, Any]) -> None:
    """Writes files or, if some are named, reads them. Prints a line of JSON on each."""
    import numpy as np
    import torch

    from bayesq.io import read_image, to_tensor

    setting, folder = Setting(**task["setting"]), Path(task["folder"])
    torch.set_num_threads(setting.threads)
    subject: Subject
    subject = CompressAI(setting) if task["codec"] == COMPRESSAI else Ours(task["codec"], task["quality"], setting)
    with torch.inference_mode():
        if "files" not in task:
            for path in task["pictures"]:
                image = read_image(path)
                width, height = (min(SIDE, side // 64 * 64) or side for side in image.size)
                left, top = (image.width - width) // 2, (image.height - height) // 2
                data = subject.write(to_tensor(image.crop((left, top, left + width, top + height))))
                name = hashlib.sha256(data).hexdigest()
                symbols, picture = subject.read(data, height, width)
                if not (folder / name).exists():
                    (folder / name).write_bytes(data)
                    np.savez(folder / f"{name}.npz", symbols=symbols.numpy(), picture=picture.numpy())
                _tell({"file": name, "symbols": symbols.numel()})
        for name in task.get("files", ()):
            expected = np.load(folder / f"{name}.npz")
            try:
                symbols, picture = subject.read((folder / name).read_bytes(), *expected["picture"].shape[-2:])
            except (BayesqError, RuntimeError, ValueError) as error:
                _tell({"file": name, "symbols": None, "deviation": None, "error": f"{setting.name}: {error}"})
                continue
            difference = np.abs(picture.numpy() - expected["picture"])
            deviation = np.nan_to_num(difference, nan=1.0).max() / STEP  # garbled latents may overflow
            differing = np.count_nonzero(symbols.numpy() != expected["symbols"])
            _tell({"file": name, "symbols": differing, "deviation": float(deviation)})


def _tell(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    work(json.load(sys.stdin))
