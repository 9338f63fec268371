"""Changes of a layer that leave what it computes, and how far a quantised layer is from it."""

import torch.nn.functional as F

from bayesq.quantization.ranges import whole_range
from bayesq.quantization.rounding import nearest
from bayesq.quantization.shapes import Absorb, Centre, Rotate, Smooth

SHAPES = {
    "nothing": (),
    "centred": (Centre(),),
    "smoothed": (Smooth(0.5),),
    "rotated": (Rotate(8),),
    "low rank apart": (Absorb(4),),
    "all": (Centre(), Smooth(0.7), Rotate(8), Absorb(4)),
}


def output(draft, layer):
    """The layer's output for the draft's raw inputs."""
    return layer(draft.inputs[..., 1:-1, 1:-1])


def exact(draft):
    return F.conv2d(draft.inputs, draft.weight, draft.bias)


def shaped(draft, shapes):
    for shape in shapes:
        draft = shape(draft)
    return draft


def error(draft, changed, form, rounding=nearest, span=whole_range):
    layer = rounding(changed, form, span).layer()
    return float((output(draft, layer) - exact(draft)).square().mean())
