"""What runs g_a and g_s when pictures are coded: torch in float32 or bfloat16, or OpenVINO; the fastest, per machine.

Symbols don't depend on it. The prior is always evaluated by torch, its scale path in exact integers, so that what one
runtime wrote every other reads. The encoder's z may differ in its last bits, and now and then a symbol with it, as may
the pixels of a decoder; in bfloat16 by about one 8-bit step.

Where there is a choice, each runtime is timed on a small picture when a machine first codes, and the choice is kept in
the cache folder. The environment variable ``BAYESQ_RUNTIME`` makes it by name instead; ``BAYESQ_CACHE`` moves the
folder, which otherwise is ``bayesq`` in ``XDG_CACHE_HOME`` or ``~/.cache``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import bayesq
from bayesq.errors import BayesqError, ModelError
from bayesq.io import atomic_write

if TYPE_CHECKING:
    from bayesq.codec import Codec

Transform = Callable[[Tensor, Tensor], Tensor]
"""g_a or g_s: called with pictures or latents and with levels ``(B,)``."""

log = logging.getLogger(__name__)
SIDE = 256
"""Pixels a side of the picture that runtimes are timed with."""
ADVANTAGE = 0.9
"""What share of torch's time another runtime may take at most to be preferred: it has a start-up of its own."""


@dataclass(frozen=True)
class Runtime:
    """The transforms of one codec as something runs them; without gradients, unless it is torch."""

    name: str
    analysis: Transform
    synthesis: Transform


def plain(codec: Codec) -> Runtime:
    """torch in float32."""
    return Runtime("torch", lambda x, level: codec.analysis(x, level), lambda z, level: codec.synthesis(z, level))


