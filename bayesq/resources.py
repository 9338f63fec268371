"""Where the files that travel with bayesq are: trained models and sample pictures."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def models_dir() -> Path:
    """The folder of trained models, with its ``manifest.json``."""
    return _shipped("models")


def data_dir() -> Path:
    """The folder of sample pictures and kernels, with their licences."""
    return _shipped("data")


def _shipped(name: str) -> Path:
    """``bayesq/_name`` in an installed wheel, ``name`` beside the package in a checkout."""
    installed = _PACKAGE / f"_{name}"
    return installed if installed.is_dir() else _PACKAGE.parent / name
