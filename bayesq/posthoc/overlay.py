"""What the networks laid over a restorer share: weights files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from textwrap import shorten
from typing import Any, ClassVar, TypeVar

from torch import nn

from bayesq.errors import ModelError
from bayesq.io import atomic_write
from bayesq.weights import pack, unpack

Kind = TypeVar("Kind", bound="Overlay")


class Overlay(nn.Module):
    """A network from a restorer's pictures to something about the true ones.

    Args:
        sizes: The subclass's arguments, which its weights file keeps.

    Attributes:
        kind: What weights files of the subclass are called.
        multiple: Sides of training crops are multiples of it.
    """

    kind: ClassVar[str]
    multiple = 1

    def __init__(self, **sizes: Any) -> None:
        super().__init__()
        self.sizes = sizes
        self.name = "unnamed"
        self.model_id = bytes(8)

    def save(self, path: str | Path) -> None:
        """Writes the weights, in half precision, and the sizes to a safetensors file, atomically."""
        header = {"format": f"bayesq-{self.kind}-1", "sizes": json.dumps(self.sizes)}
        atomic_write(path, pack({name: tensor.half() for name, tensor in self.state_dict().items()}, header))

    @classmethod
    def load(cls: type[Kind], path: str | Path) -> Kind:
        """Reads what ``save`` wrote, ready for inference.

        Raises:
            ModelError: the file is missing, damaged, or holds something else.
        """
        path = Path(path)
        state, header = unpack(path)
        if header.get("format") != f"bayesq-{cls.kind}-1":
            raise ModelError(f"{path}: not the weights of a {cls.kind} of this version")
        try:
            network = cls(**json.loads(header["sizes"]))
            network.load_state_dict(state)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ModelError(f"{path}: the weights do not fit their sizes ({shorten(str(error), 200)})") from error
        network.name = path.parent.name
        network.model_id = hashlib.sha256(path.read_bytes()).digest()[:8]
        return network.eval().requires_grad_(False)
