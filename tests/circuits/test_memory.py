"""The allocator's settings are taken where there is glibc, and left alone elsewhere."""

import subprocess
import sys

import pytest

from circuits.memory import keep_freed_memory


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_blocks_are_reused():
    """In a process of its own: a freed block of 48 MB comes back with far fewer page faults."""
    code = """
import resource, sys, torch
from circuits.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(3):
    torch.ones(12 * 2**20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(12 * 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

    def faults(mode: str) -> int:
        run = subprocess.run(
            [sys.executable, "-c", code, mode], capture_output=True, text=True, check=True
        )
        return int(run.stdout)

    assert faults("keep") < faults("leave") / 2


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False
