"""What the commands share: options, pipes, atomic output, error messages that name their file."""

import argparse
import errno
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from bayesq.errors import BayesqError, OutputError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from bayesq.codec import Codec

T = TypeVar("T")
N = TypeVar("N", int, float)
PIPE = "-"
RUNTIMES = ["auto", "torch", "bfloat16", "openvino"]
SMALL = 1 << 19
"""Pixels of a picture for which other runtimes than torch take longer to start than they save."""


def add_talk_options(parser: argparse.ArgumentParser) -> None:
    """Adds ``-v`` and ``--quiet``."""
    talk = parser.add_mutually_exclusive_group()
    talk.add_argument("-v", "--verbose", action="count", default=0, help="tell more; -vv: debug, with tracebacks")
    talk.add_argument("--quiet", action="store_true", help="tell nothing but errors")


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Adds ``--no-overwrite`` and ``--json``."""
    parser.add_argument("--json", action="store_true", help="print a JSON summary")
    parser.add_argument("--no-overwrite", action="store_true", help="fail if the output exists")


def add_runtime_option(parser: argparse.ArgumentParser) -> None:
    """Adds ``--runtime``, which ``use_runtime`` obeys."""
    parser.add_argument(
        "--runtime",
        choices=RUNTIMES,
        help="what runs the transforms; any reads what another wrote (default: auto, the fastest of this machine)",
    )


def use_runtime(args: argparse.Namespace) -> None:
    """Makes the choice of ``--runtime`` that of this process and of those it starts."""
    if args.runtime:
        os.environ["BAYESQ_RUNTIME"] = args.runtime


def spare_start(codec: "Codec", pixels: int) -> None:
    """Lets torch run a codec that a whole process loads for one small picture, if nobody chose a runtime."""
    if pixels < SMALL and "BAYESQ_RUNTIME" not in os.environ:
        from bayesq.runtime import plain

        codec.runtime = plain(codec)


def say(args: argparse.Namespace, text: str) -> None:
    """Tells the person at the terminal, on stderr, unless asked to be quiet."""
    if not args.quiet:
        print(text, file=sys.stderr)


def start_logging(args: argparse.Namespace) -> None:
    """Shows the library's log on stderr as far as ``-v`` asks for it."""
    level = logging.ERROR if args.quiet else [logging.WARNING, logging.INFO, logging.DEBUG][min(args.verbose, 2)]
    logging.basicConfig(stream=sys.stderr, format="bayesq: %(message)s")
    logging.getLogger("bayesq").setLevel(level)


def argument(form: str, read: Callable[[str], T]) -> Callable[[str], T]:
    """An argument type: ``read``, whose ValueError becomes a message that tells the ``form``."""

    def parse(text: str) -> T:
        try:
            return read(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {form}") from None

    return parse


def within(kind: Callable[[str], N], low: float, high: float) -> Callable[[str], N]:
    """Reads a number from ``low`` to ``high``; raises ValueError for any other."""

    def read(text: str) -> N:
        value = kind(text)
        if not low <= value <= high:
            raise ValueError
        return value

    return read


quality = argument("a number from 0 to 100", within(float, 0, 100))
effort = argument("an integer from 1 to 9", within(int, 1, 9))
above_zero = argument("a finite number above zero", within(float, math.ulp(0), sys.float_info.max))
positive = argument("an integer of at least 1", within(int, 1, math.inf))
several = argument("an integer of at least 2", within(int, 2, math.inf))
seed = argument("an integer from 0 to 2**63 - 1", within(int, 0, 2**63 - 1))


def beside(source: str, suffix: str) -> str:
    """The default output: ``source`` with another suffix, a pipe for a pipe."""
    return PIPE if source == PIPE else str(Path(source).with_suffix(suffix))


@contextmanager
def about(path: str) -> Iterator[None]:
    """Puts the input's name before the message of an error raised inside, unless that is of an output and names it."""
    try:
        yield
    except OutputError:
        raise
    except BayesqError as error:
        name = "standard input" if path == PIPE else path
        raise type(error)(f"{name}: {error}") from error


def read(path: str) -> bytes:
    """The whole file, or standard input for ``-``."""
    return sys.stdin.buffer.read() if path == PIPE else Path(path).read_bytes()


@contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    """The file as a stream that can seek, of which no more is read than asked for where it can do that by itself."""
    if path == PIPE:
        yield BytesIO(sys.stdin.buffer.read())
    else:
        with open(path, "rb") as file:
            yield file if file.seekable() else BytesIO(file.read())


def check_outputs(args: argparse.Namespace, *paths: str) -> None:
    """Fails, before any work is done, where outputs would mix, overwrite what they must not, or find no place."""
    if (args.json, *(path == PIPE for path in paths)).count(True) > 1:
        raise BayesqError("only one output can go to standard output, and --json is one")
    files = [Path(path).resolve() for path in paths if path != PIPE]
    if len(set(files)) < len(files):
        raise BayesqError(f"{max(files, key=files.count)}: cannot be written twice")
    for path in paths:
        if args.no_overwrite and path != PIPE and Path(path).exists():
            raise BayesqError(f"{path}: exists, and --no-overwrite was given")
        if Path(path).is_file() and Path(getattr(args, "input", PIPE)).resolve() == Path(path).resolve():
            raise BayesqError(f"{path}: is the input, and cannot be the output too")
    check_files(*paths)


def check_files(*paths: str | None) -> None:
    """Fails where a file could not be written, of those that are asked for."""
    for path in paths:
        if path is None or path == PIPE:
            continue
        if Path(path).is_dir():
            raise OutputError(f"{path}: {os.strerror(errno.EISDIR)}")
        if not Path(path).exists():
            _check_writable(Path(os.path.realpath(path)).parent, path)


def check_folder(path: str | Path) -> None:
    """Fails where there is no such folder, and none could be made, or nothing be written to it."""
    _check_writable(next(it for it in (Path(path), *Path(path).absolute().parents) if it.exists()), path)


def _check_writable(folder: Path, path: str | Path) -> None:
    """Fails as writing ``path`` into a folder would."""
    writable = os.access(folder, os.W_OK)
    faults = {errno.ENOENT: not folder.exists(), errno.ENOTDIR: not folder.is_dir(), errno.EACCES: not writable}
    for code, found in faults.items():
        if found:
            raise OutputError(f"{path}: {os.strerror(code)}")


def write(path: str, data: bytes) -> None:
    """Writes a whole file at once or not at all, or writes to standard output for ``-``."""
    if path == PIPE:
        sys.stdout.buffer.write(data)
    else:
        from bayesq.io import atomic_write

        atomic_write(path, data)


def write_deviation(deviation: "Tensor", path: str, exif: bytes | None) -> float:
    """Writes a map (1, 1, H, W) of standard deviations as a grey picture, which is turned as its picture's EXIF says.

    Returns the deviation that is shown as white, the largest that is finite; those that are infinite are white too.
    """
    from bayesq.io import to_image, write_image

    white = deviation[deviation.isfinite()].max().item()
    picture = to_image(deviation / max(white, 1e-12))
    picture.info["exif"] = exif
    write_image(picture, path)
    return white


def write_samples(pictures: "Iterable[Image]", folder: str) -> None:
    """Writes draws as ``sample-01.png`` and so on into a folder, which is made if there is none."""
    from bayesq.io import write_image

    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: {error.strerror}") from error
    for number, picture in enumerate(pictures, 1):
        write_image(picture, Path(folder, f"sample-{number:02}.png"))


def print_json(value: object) -> None:
    """Prints JSON for other programs on standard output."""
    print(json.dumps(value, indent=1))
