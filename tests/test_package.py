"""The package as a whole: it imports fast, its public names exist, and it finds the files it ships."""

import json
import subprocess
import sys

import pytest

import bayesq
from bayesq.resources import data_dir, models_dir

HEAVY = {"torch", "numpy", "deepinv", "compressai", "pyro", "matplotlib", "skimage", "scipy"}


def loaded_by(statement: str) -> set[str]:
    """The heavy packages that a fresh interpreter holds after ``statement``."""
    code = f"import sys, json; {statement}; print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return HEAVY & set(json.loads(result.stderr))


@pytest.mark.parametrize(
    "statement",
    [
        "import bayesq",
        "import bayesq.bitstream",
        "import bayesq.cli; bayesq.cli.build_parser()",
        "import bayesq.zoo; bayesq.zoo.manifest()",
        "import bayesq.pil",
    ],
)
def test_light_imports(statement):
    assert loaded_by(statement) == set()


@pytest.mark.parametrize("name", bayesq.__all__)
def test_public_name_resolves(name):
    assert name in dir(bayesq)
    assert getattr(bayesq, name) is not None


def test_public_names_survive_their_submodule():
    import bayesq.restore

    assert callable(bayesq.restore)
    assert "bayesq.restore" in sys.modules


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = bayesq.nonsense


def test_shipped_folders():
    assert (models_dir() / "manifest.json").is_file()
    assert (data_dir() / "README.md").is_file()
