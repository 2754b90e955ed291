"""What a process frees it keeps, where malloc is glibc's: the second time the same is asked for, no page is new."""

import subprocess
import sys

import pytest

from trainers import memory

FAULTS = """
import resource, torch
from trainers.memory import keep_freed_memory
is_kept = keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(16):  # aligned blocks settle after some
        torch.empty(2**22).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(is_kept, faults() < 2**12)  # one block has as many pages
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
def test_large_blocks_that_were_freed_are_not_asked_of_the_system_again():
    told = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["True", "True"]


def test_another_malloc_is_left_alone(monkeypatch):
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    assert memory.keep_freed_memory() is False
