"""The GPUs of one machine, dealt out so that no two jobs share one.

A cluster's scheduler may do that itself; many Grid Engines, and machines without a scheduler, do not.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

LOCKS = "/tmp"  # the same for all jobs of a machine, which TMPDIR is not: Grid Engine gives each one its own
LOOK = 0.5  # seconds from one look for a free GPU to the next

_held: list[int] = []  # descriptors of locks, until the process ends


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, by their number or name."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip()]
    return sorted(path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*"))


def claim_gpu(folder: str | os.PathLike[str] = LOCKS) -> None:
    """Keeps a GPU to this process until it ends, and hides the others from it; waits until one is free.

    It must come before CUDA is used. Nothing is done where there is no GPU.

    Args:
        folder: of the machine, where locks are.

    Raises:
        OSError: the folder cannot be written to.
    """
    names = visible_gpus()
    if not names:
        return
    # SLURM may give each job a view of the machine in which its own GPU is number 0: what is dealt there are its own.
    job = "-".join(os.environ[key] for key in ("SLURM_JOB_ID", "SLURM_STEP_ID") if key in os.environ)
    while True:
        for name in names:
            if _lock(Path(folder, f"ngsgd-gpu-{job and f'{job}-'}{name.strip().replace('/', '-')}.lock")):
                os.environ["CUDA_VISIBLE_DEVICES"] = name.strip()
                return
        time.sleep(LOOK)


def _lock(path: Path) -> bool:
    """Whether a lock could be taken, which is held from then on."""
    try:
        descriptor = os.open(path, os.O_RDONLY)  # another user's, perhaps: the lock needs no more
    except FileNotFoundError:
        descriptor = os.open(path, os.O_RDONLY | os.O_CREAT, 0o644)
        os.fchmod(descriptor, 0o644)  # whatever this user's files are for others
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    _held.append(descriptor)
    return True
