"""g_a and g_s as OpenVINO's intermediate representation, read from their ONNX graphs: integers stay integers."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from bayesq.errors import ModelError
from bayesq.interop import onnx

if TYPE_CHECKING:
    from bayesq.codec import Codec


def check() -> None:
    """Raises ModelError if OpenVINO, or onnx, is not installed."""
    if find_spec("openvino") is None:
        raise ModelError("OpenVINO is not installed: pip install 'bayesq[openvino]'")
    onnx.check()


def export(codec: Codec, folder: Path) -> list[Path]:
    """Writes ``analysis.xml`` and ``synthesis.xml``, each with its ``.bin`` beside it; returns the four paths.

    The models are those of ``bayesq.interop.onnx``.

    Raises:
        ModelError: OpenVINO or onnx is not installed, or the codec's transforms are not bayesq's own.
    """
    check()
    import openvino as ov

    paths = []
    for name in ("analysis", "synthesis"):
        model = ov.Core().read_model(onnx.graph_of(getattr(codec, name)).SerializeToString())
        ov.save_model(model, folder / f"{name}.xml", compress_to_fp16=False)
        paths += [folder / f"{name}.xml", folder / f"{name}.bin"]
    return paths
