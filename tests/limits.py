"""A full disk for the length of a `with` block."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["files_no_larger_than"]


@contextmanager
def files_no_larger_than(n_bytes: int) -> Iterator[None]:
    """No file of this process grows past `n_bytes`: the real error of the real writer.

    Never a fixture: pytest reports a test before its fixtures end, perhaps into a longer file.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
