"""Faster float32 products where they cost no accuracy."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["fast_float32"]

_TOLERANCE = 1e-5


def _product_error() -> float:
    """Relative error of one float32 product at the present setting."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=generator) for _ in range(2))
    exact = a.double() @ b.double()
    return float((a @ b - exact).norm() / exact.norm())


@contextmanager
def fast_float32() -> Iterator[None]:
    """Let CPU products use oneDNN ("medium" precision) if that still is float32 here.

    On CPUs with bfloat16 matrix units "medium" may mean bfloat16; then nothing changes. The
    setting is global to the process and put back at the end.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        if _product_error() > _TOLERANCE:
            torch.set_float32_matmul_precision(before)
        yield
    finally:
        torch.set_float32_matmul_precision(before)
