"""Many files: every picture below one folder to its place below another, by one process, many, or a Dask cluster.

What is done already is left alone, so that a run that was interrupted goes on where it stopped; outputs appear whole
or not at all, and pictures are never replaced. A file that fails is told of, and the others go on.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import ClassVar, Protocol

from bayesq import files, zoo
from bayesq.cluster import connect
from bayesq.errors import BayesqError
from bayesq.io import SUFFIXES, atomic_write
from bayesq.quality import level_of
from bayesq.streams import decode_to, open_image

SUBMITTED = 1000
"""Files that a cluster is given at a time."""

Pair = tuple[Path, Path]
"""A source and its target."""


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
        effort: As for ``bayesq.encode``. Files do not tell theirs: one that is there counts as done at any.

    Raises:
        ModelError: the quality is out of range, or the model unknown.
    """

    quality: float
    model: str = "base"
    effort: int = 1

    sources: ClassVar = SUFFIXES
    suffix: ClassVar = ".bq"

    def __post_init__(self) -> None:
        level_of(self.quality)
        zoo.sha256(self.model)

    def is_done(self, source: Path, target: Path) -> bool:
        it = files.describe(target.read_bytes())
        return it.intact and it.level == level_of(self.quality) and it.model_id == zoo.model_id(self.model)

    def write(self, source: Path, target: Path) -> None:
        with open_image(source) as image:
            atomic_write(target, files.encode(image, zoo.shared(self.model), self.quality, self.effort))


@dataclass(frozen=True)
class Decode:
    """``.bq`` files to pictures, by the model that each names, or by the given one."""

    model: str | None = None

    sources: ClassVar = frozenset({".bq"})
    suffix: ClassVar = ".png"

    def is_done(self, source: Path, target: Path) -> bool:
        return True

    def write(self, source: Path, target: Path) -> None:
        keep_picture(target)
        codec = zoo.shared(self.model) if self.model else None
        with open(source, "rb") as file:
            decode_to(target, file, codec)


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
    """Why there is none, in one line that does not name the source."""


def plan(job: Job, source: str | Path, target: str | Path) -> list[Pair]:
    """The files below ``source`` that a job takes, sorted, and where below ``target`` their results belong.

    Hidden files and folders are left out, and so is ``target`` below ``source``. ``a.png`` and ``a.jpg`` beside one
    another keep their suffixes: they become ``a.png.bq`` and ``a.jpg.bq``, and so does an ``a.png.png`` beside them.

    Raises:
        BayesqError: ``source`` is no folder, or there are none; or it is ``target`` too, and the job would take its
            own results.
    """
    top, out = Path(source).resolve(), Path(target).resolve()
    if top == out and job.suffix in job.sources:
        raise BayesqError(f"{target}: is the input too, and results need a folder of their own")
    found = []
    for folder, folders, names in os.walk(top):
        folders[:] = [name for name in folders if not name.startswith(".") and Path(folder, name) != out]
        paths = [Path(folder, name) for name in names if not name.startswith(".")]
        found += [path.relative_to(top) for path in paths if path.suffix.lower() in job.sources]
    if not found:
        raise BayesqError(f"{source}: no files here that end in {', '.join(sorted(job.sources))}")
    results = {path: path.with_suffix(job.suffix) for path in sorted(found)}
    while clashes := {result for result, count in Counter(results.values()).items() if count > 1}:
        results |= {path: Path(f"{path}{job.suffix}") for path, result in results.items() if result in clashes}
    return [(top / path, out / result) for path, result in results.items()]


def keep_picture(target: Path) -> None:
    """Fails where a picture would be replaced: who made it cannot be told.

    Raises:
        BayesqError: ``target`` exists.
    """
    if target.exists():
        raise BayesqError(f"{target}: exists, and is older than its source; remove it to have it made anew")


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
        return Outcome(source, target, seconds=time.perf_counter() - start, error=_reason(error, source))


def run(job: Job, pairs: Sequence[Pair], workers: int = 1, scheduler: str | None = None) -> Iterator[Outcome]:
    """Does a job on files; the outcomes come as they are ready.

    Where a process dies, of a picture's size perhaps, the files that it may have died of are tried again one at a
    time: only a file that kills a process all by itself has failed.

    Args:
        job: what is done.
        pairs: sources and targets, as ``plan`` gives them.
        workers: processes, of one thread each; 1: this process, with all the threads that torch takes.
        scheduler: address of a Dask scheduler, as ``bayesq.cluster.connect`` takes it; then its workers do it.

    Raises:
        BayesqError: Dask is needed and not installed.
        OSError: there is no scheduler at the address.
    """
    if scheduler is None and workers == 1:
        yield from (do(job, *pair) for pair in pairs)
        return
    attempt = partial(_on_cluster, scheduler, job) if scheduler else partial(_in_processes, workers, job)
    suspects = []
    for pair, outcome in attempt(pairs):
        if outcome is None:
            suspects.append(pair)
        else:
            yield outcome
    for suspect in suspects:
        for pair, outcome in attempt([suspect]):
            yield outcome or Outcome(*pair, error="it killed its process, perhaps for want of memory")


def _in_processes(workers: int, job: Job, pairs: Sequence[Pair]) -> Iterator[tuple[Pair, Outcome | None]]:
    """Outcomes by processes of this machine; None for all files that were at work when a process died."""
    waiting = deque(pairs)
    while waiting:
        running: dict[Future[Outcome], Pair] = {}
        with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_start_worker) as pool:
            try:
                while waiting or running:
                    while waiting and len(running) < workers:
                        future = pool.submit(do, job, *waiting[0])
                        running[future] = waiting.popleft()
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        outcome = future.result()
                        yield running.pop(future), outcome
            except BrokenProcessPool:
                yield from ((pair, None) for pair in running.values())


def _start_worker() -> None:
    """One thread for torch, once it is imported; interrupts are the parent's business, and its death is ours."""
    os.environ["OMP_NUM_THREADS"] = "1"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _on_cluster(address: str, job: Job, pairs: Sequence[Pair]) -> Iterator[tuple[Pair, Outcome | None]]:
    """Outcomes by the workers of a Dask cluster; None for a file that was with too many workers when they died."""
    waiting = iter(pairs)
    asked = {}
    with connect(address) as client:
        from distributed import KilledWorker, as_completed

        def submit(count: int) -> list:
            futures = {client.submit(do, job, *pair, pure=False): pair for pair in islice(waiting, count)}
            asked.update(futures)
            return list(futures)

        running = as_completed(submit(SUBMITTED))
        for future in running:
            pair = asked.pop(future)
            try:
                yield pair, future.result()
            except KilledWorker:
                yield pair, None
            running.update(submit(1))


def _is_done(job: Job, source: Path, target: Path) -> bool:
    try:
        return target.stat().st_mtime_ns >= source.stat().st_mtime_ns and job.is_done(source, target)
    except OSError:
        return False


def _reason(error: BaseException, source: Path) -> str:
    text = str(error) if isinstance(error, BayesqError | OSError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split()).removeprefix(f"{source}: ")
