"""What there is to tell of a quantised model, as facts and as a page."""

from __future__ import annotations

from collections import Counter

from bayesq.codec import Codec
from bayesq.quantization.cost import cost, layer_costs
from bayesq.quantization.layers import quantized
from bayesq.quantization.pipeline import Quantized


def facts(result: Quantized, size: int) -> dict[str, float]:
    """Figures of a quantised codec whose weights file has ``size`` bytes."""
    it = cost(result.codec)
    return {
        "bytes": size,
        "weight_bits": it.weight_bits,
        "quantised_weight_bits": it.quantised_bits,
        "input_bits": it.activation_bits,
        "bit_operations_per_pixel": it.operations,
        "loss_before": result.loss_before,
        "loss_after": result.loss_after,
    }


def write(result: Quantized, recipe: str, original: Codec, codec: Codec, size: int) -> str:
    """The model's card, Markdown.

    Args:
        result: What ``quantize`` gave.
        recipe: The recipe's name.
        original: The codec it was made of.
        codec: The codec as its weights file gives it.
        size: Bytes of that file.
    """
    before, after = cost(original), cost(codec)
    same = original.model_id == codec.model_id
    files = (
        f"those of `{original.name}`, which reads this model's too: the scale path and the means are the same"
        if same
        else "its own: the mean network is quantised too"
    )
    costs = layer_costs(codec)
    lines = [
        f"# {codec.name}",
        "",
        f"`{original.name}` (`{original.model_id.hex()}`), quantised after the recipe `{recipe}`.",
        "",
        "| | this model | floating point |",
        "| --- | ---: | ---: |",
        f"| weights file, bytes | {size} | {before.bytes} |",
        f"| bits a weight, all networks | {after.weight_bits:.2f} | {before.weight_bits:.2f} |",
        f"| bits a weight, quantised layers | {after.quantised_bits:.2f} | 16 |",
        f"| bits of the inputs of g_a and g_s, mean over multiply-adds | {after.activation_bits:.2f} | 32 |",
        *(
            f"| the same in precision {n}, chosen by the picture | {cost(codec.at(n)).activation_bits:.2f} | |"
            for n in range(1, codec.selector.precisions if codec.selector else 1)
        ),
        f"| bit operations a pixel, encoder and decoder | {after.operations:.4g} | {before.operations:.4g} |",
        f"| λ·D + R on the calibration crops | {result.loss_after:.4f} | {result.loss_before:.4f} |",
        "",
        f"Files it reads: {files}. Model id `{codec.model_id.hex()}`.",
        "",
        "| layer | format | stored bits a weight | bits of inputs |",
        "| --- | --- | ---: | ---: |",
    ]
    for name, layer in quantized(codec):
        bits = costs[name].bits / costs[name].weights
        inputs = "float" if layer.spec.activation is None else layer.spec.activation
        lines.append(f"| {name} | `{layer.spec.format}` | {bits:.2f} | {inputs} |")
    counted = Counter(str(layer.spec.format) for _, layer in quantized(codec))
    summary = ", ".join(f"{count} × `{form}`" for form, count in counted.most_common())
    return "\n".join([*lines, "", f"Formats: {summary}.", ""])
