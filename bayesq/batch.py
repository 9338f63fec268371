"""Many files: every picture below one folder to its place below another, in this process or on a Dask cluster.

What is done already is left alone, so that a run that was interrupted goes on where it stopped; outputs appear whole
or not at all. A file that fails is told of, and the others go on.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from bayesq import files, zoo
from bayesq.errors import BayesqError
from bayesq.io import SUFFIXES, atomic_write, read_image, write_image
from bayesq.quality import level_of

if TYPE_CHECKING:
    from distributed import Client

SUBMITTED = 1000
"""Files that a cluster is given at a time."""


class Job(Protocol):
    """What is done to each file. Travels to other processes by pickle."""

    sources: ClassVar[frozenset[str]]
    """The suffixes of its inputs, in small letters."""
    suffix: ClassVar[str]
    """That of its outputs."""

    def is_done(self, source: Path, target: Path) -> bool:
        """Whether ``target``, which is not older than ``source``, is already what ``write`` would write."""

    def write(self, source: Path, target: Path) -> None:
        """Makes ``target`` from ``source``."""


@dataclass(frozen=True)
class Encode:
    """Pictures to ``.bq`` files.

    Attributes:
        quality: 0 (smallest) to 100 (best).
        model: A name or a weights file that every worker has.

    Raises:
        ModelError: the quality is out of range, or the model unknown.
    """

    quality: float
    model: str = "base"

    sources: ClassVar = SUFFIXES
    suffix: ClassVar = ".bq"

    def __post_init__(self) -> None:
        level_of(self.quality)
        zoo.sha256(self.model)

    def is_done(self, source: Path, target: Path) -> bool:
        it = files.describe(target.read_bytes())
        return it.intact and it.level == level_of(self.quality) and it.model_id == zoo.sha256(self.model)[:16]

    def write(self, source: Path, target: Path) -> None:
        atomic_write(target, files.encode(read_image(source), zoo.shared(self.model), self.quality))


@dataclass(frozen=True)
class Decode:
    """``.bq`` files to pictures, by the model that each names, or by the given one."""

    model: str | None = None

    sources: ClassVar = frozenset({".bq"})
    suffix: ClassVar = ".png"

    def is_done(self, source: Path, target: Path) -> bool:
        return True

    def write(self, source: Path, target: Path) -> None:
        codec = zoo.shared(self.model) if self.model else None
        write_image(files.decode(source.read_bytes(), codec), target)


@dataclass(frozen=True)
class Outcome:
    """What became of one file."""

    source: Path
    target: Path
    bytes: int = 0
    """Length of the target."""
    seconds: float = 0.0
    skipped: bool = False
    """Whether it was there already."""
    error: str | None = None
    """Why there is none, in one line."""


def plan(job: Job, source: str | Path, target: str | Path) -> list[tuple[Path, Path]]:
    """The files below ``source`` that a job takes, sorted, and where below ``target`` their results belong.

    Hidden files and folders are left out. ``a.png`` and ``a.jpg`` beside one another keep their suffixes: they become
    ``a.png.bq`` and ``a.jpg.bq``.

    Raises:
        BayesqError: ``source`` is no folder, or there are none.
    """
    top, out = Path(source).resolve(), Path(target).resolve()
    found = []
    for folder, folders, names in os.walk(top):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = [Path(folder, name) for name in names if not name.startswith(".")]
        found += [path.relative_to(top) for path in paths if path.suffix.lower() in job.sources]
    if not found:
        raise BayesqError(f"{source}: no files here that end in {', '.join(sorted(job.sources))}")
    results = Counter(path.with_suffix(job.suffix) for path in found)
    alone = {path: results[path.with_suffix(job.suffix)] == 1 for path in found}
    return [
        (top / path, out / (path.with_suffix(job.suffix) if alone[path] else Path(f"{path}{job.suffix}")))
        for path in sorted(found)
    ]


def do(job: Job, source: Path, target: Path) -> Outcome:
    """Does a job on one file, if it is not done. Whatever goes wrong is in the outcome."""
    start = time.perf_counter()
    try:
        skipped = _is_done(job, source, target)
        if not skipped:
            target.parent.mkdir(parents=True, exist_ok=True)
            job.write(source, target)
        return Outcome(source, target, target.stat().st_size, time.perf_counter() - start, skipped)
    except Exception as error:  # one file's trouble, of whatever kind, is not the others'
        return Outcome(source, target, seconds=time.perf_counter() - start, error=_reason(error))


def run(
    job: Job, pairs: Sequence[tuple[Path, Path]], workers: int = 1, scheduler: str | None = None
) -> Iterator[Outcome]:
    """Does a job on files; the outcomes come as they are ready.

    Args:
        job: what is done.
        pairs: sources and targets, as ``plan`` gives them.
        workers: more than 1: processes of a Dask cluster that lives as long as the iteration; 1: in this process.
        scheduler: address of a Dask scheduler that runs already, such as ``tcp://host:8786``; then its workers do it.

    Raises:
        BayesqError: Dask is needed and not installed.
        OSError: there is no scheduler at the address.
    """
    if scheduler is None and workers == 1:
        yield from (do(job, *pair) for pair in pairs)
    else:
        with cluster(workers, scheduler) as client:
            yield from run_on(client, job, pairs)


def run_on(client: Client, job: Job, pairs: Sequence[tuple[Path, Path]]) -> Iterator[Outcome]:
    """Does a job on files by the workers of a Dask cluster.

    Workers see the same files under the same names, and have bayesq and the job's model. Those with one thread each
    do best. Where workers die, of a picture's size perhaps, the files they had are tried once more, one at a time:
    only a file that kills a worker all by itself has failed.
    """
    from distributed import KilledWorker, as_completed

    waiting = iter(pairs)
    asked, suspects = {}, []

    def submit(count: int) -> list:
        futures = {client.submit(do, job, *pair, pure=False): pair for pair in islice(waiting, count)}
        asked.update(futures)
        return list(futures)

    running = as_completed(submit(SUBMITTED))
    for future in running:
        pair = asked.pop(future)
        try:
            yield future.result()
        except KilledWorker:
            suspects.append(pair)
        running.update(submit(1))
    for pair in suspects:
        try:
            yield client.submit(do, job, *pair, pure=False).result()
        except KilledWorker:
            yield Outcome(*pair, error="it killed its worker, perhaps for want of memory")


@contextmanager
def cluster(workers: int, scheduler: str | None = None) -> Iterator[Client]:
    """A client of the Dask cluster at an address, or of a new one of so many processes with a thread each."""
    try:
        import dask
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise BayesqError("several workers need Dask: pip install 'bayesq[cluster]'") from error
    if scheduler:
        with Client(scheduler) as client:
            yield client
    else:
        strictly = dask.config.set({"distributed.scheduler.allowed-failures": 0})
        quietly = {"dashboard_address": None, "silence_logs": logging.CRITICAL}  # the outcomes tell of failures
        with (
            strictly,
            LocalCluster(n_workers=workers, threads_per_worker=1, **quietly) as local,
            Client(local) as client,
        ):
            yield client


def _is_done(job: Job, source: Path, target: Path) -> bool:
    try:
        return target.stat().st_mtime_ns >= source.stat().st_mtime_ns and job.is_done(source, target)
    except OSError:
        return False


def _reason(error: BaseException) -> str:
    text = str(error) if isinstance(error, BayesqError | OSError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())
