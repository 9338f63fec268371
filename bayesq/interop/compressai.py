"""CompressAI's models as codecs and as latent priors.

Only the transforms of a model are run. The mathematics of its entropy models is that of ``bayesq.conditionals``, which
is given CompressAI's parameters: densities of real-valued latents, with gradients, as restoration needs them.

CompressAI calls the image latent y and the hyper-latent z; here they are z and h.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from compressai.entropy_models import EntropyBottleneck
from compressai.layers import MaskedConv2d
from compressai.models import (
    Cheng2020Anchor,
    Cheng2020Attention,
    CompressionModel,
    FactorizedPrior,
    FactorizedPriorReLU,
    JointAutoregressiveHierarchicalPriors,
    MeanScaleHyperprior,
    ScaleHyperprior,
)
from torch import Tensor, nn

from bayesq.cells import Cell
from bayesq.codec import Codec
from bayesq.coder import Tables, gaussian_tables
from bayesq.conditionals import SCALE_COUNT, SCALE_MIN, Factorized, FactorizedDensity, GaussianCells, index_of, scale_of
from bayesq.errors import ModelError
from bayesq.hyperprior import TABLE_RADIUS
from bayesq.prior import LatentPrior, Walk
from bayesq.quantizers import Clamp, Lattice

REDUCTION = 16
HYPER_STRIDE = 4


def import_model(model: CompressionModel) -> Codec:
    """A copy of a CompressAI model as a codec of one quality: levels are accepted and ignored.

    Files coded with it can be read on the machine that wrote them, with the same number of threads, and are not
    portable: the scales that choose the probability tables come out of floating-point networks, whose last bits vary
    with the processor, and one table index that differs garbles all that follows. Models with a masked context
    (``JointAutoregressiveHierarchicalPriors``, ``Cheng2020…``) are priors only and do not write files.

    Args:
        model: A model of one of CompressAI's classes named in this module, not of a subclass, which might give its
            parts another meaning.

    Raises:
        ModelError: the model is of another class.
    """
    try:
        kind = PRIORS[type(model)]
    except KeyError:
        known = ", ".join(cls.__name__ for cls in PRIORS)
        raise ModelError(f"cannot import a {type(model).__name__}; known are {known}") from None
    model = copy.deepcopy(model).eval().requires_grad_(False)
    codec = Codec(_Unlevelled(model.g_a), _Unlevelled(model.g_s), kind(model), REDUCTION, model.downsampling_factor)
    codec.name = type(model).__name__
    return codec.eval()


class _Unlevelled(nn.Module):
    """A transform that works at one quality, called with a level that it ignores."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        return self.network(x)


class Bottleneck(nn.Module):
    """CompressAI's ``EntropyBottleneck``: its densities, its medians, and integer tables of them."""

    medians: Tensor

    def __init__(self, theirs: EntropyBottleneck) -> None:
        super().__init__()
        self.density = FactorizedDensity(theirs.channels, theirs.filters).to(theirs.quantiles)
        parameters = [*theirs.matrices, *theirs.biases, *theirs.factors]
        with torch.no_grad():
            for ours, parameter in zip(self.density.parameters(), parameters, strict=True):
                ours.copy_(parameter)
        self.density.requires_grad_(False)
        self.register_buffer("medians", theirs.quantiles[:, 0, 1].detach().clone())
        self.tables = self._tables()

    @torch.no_grad()
    def _tables(self) -> Tables:
        channels = len(self.medians)
        law = Factorized(copy.deepcopy(self.density).double().cpu(), (1, channels, 1, 1), self.medians.double().cpu())
        codes = torch.arange(-TABLE_RADIUS, TABLE_RADIUS + 1).expand(1, channels, 1, -1)
        inside = law.log_mass(law.quantizer().cell(codes))[0, :, 0].exp().numpy()
        return Tables.from_masses(np.hstack([inside, np.maximum(0, 1 - inside.sum(1, keepdims=True))]))

    def law(self, batch: int, height: int, width: int) -> Factorized:
        """The law of a latent of this size."""
        return Factorized(self.density, (batch, len(self.medians), height, width), self.medians, self.tables)


def _gaussian(mean: Tensor, scale: Tensor, tables: Tables | None = None) -> GaussianCells:
    """CompressAI's ``GaussianConditional``, which bounds scales from below.

    Densities are those of the exact scale. Coding rounds it to the nearest of 64 scales (in logarithm); CompressAI,
    with the same 64, takes the next larger one.
    """
    return GaussianCells(mean, index_of(Clamp.apply(scale, SCALE_MIN, math.inf)), tables)


