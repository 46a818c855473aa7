"""
The folder of a backup: `backup.json` names one ledger file, and below `blobs` lies what that ledger names.

`backup.json` is replaced in one step when everything else is on disk: until then the folder is the backup before,
or none. The ledger file is one of SQLite, whichever database it came from, with a list of the blobs beside it.
"""

import fcntl
import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from sqlalchemy import BigInteger, Column, MetaData, String, Table

from milkrun_engine.blobs.files import FileSystem

_FORMAT = 1
_FILE = "backup.json"
#: what the ledger file has beside the ledger's own tables
inventory = Table(
    "backup_blobs",
    MetaData(),
    Column("name", String, primary_key=True),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", String, nullable=False),
)


class BackupError(ValueError):
    """A backup can't be made or used; the message says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What `backup.json` says."""

    ledger: str  #: name of the ledger file
    sha256: str  #: of that file
    revision: str  #: its last migration
    version: str  #: of the engine that made it
    made_at: str  #: on the database's clock, UTC
    missing: list[str]  #: blobs that the ledger names and that were gone or damaged
    format: int = _FORMAT

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """
        What the folder holds; None if it is no backup, or none yet.

        Raises:
            BackupError: it is of another kind.
        """
        try:
            told = json.loads((folder / _FILE).read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise BackupError(f"{folder / _FILE} is damaged: {error}") from error
        if told.get("format") != _FORMAT:
            raise BackupError(f"{folder} is a backup of another kind ({told.get('format')}); use a newer Milkrun")
        return cls(**told)

    def write(self, folder: Path) -> None:
        """Make the folder this backup."""
        files = FileSystem()
        draft = folder / f"{_FILE}.part"
        draft.unlink(missing_ok=True)
        with files.create(draft) as file:
            file.write(json.dumps(asdict(self), indent=1).encode())
            files.sync(file)
        files.rename(draft, folder / _FILE)
        files.sync_folder(folder)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """
    Have a folder alone.

    Raises:
        BackupError: another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / "backup.lock").open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BackupError(f"another backup or restore uses {folder}; wait for its end") from None
        yield


def sealed(path: Path) -> str:
    """Put a closed SQLite file on disk as one file; returns its sha256."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    with path.open("rb") as file:
        os.fsync(file.fileno())
    FileSystem().sync_folder(path.parent)
    return file_sha256(path)


def file_sha256(path: Path) -> str:
    """Of a file's bytes (hex)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
