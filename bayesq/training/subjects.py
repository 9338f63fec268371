"""What a run can train: how it is built and started, its loss, and what its log tells."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from bayesq.architecture import ARCHITECTURES, Architecture
from bayesq.codec import Codec
from bayesq.denoiser import Denoiser, Sizes
from bayesq.networks.rate import rate_weight
from bayesq.posthoc import BayesCap, Flow
from bayesq.runtime import bfloat16_is_fast
from bayesq.training.data import Crops
from bayesq.training.denoising import DenoisingLoss
from bayesq.training.loss import RateDistortionLoss, draw_levels
from bayesq.training.overlaying import OverlayLoss, denoised
from bayesq.training.start import initialise
from bayesq.training.tables import fitted_tables

VALIDATION_LEVELS = (0, 64, 128, 191, 255)
VALIDATION_SIGMAS = (2.55, 15, 25, 50, 100)
OVERLAYS: dict[str, type[BayesCap] | type[Flow]] = {"cap": BayesCap, "flow": Flow}
OVERLAY_SIGMAS = (15, 25, 50)
OVERLAY_SIDE, OVERLAY_TIMES = 256, 4
"""Of held-out pictures: the corner that counts, and how often it is restored, so that a flow's times are spread."""
COARSER_RATE = 0.45
"""What the learning rate is multiplied by from one size of maps to the next coarser.

What works on coarser maps sees fewer places of a crop, so its gradients are noisier. At the full learning rate that
noise drives its units to the side of their threshold where they pass little of it, and they stay there.
"""


class Subject(Protocol):
    """What a run trains.

    Attributes:
        rich: Whether it is trained on the richer of two crops; see ``Crops``.
    """

    rich: ClassVar[bool]

    def build(self, sizes: str | None = None) -> Any:
        """Untrained networks; of the sizes that ``sizes`` gave, or the subject's own."""
        ...

    def load(self, path: Path) -> Any:
        """Trained networks, of whatever sizes, to be trained on. Raises ModelError if the file does not hold them."""
        ...

    def sizes(self, model: Any) -> str:
        """Their sizes as JSON."""
        ...

    def rate_share(self, model: Any, name: str) -> float:
        """What the learning rate of a parameter is multiplied by."""
        ...

    def start(self, model: Any, crops: Crops, generator: torch.Generator, count: int) -> None:
        """Sets weights by the statistics of so many crops."""
        ...

    def finish(self, model: Any, crops: Crops, generator: torch.Generator, side: int) -> None:
        """What is left to do once trained, by crops of that side."""
        ...

    def criterion(self, model: Any) -> nn.Module:
        """A module around the networks: called with crops ``(B, 3, H, W)`` and a generator it gives their loss."""
        ...

    def scores(self, model: Any, pictures: Sequence[Tensor]) -> dict[str, float]:
        """Columns of the log, from held-out pictures ``(1, 3, H, W)``; the last is the smaller, the better."""
        ...


@dataclass(frozen=True)
class CodecSubject:
    """A variable-rate codec; its log has rate and distortion at a few levels, and the mean of their log losses."""

    architecture: Architecture = field(default_factory=Architecture)
    rich: ClassVar[bool] = True

    def build(self, sizes: str | None = None) -> Codec:
        return Codec.build(Architecture.from_json(sizes) if sizes else self.architecture)

    def load(self, path: Path) -> Codec:
        return Codec.load(path).trainable()

    def sizes(self, model: Codec) -> str:
        assert model.architecture
        return json.dumps(asdict(model.architecture))

    def rate_share(self, model: Codec, name: str) -> float:
        return COARSER_RATE if name.startswith("synthesis.coarse.") else 1.0

    def start(self, model: Codec, crops: Crops, generator: torch.Generator, count: int) -> None:
        initialise(model, crops, generator, count)

    def finish(self, model: Codec, crops: Crops, generator: torch.Generator, side: int) -> None:
        model.own_prior.tables = fitted_tables(model.exported(), crops, generator, side)

    def criterion(self, model: Codec) -> nn.Module:
        return _CodecLoss(model)

    def scores(self, model: Codec, pictures: Sequence[Tensor]) -> dict[str, float]:
        row: dict[str, float] = {}
        losses = []
        for level, weight in zip(VALIDATION_LEVELS, rate_weight(torch.tensor(VALIDATION_LEVELS)).tolist(), strict=True):
            bits = pixels = error = 0.0
            for x in pictures:
                decoded, cost = model.reconstruct(x, level)
                bits, pixels = bits + cost, pixels + x[0, 0].numel()
                error += float((decoded - x).square().mean()) * x[0, 0].numel()
            row[f"bpp_{level}"], row[f"psnr_{level}"] = bits / pixels, -10 * math.log10(error / pixels)
            losses.append(math.log(weight * 255**2 * error / pixels + bits / pixels))
        return {**row, "validation": sum(losses) / len(losses)}


