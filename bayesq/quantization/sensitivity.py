"""How much harm a format does to a layer: functions (codec, drafts, formats, range, batch) → harm ``(L, K)``."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from bayesq.codec import Codec
from bayesq.quantization.calibration import Batch, convolution, losses, mean_loss
from bayesq.quantization.draft import Draft
from bayesq.quantization.formats import Format, Range
from bayesq.quantization.layers import replace
from bayesq.quantization.rounding import nearest

PROBES = 3
BINS = 256


def _error(draft: Draft, form: Format, span: Range) -> Tensor:
    return nearest(draft, form, span).weight - draft.weight


def relevance(
    codec: Codec, drafts: Mapping[str, Draft], formats: Sequence[Format], span: Range, batch: Batch
) -> np.ndarray:
    """Squared errors of weights times squared gradients: the loss to second order, with Fisher's diagonal."""
    harm = [[float((d.fisher * _error(d, f, span).square()).sum()) / 2 for f in formats] for d in drafts.values()]
    return np.array(harm)


def input_relevance(draft: Draft) -> float:
    """Squared errors of a layer's rounded inputs times squared gradients, as ``relevance`` has it of weights."""
    errors = (draft.rounded - draft.inputs).square() * draft.sensitivity
    return float(errors.sum()) / (2 * len(draft.inputs))


def traces(
    codec: Codec, drafts: Mapping[str, Draft], formats: Sequence[Format], span: Range, batch: Batch
) -> np.ndarray:
    """Squared errors of weights times the mean curvature of the loss in the layer (HAWQ-V2, arXiv 1911.03852).

    The curvature is the trace of the layer's block of the Hessian over its weights, by Hutchinson's estimator: random
    signs s, and s·Hs from the gradient of the gradient's product with s, for all layers at once.
    """
    codec = copy.deepcopy(codec).requires_grad_(False)
    weights = [convolution(codec, name).weight.requires_grad_() for name in drafts]
    trace = np.zeros(len(weights))
    generator = torch.Generator().manual_seed(0)
    crops = list(batch.split())[:: max(1, len(batch) // 4)]
    with torch.enable_grad():
        for crop in crops:
            slopes = torch.autograd.grad(losses(codec, crop).mean(), weights, create_graph=True)
            for _ in range(PROBES):
                signs = [torch.randint(0, 2, w.shape, generator=generator) * 2.0 - 1 for w in weights]
                product = torch.stack([(g * s).sum() for g, s in zip(slopes, signs, strict=True)]).sum()
                curved = torch.autograd.grad(product, weights, retain_graph=True, materialize_grads=True)
                trace += [float((h * s).sum()) for h, s in zip(curved, signs, strict=True)]
    mean = np.abs(trace) / (len(crops) * PROBES) / np.array([w.numel() for w in weights])
    errors = [[float(_error(d, f, span).square().sum()) for f in formats] for d in drafts.values()]
    return mean[:, None] * np.array(errors) / 2


def one_at_a_time(
    codec: Codec, drafts: Mapping[str, Draft], formats: Sequence[Format], span: Range, batch: Batch
) -> np.ndarray:
    """The loss with one layer alone quantised, less that of none: measured, not estimated (CalibTIP, arXiv 2006.10518).

    Rises below zero count as none.
    """
    codec = copy.deepcopy(codec).requires_grad_(False)
    before = mean_loss(codec, batch)
    harm = np.zeros((len(drafts), len(formats)))
    for row, (name, draft) in zip(harm, drafts.items(), strict=True):
        exact = codec.get_submodule(name)
        for k, form in enumerate(formats):
            replace(codec, name, nearest(draft, form, span).layer())
            row[k] = max(mean_loss(codec, batch) - before, 0)
        replace(codec, name, exact)
    return harm


def _noise(draft: Draft, form: Format, span: Range) -> float:
    """Squared error of the layer's outputs over their squares, were its inputs uncorrelated."""
    power = draft.columns(draft.inputs).square().mean(1)
    error, signal = (w.flatten(1).square() @ power for w in (_error(draft, form, span), draft.weight))
    return float(error.sum() / signal.sum().clamp_min(1e-30))


def propagated_relevance(
    codec: Codec, drafts: Mapping[str, Draft], formats: Sequence[Format], span: Range, batch: Batch
) -> np.ndarray:
    """Relative errors of outputs times the layer's share of the relevance propagated from the loss (LRP-QViT).

    Of an input x it is |x · ∂loss/∂x|: where networks are piecewise linear, propagating relevance without ε layer by
    layer amounts to this product (Ancona et al., arXiv 1711.06104). Source: Ranjan & Savakis, arXiv 2401.11243.
    """
    relevance = np.array([float((d.inputs.abs() * d.sensitivity.sqrt()).sum()) for d in drafts.values()])
    noise = [[_noise(d, f, span) for f in formats] for d in drafts.values()]
    return (relevance / max(relevance.sum(), 1e-300))[:, None] * np.array(noise)


def activation_entropy(
    codec: Codec, drafts: Mapping[str, Draft], formats: Sequence[Format], span: Range, batch: Batch
) -> np.ndarray:
    """Relative errors of outputs times the entropy of what comes in, bits of 256 equal bins (Q-VLM, arXiv 2410.08119).

    What has high entropy depends most on the layers before, so that errors there are the hardest to make up for.
    """
    return np.array([[entropy(d.inputs) * _noise(d, f, span) for f in formats] for d in drafts.values()])


def entropy(values: Tensor) -> float:
    """Entropy in bits of values sorted into ``BINS`` equal bins from the least to the largest."""
    share = torch.histc(values.detach().flatten(), BINS) / values.numel()
    return float(-(share * share.clamp_min(1e-30).log2()).sum())
