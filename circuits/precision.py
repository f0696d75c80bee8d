"""Faster float32 products where they cost no accuracy."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

__all__ = ["fast_float32"]

_TOLERANCE = 1e-5


@cache
def _is_float32(precision: str) -> bool:
    """Whether products of float32 matrices keep its accuracy at a setting (tried once)."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=generator, dtype=torch.float32) for _ in range(2))
    exact = a.double() @ b.double()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        return float((a @ b - exact).norm() / exact.norm()) < _TOLERANCE
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def fast_float32(device: torch.device) -> Iterator[None]:
    """Let CPU products use oneDNN ("medium" precision) if that still is float32 here.

    Nothing changes for another `device` than the CPU, where the same setting means TF32, nor on
    CPUs whose bfloat16 matrix units would make it bfloat16. The setting is global to the process
    and put back at the end. oneDNN writes code, and keeps memory, for every new shape: worth it for
    large products of few shapes.
    """
    before = torch.get_float32_matmul_precision()
    if device.type == "cpu" and _is_float32("medium"):
        torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
