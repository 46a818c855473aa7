"""
A backup back into an empty place: SQLite or Postgres, whichever it came from.

While it runs a mark stands in the folder of blobs, and no engine starts there. The ledger appears last, in one step,
so a restore that was cut off is run again: it goes on where it was.
"""

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select

from milkrun.status import JobStatus
from milkrun_engine.blobs import marks
from milkrun_engine.blobs.files import FileSystem
from milkrun_engine.blobs.local import LocalBlobs
from milkrun_engine.service.backup_folder import BackupError, Manifest, file_sha256, inventory, locked, sealed
from milkrun_engine.store.database import Database, connect, unhurried
from milkrun_engine.store.installation import as_id
from milkrun_engine.store.migrations import migrate, upgrade
from milkrun_engine.store.portable import begin_anew, copy_rows, is_empty, ledger_id, new_ledger_secret
from milkrun_engine.store.sqlite import SqliteDatabase

_BYTES = 1 << 20
_SCRATCH = ".restore-"


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreReport:
    """What was restored."""

    made_at: str  #: when the backup was made, UTC
    jobs: Mapping[JobStatus, int]
    rows: int
    blobs: int
    leases_given_back: int
    callbacks_held_back: int
    missing: list[str]  #: blobs that the backup lacks, because they were gone before it


def restore(folder: Path, place: Path | str, root: Path) -> RestoreReport:
    """
    Bring a backup into an empty ledger and an empty folder of blobs, checking the sha256 of each. Blocking.

    Args:
        place: of the new ledger: a file that is not there, or the URL of an empty database.
        root: of its blobs.

    Raises:
        BackupError: the backup is not whole, or the place is not empty.
        LedgerTooNew: a newer version of the engine made it.
    """
    manifest = Manifest.read(folder) if folder.is_dir() else None
    if manifest is None:
        raise BackupError(f"{folder} holds no whole backup (no backup.json)")
    with locked(folder):
        if file_sha256(folder / manifest.ledger) != manifest.sha256:
            raise BackupError(f"the ledger in {folder} has changed since the backup was made; use another backup")
        return _bring(folder, manifest, place, root)


def _bring(folder: Path, manifest: Manifest, place: Path | str, root: Path) -> RestoreReport:
    target = place.parent if isinstance(place, Path) else None
    for left in target.glob(f"{_SCRATCH}*") if target is not None else ():  # of one that was cut off
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=target) as scratch:
        copy = Path(scratch) / "ledger.db"
        copy.write_bytes((folder / manifest.ledger).read_bytes())
        ledger = SqliteDatabase(copy)
        try:
            migrate(ledger)
            secret = _begin(place, root)
            count = _bring_blobs(ledger, LocalBlobs(folder / "blobs"), LocalBlobs(root))
            with ledger.write() as connection:
                restored = begin_anew(connection, secret)
                inventory.drop(connection)
            marks.write(root, marks.OWNER, as_id(secret))
            if isinstance(place, str):
                _bring_rows(ledger, place)
        finally:
            ledger.close()
        if isinstance(place, Path):
            sealed(copy)
            copy.replace(place)
            FileSystem().sync_folder(place.parent)
        marks.remove(root, marks.RESTORING)
    return RestoreReport(
        made_at=manifest.made_at,
        jobs=restored.jobs,
        rows=restored.rows,
        blobs=count,
        leases_given_back=restored.leases_given_back,
        callbacks_held_back=restored.callbacks_held_back,
        missing=manifest.missing,
    )


def _begin(place: Path | str, root: Path) -> bytes:
    """
    Mark the place, or find the mark of a restore that did not end; returns the new ledger's secret.

    Raises:
        BackupError: there is something already.
    """
    begun = marks.read(root, marks.RESTORING)
    secret = bytes.fromhex(begun) if begun else new_ledger_secret()
    found = _ledger_there(place)
    if found is not None and not (begun and found == as_id(secret)):
        where = place if isinstance(place, Path) else "the database"
        raise BackupError(f"{where} holds a ledger already; restore into an empty place, and remove nothing by hand")
    if not begun and root.is_dir() and any(root.iterdir()):
        raise BackupError(f"the folder of blobs {root} is not empty; restore into an empty one")
    if not begun:
        marks.write(root, marks.RESTORING, secret.hex())
    return secret


def _ledger_there(place: Path | str) -> str | None:
    """The name of the ledger that a place holds, an empty one if it has none; None where there is no ledger."""
    if isinstance(place, Path) and not place.exists():
        return None
    database = connect(place)
    try:
        with database.read() as connection:
            return None if is_empty(connection) else ledger_id(connection) or ""
    finally:
        database.close()


def _bring_blobs(ledger: Database, source: LocalBlobs, target: LocalBlobs) -> int:
    count = 0
    with ledger.read() as connection:
        for row in connection.execute(select(inventory.c.name, inventory.c.sha256)):
            name, sha256 = row[0], row[1]
            if not target.path(name).is_file() or file_sha256(target.path(name)) != sha256:
                _bring_blob(source.path(name), target, name, sha256)
            count += 1
    return count


def _bring_blob(path: Path, target: LocalBlobs, name: str, sha256: str) -> None:
    try:
        with path.open("rb") as file, target.create(name) as blob:
            while data := file.read(_BYTES):
                blob.write(data)
            if blob.sha256 != sha256:
                raise BackupError(f"blob {name} has changed since the backup was made; use another backup")
    except FileNotFoundError:
        raise BackupError(f"the backup lacks blob {name}; use another backup") from None


def _bring_rows(ledger: Database, place: str) -> None:
    """All of a ledger in one transaction, its tables included; nothing to do where an earlier try came so far."""
    database = connect(place)
    try:
        with ledger.read() as source, database.writer.connect() as target, unhurried(target):
            database.lock(target, "migrations")
            if is_empty(target):
                upgrade(target)
                copy_rows(source, target)
                target.commit()
    finally:
        database.close()
