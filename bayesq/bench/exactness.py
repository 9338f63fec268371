"""Does every machine read what any other wrote? Settings of one machine stand in for them, each a process.

Every setting writes files of some pictures, then every setting reads the files of all. Beside bayesq's codec goes
CompressAI's ``mbt2018-mean``, whose probability tables are chosen by floating-point networks. The processes run
``bayesq.bench.exactness_process``.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bayesq.bench import table

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
    codecs: Sequence[str],
    pictures: Sequence[Path],
    quality: float = 60,
    settings: Sequence[Setting] = SETTINGS,
    progress: Callable[[list[Setting]], Iterable[Setting]] = iter,
) -> Iterator[Report]:
    """The matrices of some codecs, one after the other.

    Pixels of a model whose g_s is quantised are not bounded: a difference in the last bit of a layer's input may move
    what it is rounded to by a step. Its symbols are, as those of any other.

    Args:
        codecs: Models as ``bayesq.load`` takes them, or ``mbt2018-mean`` for CompressAI's with random weights.
        pictures: Picture files, of which the middle is coded.
        quality: 0 to 100, of bayesq's files.
        settings: Which of them.
        progress: Wraps the settings, which are gone through twice for each codec.
    """
    absent = {setting.name: reason for setting in settings if (reason := missing(setting))}
    present = [setting for setting in settings if setting.name not in absent]
    sources = [str(Path(path).resolve()) for path in pictures]
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory())
        processes = {setting.name: stack.enter_context(Process(setting, folder)) for setting in present}
        for codec in codecs:
            its = _settings_of(codec, present)
            job: dict[str, Any] = {"codec": codec, "pictures": sources, "quality": quality, "folder": folder}
            written: dict[str, list[str]] = {}
            errors: dict[str, str] = {}
            symbols = 0
            for setting in progress(its):
                lines, errors[setting.name] = processes[setting.name].do(job)
                written[setting.name] = [line["file"] for line in lines]
                symbols = max(symbols, sum(line["symbols"] for line in lines))
            job["files"] = list(dict.fromkeys(file for files in written.values() for file in files))
            outcomes = {}
            for setting in progress(its):
                lines, error = processes[setting.name].do(job)
                read = {line.pop("file"): Outcome(**line) for line in lines}
                outcomes[setting.name] = {
                    writer: _together([read.get(file, Outcome(None, None, error)) for file in files], errors[writer])
                    for writer, files in written.items()
                }
            yield Report(codec, its, absent, outcomes, len(job["files"]), symbols)


def _settings_of(codec: str, settings: list[Setting]) -> list[Setting]:
    """Those that can run a codec, with the tolerance that it asks for."""
    if codec == COMPRESSAI:
        return [setting for setting in settings if setting.runtime == "torch"]
    return [replace(setting, tolerance=None) for setting in settings] if _is_quantised(codec) else settings


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


class Process:
    """A process in a setting, which starts with its first job and does one after the other."""

    def __init__(self, setting: Setting, folder: str) -> None:
        self._setting, self._folder = setting, folder
        self._log = Path(folder, f"{setting.name}.log")
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.communicate()

    def do(self, job: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
        """What it says of a job, line by line, and how it failed if it did."""
        self._process = self._process or self._start()
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):
            print(json.dumps(job), file=self._process.stdin, flush=True)
        lines: list[dict[str, Any]] = []
        for text in self._process.stdout:
            line = json.loads(text) if text.startswith("{") else {}
            if "failed" in line:
                return lines, self._blamed(line["failed"])
            if line:
                lines.append(line | {"error": self._blamed(line["error"])})
        said = self._log.read_text(errors="replace").strip().splitlines() or [f"exit status {self._process.wait()}"]
        return lines, self._blamed(f"the process died: {said[-1][:200]}")

    def _blamed(self, error: str) -> str:
        return error and f"{self._setting.name}: {error}"

    def _start(self) -> subprocess.Popen[str]:
        threads = {name: str(self._setting.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        fixed = {"MKL_DYNAMIC": "FALSE", "OMP_DYNAMIC": "FALSE", "TORCHINDUCTOR_CACHE_DIR": self._folder}
        environment = {**os.environ, **threads, **fixed, **self._setting.environment}
        command = [sys.executable, "-m", "bayesq.bench.exactness_process", json.dumps(asdict(self._setting))]
        pipe = subprocess.PIPE
        with self._log.open("wb") as log:
            return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, text=True, env=environment)
