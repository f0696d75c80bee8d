"""The allocator's settings are taken where there is glibc, and left alone elsewhere.

What they gain is measured, not tested: page faults vary from run to run.
"""

import ctypes
import sys

from circuits.memory import keep_freed_memory


class _FakeLibc:
    def __init__(self) -> None:
        self.settings: dict[int, int] = {}

    def mallopt(self, option: int, value: int) -> int:
        self.settings[option] = value
        return 1


def test_sets_both_thresholds(monkeypatch):
    libc = _FakeLibc()
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: libc)
    assert keep_freed_memory(largest=1000, kept=2000) is True
    assert libc.settings == {-3: 1000, -1: 2000}


def test_other_allocators_and_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert keep_freed_memory() is False
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False
