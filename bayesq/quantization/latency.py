"""Measured time as a resource: what each layer takes in each precision, on this machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from time import perf_counter
from typing import Any

import numpy as np

from bayesq.errors import ModelError
from bayesq.quantization.draft import Draft
from bayesq.quantization.formats import Format
from bayesq.quantization.layers import in_integers

SIDE = 512
"""Pixels a side of the picture that layers are timed for."""
RUNS = 9


@dataclass
class Stopwatch:
    """Seconds of convolutions in OpenVINO, each alone; equal ones are timed once.

    Integers, whatever their number format's width, take the engine's eight-bit kernels where both factors have at most
    eight bits and a step a channel, if those are right on this processor; all other layers are computed in float32.

    Attributes:
        side: Of the picture, pixels.
    """

    side: int = SIDE
    _known: dict[tuple, float] = field(default_factory=dict)

    def __call__(self, draft: Draft, form: Format | None) -> float:
        """Of one layer with weights of that format, None for floating point.

        Raises:
            ModelError: OpenVINO is not installed.
        """
        if find_spec("openvino") is None:
            raise ModelError("latency is measured with OpenVINO, which is missing: pip install 'bayesq[openvino]'")
        shape, side = tuple(draft.weight.shape), round(self.side * draft.positions**0.5)
        key = shape, side, form is not None and in_integers(form, draft.activation)
        if key not in self._known:
            self._known[key] = _timed(*key)
        return self._known[key]


def _timed(shape: tuple[int, ...], side: int, integers: bool) -> float:
    """The least of some runs of a convolution on ``side`` × ``side`` outputs."""
    import openvino as ov
    from openvino import opset13 as ops

    from bayesq.runtime import compiled

    def rounded(values: Any, low: float, high: float) -> Any:
        return ops.fake_quantize(values, *map(np.float32, (low, high, low, high)), 256) if integers else values

    extent = [1, shape[1], side + shape[2] - 1, side + shape[3] - 1]
    x = ops.parameter(extent, np.float32)
    weight = ops.constant(np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape))
    factors = rounded(x, 0, 1), rounded(weight, -1, 127 / 128)
    y = ops.convolution(*factors, [1, 1], [0, 0], [0, 0], [1, 1])
    request = compiled(ov.Model([y], [x]))
    times = []
    for _ in range(RUNS):
        start = perf_counter()
        request.infer([np.zeros(extent, np.float32)])
        times.append(perf_counter() - start)
    return min(times)
