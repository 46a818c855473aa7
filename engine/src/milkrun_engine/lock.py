"""
One engine a data directory: a lock that the kernel lets go of when its process ends.
"""

import fcntl
import os
from pathlib import Path


class DataDirInUse(Exception):
    """Another engine has the data directory; the message names it, as does `holder` (its process id)."""

    def __init__(self, holder: str, data_dir: Path) -> None:
        super().__init__(
            f"another engine (process {holder}) uses {data_dir}; "
            "stop it with `milkrun stop`, or choose another --data-dir"
        )
        self.holder = holder


class DataDirLock:
    """
    Holds a data directory for this process. Not for network file systems.

    Children don't inherit it: Python opens files so that they close on exec.
    """

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / "engine.lock"
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """
        Take the lock, or say who has it.

        Raises:
            DataDirInUse: naming the holder.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise DataDirInUse(holder, self._path.parent) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        self._descriptor = descriptor

    def release(self) -> None:
        """Let go; safe to repeat."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
