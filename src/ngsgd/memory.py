"""How this process gets its memory from the operating system."""

from __future__ import annotations

import ctypes

# What a process is to be started with, so that large matrices lie in large pages: glibc heeds it from its start only.
LARGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}

# Of <malloc.h>.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
KEPT = 1 << 30  # bytes that may lie idle in the process
ALONE = 1 << 25  # bytes from which on a piece is the system's own; glibc takes no more


def keep_freed_memory() -> None:
    """Has what is freed stay in the process, for the next one who asks.

    A training step makes and frees the same large matrices again and again; glibc would give them back to the system
    each time, and to have each of their pages made anew takes a tenth of the step. Elsewhere nothing is done.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, ALONE)
        mallopt(M_TRIM_THRESHOLD, KEPT)
        mallopt(M_TOP_PAD, ALONE)
