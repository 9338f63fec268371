"""The training loop: resumable at any moment, and ready for ``torchrun``.

All randomness of a step comes from a generator seeded by (seed, step, rank), so a run that was killed and resumed
takes the same steps as one that was not.
"""

from __future__ import annotations

import copy
import csv
import io
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn
from tqdm import tqdm

from bayesq.errors import TrainingError
from bayesq.io import atomic_write
from bayesq.training.data import Crops, find_pictures, read_rgb
from bayesq.training.muon import Muon, is_kernel
from bayesq.training.subjects import Subject

CHECKPOINT, WEIGHTS, LOG = "checkpoint.safetensors", "weights.safetensors", "log.csv"
MOMENTS = "mean", "exp_avg", "exp_avg_sq"


@dataclass(frozen=True)
class Settings:
    """What a run depends on besides its pictures and its subject.

    Attributes:
        steps: Length of the run.
        batch: Crops per step and process.
        crop: Side of the square crops, pixels, a multiple of the networks' padding.
        rate: Peak learning rate, of Muon for the kernels of convolutions and of Adam for all else.
        warmup: Steps of linear warm-up.
        decay: Share of the run, at its end, over which the rate falls to 1/50 along a cosine.
        clip: Largest gradient norm.
        ema: Decay of the averaged weights, which are those that are validated and released.
        seed: Of initialisation, crops, qualities and noise; less than 2²⁴, and not below −2²³.
        every: Steps between validations and checkpoints.
        start: Crops whose statistics the networks start from.

    Raises:
        TrainingError: a number makes no sense.
    """

    steps: int = 20_000
    batch: int = 8
    crop: int = 128
    rate: float = 6e-4
    warmup: int = 250
    decay: float = 0.5
    clip: float = 2.0
    ema: float = 0.998
    seed: int = 0
    every: int = 250
    start: int = 3072

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "crop", "every"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 <= self.rate < math.inf:
            raise TrainingError(f"the learning rate must be finite and not negative, not {self.rate}")
        if not -(1 << 23) <= self.seed < 1 << 24:  # what _Trainer._generator has room for
            raise TrainingError(f"a seed is at least {-(1 << 23)} and less than {1 << 24}, not {self.seed}")

    def learning_rate(self, step: int) -> float:
        """Warm-up, plateau, cosine decay."""
        ramp = min(1.0, (step + 1) / max(1, self.warmup))
        start = self.steps * (1 - self.decay)
        progress = min(1.0, max(0.0, (step - start) / max(1.0, self.steps - start)))
        return self.rate * ramp * (0.02 + 0.98 * (1 + math.cos(math.pi * progress)) / 2)


@dataclass(frozen=True)
class Progress:
    """Where a run is: steps taken, seconds spent, and the rows of its log."""

    step: int
    seconds: float
    log: tuple[dict[str, float], ...]