class _CodecLoss(nn.Module):
    def __init__(self, codec: Codec) -> None:
        super().__init__()
        self.loss = RateDistortionLoss(codec, bfloat16_is_fast())

    def forward(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return self.loss(x, draw_levels(len(x), generator), generator).loss.mean()


@dataclass(frozen=True)
class DenoiserSubject:
    """A denoiser; its log has the mean PSNR at a few levels of noise, and minus the mean of those."""

    network: Sizes = field(default_factory=Sizes)
    rich: ClassVar[bool] = False

    def build(self, sizes: str | None = None) -> Denoiser:
        return Denoiser(Sizes.from_json(sizes) if sizes else self.network)

    def load(self, path: Path) -> Denoiser:
        return Denoiser.load(path).train().requires_grad_(True)

    def sizes(self, model: Denoiser) -> str:
        return json.dumps(asdict(model.sizes))

    def rate_share(self, model: Denoiser, name: str) -> float:
        return COARSER_RATE ** model.network.halvings(name.removeprefix("network."))

    def start(self, model: Denoiser, crops: Crops, generator: torch.Generator, count: int) -> None:
        """Nothing: the networks start at random."""

    def finish(self, model: Denoiser, crops: Crops, generator: torch.Generator, side: int) -> None:
        """Nothing."""

    def criterion(self, model: Denoiser) -> nn.Module:
        return DenoisingLoss(model)

    def scores(self, model: Denoiser, pictures: Sequence[Tensor]) -> dict[str, float]:
        row: dict[str, float] = {}
        for place, sigma in enumerate(VALIDATION_SIGMAS):
            generator, found = torch.Generator().manual_seed(place), []
            for x in pictures:
                noise = sigma / 255 * torch.randn(x.shape, generator=generator)
                found.append(-10 * math.log10(float((model(x + noise, sigma / 255) - x).square().mean())))
            row[f"psnr_{sigma:g}"] = sum(found) / len(found)
        return {**row, "validation": -sum(row.values()) / len(row)}


@dataclass(frozen=True)
class OverlaySubject:
    """What is laid over the shipped denoiser; its log has the loss at a few levels of noise, and the mean of those."""

    kind: str
    network_sizes: str = "{}"
    rich: ClassVar[bool] = False

    def build(self, sizes: str | None = None) -> BayesCap | Flow:
        return OVERLAYS[self.kind](**json.loads(sizes or self.network_sizes))

    def load(self, path: Path) -> BayesCap | Flow:
        return OVERLAYS[self.kind].load(path).train().requires_grad_(True)

    def sizes(self, model: BayesCap | Flow) -> str:
        return json.dumps(model.sizes)

    def rate_share(self, model: BayesCap | Flow, name: str) -> float:
        return COARSER_RATE ** model.network.halvings(name.removeprefix("network.")) if isinstance(model, Flow) else 1.0

    def start(self, model: BayesCap | Flow, crops: Crops, generator: torch.Generator, count: int) -> None:
        """Nothing: the networks start at random."""

    def finish(self, model: BayesCap | Flow, crops: Crops, generator: torch.Generator, side: int) -> None:
        """Nothing."""

    def criterion(self, model: BayesCap | Flow) -> nn.Module:
        return OverlayLoss(model)

    def scores(self, model: BayesCap | Flow, pictures: Sequence[Tensor]) -> dict[str, float]:
        row: dict[str, float] = {}
        for place, sigma in enumerate(OVERLAY_SIGMAS):
            generator, found = torch.Generator().manual_seed(place), []
            for x in pictures:
                crop = x[..., :OVERLAY_SIDE, :OVERLAY_SIDE].expand(OVERLAY_TIMES, -1, -1, -1)
                level = torch.full((len(crop),), sigma / 255)
                restored = denoised(crop, level, generator)
                found.append(float(OverlayLoss(model).of(restored, crop, level, generator)))
            row[f"loss_{sigma:g}"] = sum(found) / len(found)
        return {**row, "validation": sum(row.values()) / len(row)}


SUBJECTS: dict[str, Subject] = {
    **{name: CodecSubject(architecture) for name, architecture in ARCHITECTURES.items()},
    "denoiser": DenoiserSubject(),
    "cap": OverlaySubject("cap", '{"told": true}'),
    "flow": OverlaySubject("flow"),
}
