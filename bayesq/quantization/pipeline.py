"""From a floating-point codec and a recipe to a quantised one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from bayesq.codec import Codec
from bayesq.errors import ModelError
from bayesq.quantization import dynamic, layers
from bayesq.quantization.calibration import Batch, convolutions, draw, mean_loss, observe
from bayesq.quantization.cost import FLOAT, LayerCost, cost_of
from bayesq.quantization.draft import Draft
from bayesq.quantization.formats import Format
from bayesq.quantization.latency import Stopwatch
from bayesq.quantization.layers import QuantizedConv
from bayesq.quantization.ranges import whole_range
from bayesq.quantization.recipes import InputFormats, Recipe
from bayesq.quantization.rounding import corrected, nearest
from bayesq.quantization.sensitivity import input_relevance
from bayesq.training.data import Crops, find_pictures

log = logging.getLogger(__name__)
CROPS, SIDE = 64, 128


@dataclass(frozen=True)
class Calibration:
    """Pictures to quantise with.

    Attributes:
        crops: Where they are taken from.
        count, side: How many crops, and their side in pixels.
        seed: Of their choice.
    """

    crops: Crops
    count: int = CROPS
    side: int = SIDE
    seed: int = 0

    @classmethod
    def of(cls, folders: Sequence[Path], **settings: int) -> Calibration:
        """From all pictures below the folders. Raises TrainingError if there are none."""
        return cls(Crops(find_pictures(folders)), **settings)

    def batch(self) -> Batch:
        """The crops, the same at every call."""
        return draw(self.crops, self.count, self.side, torch.Generator().manual_seed(self.seed))


@dataclass(frozen=True)
class Quantized:
    """A quantised codec and how it came about.

    Attributes:
        codec: A model like any other.
        formats: Of each layer.
        loss_before, loss_after: λ·D + R of the calibration crops.
    """

    codec: Codec
    formats: dict[str, Format]
    loss_before: float
    loss_after: float


def quantize(
    codec: Codec,
    recipe: Recipe,
    data: Calibration,
    size: float | None = None,
    operations: float | None = None,
    latency: float | None = None,
    progress: bool = False,
) -> Quantized:
    """Quantises a codec after a recipe.

    A recipe that leaves the mean network alone leaves the model its id: a file's symbols are decoded by the scale path
    and placed by the means, so that files of either model are read by the other, and their pictures differ by no more
    than the transforms do. With quantised means the result is a model of its own.

    Args:
        codec: Of bayesq's own design; it is left as it is.
        recipe: What to do.
        data: What to calibrate on.
        size, operations: Budgets for the recipe's: shares of what 32-bit weights and factors take.
        latency: The same of the time that the convolutions of g_a and g_s take in OpenVINO, one by one; it is measured.
        progress: Show a bar on stderr.

    Raises:
        ModelError: the codec is quantised already or a foreign one, no allocation is within the budgets,
            or OpenVINO is not there to measure latency.
    """
    codec = codec.exported()
    if any(layers.quantized(codec)):
        raise ModelError("the model is quantised already")
    if recipe.harm is None and (size or operations or latency):
        raise ModelError("a budget needs a recipe that allocates formats")
    size, operations, latency = size or recipe.size, operations or recipe.operations, latency or recipe.latency
    recipe = replace(recipe, size=size, operations=operations, latency=latency)
    original, batch = codec, data.batch()
    convs = convolutions(codec, recipe.parts)
    before = mean_loss(codec, batch)
    seen = observe(codec, list(convs), batch)
    variants = {}
    for name, conv in convs.items():
        draft = Draft.of(conv, seen.pop(name))
        for shape in recipe.shapes:
            draft = shape(draft)
        variants[name] = _with_inputs(draft, () if name.startswith("prior.") else _first(recipe.inputs, name), recipe)
    drafts, formats, made = _fitted(codec, recipe, variants, batch, progress)
    codec = codec.exported()
    for name, layer in made.items():
        layers.replace(codec, name, layer)
    if recipe.tuning is not None:
        from bayesq.quantization.tuning import tune

        tune(codec, original, drafts, recipe.tuning, data.crops, progress)
    if recipe.dynamic is not None:
        dynamic.adapt(codec, original, drafts, recipe, batch, data.crops)
    codec.reads = codec.model_id if any(codec.model_id) and "prior.means" not in recipe.parts else None
    codec.model_id = codec.reads or bytes(8)
    return Quantized(codec, formats, before, mean_loss(codec, batch))


def _first(rules: Sequence[tuple[str, InputFormats]], name: str) -> Sequence[int | Format]:
    """What a layer's inputs may have by the first rule that fits; nothing if none does."""
    found = next((inputs for pattern, inputs in rules if fnmatchcase(name, pattern)), ())
    return found if isinstance(found, tuple) else (found,)


def _with_inputs(draft: Draft, inputs: Sequence[int | Format], recipe: Recipe) -> list[Draft]:
    """The layer with each of these, or with inputs in floating point."""
    made = [draft.with_activation(one, recipe.by_channel, recipe.input_range) for one in inputs] or [draft]
    return [recipe.noise(one) for one in made] if recipe.noise else made


Choice = dict[str, tuple[Draft, Format]]
"""Of each layer, its inputs and the format of its weights."""


