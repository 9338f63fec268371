"""The codec: analysis, prior and synthesis, saved and loaded as one model.

      x ─► g_a ─► z ─► prior walk: h, z₁, z₂ ─► bytes ─► the same walk ─► z ─► g_s ─► x̂

Notation follows VBLE: the image latent is z and the hyper-latent h (CompressAI's y and z).
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bayesq.architecture import Architecture
from bayesq.coder import Tables
from bayesq.errors import ImageError, ModelError
from bayesq.hyperprior import Hyperprior
from bayesq.io import atomic_write
from bayesq.networks.integer import TrainableIntegerConv, check_layers, exact_arithmetic
from bayesq.networks.transforms import BLOCK, Analysis, Synthesis
from bayesq.prior import Coded, LatentPrior, Walk, decode, encode, information, quantize, sample_within
from bayesq.runtime import Runtime, choose
from bayesq.weights import pack, unpack

if TYPE_CHECKING:
    from compressai.models import CompressionModel

    from bayesq.bitstream import Box
    from bayesq.quantization.dynamic import Selector
    from bayesq.tiling import Index

FORMAT = "bayesq-codec-2"
REACH = 3
"""Latents around a tile that foreign transforms see with it; ours tell their own ``reach``."""


class Codec(nn.Module):
    """A compressive autoencoder with its latent prior.

    Args:
        analysis: g_a, called with padded pictures ``(B, 3, H, W)`` and levels ``(B,)``.
        synthesis: g_s, called with z and levels.
        prior: The law of z.
        reduction: How many times smaller than the picture z is.
        multiple: Pictures are padded to a multiple of this.
        architecture: What ``save`` needs to know to rebuild the networks; None for foreign models.
    """

    def __init__(
        self,
        analysis: nn.Module,
        synthesis: nn.Module,
        prior: LatentPrior,
        reduction: int,
        multiple: int,
        architecture: Architecture | None = None,
    ) -> None:
        super().__init__()
        self.analysis, self.synthesis, self.prior = analysis, synthesis, prior
        self.reduction, self.multiple, self.architecture = reduction, multiple, architecture
        self.context, self.margin = (getattr(part, "reach", REACH) for part in (analysis, synthesis))
        self.name = "unnamed"
        self.model_id = bytes(8)
        self.reads: bytes | None = None
        self.folder: Path | None = None
        self.selector: Selector | None = None
        self._runtime: Runtime | None = None
        self._precisions: dict[int, Codec] = {}

    @property
    def runtime(self) -> Runtime:
        """What runs g_a and g_s where no gradients are needed; if none is set, chosen when first needed."""
        if self._runtime is None:
            self._runtime = choose(self)
        return self._runtime

    @runtime.setter
    def runtime(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def __getstate__(self) -> dict[str, Any]:
        """Without the runtime and the like, which are those of this codec and of no copy."""
        return {**self.__dict__, "_runtime": None, "_precisions": {}}

    def at(self, precision: int) -> Codec:
        """The codec whose g_s takes in values of another of its precisions; itself if it has none of that number."""
        if self.selector is None or not 1 <= precision < self.selector.precisions:
            return self
        if precision not in self._precisions:
            from bayesq.quantization.dynamic import at

            self._precisions[precision] = at(self, precision)
        return self._precisions[precision]

    @classmethod
    def build(cls, architecture: Architecture) -> Codec:
        """An untrained, trainable codec of the library's own design."""
        a = architecture
        prior = Hyperprior(a.latents, a.leading, a.hyper, a.prior_width, a.ways, a.seen, a.certain)
        codec = cls(
            Analysis(a.latents),
            Synthesis(a.latents, a.widths, a.depths),
            prior,
            reduction=BLOCK,
            multiple=BLOCK * prior.stride,
            architecture=a,
        )
        return codec.to(memory_format=torch.channels_last)

    @classmethod
    def from_compressai(cls, model: CompressionModel) -> Codec:
        """A CompressAI model as codec and prior; see ``bayesq.interop.compressai``."""
        from bayesq.interop.compressai import import_model

        return import_model(model)

    # Latents ---------------------------------------------------------------------------------------------------

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width rounded up to what the networks take."""
        return math.ceil(height / self.multiple) * self.multiple, math.ceil(width / self.multiple) * self.multiple

    def targets(self, x: Tensor, level: Tensor, window: Box | None = None) -> list[Tensor]:
        """What the encoder would code along the walk, before quantisation.

        Args:
            x: ``(B, 3, H, W)`` in [0, 1], any size.
            level: ``(B,)`` int64 in 0…255.
            window: The part of x to code, left, top, right and bottom, all of it by default; the rest is context for
                g_a. Left and top are multiples of ``multiple``, as are right and bottom where they are not those of x.
        """
        z = self.analyse(x, level)
        return self.prior.targets(z if window is None else z[self.place(window)], level)

    def analyse(self, x: Tensor, level: Tensor) -> Tensor:
        """z ``(B, M, h, w)`` of pictures of any size, padded, before quantisation, by the codec's runtime."""
        height, width = self.padded_size(*x.shape[-2:])
        if x.shape[-2:] != (height, width):
            x = F.pad(x, (0, width - x.shape[-1], 0, height - x.shape[-2]), mode="replicate")
        return self.runtime.analysis(x, level)

    def place(self, window: Box) -> Index:
        """Where the latents of a window are among those of the whole."""
        left, top = window[0] // self.reduction, window[1] // self.reduction
        height, width = (side // self.reduction for side in self.padded_size(*_size(window)))
        return ..., slice(top, top + height), slice(left, left + width)

    def walk(self, batch: int, height: int, width: int, level: Tensor) -> Walk:
        """The prior's walk for pictures of the given size."""
        height, width = self.padded_size(height, width)
        return self.prior.walk((batch, height // self.reduction, width // self.reduction), level)

    def picture(self, values: Sequence[Tensor], height: int, width: int, level: Tensor) -> Tensor:
        """g_s of the values of a walk, ``(B, 3, H, W)``, not clipped."""
        return self.synthesis(self.prior.image_latent(values), level)[..., :height, :width]

    # Coding ----------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def quantize(self, x: Tensor, level: int) -> Coded:
        """The cells that code pictures ``(B, 3, H, W)``."""
        levels, (height, width) = self._levels(level, len(x)), x.shape[-2:]
        with exact_arithmetic():
            return quantize(self.walk(len(x), height, width, levels), self.targets(self.checked(x), levels))

    @torch.inference_mode()
    def reconstruct(self, x: Tensor, level: int) -> tuple[Tensor, float]:
        """What ``decompress`` gives back for x, and the bits that the prior asks for it."""
        coded = self.quantize(x, level)
        picture = self.synthesize(self.prior.image_latent(coded.values), level)
        return picture[..., : x.shape[-2], : x.shape[-1]], float(coded.nats.sum()) / math.log(2)

    @torch.inference_mode()
    def compress(self, x: Tensor, level: int, window: Box | None = None) -> bytes:
        """Entropy-coded payload of one picture ``(1, 3, H, W)`` in [0, 1] at a quality level in 0…255.

        Args:
            x: The picture.
            level: The quality level.
            window: What of it is coded, as for ``targets``: a tile in its surroundings.

        Raises:
            ImageError: the picture holds NaN or infinity.
        """
        height, width = x.shape[-2:] if window is None else _size(window)
        with exact_arithmetic():
            targets = self.targets(self.checked(x), self._levels(level, 1), window)
        return self.pack(targets, height, width, level)

    @torch.inference_mode()
    def pack(self, targets: Sequence[Tensor], height: int, width: int, level: int) -> bytes:
        """Entropy-coded payload of latents in the order of the walk, of one picture or tile of that size."""
        with exact_arithmetic():
            return encode(self.walk(1, height, width, self._levels(level, 1)), targets)

    @torch.inference_mode()
    def latents(self, payload: bytes, height: int, width: int, level: int) -> Tensor:
        """z ``(1, M, h, w)`` of the picture, padded, that a payload stands for.

        Raises:
            BitstreamError: the payload is not one that ``compress`` wrote with this model at this size and level.
        """
        with exact_arithmetic():
            return self.prior.image_latent(decode(self.walk(1, height, width, self._levels(level, 1)), payload))

    @torch.inference_mode()
    def sample_latents(
        self, payload: bytes, height: int, width: int, level: int, n: int, generator: torch.Generator
    ) -> Tensor:
        """n latents ``(n, M, h, w)`` that the payload may stand for: drawn from the prior within its cells."""
        levels = self._levels(level, 1)
        with exact_arithmetic():
            decoded = decode(self.walk(1, height, width, levels), payload)
            draws = sample_within(self.walk(1, height, width, levels), decoded, n, generator)
        return torch.cat([self.prior.image_latent(values) for values in draws])

    @torch.inference_mode()
    def synthesize(self, z: Tensor, level: int) -> Tensor:
        """Pictures ``(B, 3, H, W)`` in [0, 1] of latents ``(B, M, h, w)``, one after the other to save memory."""
        levels = self._levels(level, 1)
        pictures = [self.runtime.synthesis(one, levels).clamp_(0, 1) for one in z.split(1)]
        return torch.cat(pictures) if len(pictures) > 1 else pictures[0]

    def decompress(self, payload: bytes, height: int, width: int, level: int) -> Tensor:
        """The picture ``(1, 3, H, W)`` in [0, 1] that a payload stands for; raises as ``latents``."""
        return self.synthesize(self.latents(payload, height, width, level), level)[..., :height, :width]

    def sample_decode(
        self, payload: bytes, height: int, width: int, level: int, n: int, generator: torch.Generator
    ) -> Tensor:
        """n pictures ``(n, 1, 3, H, W)`` that the payload may stand for, of ``sample_latents``."""
        z = self.sample_latents(payload, height, width, level, n, generator)
        return self.synthesize(z, level)[:, None, :, :height, :width]

    @torch.inference_mode()
    def bit_map(self, payload: bytes, height: int, width: int, level: int) -> Tensor:
        """Bits of a payload by pixel ``(1, 1, H, W)``: those of each latent, spread evenly over the pixels it is for.

        Adds up to the payload but for its last words. Latents of the padding count for the pixels beside it.
        """
        levels = self._levels(level, 1)
        with exact_arithmetic():
            decoded = decode(self.walk(1, height, width, levels), payload)
            nats = information(self.walk(1, height, width, levels), decoded)
        padded = self.padded_size(height, width)
        result = torch.zeros(1, 1, height, width)
        for part in nats:
            bits = part.sum(1, keepdim=True).float() / math.log(2)
            rows, columns = (
                _shares(count, side // count, length)
                for count, side, length in zip(bits.shape[-2:], padded, (height, width), strict=True)
            )
            result += rows @ bits @ columns.mT
        return result

    @staticmethod
    def checked(x: Tensor) -> Tensor:
        """x itself. Raises ImageError if it holds NaN or infinity."""
        in_memory_order = x.movedim(-3, -1)  # mostly: several times as fast
        if not torch.isfinite(torch.stack(torch.aminmax(in_memory_order))).all():
            raise ImageError("the picture holds values that are not finite")
        return x

    @staticmethod
    def _levels(level: int, batch: int) -> Tensor:
        if not 0 <= level <= 255:
            raise ModelError(f"a quality level is 0 to 255, not {level}")
        return torch.full((batch,), level, dtype=torch.int64)

    # Files -----------------------------------------------------------------------------------------------------

    @property
    def own_prior(self) -> Hyperprior:
        """The prior, of bayesq's own design. Raises ModelError if it is a foreign one."""
        if not isinstance(self.prior, Hyperprior):
            raise ModelError("only codecs of bayesq's own design can be exported")
        return self.prior

    def exported(self) -> Codec:
        """A copy as it is released: the scale path in integers, everything else rounded to half precision.

        The rounding moves weights by at most 2⁻¹¹ of their size and halves the file; symbols don't depend on it.

        Raises:
            ModelError: a layer breaks the bound that makes it exact, or the codec is a foreign one.
        """
        codec = copy.deepcopy(self)
        codec.own_prior.export()
        for parameter in codec.parameters():
            parameter.data = parameter.data.half().float()
        return codec.eval().requires_grad_(False)

    def save(self, path: Path) -> bytes:
        """Writes the exported codec as safetensors, atomically. Returns the SHA-256 of the file.

        A quantised codec that shares the id of the model that it was made of (see ``bayesq.quantization``) tells it in
        the file, as ``reads``.
        """
        from bayesq.quantization.layers import described

        codec = self.exported()
        tables = codec.own_prior.tables
        assert tables is not None and self.architecture is not None
        state = {
            name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in codec.state_dict().items()
        }
        state["tables.cdf"] = torch.from_numpy(tables.cdf)
        header = {"format": FORMAT, "architecture": json.dumps(asdict(self.architecture))}
        if quantised := described(codec):
            header["quantization"] = quantised
            if codec.reads is not None:
                header["reads"] = codec.reads.hex()
        data = pack(state, header)
        atomic_write(path, data)
        return hashlib.sha256(data).digest()

    @classmethod
    def load(cls, path: Path, sha256: bytes | None = None) -> Codec:
        """A codec from its weights file, ready to code and to restore with.

        Args:
            path: The file.
            sha256: Its SHA-256, if that is known.

        Raises:
            ModelError: the file is missing or damaged, or holds no codec of this version.
        """
        path = Path(path)
        state, metadata = unpack(path)
        if metadata.get("format") != FORMAT:
            raise ModelError(f"{path}: not the weights of a bayesq codec of this version")
        try:
            tables = Tables(state.pop("tables.cdf").numpy())
            with _NoInitialisation():
                codec = cls.build(Architecture.from_json(metadata["architecture"]))
            codec.own_prior.blank(tables)
            if "quantization" in metadata:
                from bayesq.quantization.layers import install

                install(codec, metadata["quantization"], state)
            codec.load_state_dict(state)
            reads = bytes.fromhex(metadata["reads"]) if "reads" in metadata else None
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = shorten(str(error), 200)
            raise ModelError(f"{path}: the weights do not fit their architecture ({reason})") from error
        check_layers(codec.own_prior)
        codec.eval().requires_grad_(False)
        codec.folder, codec.name, codec.reads = path.parent, path.parent.name, reads
        codec.model_id = reads or (sha256 or hashlib.sha256(path.read_bytes()).digest())[:8]
        return codec

    def trainable(self) -> Codec:
        """A copy with real weights in its scale path, to train. Raises ModelError for foreign or quantised codecs."""
        from bayesq.quantization.layers import described

        own = self.own_prior
        if described(self):
            raise ModelError("a quantised codec cannot be trained on")
        assert self.architecture is not None
        codec = Codec.build(self.architecture)
        codec.load_state_dict(self.state_dict(), strict=False)
        layers = dict(own.named_modules())
        for name, layer in codec.own_prior.named_modules():
            if isinstance(layer, TrainableIntegerConv):
                layer.adopt(layers[name])
        return codec


class _NoInitialisation(TorchFunctionMode):
    """Within the block, modules don't draw the weights that others are going to replace, which takes long."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def _size(box: Box) -> tuple[int, int]:
    left, top, right, bottom = box
    return bottom - top, right - left


def _shares(count: int, pixels: int, length: int) -> Tensor:
    """What each of ``length`` pixels has of each of ``count`` latents: ``(length, count)``, columns sum to 1."""
    owner = torch.arange(length) // pixels
    nearest = torch.arange(count).clamp_max(int(owner[-1]))
    mine = (owner[:, None] == nearest).float()
    return mine / mine.sum(0)
