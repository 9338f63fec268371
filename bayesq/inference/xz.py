"""VBLE-xz: cells of the latents, and for every pixel how far the picture strays from what they decode to.

The decoder errs: p(x | z) = N(g_s(z), γ²), with a deviation γ that depends on the quality and on how much is going on
in the picture. The approximation is q(x, z) = N(x; g_s(z), b² γ²) q(z) with cells q(z) as in ``VBLE`` and one factor b
for every value of the picture; what it climbs is

    E_q[ log p(y | x) ] + w · ( E_q[ log p(z) ] + Σ log width − ½ Σ (b² − 1 − log b²) )

(Biquard et al. 2024, arXiv 2412.04130). It takes any likelihood. For white noise behind a linear operator the picture
can be integrated out instead, which ``bayesq.restore`` does with every algorithm (``bayesq.likelihoods.DecoderError``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from bayesq.cells import Cell
from bayesq.codec import Codec
from bayesq.errors import ModelError
from bayesq.inference.base import Info, Posterior
from bayesq.inference.vble import CLIP, VBLE, Search, cosine
from bayesq.io import atomic_write
from bayesq.networks.rate import decoder_error
from bayesq.prior import drive

FILE = "decoder-error.json"
FACTOR_MIN, FACTOR_MAX = 1e-4, 3.0
LEVELS = (0, 64, 128, 192, 255)
ACTIVITIES = (0.0, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16)
WINDOW = 5


@dataclass(frozen=True)
class ErrorTable:
    """γ by quality level and local activity, between which it is interpolated.

    Attributes:
        model: Hexadecimal id of the model that this is for.
        levels, activities: Increasing.
        deviations: γ in image units, a row for each level and a column for each activity.
    """

    model: str
    levels: tuple[int, ...]
    activities: tuple[float, ...]
    deviations: tuple[tuple[float, ...], ...]

    def __call__(self, picture: Tensor, level: Tensor) -> Tensor:
        """γ ``(B, 1, H, W)`` of decoded pictures ``(B, 3, H, W)`` of levels ``(B,)``."""
        table = torch.tensor(self.deviations)
        row, above = _between(torch.tensor(self.levels, dtype=torch.float32), level.float())
        rows = table[row] + above[:, None] * (table[row + 1] - table[row])
        column, share = _between(torch.tensor(self.activities), activity(picture))
        left, right = (rows.gather(1, (column + k).flatten(1)).view_as(share) for k in (0, 1))
        return left + share * (right - left)

    def save(self, path: Path) -> None:
        """Writes the table as JSON."""
        atomic_write(path, (json.dumps(asdict(self), indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: Path) -> ErrorTable:
        """Reads what ``save`` wrote. Raises ModelError if the file is something else."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            rows = tuple(tuple(map(float, row)) for row in values["deviations"])
            table = cls(values["model"], tuple(values["levels"]), tuple(values["activities"]), rows)
            fits = len(rows) == len(table.levels) > 1 and all(len(row) == len(table.activities) > 1 for row in rows)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ModelError(f"{path}: not a readable table of errors ({error})") from error
        if not fits:
            raise ModelError(f"{path}: not a table of errors: its sides do not fit")
        return table

    @classmethod
    def of_theory(cls, model: str) -> ErrorTable:
        """γ that the training's trade-off says, the same for all activities; see ``networks.rate.decoder_error``."""
        rows = tuple((decoder_error(level),) * 2 for level in LEVELS)
        return cls(model, LEVELS, (0.0, 1.0), rows)

    @classmethod
    @torch.no_grad()
    def fit(cls, codec: Codec, pictures: Iterable[Tensor], generator: torch.Generator) -> ErrorTable:
        """Measures γ on pictures ``(B, 3, H, W)``: their distance from what their dithered latents decode to.

        What is rare in the pictures is drawn towards the mean of its level.
        """
        edges = torch.tensor(ACTIVITIES)
        squares, counts = torch.zeros(2, len(LEVELS), len(edges)).double()
        for x in pictures:
            for n, number in enumerate(LEVELS):
                level = torch.full((len(x),), number)
                found = _decoded(codec, x, level, generator)
                column, share = _between(edges, activity(found))
                error = (x - found).square().mean(1, keepdim=True)
                for k, weight in ((0, 1 - share), (1, share)):
                    index = (column + k).flatten()
                    squares[n].index_add_(0, index, (weight * error).flatten().double())
                    counts[n].index_add_(0, index, weight.flatten().double())
        smooth = counts.mean() * 1e-3
        mean = squares.sum(1, keepdim=True) / counts.sum(1, keepdim=True)
        table = ((squares + smooth * mean) / (counts + smooth)).sqrt()
        rows = tuple(tuple(round(float(v), 6) for v in row) for row in table)
        return cls(codec.model_id.hex(), LEVELS, ACTIVITIES, rows)


