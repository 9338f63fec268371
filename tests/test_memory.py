"""Memory that is freed is used again."""

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import numpy as np
from bayesq.memory import keep_freed

if sys.argv[1] == "kept":
    keep_freed()

def faults(megabytes):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    [np.ones(megabytes << 17) for _ in range(4)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults(16), faults(16), faults(16))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
@pytest.mark.parametrize("case", ["kept", "not kept"])
def test_pages_are_cleared_once_if_they_are_kept(case):
    said = subprocess.run([sys.executable, "-c", SCRIPT, case], capture_output=True, text=True, check=True).stdout
    first, *later = map(int, said.split())
    assert first > 0
    assert all(count < first / 10 for count in later) if case == "kept" else all(count > first / 2 for count in later)
