"""One process at a time writes into a run's folder."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filelock import FileLock

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # says a file system that knows none
LOCKS: dict[Path, FileLock] = {}  # those that this process holds, by their run's folder


def lock(path: Path) -> None:
    """Keep all other processes from writing into a run's folder, until ``unlock`` or the end of
    this process, however it ends. BlockingIOError: another one is writing there."""
    from filelock import FileLock, Timeout  # here: it loads asyncio, which adds an exit handler

    path = path.resolve()
    if path in LOCKS:
        return
    held = FileLock(path / "lock", thread_local=False)
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise BlockingIOError(f"{path}: another process is writing into this folder; wait for it, "
                              f"or stop it, and start again") from None
    except NotImplementedError:
        return
    except OSError as error:
        if error.errno in NO_LOCKS:
            return
        raise
    LOCKS[path] = held


def unlock(path: Path) -> None:
    """Let other processes write into a run's folder."""
    held = LOCKS.pop(path.resolve(), None)
    if held is not None:
        held.release()
