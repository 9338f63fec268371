"""Recipes: how the pieces are put together, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bayesq.errors import ModelError
from bayesq.quantization import allocation, sensitivity
from bayesq.quantization.adaquant import AdaQuant
from bayesq.quantization.formats import (
    Affine,
    Binary,
    Clusters,
    Coded,
    DoubleBinary,
    Format,
    Minifloat,
    NormalFloat,
    PowerExponent,
    Powers,
    Pyramid,
    Range,
    Sparse,
    Ternary,
)
from bayesq.quantization.gates import Gates
from bayesq.quantization.ranges import LEAST_HARM, Percentile, whole_range
from bayesq.quantization.rounding import GPTQ, AdaRound, Rounding, nearest
from bayesq.quantization.shapes import Absorb, Centre, Noise, Rotate, Shape, Smooth

if TYPE_CHECKING:
    from bayesq.codec import Codec
    from bayesq.quantization.calibration import Batch
    from bayesq.quantization.draft import Draft

Harm = Callable[["Codec", Mapping[str, "Draft"], Sequence[Format], Range, "Batch"], np.ndarray]
Solver = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
InputFormats = int | Format | tuple[int | Format, ...]
"""Bits of a layer's inputs, their format, or several to choose from, the finest first."""

TRANSFORMS = ("analysis", "synthesis", "prior.analysis")
"""g_a, g_s and h_a: files stay those of the floating-point model."""
EVERYTHING = (*TRANSFORMS, "prior.means")
"""And the mean network, which places the symbols: a model of its own."""


@dataclass(frozen=True)
class Tuning:
    """Training with quantised layers; see ``bayesq.quantization.tuning``.

    Attributes:
        steps: Of all layers at once.
        block_steps: Before that, of each block alone.
        batch, crop: Crops a step and their side.
        rate: Learning rate, in steps of a weight's grid.
        distillation: Weight of the distance to the floating-point codec's pictures, relative to distortion's. What is
            learned from the latter alone is as much what a few crops would have of any codec.
        sharpness: Of the gradient of rounded inputs near the borders of cells; None for that of the identity.
        weights: Whether weights, their scales and biases learn too, not only the steps and zero points of inputs.
        freeze: Share of steps, a running mean, in which a weight's code may turn back before it is frozen; see
            ``bayesq.quantization.oscillation``.
    """

    steps: int = 200
    block_steps: int = 0
    batch: int = 8
    crop: int = 128
    rate: float = 0.01
    distillation: float = 10.0
    sharpness: float | None = None
    weights: bool = True
    freeze: float | None = None


@dataclass(frozen=True)
class Dynamic:
    """Precisions of g_s to choose from, picture by picture; see ``bayesq.quantization.dynamic``.

    Attributes:
        means: Bits of the inputs of g_s's eight-bit layers that each precision has on average.
        bits: What a layer may have.
        price: Of one bit, relative to the loss.
    """

    means: tuple[float, ...] = (6.0, 5.0)
    bits: tuple[int, ...] = (4, 5, 6, 7, 8)
    price: float = 0.0005


@dataclass(frozen=True)
class Recipe:
    """What is done to a codec, in this order: shape, range of inputs, allocation, rounding, bias, training.

    Attributes:
        formats: Of weights; several to choose from, if there is an allocation.
        parts: Of the codec.
        kept: Formats of layers, by patterns of their names; they are left out of the allocation. Nothing is kept where
            the patterns fit all of g_a and g_s.
        inputs: Bits or formats of the inputs of g_a and g_s, by patterns of layers' names, the first that fits; others
            float. Several are chosen from by an allocation whose harm is in units of the loss, within budgets of
            operations or latency, by the loss to second order; layers that are kept have the first.
        input_range: Of inputs; errors are weighted by the loss' sensitivity.
        by_channel: Whether each input channel has a range of its own.
        span: Range of weights.
        shapes: What is done before rounding.
        noise: What is done once the ranges of inputs are known.
        rounding: Of weights.
        correct: Whether biases make up for mean errors.
        harm, solver: How formats are allocated.
        size: What weights may take, of 32 bits each, unless asked otherwise.
        operations: What bit operations may take, of those with 32-bit factors.
        latency: What time g_a and g_s may take, of that in floating point.
        tuning: Training at the end.
        dynamic: Precisions that depend on the picture.
    """

    formats: tuple[Format, ...] = (Affine(8),)
    parts: tuple[str, ...] = TRANSFORMS
    kept: tuple[tuple[str, Format], ...] = ()
    inputs: tuple[tuple[str, InputFormats], ...] = ()
    input_range: Range = LEAST_HARM
    by_channel: bool = False
    span: Range = LEAST_HARM
    shapes: tuple[Shape, ...] = ()
    noise: Shape | None = None
    rounding: Rounding = nearest
    correct: bool = True
    harm: Harm | None = None
    solver: Solver = allocation.integer_program
    size: float | None = None
    operations: float | None = None
    latency: float | None = None
    tuning: Tuning | None = None
    dynamic: Dynamic | None = None


