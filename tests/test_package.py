"""The package as a whole: it imports fast, its public names exist, and it finds the files it ships."""

import json
import os
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


def test_coding_a_small_picture_imports_little_beyond_torch(small_codec_path, tmp_path):
    """What every call of the commands has to wait for; and nothing of torch that torch does not import itself."""
    photo, coded, decoded = data_dir() / "chelsea.png", tmp_path / "a.bq", tmp_path / "a.png"
    code = f"""
import sys, torch
before = set(sys.modules)
from bayesq.cli import main
assert main(["encode", "{photo}", "{coded}", "-m", "{small_codec_path}", "--quiet"]) == 0
assert main(["decode", "{coded}", "{decoded}", "-m", "{small_codec_path}", "--quiet"]) == 0
new = set(sys.modules) - before
print(*(name for name in new if name.split(".")[0] not in sys.stdlib_module_names))
"""
    environment = {name: value for name, value in os.environ.items() if name != "BAYESQ_RUNTIME"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    roots = {name.split(".")[0] for name in result.stdout.split()}
    assert "bayesq" in roots and roots <= {"bayesq", "PIL", "defusedxml", "constriction", "numpy", "safetensors"}


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