def bfloat16(codec: Codec) -> Runtime:
    """torch with the products in bfloat16, but for the linear branches; moves rates by less than 0.02 %."""

    def reduced(transform: Callable[[], nn.Module]) -> Transform:
        def run(x: Tensor, level: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return transform()(x, level).float()

        return run

    return Runtime("bfloat16", reduced(lambda: codec.analysis), reduced(lambda: codec.synthesis))


def openvino(codec: Codec) -> Runtime:
    """OpenVINO in float32. Raises ModelError if it is not installed."""
    if find_spec("openvino") is None:
        raise ModelError("OpenVINO is not installed: pip install 'bayesq[openvino]'")
    return Runtime("openvino", Compiled(lambda: codec.analysis), Compiled(lambda: codec.synthesis))


RUNTIMES: dict[str, Callable[[Codec], Runtime]] = {"torch": plain, "bfloat16": bfloat16, "openvino": openvino}


class Compiled:
    """A transform in OpenVINO, translated and compiled when first called, and again when its weights have changed.

    Args:
        module: Returns g_a or g_s.
    """

    def __init__(self, module: Callable[[], nn.Module]) -> None:
        self._module = module
        self._weights: list[tuple[int, int]] = []
        self._request: Any = None
        self._lock = Lock()

    def __call__(self, x: Tensor, level: Tensor) -> Tensor:
        with self._lock:
            module = self._module()
            weights = [(tensor.data_ptr(), _version(tensor)) for tensor in module.state_dict().values()]
            if self._request is None or weights != self._weights:
                self._request, self._weights = compiled(_translated(module, x)), weights
            return torch.from_numpy(self._request.infer([x.detach().contiguous().numpy(), level.numpy()])[0])


def _version(tensor: Tensor) -> int:
    """How often it was changed in place; 0 of one that was made in inference mode, which does not count."""
    return 0 if tensor.is_inference() else tensor._version


def compiled(model: Any) -> Any:
    """A request to run a model of OpenVINO's in float32, or in integers where it says so, on torch's many threads."""
    import openvino as ov

    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    return ov.Core().compile_model(model, "CPU", options).create_infer_request()


def _translated(module: nn.Module, x: Tensor) -> Any:
    """OpenVINO's model of a transform for inputs of as many channels as x has, kept in the cache folder under the hash
    of all that it is made from."""
    import openvino as ov

    made_with = version("openvino"), version("torch"), bayesq.__version__, bytes_add_up_in_words()
    digest = hashlib.sha256(f"{module} {made_with}".encode())
    for name, tensor in module.state_dict().items():
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    folder = cache_folder() / "openvino" / digest.hexdigest()[:32]
    if folder.is_dir():
        return ov.Core().read_model(folder / "model.xml")
    shapes = [(ov.PartialShape([-1, x.shape[1], -1, -1]), ov.Type.f32), (ov.PartialShape([-1]), ov.Type.i64)]
    example = torch.zeros(1, *x.shape[1:]), torch.zeros(1, dtype=torch.int64)
    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter("ignore")  # torch's, about how OpenVINO uses it
        model = ov.convert_model(module, example_input=example, input=shapes)
    _keep(lambda scratch: ov.save_model(model, scratch / "model.xml", compress_to_fp16=False), folder)
    return model


def choose(codec: Codec) -> Runtime:
    """The runtime that ``BAYESQ_RUNTIME`` names, or else the fastest of this machine, timed only once.

    Codecs without a file, such as those in training, are run by torch.

    Raises:
        ModelError: there is no runtime of that name, or it is not installed.
    """
    name = os.environ.get("BAYESQ_RUNTIME") or "auto"
    if name == "auto":
        name = _fastest(codec) if any(codec.model_id) else "torch"
    if name not in RUNTIMES:
        raise ModelError(f"no runtime is called {name!r}; there are auto, {', '.join(RUNTIMES)}")
    return RUNTIMES[name](codec)


def candidates() -> list[str]:
    """The runtimes that may be the fastest here: bfloat16 needs instructions for it, OpenVINO must be installed."""
    fits = {"bfloat16": bfloat16_is_fast(), "openvino": find_spec("openvino") is not None}
    return [name for name in RUNTIMES if fits.get(name, True)]


def bfloat16_is_fast() -> bool:
    """Whether this processor has instructions for products in bfloat16; without, they take many times as long."""
    return _has_any("amx_bf16", "amx_tile", "avx512_bf16", "bf16")


def bytes_add_up_in_words() -> bool:
    """Whether this processor has instructions that add up products of bytes in 32 bits; others saturate at 16."""
    return _has_any("avx512_vnni", "avx_vnni", "amx_int8")


def _has_any(*instructions: str) -> bool:
    known: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(known.get(name, False) for name in instructions)


def time_of(runtime: Runtime, codec: Codec, side: int = SIDE) -> float:
    """Seconds that a square picture takes through g_a and g_s, the best of three after a first one."""
    levels = torch.tensor([128])
    x = torch.linspace(0, 1, side).expand(1, 3, side, side).contiguous()
    times = []
    with torch.inference_mode():
        for _ in range(4):
            start = perf_counter()
            runtime.synthesis(runtime.analysis(x, levels), levels)
            times.append(perf_counter() - start)
    return min(times[1:])


def cache_folder() -> Path:
    """Where choices and translations are kept."""
    own, common = os.environ.get("BAYESQ_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return Path(own) if own else Path(common or Path.home() / ".cache") / "bayesq"


def _fastest(codec: Codec) -> str:
    names = candidates()
    if names == ["torch"]:
        return "torch"
    file = cache_folder() / "runtimes.json"
    key = " ".join([codec.model_id.hex(), *_machine(), *names])
    with _alone(file.with_suffix(".lock")):
        choices = _kept(file)
        if choices.get(key) not in names:
            choices[key] = _timed(codec, names)
            try:
                atomic_write(file, json.dumps(choices, indent=1).encode())
            except BayesqError as error:
                log.info("the choice is not kept: %s", error)
        return choices[key]


def _timed(codec: Codec, names: list[str]) -> str:
    log.info("timing %s, once for this machine", ", ".join(names))
    seconds = {name: time_of(RUNTIMES[name](codec), codec) for name in names}
    log.info("seconds: %s", ", ".join(f"{name} {time:.3f}" for name, time in seconds.items()))
    return min(seconds, key=lambda name: seconds[name] * (ADVANTAGE if name == "torch" else 1))


def _kept(file: Path) -> dict[str, str]:
    """The choices of all models so far."""
    try:
        choices = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return choices if isinstance(choices, dict) else {}


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Keeps others of this machine from timing at once, as far as files can be locked: they would slow each other."""
    with ExitStack() as stack:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(lock.open("wb"))
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        except (OSError, ImportError) as error:
            log.info("no lock: %s", error)
        yield


def _machine() -> list[str]:
    """What a choice depends on; a home folder may serve many machines."""
    installed = [f"{name}-{version(name)}" for name in ("torch", "openvino") if find_spec(name)]
    return [platform.node(), torch.backends.cpu.get_cpu_capability(), f"{torch.get_num_threads()} threads", *installed]


def _keep(write: Callable[[Path], None], folder: Path) -> None:
    """Lets something write into a new folder, which appears at once and whole; if it cannot, all goes on without."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder.parent) as scratch:
            whole = Path(scratch, "whole")
            whole.mkdir()
            write(whole)
            whole.rename(folder)
    except (OSError, RuntimeError) as error:
        log.info("the translation is not kept: %s", error)