LAST = ("synthesis.fine.blocks.[234].expand", "synthesis.fine.blocks.[34].reduce")
A8 = (("*.linear", 16), ("synthesis.stem", 16), *((name, 16) for name in LAST), ("*", 8))
"""Eight bits but where pixels and latents come in, whose own precision is finer than that, and at the last of base's
blocks, where 9 % of the products do more than half of the harm of all eight-bit inputs."""
RECTIFIED = tuple((f"*.blocks.*.{name}", Powers(6, root=4, group=None)) for name in ("spatial", "expand"))
"""Powers of the fourth root of 2 for what comes out of leaky rectifiers, most of it near zero."""
FINE = (("*.linear", Affine(12)),)
"""The linear branches, whose weights are all that stands between latents and pixels. In few bits they would hide what a
format does to the networks; recipes that allocate formats are to find that out."""
SMOOTH = Smooth(0.5)
"""For channels within g_s's blocks differ: base's largest are three to four times the median."""
INTEGERS = tuple(Affine(width) for width in (2, 3, 4, 5, 6, 8, 10, 12))

CODED = tuple(Coded(rate=rate) for rate in (1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 5.5, 6, 7, 8))


def mixed(size: float, linear: float, tuning: Tuning | None = None) -> Recipe:
    """Coded weights of mixed precision, to a size, inputs of eight bits.

    Args:
        size: As ``Recipe.size``.
        linear: Bits a weight, about, of the linear branches: they are what errs at the highest quality, which a mean
            over all qualities hardly shows.
        tuning: As ``Recipe.tuning``.
    """
    return Recipe(
        CODED,
        EVERYTHING,
        kept=(("*.linear", Coded(12, rate=linear)),),
        inputs=A8,
        shapes=(SMOOTH,),
        rounding=GPTQ(),
        harm=sensitivity.relevance,
        size=size,
        tuning=tuning,
    )


