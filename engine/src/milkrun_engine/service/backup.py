"""
A backup of a ledger and its blobs, while engines run: one snapshot of the ledger, then what it names.

Blobs never change, so they may be copied after the snapshot; one that was deleted meanwhile makes the ledger be read
again. A further backup into the same folder copies only what is missing, and drops what is named no more.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import insert

from milkrun_engine import __version__
from milkrun_engine.blobs.local import LocalBlobs
from milkrun_engine.domain.ids import new_id
from milkrun_engine.service.backup_folder import BackupError, Manifest, file_sha256, inventory, locked, sealed
from milkrun_engine.service.installation import check_blobs
from milkrun_engine.store import Store
from milkrun_engine.store.database import connect, scalar, unhurried
from milkrun_engine.store.migrations import head, migrate, revision
from milkrun_engine.store.portable import copy_rows, is_empty, named_blobs
from milkrun_engine.store.sqlite import SqliteDatabase

_BYTES = 1 << 20
_TRIES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupReport:
    """What a backup did."""

    made_at: str
    blobs: int  #: all of them
    copied: int
    copied_bytes: int
    dropped: int  #: of the backup before, named no more
    missing: list[str]  #: named by the ledger, and gone or damaged where they should be


def backup(place: Path | str, blobs: LocalBlobs, folder: Path) -> BackupReport:
    """
    Back a ledger up into a folder; engines go on meanwhile. Blocking.

    A process that ends in between leaves the backup that was there before.

    Args:
        place: of the ledger, as `Store` takes it.

    Raises:
        BackupError: there is no ledger, one of another version, or the folder is in use.
        WrongBlobs: the blobs are another ledger's.
    """
    check_version(place)
    with locked(folder):
        store = Store(place)
        try:
            check_blobs(store, blobs.root)
            return _Run(store, blobs, folder).run()
        finally:
            store.close()


def check_version(place: Path | str) -> None:
    """
    Refuse to back up what is no ledger of this version.

    Raises:
        BackupError: saying what it is instead.
    """
    if isinstance(place, Path) and not place.is_file():
        raise BackupError(f"there is no ledger in {place.parent}; name its --data-dir or MILKRUN_DATABASE_URL")
    database = connect(place)
    try:
        with database.read() as connection:
            if is_empty(connection):
                raise BackupError("the database holds no ledger; check MILKRUN_DATABASE_URL")
            found = revision(connection)
    finally:
        database.close()
    if found != head():
        raise BackupError(
            f"the ledger is at migration {found} and this version of Milkrun at {head()}: "
            "make the backup with the version that runs the engine"
        )


class _Run:
    """One backup."""

    def __init__(self, store: Store, blobs: LocalBlobs, folder: Path) -> None:
        self._store = store
        self._blobs = blobs
        self._folder = folder
        self._kept = LocalBlobs(folder / "blobs")
        self._before = Manifest.read(folder)
        self._known = dict(self._inventory_before())
        self._listed: set[str] = set()
        self._copied = self._copied_bytes = 0

    def run(self) -> BackupReport:
        """Copy, then make it the folder's backup, then tidy up."""
        for path in self._folder.glob("ledger_*.db*"):  # of a backup that did not end
            if self._before is None or not path.name.startswith(self._before.ledger):
                path.unlink()
        for left in range(_TRIES, 0, -1):
            path = self._folder / f"{new_id('ledger')}.db"
            made_at, missing = self._once(path)
            if not missing or left == 1 or self._store.named_blobs(missing) == set(missing):
                break
            path.unlink()  # some were deleted since the snapshot, with their job
        manifest = Manifest(
            ledger=path.name,
            sha256=sealed(path),
            revision=head(),
            version=__version__,
            made_at=datetime.fromtimestamp(made_at, UTC).isoformat(timespec="seconds"),
            missing=missing,
        )
        manifest.write(self._folder)
        dropped = self._tidy(path)
        return BackupReport(
            made_at=manifest.made_at,
            blobs=len(self._listed),
            copied=self._copied,
            copied_bytes=self._copied_bytes,
            dropped=dropped,
            missing=missing,
        )

    def _inventory_before(self) -> Iterator[tuple[str, str]]:
        if self._before is None or not (path := self._folder / self._before.ledger).is_file():
            return
        # As it is: a connection of ours would turn on its log, and change the file before the next one is there.
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as connection:
            yield from connection.execute(f"SELECT name, sha256 FROM {inventory.name}")

    def _once(self, path: Path) -> tuple[float, list[str]]:
        """Copy the ledger and what it names; returns when that was, and which blobs were not to be had."""
        ledger = SqliteDatabase(path)
        migrate(ledger)
        database = self._store.database
        with database.read() as source, unhurried(source), ledger.write() as target:
            made_at = float(scalar(source, database.now))
            copy_rows(source, target)
        missing: set[str] = set()
        listed: set[str] = set()
        with ledger.read() as connection:
            for name, sha256 in named_blobs(connection):
                if name not in listed and name not in missing:
                    (listed if self._keep(name, sha256) else missing).add(name)
        rows = [
            {"name": name, "bytes": self._kept.path(name).stat().st_size, "sha256": self._known[name]}
            for name in sorted(listed)
        ]
        with ledger.write() as connection:
            inventory.create(connection)
            if rows:
                connection.execute(insert(inventory), rows)
        ledger.close()
        self._listed = listed
        return made_at, sorted(missing)

    def _keep(self, name: str, sha256: str | None) -> bool:
        """Have a blob in the backup; false when it is gone or damaged where it should be."""
        if self._kept.path(name).is_file():
            if name not in self._known:  # of a backup that did not end: its name appeared when it was whole
                self._known[name] = file_sha256(self._kept.path(name))
            if sha256 in {None, self._known[name]}:
                return True
        try:
            with self._blobs.path(name).open("rb") as source, self._kept.create(name) as copy:
                while data := source.read(_BYTES):
                    copy.write(data)
                if sha256 not in {None, copy.sha256}:
                    raise _Damaged
        except (FileNotFoundError, _Damaged):
            return False
        self._known[name] = copy.sha256
        self._copied += 1
        self._copied_bytes += copy.bytes
        return True

    def _tidy(self, ledger: Path) -> int:
        """Drop what the backup before had and this one does not name."""
        for path in self._folder.glob("ledger_*.db*"):
            if path != ledger:
                path.unlink()
        dropped = 0
        for name in self._kept.older_than(0.0):
            if name not in self._listed:
                self._kept.delete(name)
                dropped += 1
        return dropped


class _Damaged(Exception):
    """A blob's bytes are not those that the ledger names."""