def train(
    data: list[Path],
    out: Path,
    settings: Settings,
    subject: Subject,
    validation: Path | None = None,
    resume: bool = False,
    quiet: bool = False,
    weights: Path | None = None,
) -> Path:
    """Trains networks; returns the path of their weights, which exist from the first checkpoint on.

    Args:
        data: Folders of photographs.
        out: Folder of the run: checkpoint, exported weights and ``log.csv``.
        settings: See ``Settings``; a resumed run may change all but the seed.
        subject: What to train; a resumed run keeps its sizes.
        validation: Folder of held-out pictures.
        resume: Continue the run in ``out``; without it ``out`` must hold none.
        quiet: No progress bar.
        weights: Trained weights to start from; their sizes count instead of the subject's.

    Raises:
        ModelError: ``weights`` cannot be read or trained on.
        TrainingError: no pictures, crops of a size that does not fit, or ``out`` does not match ``resume``.
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        dist.init_process_group("gloo")
    try:
        paths = find_pictures([validation]) if validation else []
        held_out = [read_rgb(path)[None].float() / 255 for path in paths]
        crops = Crops(find_pictures(data), subject.rich)
        trainer = _Trainer(subject, crops, settings, rank)
        checkpoint = out / CHECKPOINT
        if resume:
            trainer.restore(checkpoint)
        elif checkpoint.exists():
            raise TrainingError(f"{checkpoint} exists: resume it, or choose another folder")
        else:
            trainer.start(weights)
        _run(trainer, out, held_out, world, quiet or rank > 0)
    finally:
        if world > 1:
            dist.destroy_process_group()
    return out / WEIGHTS


def _run(trainer: _Trainer, out: Path, held_out: list[Tensor], world: int, quiet: bool) -> None:
    settings = trainer.settings
    criterion = trainer.subject.criterion(trainer.model)
    criterion = nn.parallel.DistributedDataParallel(criterion) if world > 1 else criterion
    bar = tqdm(total=settings.steps, initial=trainer.progress.step, unit="step", disable=True if quiet else None)
    with bar:
        while trainer.progress.step < settings.steps:
            value = trainer.step(criterion)
            bar.update()
            bar.set_postfix(loss=f"{value:.3f}")
            step = trainer.progress.step
            if trainer.rank == 0 and (step % settings.every == 0 or step == settings.steps):
                trainer.validate(value, held_out)
                trainer.save(out)
    if trainer.rank == 0:
        trainer.finish(out)


class _Trainer:
    """Everything a checkpoint holds: the networks, their average, the optimisers and the progress."""

    def __init__(self, subject: Subject, crops: Crops, settings: Settings, rank: int) -> None:
        self.subject, self.crops, self.settings, self.rank = subject, crops, settings, rank
        self.progress = Progress(0, 0.0, ())
        self.lost = 0

    def start(self, weights: Path | None) -> None:
        if weights:
            return self._adopt(self.subject.load(weights))
        with torch.random.fork_rng():
            torch.manual_seed(self.settings.seed)
            self._adopt(self.subject.build())
        generator = torch.Generator().manual_seed(self.settings.seed)
        self.subject.start(self.model, self.crops, generator, self.settings.start)
        self.average.load_state_dict(self.model.state_dict())

    def _adopt(self, model: Any) -> None:
        if self.settings.crop % model.multiple:
            raise TrainingError(f"the side of a crop must be a multiple of {model.multiple}, not {self.settings.crop}")
        self.model, self.average = model, copy.deepcopy(model).requires_grad_(False)
        rate = self.settings.rate
        self.optimisers = (
            Muon(self._groups(is_kernel), lr=rate),
            torch.optim.Adam(self._groups(lambda parameter: not is_kernel(parameter)), lr=rate, fused=True),
        )

    def _groups(self, chosen: Callable[[nn.Parameter], bool]) -> list[dict[str, Any]]:
        """The chosen parameters, one group for each share of the learning rate."""
        shares: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self.model.named_parameters():
            if chosen(parameter):
                shares.setdefault(self.subject.rate_share(self.model, name), []).append(parameter)
        return [{"params": parameters, "share": share} for share, parameters in shares.items()]

    def _generator(self) -> torch.Generator:
        place = (self.settings.seed << 40) + (self.progress.step << 12) + self.rank
        return torch.Generator().manual_seed(place)

    def step(self, criterion: nn.Module) -> float:
        """One step; returns the loss before it.

        A gradient that is not finite leaves the weights as they are. Raises TrainingError if ten in a row are not.
        """
        began, settings, generator = time.perf_counter(), self.settings, self._generator()
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["share"] * settings.learning_rate(self.progress.step)
            optimiser.zero_grad()
        x = self.crops.draw(settings.batch, settings.crop, generator)
        loss = criterion(x, generator)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip)
        self.lost = 0 if torch.isfinite(norm) else self.lost + 1
        if self.lost == 10:
            raise TrainingError(f"no finite gradient at step {self.progress.step}: resume at a smaller --rate")
        if not self.lost:
            for optimiser in self.optimisers:
                optimiser.step()
        step = self.progress.step + 1
        decay = min(settings.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)
        self.progress = replace(self.progress, step=step, seconds=self.progress.seconds + time.perf_counter() - began)
        return float(loss.detach())

    @torch.inference_mode()
    def validate(self, loss: float, held_out: list[Tensor]) -> None:
        """Adds a row to the log: the scores of the averaged weights on held-out pictures."""
        row = {
            "step": self.progress.step,
            "hours": round(self.progress.seconds / 3600, 4),
            "learning_rate": self.settings.learning_rate(self.progress.step),
            "loss": loss,
        }
        row |= self.subject.scores(self.average, held_out) if held_out else {}
        self.progress = replace(self.progress, log=(*self.progress.log, row))

    def save(self, out: Path) -> None:
        """Writes weights, log and checkpoint, each atomically; the last, so that a resumed run rewrites the others."""
        out.mkdir(parents=True, exist_ok=True)
        state = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        state |= {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            moments = {
                key: value for optimiser in self.optimisers for key, value in optimiser.state.get(parameter, {}).items()
            }
            state |= {f"{key}.{name}": moments[key] for key in MOMENTS if key in moments}
        header = {
            "sizes": self.subject.sizes(self.model),
            "settings": json.dumps(asdict(self.settings)),
            "progress": json.dumps(asdict(self.progress)),
        }
        state = {name: tensor.contiguous() for name, tensor in state.items()}
        self.average.save(out / WEIGHTS)
        atomic_write(out / LOG, _csv(self.progress.log))
        atomic_write(out / CHECKPOINT, safetensors_bytes(state, metadata=header))

    def finish(self, out: Path) -> None:
        """Writes the weights once more, with what could only be done at the end."""
        self.subject.finish(self.average, self.crops, self._generator(), self.settings.crop)
        self.average.save(out / WEIGHTS)

    def restore(self, path: Path) -> None:
        """Continues from a checkpoint."""
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata()
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            model = self.subject.build(header["sizes"])
            progress, settings = json.loads(header["progress"]), json.loads(header["settings"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise TrainingError(f"{path}: no run to resume ({error})") from error
        if settings["seed"] != self.settings.seed:
            raise TrainingError(f"{path}: the run was seeded with {settings['seed']}, not {self.settings.seed}")
        self._adopt(model)
        for part, module in (("model.", self.model), ("average.", self.average)):
            module.load_state_dict({k.removeprefix(part): v for k, v in state.items() if k.startswith(part)})
        self.progress = Progress(progress["step"], progress["seconds"], tuple(progress["log"]))
        muon, adam = self.optimisers
        for name, parameter in self.model.named_parameters():
            moments = {
                key: torch.empty_like(parameter).copy_(state[f"{key}.{name}"])
                for key in MOMENTS
                if f"{key}.{name}" in state
            }
            if is_kernel(parameter):
                muon.state[parameter] = moments
            else:
                adam.state[parameter] = moments | {"step": torch.tensor(float(self.progress.step))}


def _csv(rows: tuple[dict[str, float], ...]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[-1]) if rows else [], extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
