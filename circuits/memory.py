"""Memory that is freed and asked for again on every pass, kept instead of handed back.

glibc returns large blocks to the system at once, and getting them back page by page can take longer
than the arithmetic in between: training steps of `tiny` were three times slower.
"""

import ctypes
import sys

__all__ = ["keep_freed_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""From glibc's malloc.h."""


def keep_freed_memory(*, largest: int = 24 * 2**20, kept: int = 128 * 2**20) -> bool:
    """Tell glibc to reuse freed blocks; elsewhere than on Linux with glibc nothing happens.

    Affects the whole process, so only programs call it, never a library function.

    Args:
        largest: blocks up to this many bytes are kept; larger ones still go back at once, since
            keeping blocks of every size fragments memory (20 GB instead of 2 in one study).
        kept: free bytes at the end of the heap before it shrinks.

    Returns:
        Whether the allocator took the settings.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, largest)) and bool(mallopt(_M_TRIM_THRESHOLD, kept))
