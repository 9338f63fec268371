"""How the process's memory is managed."""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_LARGEST_MMAP_THRESHOLD = 32 << 20
_KEPT = 256 << 20


def keep_freed() -> None:
    """Lets glibc's allocator keep up to 256 MiB of what is freed, in blocks of up to 32 MiB, for the next request.

    By default it hands back to the kernel what is free beyond twice the largest block, and the kernel clears every page
    that is asked for again: a third of the time of networks whose outputs have some megabytes. Other C libraries are
    left as they are. It is for processes of our own, those of the command line; a library should not decide it.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        mallopt(_TRIM_THRESHOLD, _KEPT)
