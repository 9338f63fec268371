"""The trained models at hand: those that ship with bayesq, listed in ``models/manifest.json``, and one's own.

One's own are the weights files that the environment variable ``BAYESQ_MODELS`` lists, separated as in ``PATH``. They
are called after their folders, or by their paths where a name is taken, and files that were written with them are read
like any other. One that is missing is warned of in the log.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from bayesq.errors import ForeignModelError, ModelError
from bayesq.resources import models_dir

if TYPE_CHECKING:
    from bayesq.codec import Codec
    from bayesq.denoiser import Denoiser
    from bayesq.posthoc import BayesCap, Flow

KINDS = "denoiser", "cap", "flow"
"""Of models that are no codecs; their weights files are of format ``bayesq-KIND-N``."""
HEAD_MAX = 2**24
_loading = Lock()
_importer = os.getpid()
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One model of the manifest."""

    name: str
    id: str
    """16 hexadecimal digits, as files name the model they need: the first 8 bytes of ``sha256``, or the id of the model
    whose files a quantised one reads."""
    file: str
    """The weights, relative to the models folder, or an absolute path."""
    sha256: str
    description: str
    kind: str = "codec"
    """``codec``, or one of ``KINDS``."""


def manifest() -> list[Entry]:
    """The models at hand, in the manifest's order, then those of ``BAYESQ_MODELS``; no two of one name. Needs no torch.

    Raises:
        ModelError: the manifest is damaged.
    """
    path = models_dir() / "manifest.json"
    try:
        entries = [Entry(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{path}: not a readable list of models ({error})") from error
    for file in filter(None, os.environ.get("BAYESQ_MODELS", "").split(os.pathsep)):
        try:
            own = _own(Path(file))
        except ModelError as error:
            _warn(f"BAYESQ_MODELS: {error}")
            continue
        taken = any(entry.name == own.name for entry in entries)
        entries.append(replace(own, name=own.file) if taken else own)
    return entries


def find(model_id: bytes) -> str:
    """The name of the model whose weights' SHA-256 starts with these 8 bytes.

    Raises:
        ForeignModelError: no model at hand has that id.
    """
    for entry in manifest():
        if entry.id == model_id.hex():
            return entry.name
    raise ForeignModelError(f"no model with id {model_id.hex()}; {_at_hand()}")


def load(name: str = "base") -> Codec:
    """The codec called ``name`` in the manifest, or held by the ``.safetensors`` file of that path.

    Raises:
        ModelError: the model is unknown, or its weights are missing or damaged.
    """
    if name.endswith(".safetensors"):
        return _read(Path(name))
    entry = _called(name)
    return _read(models_dir() / entry.file, entry.sha256)


def shared(name: str = "base") -> Codec:
    """The same codec for all who ask in this process, read once: for many pictures in a row. Nobody may change it.

    In a process that was forked after this module's import torch gets one thread: it would wait forever for those of
    its parent, which are not copied.

    Raises:
        ModelError: as ``load``.
    """
    with _loading:
        return _loaded(name, sha256(name), os.getpid())


def denoiser(name: str = "denoiser") -> Denoiser:
    """The denoiser of that name or path, the same for all who ask in this process. Nobody may change it.

    Raises:
        ModelError: as ``load``.
    """
    with _loading:
        return _loaded_denoiser(name, sha256(name))


def cap(name: str = "cap") -> BayesCap:
    """The error bars of that name or path, the same for all who ask in this process. Nobody may change them.

    Raises:
        ModelError: as ``load``.
    """
    with _loading:
        return _loaded_cap(name, sha256(name))


def flow(name: str = "flow") -> Flow:
    """The flow to realistic pictures of that name or path, the same for all who ask. Nobody may change it.

    Raises:
        ModelError: as ``load``.
    """
    with _loading:
        return _loaded_flow(name, sha256(name))


def sha256(name: str) -> str:
    """The SHA-256 of a model's weights, 64 hexadecimal digits; ``name`` as for ``load``. Needs no torch.

    Raises:
        ModelError: the model is unknown, or the path has no weights file.
    """
    return _entry(name).sha256


def model_id(name: str) -> str:
    """The id of a model as files name it, 16 hexadecimal digits; ``name`` as for ``load``. Needs no torch.

    Raises:
        ModelError: as ``sha256``.
    """
    return _entry(name).id


def kind(name: str) -> str:
    """What a model is, ``codec`` or one of ``KINDS``; ``name`` as for ``load``. Needs no torch.

    Raises:
        ModelError: as ``sha256``.
    """
    return _entry(name).kind


@lru_cache(maxsize=4)
def _loaded(name: str, _sha256: str, process: int) -> Codec:
    if process == _importer:
        return load(name)
    import torch

    from bayesq.runtime import plain

    torch.set_num_threads(1)
    codec = load(name)
    codec.runtime = plain(codec)  # OpenVINO would wait as well
    return codec


@lru_cache(maxsize=4)
def _loaded_denoiser(name: str, sha256: str) -> Denoiser:
    from bayesq.denoiser import Denoiser

    return Denoiser.load(_checked(models_dir() / _entry(name).file, sha256))


@lru_cache(maxsize=4)
def _loaded_cap(name: str, sha256: str) -> BayesCap:
    from bayesq.posthoc import BayesCap

    return BayesCap.load(_checked(models_dir() / _entry(name).file, sha256))


@lru_cache(maxsize=4)
def _loaded_flow(name: str, sha256: str) -> Flow:
    from bayesq.posthoc import Flow

    return Flow.load(_checked(models_dir() / _entry(name).file, sha256))


def _entry(name: str) -> Entry:
    return _own(Path(name)) if name.endswith(".safetensors") else _called(name)


def _called(name: str) -> Entry:
    for entry in manifest():
        if entry.name == name:
            return entry
    if Path(name).is_file():
        raise ModelError(f"{name}: weights files end in .safetensors; {_at_hand()}")
    raise ModelError(f"no model called {name!r}; {_at_hand()}")


def _own(path: Path) -> Entry:
    try:
        path = path.resolve(strict=True)
        digest = _digest(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise ModelError(f"{path}: no such weights file") from error
    head = _head(path)
    model_id = head.get("reads") or digest[:16]
    kind = next((kind for kind in KINDS if str(head.get("format")).startswith(f"bayesq-{kind}-")), "codec")
    return Entry(path.parent.name, model_id, str(path), digest, str(path), kind)


def _head(path: Path) -> dict[str, str]:
    """The metadata of a weights file; empty if there are none."""
    try:
        with open(path, "rb") as file:
            head = json.loads(file.read(min(int.from_bytes(file.read(8), "little"), HEAD_MAX)))["__metadata__"]
        bytes.fromhex(head.get("reads", ""))
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
    return dict(head)


@lru_cache(maxsize=64)
def _warn(message: str) -> None:
    """Warns of the same only once."""
    log.warning(message)


@lru_cache(maxsize=64)
def _digest(path: Path, _modified: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _read(path: Path, sha256: str | None = None) -> Codec:
    from bayesq.codec import Codec

    digest = hashlib.sha256(_checked(path, sha256).read_bytes()).digest()
    return Codec.load(path, digest)


def _checked(path: Path, sha256: str | None) -> Path:
    """The path, of a file that is there and has that SHA-256 if one is given."""
    if not path.is_file():
        raise ModelError(f"{path}: no such weights file")
    if sha256 is not None and hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise ModelError(f"{path}: the weights are damaged (their SHA-256 is not the manifest's)")
    return path


def _at_hand() -> str:
    names = [f"{entry.name} ({entry.id})" for entry in manifest()]
    return "models at hand: " + (", ".join(names) or "none")
