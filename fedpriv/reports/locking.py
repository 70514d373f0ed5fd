"""One process per run folder, held by the kernel: the lock ends with its process, however that ends."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from types import TracebackType
from typing import Self

from fedpriv.errors import InputError

try:
    import fcntl
except ImportError:  # Windows: no flock there; the pid file below is all there is
    fcntl = None


class FolderLock:
    """Context manager; a lock left behind by a dead process is simply taken over.

    The lock is `flock` on a file that is never deleted (deleting it would let two processes hold two different
    files of one name). Its content, pid and host, only serves the message.

    Raises:
        InputError: on entry, when a living process holds it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1

    def __enter__(self) -> Self:
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
            self._take(descriptor, holder)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return self

    def _take(self, descriptor: int, holder: str) -> None:
        if fcntl is None:
            if _alive(holder):
                raise InputError(self._refusal(holder))
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(self._refusal(holder)) from None

    def _refusal(self, holder: str) -> str:
        return (
            f"another process ({holder or 'unknown'}) is working in the run folder {self.path.parent}; wait for it, "
            "or give another folder with --out. Nothing was started."
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)  # closing gives the flock back
        self._descriptor = -1


def _alive(holder: str) -> bool:
    """Whether the process that `holder` (such as `pid 12 on host`) names still lives; only asked without flock."""
    words = holder.split()
    if len(words) < 2 or not words[1].isdigit():
        return False
    try:
        os.kill(int(words[1]), 0)
    except OSError:
        return False
    return True
