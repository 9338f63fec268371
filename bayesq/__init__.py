"""Image compression and Bayesian image restoration with one learned latent model.

The public names are loaded when first used, so that ``import bayesq`` stays fast and free of torch.
"""

import sys
from importlib import import_module
from types import ModuleType

__version__ = "0.1.0"

_HOME = {
    "Cell": "cells",
    "Codec": "codec",
    "Lattice": "quantizers",
    "Levels": "quantizers",
    "Restoration": "restore",
    "choose": "choice",
    "decode": "files",
    "describe": "files",
    "encode": "files",
    "encode_to": "ratecontrol",
    "load": "zoo",
    "restore": "restore",
    "restore_large": "large",
}

__all__ = ["__version__", *_HOME]


class _Package(ModuleType):
    """Keeps a public name (``bayesq.restore``) when the submodule of the same name is imported."""

    def __setattr__(self, name: str, value: object) -> None:
        if isinstance(value, ModuleType) and name in _HOME:
            value = getattr(value, name)
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> object:
        if name not in _HOME:
            raise AttributeError(f"module 'bayesq' has no attribute {name!r}")
        value = getattr(import_module(f"bayesq.{_HOME[name]}"), name)
        setattr(self, name, value)
        return value

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_HOME})


sys.modules[__name__].__class__ = _Package