def activity(x: Tensor) -> Tensor:
    """Standard deviation of pictures ``(B, 3, H, W)`` in a square window, channels together: ``(B, 1, H, W)``."""

    def blur(v: Tensor) -> Tensor:
        return F.avg_pool2d(v, WINDOW, 1, WINDOW // 2, count_include_pad=False)

    return (blur(x.square()) - blur(x).square()).mean(1, keepdim=True).clamp_min(0).sqrt()


def _decoded(codec: Codec, x: Tensor, level: Tensor, generator: torch.Generator) -> Tensor:
    size = len(x), x.shape[-2], x.shape[-1]
    targets = codec.targets(x, level)
    dithered = drive(codec.walk(*size, level), lambda n, p: p.quantizer().dither(targets[n], generator))
    return codec.picture(dithered, *size[1:], level)


def _between(ticks: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the tick below each value, and how far it is to the next, both kept within the ticks."""
    index = (torch.searchsorted(ticks, value.contiguous(), right=True) - 1).clamp(0, len(ticks) - 2)
    return index, ((value - ticks[index]) / (ticks[index + 1] - ticks[index])).clamp(0, 1)


def of_model(codec: Codec) -> ErrorTable:
    """The table beside a model's weights, or that of theory where there is none or it is for other weights."""
    path = codec.folder / FILE if codec.folder else None
    if path is not None and path.is_file():
        found = ErrorTable.load(path)
        if found.model == codec.model_id.hex():
            return found
    return ErrorTable.of_theory(codec.model_id.hex())


@dataclass(frozen=True)
class Joint(Search):
    """State of a search over cells and pixels.

    Attributes:
        log_factor: ``(B, 3, H, W)`` log b.
    """

    log_factor: Tensor = field(kw_only=True)

    @property
    def factor(self) -> Tensor:
        return self.log_factor.clamp(math.log(FACTOR_MIN), math.log(FACTOR_MAX)).exp()


@dataclass(frozen=True)
class VBLExz:
    """Uniform laws of the latents, and normal ones of the pixels given them.

    Attributes:
        posterior, steps, rate: As for ``VBLE``.
        errors: The decoder's errors; by default those of the model (``of_model``).
    """

    posterior: Posterior
    steps: int
    rate: float = 0.1
    errors: ErrorTable | None = None

    @cached_property
    def _errors(self) -> ErrorTable:
        return self.errors or of_model(self.posterior.model)

    def init(self, x0: Tensor) -> Joint:
        search = VBLE(self.posterior, self.steps, self.rate).init(x0)
        log_factor = torch.zeros_like(x0, requires_grad=True)
        search.optimiser.add_param_group({"params": [log_factor]})
        return Joint(search.centres, search.log_widths, search.optimiser, log_factor=log_factor)

    def step(self, state: Joint, generator: torch.Generator) -> tuple[Joint, Info]:
        weight, cells, factor = self.posterior.prior_weight, state.cells, state.factor
        values = [cell.sample(1, generator)[0] for cell in cells]
        picture = self.posterior.picture(values)
        log_likelihood = self.posterior.log_likelihood_of_picture(self._stray(state, picture, generator))
        log_prior = self.posterior.log_prior(values)
        entropy = torch.stack([cell.width.log().flatten(1).sum(1) for cell in cells]).sum(0)
        divergence = (factor.square() - 1 - 2 * factor.log()).flatten(1).sum(1) / 2
        bound = log_likelihood + weight * (log_prior + entropy - divergence)
        for group in state.optimiser.param_groups:
            group["lr"] = cosine(self.rate, state.count, self.steps)
        state.optimiser.zero_grad()
        (-bound.sum() / math.prod(self.posterior.size)).backward()
        torch.nn.utils.clip_grad_norm_([*state.centres, *state.log_widths], CLIP * math.sqrt(len(bound)))
        state.optimiser.step()
        elbo, fit, prior = (float(term.detach().sum()) for term in (bound, log_likelihood, log_prior))
        return replace(state, count=state.count + 1), Info(elbo, fit, -prior / math.log(2))

    def cells(self, state: Joint) -> list[Cell]:
        return state.cells

    @torch.no_grad()
    def sample(self, state: Joint, n: int, generator: torch.Generator) -> Tensor:
        pictures = self.posterior.pictures([cell.sample(n, generator) for cell in state.cells])
        return torch.stack([self._stray(state, picture, generator).clamp(0, 1) for picture in pictures])

    def _stray(self, state: Joint, picture: Tensor, generator: torch.Generator) -> Tensor:
        """A draw of q(x | z), the picture being g_s(z)."""
        deviation = state.factor * self._errors(picture.detach(), self.posterior.level)
        return picture + deviation * torch.randn(picture.shape, generator=generator).to(picture)
