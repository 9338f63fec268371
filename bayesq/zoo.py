"""The trained models that ship with bayesq, listed in ``models/manifest.json``."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bayesq.errors import ModelError
from bayesq.resources import models_dir

if TYPE_CHECKING:
    from bayesq.codec import Codec


@dataclass(frozen=True)
class Entry:
    """One model of the manifest."""

    name: str
    id: str
    """16 hexadecimal digits: the first 8 bytes of ``sha256``, as files name the model they need."""
    file: str
    """The weights, relative to the models folder."""
    sha256: str
    description: str


def manifest() -> list[Entry]:
    """The models at hand, in the manifest's order. Reads one small JSON file; needs no torch."""
    path = models_dir() / "manifest.json"
    try:
        return [Entry(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{path}: not a readable list of models ({error})") from error


def find(model_id: bytes) -> str:
    """The name of the model whose weights' SHA-256 starts with these 8 bytes.

    Raises:
        ModelError: no model at hand has that id.
    """
    for entry in manifest():
        if entry.id == model_id.hex():
            return entry.name
    raise ModelError(f"no model with id {model_id.hex()}; {_at_hand()}")


def load(name: str = "base") -> Codec:
    """The codec called ``name`` in the manifest, or held by the ``.safetensors`` file of that path.

    Raises:
        ModelError: the model is unknown, or its weights are missing or damaged.
    """
    if name.endswith(".safetensors"):
        return _read(Path(name))
    for entry in manifest():
        if entry.name == name:
            return _read(models_dir() / entry.file, entry.sha256)
    raise ModelError(f"no model called {name!r}; {_at_hand()}")


def _read(path: Path, sha256: str | None = None) -> Codec:
    if not path.is_file():
        raise ModelError(f"{path}: no such weights file")
    if sha256 is not None and hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise ModelError(f"{path}: the weights are damaged (their SHA-256 is not the manifest's)")
    from bayesq.codec import Codec

    return Codec.load(path)


def _at_hand() -> str:
    names = [f"{entry.name} ({entry.id})" for entry in manifest()]
    return "models at hand: " + (", ".join(names) or "none")
