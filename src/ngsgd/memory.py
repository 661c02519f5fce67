"""How this process deals with its memory."""

from __future__ import annotations

import ctypes
import gc

# What a process is to be started with, so that large matrices lie in large pages: glibc heeds it from its start only.
LARGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}

# Of <malloc.h>.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
KEPT = 1 << 30  # bytes that may lie idle in the process
ALONE = 1 << 25  # bytes from which on a piece is the system's own; glibc takes no more


def tune_allocator() -> None:
    """Makes this process fit to train: its memory is its own, and what it has loaded is there to stay.

    A training step makes and frees the same large matrices again and again; glibc would give them back to the system
    each time, and to have each of their pages made anew takes a tenth of the step. So what is freed stays here.
    Python's search for garbage would look at the hundreds of thousands of objects that torch alone is, for as long as
    ten small steps take, again and again. So what has been made before this call is passed over.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, ALONE)
        mallopt(M_TRIM_THRESHOLD, KEPT)
        mallopt(M_TOP_PAD, ALONE)
    gc.freeze()