RECIPES: dict[str, Recipe] = {
    "w8": Recipe(kept=FINE),
    "w8a8": Recipe(kept=FINE, inputs=A8, shapes=(SMOOTH,), rounding=GPTQ()),
    "w8a8-plain": Recipe(inputs=(("*", 8),), span=whole_range, input_range=whole_range, correct=False),
    "w8a8-centred": Recipe(kept=FINE, inputs=A8, shapes=(Centre(), Smooth(0.5))),
    "repq": Recipe(kept=FINE, inputs=A8, shapes=(Centre(), Smooth(1.0))),
    "powers-inputs": Recipe(kept=FINE, inputs=(*RECTIFIED, *A8), rounding=GPTQ()),
    "noisy": Recipe(kept=FINE, inputs=(*A8[:-1], ("*", 6)), noise=Noise()),
    "w6a8": Recipe((Affine(6),), kept=FINE, inputs=A8, rounding=GPTQ()),
    "w4": Recipe((Affine(4, 32),), kept=FINE, rounding=GPTQ()),
    "w4a8": Recipe((Affine(4, 32),), kept=FINE, inputs=A8, rounding=GPTQ()),
    "adaround": Recipe((Affine(4, 32),), kept=FINE, inputs=A8, rounding=AdaRound()),
    "adaquant": Recipe((Affine(4, 32),), kept=FINE, inputs=A8, rounding=AdaQuant()),
    "adaquant-gptq": Recipe((Affine(4, 32),), kept=FINE, inputs=A8, rounding=AdaQuant(first=GPTQ())),
    "brecq": Recipe(
        (Affine(4, 32),),
        kept=FINE,
        inputs=A8,
        rounding=GPTQ(),
        tuning=Tuning(steps=0, block_steps=16, batch=4, rate=0.04),
    ),
    "rotate": Recipe((Affine(4),), kept=FINE, inputs=A8, shapes=(Rotate(),), rounding=GPTQ()),
    "svdquant": Recipe((Affine(4, 32),), kept=FINE, inputs=A8, shapes=(Smooth(0.5), Absorb(8))),
    "percentile": Recipe((Affine(6),), kept=FINE, inputs=A8, span=Percentile(0.9995), input_range=Percentile(0.99995)),
    "nf4": Recipe((NormalFloat(4, 32),), kept=FINE),
    "fp4": Recipe((Minifloat(2, 1, 32),), kept=FINE),
    "fp8": Recipe((Minifloat(4, 3),), kept=FINE),
    "powers": Recipe((Powers(4),), kept=FINE),
    "powers-sqrt2": Recipe((Powers(5, root=2),), kept=FINE),
    "nupes": Recipe((PowerExponent(4),), kept=FINE),
    "squeeze": Recipe((Clusters(4),), kept=FINE),
    "squeeze-sparse": Recipe((Sparse(Clusters(4), 0.005),), kept=FINE),
    "pyramid": Recipe((Pyramid(16, 24),), kept=FINE),
    "double-binary": Recipe((DoubleBinary(32),), kept=FINE),
    "ternary": Recipe((Ternary(32),), kept=FINE),
    "binary": Recipe((Binary(32),), kept=FINE),
    "dynaquant": Recipe(
        kept=FINE,
        inputs=A8,
        tuning=Tuning(steps=40, batch=4, rate=0.02, sharpness=1.0, weights=False),
        dynamic=Dynamic(means=(6.0, 5.0)),
    ),
    "hawq": Recipe(INTEGERS, inputs=A8, harm=sensitivity.traces, rounding=GPTQ(), size=0.2),
    "relevance": Recipe(INTEGERS, inputs=A8, harm=sensitivity.relevance, rounding=GPTQ(), size=0.2),
    "calib": Recipe(INTEGERS, inputs=A8, harm=sensitivity.one_at_a_time, rounding=GPTQ(), size=0.2),
    "lrp": Recipe(INTEGERS, kept=FINE, inputs=A8, harm=sensitivity.propagated_relevance, rounding=GPTQ(), size=0.2),
    "entropy": Recipe(INTEGERS, kept=FINE, inputs=A8, harm=sensitivity.activation_entropy, rounding=GPTQ(), size=0.2),
    "gates": Recipe(INTEGERS, kept=FINE, inputs=A8, harm=Gates(), rounding=GPTQ(), size=0.2),
    "hamp": Recipe(
        INTEGERS, inputs=A8, harm=sensitivity.relevance, solver=allocation.monotone, rounding=GPTQ(), size=0.2
    ),
    "greedy": Recipe(
        INTEGERS, inputs=A8, harm=sensitivity.relevance, solver=allocation.greedy, rounding=GPTQ(), size=0.2
    ),
    "joint": Recipe(
        INTEGERS,
        kept=FINE,
        inputs=(*A8[:2], ("*", (16, 8, 7, 6, 5, 4))),
        shapes=(SMOOTH,),
        harm=sensitivity.relevance,
        rounding=GPTQ(),
        operations=0.06,
    ),
    "mixed5": mixed(0.2, 9.5),
    "mixed5-tuned": mixed(0.2, 9.5, Tuning()),
    "mixed4": mixed(0.125, 8.5),
    "mixed4-tuned": mixed(0.125, 8.5, Tuning()),
    "mixed4-frozen": mixed(0.125, 8.5, Tuning(freeze=0.04)),
    "mixed3": mixed(0.094, 5.5),
    "mixed3-tuned": mixed(0.094, 5.5, Tuning()),
}


def recipe_called(name: str) -> Recipe:
    """The recipe of that name. Raises ModelError if there is none."""
    if name not in RECIPES:
        raise ModelError(f"no recipe called {name!r}; there are {', '.join(RECIPES)}")
    return RECIPES[name]