@dataclass(frozen=True)
class Autoregressive:
    """Gaussian cells whose mean and scale depend, by a masked convolution, on the elements above and to the left.

    At a given value all elements are evaluated in one parallel pass, as VBLE does (Biquard et al. 2025). Decoding would
    have to go element by element with bit-exact networks, so there are no tables.

    Attributes:
        features: ``(B, 2M, h, w)``, what h tells about z.
        context: The masked 5×5 convolution, M to 2M channels.
        head: 1×1 network from features and context to scale and mean.
    """

    features: Tensor
    context: nn.Module
    head: nn.Module

    def given(self, value: Tensor) -> GaussianCells:
        """The Gaussian law of every element given those of ``value`` that come before it."""
        return self._law(self.features, self.context(value))

    def _law(self, features: Tensor, context: Tensor) -> GaussianCells:
        scale, mean = self.head(torch.cat([features, context], 1)).chunk(2, 1)
        return _gaussian(mean, scale)

    def log_density(self, value: Tensor) -> Tensor:
        return self.given(value).log_density(value)

    def log_mass(self, cell: Cell) -> Tensor:
        """The context of an element are the centres of the cells before it."""
        return self.given(cell.centre).log_mass(cell)

    def quantizer(self) -> Lattice:
        """The integers; CompressAI's coder offsets its lattice by the mean, which is known element by element only."""
        return Lattice(1.0, self.features.new_zeros(1))

    @torch.no_grad()
    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        batch, channels, height, width = self.features.shape
        value = self.features.new_zeros(batch, channels // 2, height + 4, width + 4)
        for row in range(height):
            for column in range(width):
                context = self.context(value[..., row : row + 5, column : column + 5])[..., 2:3, 2:3]
                law = self._law(self.features[..., row : row + 1, column : column + 1], context)
                value[..., row + 2 : row + 3, column + 2 : column + 3] = law.sample(generator)
        return value[..., 2:-2, 2:-2]

    def sample_within(self, cell: Cell, generator: torch.Generator | None = None) -> Tensor:
        """The context of an element are the centres of the cells before it."""
        return self.given(cell.centre).sample_within(cell, generator)

    def tables(self) -> tuple[Tensor, Tables]:
        """Raises ModelError, always."""
        raise ModelError("models with an autoregressive context are priors for restoration and cannot write files")


class _Factorized(nn.Module):
    """p(z), each channel on its own (Ballé et al. 2018)."""

    def __init__(self, model: FactorizedPrior) -> None:
        super().__init__()
        self.bottleneck = Bottleneck(model.entropy_bottleneck)

    def walk(self, size: tuple[int, int, int], level: Tensor) -> Walk:
        yield self.bottleneck.law(*size)

    def targets(self, z: Tensor, level: Tensor) -> list[Tensor]:
        return [z]

    def image_latent(self, values: Sequence[Tensor]) -> Tensor:
        return values[0]


class _Hyper(nn.Module):
    """p(h) p(z | h): what the models with a hyper-latent share. Subclasses say what h tells about z."""

    def __init__(self, model: ScaleHyperprior) -> None:
        super().__init__()
        self.bottleneck = Bottleneck(model.entropy_bottleneck)
        self.analysis, self.synthesis = model.h_a, model.h_s
        self.tables = gaussian_tables(scale_of(torch.arange(SCALE_COUNT).double()).numpy(), TABLE_RADIUS)

    def walk(self, size: tuple[int, int, int], level: Tensor) -> Walk:
        batch, height, width = size
        h = yield self.bottleneck.law(batch, height // HYPER_STRIDE, width // HYPER_STRIDE)
        yield self.law(self.synthesis(h))

    def law(self, features: Tensor) -> GaussianCells | Autoregressive:
        """p(z | h) from what h_s makes of h."""
        raise NotImplementedError

    def targets(self, z: Tensor, level: Tensor) -> list[Tensor]:
        return [self.analysis(z), z]

    def image_latent(self, values: Sequence[Tensor]) -> Tensor:
        return values[1]


class _Scale(_Hyper):
    """Zero-mean Gaussians (Ballé et al. 2018); h is made from magnitudes."""

    def law(self, features: Tensor) -> GaussianCells:
        return _gaussian(torch.zeros_like(features), features, self.tables)

    def targets(self, z: Tensor, level: Tensor) -> list[Tensor]:
        return [self.analysis(z.abs()), z]


class _MeanScale(_Hyper):
    """Gaussians with predicted means (Minnen et al. 2018, without context)."""

    def law(self, features: Tensor) -> GaussianCells:
        scale, mean = features.chunk(2, 1)
        return _gaussian(mean, scale, self.tables)


def _masked(theirs: MaskedConv2d) -> nn.Conv2d:
    """An ordinary convolution with the masked weights; CompressAI's replaces its own at every call."""
    layer = nn.Conv2d(theirs.in_channels, theirs.out_channels, theirs.kernel_size, padding=theirs.padding)
    layer.to(theirs.weight).load_state_dict({"weight": theirs.weight * theirs.mask, "bias": theirs.bias})
    return layer.requires_grad_(False)


class _Context(_Hyper):
    """Gaussians with predicted means and a masked context (Minnen et al. 2018; Cheng et al. 2020)."""

    def __init__(self, model: JointAutoregressiveHierarchicalPriors) -> None:
        super().__init__(model)
        self.context, self.head = _masked(model.context_prediction), model.entropy_parameters

    def law(self, features: Tensor) -> Autoregressive:
        return Autoregressive(features, self.context, self.head)


PRIORS: dict[type[CompressionModel], Callable[[CompressionModel], LatentPrior]] = {
    FactorizedPrior: _Factorized,
    FactorizedPriorReLU: _Factorized,
    ScaleHyperprior: _Scale,
    MeanScaleHyperprior: _MeanScale,
    JointAutoregressiveHierarchicalPriors: _Context,
    Cheng2020Anchor: _Context,
    Cheng2020Attention: _Context,
}
