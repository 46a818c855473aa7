"""
Blobs on a local disk.

A blob is written under a temporary name, synced, renamed, and its folder synced, before its
name is told to anyone; so a name in the ledger always has all its bytes, also after a power
cut. Names are made by the engine alone and are never a caller's text.
"""

import errno
import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from milkrun_engine.blobs.files import FileSystem
from milkrun_engine.blobs.marks import MARKS
from milkrun_engine.domain.errors import BlobCorrupt, DiskFull
from milkrun_engine.failpoints import file_reached

_PART = ".part"
_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


class BlobWriter:
    """An open blob: write, then leave the `with` block of `LocalBlobs.create` to publish it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self.bytes = 0

    def write(self, data: bytes) -> None:
        """Append bytes."""
        self._file.write(data)
        self._sha256.update(data)
        self.bytes += len(data)

    @property
    def sha256(self) -> str:
        """Of all bytes written so far (hex)."""
        return self._sha256.hexdigest()


class LocalBlobs:
    """Immutable blobs below a folder."""

    def __init__(self, root: Path, files: FileSystem | None = None) -> None:
        self.root = root
        self._files = files or FileSystem()
        self._files.make_folder(root)

    @contextmanager
    def create(self, name: str) -> Iterator[BlobWriter]:
        """
        Write a blob; it exists, durably, once the block is left without an exception, and not at all otherwise.

        Raises:
            DiskFull: the disk takes no more.
        """
        target = self.root / name
        part = target.with_name(f"{target.name}.{secrets.token_hex(8)}{_PART}")
        try:
            self._files.make_folder(target.parent)
            with self._files.create(part) as file:
                yield BlobWriter(file)
                file_reached(name, "written")
                self._files.sync(file)
            file_reached(name, "synced")
            self._files.rename(part, target)
            file_reached(name, "renamed")
            self._files.sync_folder(target.parent)
        except BaseException as error:
            for path in (part, target):  # what a full disk would be kept full by
                path.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno in _REFUSALS:
                raise DiskFull(f"the engine's disk does not take a file ({os.strerror(error.errno)})") from error
            raise

    def put(self, name: str, data: bytes) -> str:
        """Write a blob at once; returns its sha256."""
        with self.create(name) as blob:
            blob.write(data)
        return blob.sha256

    def renew(self, name: str) -> bool:
        """Let a blob that no ledger row names yet count as written now; False when it is gone."""
        try:
            os.utime(self.path(name))
        except FileNotFoundError:
            return False
        return True

    def path(self, name: str) -> Path:
        """Where a blob lies, for readers that seek."""
        return self.root / name

    def read(self, name: str, sha256: str) -> bytes:
        """
        Read a whole blob.

        Raises:
            BlobCorrupt: it is missing, or its bytes are not those that the ledger names.
        """
        try:
            data = self.path(name).read_bytes()
        except FileNotFoundError:
            raise BlobCorrupt(f"blob {name} is missing") from None
        if hashlib.sha256(data).hexdigest() != sha256:
            raise BlobCorrupt(f"blob {name} has changed on disk")
        return data

    def delete(self, name: str) -> None:
        """Remove a blob that no ledger row names; a missing one is fine."""
        self.path(name).unlink(missing_ok=True)

    def older_than(self, seconds: float) -> Iterator[str]:
        """Names of the blobs, unfinished ones too, that were written longer ago than this."""
        limit = time.time() - seconds
        for path in self.root.rglob("*"):
            name = str(path.relative_to(self.root))
            if path.is_file() and path.stat().st_mtime < limit and name not in MARKS:
                yield name
