"""Work on the workers of a Dask cluster.

They see the same files under the same names, have bayesq and its models, and do best with one thread each.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from bayesq.errors import BayesqError

if TYPE_CHECKING:
    from distributed import Client

LOCAL = "local"
AHEAD = 2
"""Items that each worker has, or has done, before the next are made."""
T = TypeVar("T")
R = TypeVar("R")


class Map(Protocol):
    """Does the same to many items, one after the other or not, and yields the results in their order, as ``map``."""

    def __call__(self, work: Callable[[T], R], items: Iterable[T], /) -> Iterable[R]: ...


@contextmanager
def connect(address: str) -> Iterator[Client]:
    """A client of the scheduler at an address such as ``tcp://host:8786``.

    ``LOCAL`` starts a cluster on this machine, of a worker for each processor, and ends it.

    Raises:
        BayesqError: Dask is not installed.
        OSError: there is no scheduler at the address.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise BayesqError("a cluster needs Dask: pip install 'bayesq[cluster]'") from error
    own: dict[str, Any] = {"threads_per_worker": 1, "dashboard_address": None}
    with Client(**own) if address == LOCAL else Client(address) as client:
        yield client


def spread(client: Client) -> Map:
    """A ``map`` by the cluster's workers. No more than ``AHEAD`` items a worker exist at a time."""

    def run(work: Callable[[T], R], items: Iterable[T], /) -> Iterator[R]:
        from distributed import KilledWorker

        shared = client.scatter(work, broadcast=True, hash=False)
        most, running = AHEAD * max(1, len(client.ncores())), deque[Any]()

        def first() -> R:
            try:
                result: R = running.popleft().result()
            except KilledWorker as error:
                raise BayesqError("a part of the work killed its workers, perhaps for want of memory") from error
            return result

        for item in items:
            running.append(client.submit(_call, shared, client.scatter(item, hash=False), pure=False))
            if len(running) >= most:
                yield first()
        while running:
            yield first()

    return run


@contextmanager
def workers(address: str | None) -> Iterator[Map]:
    """The ``map`` by the workers of the scheduler at an address, as for ``connect``; by this process without one."""
    if address is None:
        yield map
    else:
        with connect(address) as client:
            yield spread(client)


def _call(work: Callable[[T], R], item: T) -> R:
    return work(item)
