"""What a codec's convolutions see of a few pictures, and how much its loss minds changes of them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from bayesq.codec import Codec
from bayesq.networks.rate import LEVELS
from bayesq.training.data import Crops
from bayesq.training.loss import RateDistortionLoss


@dataclass(frozen=True)
class Batch:
    """Crops ``(n, 3, s, s)`` in [0, 1], each with a quality level of its own, ``(n,)``."""

    pictures: Tensor
    levels: Tensor

    def __len__(self) -> int:
        return len(self.levels)

    def split(self) -> Iterable[Batch]:
        """Batches of one crop each."""
        return (Batch(x, level) for x, level in zip(self.pictures.split(1), self.levels.split(1), strict=True))


def draw(crops: Crops, count: int, size: int, generator: torch.Generator) -> Batch:
    """So many crops of that size, their levels equally spaced over the whole range and in random order."""
    levels = torch.linspace(0, LEVELS - 1, count).round().long()[torch.randperm(count, generator=generator)]
    return Batch(crops.draw(count, size, generator), levels)


def convolutions(codec: Codec, parts: Sequence[str]) -> dict[str, nn.Conv2d]:
    """The floating-point convolutions of these parts of the codec, by name, in their order."""
    return {
        name: module
        for name, module in codec.named_modules()
        if isinstance(module, nn.Conv2d) and any(name.startswith(part + ".") for part in parts)
    }


def convolution(codec: Codec, name: str) -> nn.Conv2d:
    """The floating-point convolution of that name."""
    module = codec.get_submodule(name)
    assert isinstance(module, nn.Conv2d)
    return module


def losses(codec: Codec, batch: Batch, seed: int = 0) -> Tensor:
    """Rate and distortion of each crop ``(n,)`` as in training, with noise that depends on the seed alone."""
    return RateDistortionLoss(codec)(batch.pictures, batch.levels, torch.Generator().manual_seed(seed)).loss


@torch.no_grad()
def mean_loss(codec: Codec, batch: Batch) -> float:
    """Mean of ``losses``."""
    return float(losses(codec, batch).mean())


@dataclass
class Seen:
    """What a layer saw.

    Attributes:
        inputs: ``(n, I, h, w)``.
        sensitivity: Squared gradients of each crop's loss with respect to them, of the same shape.
        fisher: Mean over crops of the squared gradients with respect to the weights: the diagonal of Fisher's
            information, the loss' curvature near a minimum.
        positions: Outputs a pixel of the picture.
    """

    inputs: Tensor
    sensitivity: Tensor
    fisher: Tensor
    positions: float


def observe(codec: Codec, names: Sequence[str], batch: Batch) -> dict[str, Seen]:
    """Runs the loss of one crop after the other forwards and backwards, and records what the named layers see."""
    codec = copy.deepcopy(codec).requires_grad_(False)
    inputs: dict[str, list[Tensor]] = {name: [] for name in names}
    slopes: dict[str, list[Tensor]] = {name: [] for name in names}
    fisher = {name: torch.zeros_like(convolution(codec, name).weight) for name in names}
    positions: dict[str, float] = {}

    def look(name: str, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        inputs[name].append(args[0].detach())
        positions[name] = output[0, 0].numel() / batch.pictures[0, 0].numel()
        if args[0].requires_grad:
            args[0].register_hook(lambda gradient: slopes[name].append(gradient.square()))

    def need_gradient(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0] if args[0].requires_grad else args[0].detach().requires_grad_(), *args[1:])

    for name in names:
        layer = codec.get_submodule(name).requires_grad_(True)
        layer.register_forward_pre_hook(need_gradient)
        layer.register_forward_hook(partial(look, name))
    for crop in batch.split():
        codec.zero_grad()
        losses(codec, crop).sum().backward()
        for name in names:
            weight = convolution(codec, name).weight
            if weight.grad is not None:
                fisher[name] += weight.grad.square() / len(batch)
    return {
        name: Seen(torch.cat(inputs[name]), torch.cat(slopes[name]), fisher[name], positions[name]) for name in names
    }
