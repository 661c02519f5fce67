"""Assignment of a machine's GPUs to jobs, so that no two jobs share one.

Some cluster schedulers do this themselves; many Grid Engine installations, and machines without a scheduler, do not.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

LOCKS = "/tmp"  # not TMPDIR, because Grid Engine gives each job its own
POLL_INTERVAL = 0.5  # seconds between two attempts to lock a GPU

_held: list[int] = []  # descriptors of locks, kept open until the process ends


def visible_gpus() -> list[str]:
    """Returns the GPUs that this process may use, by number or name."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip()]
    return sorted(path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*"))


def claim_gpu(folder: str | os.PathLike[str] = LOCKS) -> None:
    """Locks a GPU until this process ends and hides the others from it; waits until one is free.

    Call it before CUDA is used. Does nothing if there is no GPU.

    Args:
        folder: local folder for lock files, the same for all jobs of the machine.

    Raises:
        OSError: the folder is not writable.
    """
    names = visible_gpus()
    if not names:
        return
    # SLURM may number the GPUs of each job step from 0, so that equal numbers in different steps are different GPUs.
    job = "-".join(os.environ[key] for key in ("SLURM_JOB_ID", "SLURM_STEP_ID") if key in os.environ)
    while True:
        for name in names:
            if _lock(Path(folder, f"ngsgd-gpu-{job and f'{job}-'}{name.strip().replace('/', '-')}.lock")):
                os.environ["CUDA_VISIBLE_DEVICES"] = name.strip()
                return
        time.sleep(POLL_INTERVAL)


def _lock(path: Path) -> bool:
    """Tries to take a lock, which is then held until the process ends; returns whether it was free."""
    try:
        descriptor = os.open(path, os.O_RDONLY)  # read-only is enough, and the file may be another user's
    except FileNotFoundError:
        descriptor = os.open(path, os.O_RDONLY | os.O_CREAT, 0o644)
        os.fchmod(descriptor, 0o644)  # readable by other users whatever the umask
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    _held.append(descriptor)
    return True