def _fitted(
    codec: Codec, recipe: Recipe, variants: dict[str, list[Draft]], batch: Batch, progress: bool
) -> tuple[dict[str, Draft], dict[str, Format], dict[str, QuantizedConv]]:
    """Inputs, formats and layers within the budgets. Allocation knows what each layer takes with weights at their
    nearest codes; where that was too little for the codes they get, it is asked for less."""
    allocate = _allocator(codec, recipe, variants, batch)
    plain, cut = FLOAT * sum(drafts[0].weight.numel() for drafts in variants.values()), 1.0
    while True:
        choice, made = allocate(cut), {}
        for name in tqdm(choice, desc="rounding", disable=None if progress else True, leave=False):
            made[name] = _rounded(*choice[name], recipe)
        stored = sum(cost_of(layer, 0.0).bits for layer in made.values()) / plain
        if recipe.size is None or stored <= recipe.size:
            drafts = {name: draft for name, (draft, _) in choice.items()}
            return drafts, {name: form for name, (_, form) in choice.items()}, made
        cut *= 0.999 * recipe.size / stored


def _rounded(draft: Draft, form: Format, recipe: Recipe) -> QuantizedConv:
    made = recipe.rounding(draft, form, recipe.span)
    return (corrected(made, draft) if recipe.correct else made).layer()


def _kept(recipe: Recipe, names: Sequence[str]) -> dict[str, Format]:
    """The layers that are exceptions, and their formats; none if all of g_a and g_s would be."""
    kept = {name: form for name in names for pattern, form in recipe.kept if fnmatchcase(name, pattern)}
    transforms = [name for name in names if not name.startswith("prior.")]
    return {} if transforms and kept.keys() >= set(transforms) else kept


def _allocator(
    codec: Codec, recipe: Recipe, variants: dict[str, list[Draft]], batch: Batch
) -> Callable[[float], Choice]:
    """A function from a factor for the budget of size to the inputs and formats of all layers."""
    kept = _kept(recipe, list(variants))
    if recipe.harm is None:
        return lambda cut: {name: (drafts[0], kept.get(name, recipe.formats[0])) for name, drafts in variants.items()}
    free = {name: drafts for name, drafts in variants.items() if name not in kept}
    most = max(map(len, free.values()))
    options = {name: _options(len(drafts), most, recipe.formats) for name, drafts in free.items()}
    harm = recipe.harm(codec, {name: drafts[0] for name, drafts in free.items()}, recipe.formats, recipe.span, batch)
    if most > 1:
        own = {name: [input_relevance(draft) for draft in drafts] for name, drafts in free.items()}
        harm = np.tile(harm, (1, most)) + np.array([[own[name][v] for v, _ in row] for name, row in options.items()])
    resources = _resources(recipe, variants)
    amounts = [amount for *_, amount in resources]
    costs = np.array([[[of(name, *one) for one in row] for name, row in options.items()] for of in amounts], float)
    whole = [sum(amount(name, 0, None) for name in variants) for amount in amounts]
    taken = [sum(amount(name, 0, form) for name, form in kept.items()) for amount in amounts]
    least = costs.min(2).sum(1) + taken

    def allocate(cut: float) -> Choice:
        shares = [share * (cut if what == "size" else 1) for what, share, _ in resources]
        for (what, *_), share, one, needed in zip(resources, shares, whole, least, strict=True):
            if needed > share * one:
                raise ModelError(f"a budget of {what} of {share:.3g} is too small: it takes about {needed / one:.3g}")
        picked = recipe.solver(harm, costs, np.array(shares) * whole - taken)
        chosen = {name: options[name][k] for name, k in zip(free, picked, strict=True)}
        chosen |= {name: (0, form) for name, form in kept.items()}
        return {name: (drafts[chosen[name][0]], chosen[name][1]) for name, drafts in variants.items()}

    return allocate


def _options(count: int, most: int, formats: Sequence[Format]) -> list[tuple[int, Format]]:
    """Places of a layer's inputs, of which there are so many, each with every format; the last stands in for lacking
    ones, so that all layers have as many options."""
    return [(min(v, count - 1), form) for v in range(most) for form in formats]


Amount = Callable[[str, int, Format | None], float]
"""What a layer takes of a resource with those of its inputs and in a format, None for floating point of 32 bits."""
Resource = tuple[str, float, Amount]
"""Its name, the share that the recipe allows of what floating point takes, and what layers take."""


def _resources(recipe: Recipe, variants: dict[str, list[Draft]]) -> list[Resource]:
    """The resources that the recipe limits."""

    @cache
    def cost(name: str, form: Format) -> LayerCost:
        draft = variants[name][0]
        return cost_of(nearest(draft, form, whole_range).layer(), draft.positions)

    def size(name: str, inputs: int, form: Format | None) -> float:
        return cost(name, form).bits if form else FLOAT * variants[name][0].weight.numel()

    def operations(name: str, inputs: int, form: Format | None) -> float:
        draft = variants[name][inputs]
        if form is None:
            return FLOAT**2 * draft.weight.numel() * draft.positions
        return replace(cost(name, form), activation=layers.bits_of(draft.activation)).operations

    def seconds(name: str, inputs: int, form: Format | None) -> float:
        return 0.0 if name.startswith("prior.") else stopwatch(variants[name][inputs], form)

    limited = [("size", recipe.size, size), ("operations", recipe.operations, operations)]
    limited.append(("latency", recipe.latency, seconds))
    stopwatch = Stopwatch()
    return [(what, share, amount) for what, share, amount in limited if share is not None]
