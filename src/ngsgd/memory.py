"""Memory settings of training processes."""

from __future__ import annotations

import ctypes
import gc

# Environment that puts large matrices into huge pages; glibc reads it only when a process starts.
LARGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}

# Constants of <malloc.h>.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
TRIM_THRESHOLD = 1 << 30  # bytes of free memory that the process keeps
MMAP_THRESHOLD = 1 << 25  # bytes from which an allocation is mapped separately; the largest value that glibc accepts


def tune_allocator() -> None:
    """Tunes malloc and the garbage collector for training; call it after all imports.

    Each training step allocates and frees the same large matrices. By default glibc returns them to the system, and
    mapping their pages again takes a tenth of the step; the process therefore keeps freed memory. Python's garbage
    collector would repeatedly scan the hundreds of thousands of objects that torch creates, which takes as long as ten
    small steps; objects that exist before this call are therefore exempt.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD)
        mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD)
        mallopt(M_TOP_PAD, MMAP_THRESHOLD)
    gc.freeze()
