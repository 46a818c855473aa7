"""
A backup comes back as it was, from either database into either; a half one is taken for none.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from checker import Place, check_ledger
from fix_store import World
from sqlalchemy import delete, select, update

from milkrun.status import CallbackState, FeedEvents, JobStatus
from milkrun_engine.blobs import marks
from milkrun_engine.blobs.local import LocalBlobs
from milkrun_engine.domain.errors import CursorLost
from milkrun_engine.service import backup as backups
from milkrun_engine.service.backup import backup
from milkrun_engine.service.backup_folder import BackupError, Manifest, file_sha256
from milkrun_engine.service.installation import WrongBlobs, check_restored, claim_blobs
from milkrun_engine.service.restore import restore
from milkrun_engine.store import migrations
from milkrun_engine.store.database import connect
from milkrun_engine.store.migrations import LedgerTooNew
from milkrun_engine.store.schema import chunks, jobs, metadata, secrets

CALLBACK: dict[str, Any] = {"kind": "generic", "url": "http://a.test/", "secret": "whsec_c2VjcmV0IG9mIHRoZSB0ZXN0"}


@pytest.fixture(params=["sqlite", "postgres"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path | str]:
    """An empty place for a ledger: a file that is not there, or a database without a table."""
    if request.param == "sqlite":
        (tmp_path / "new").mkdir()
        yield tmp_path / "new" / "milkrun.db"
        return
    server = request.getfixturevalue("postgres")
    url = server.database(empty=True)
    yield url
    server.drop(url)


def rows_of(world: World) -> dict[str, list[dict[str, Any]]]:
    """Everything in a ledger."""
    with world.store.database.read() as connection:
        return {
            table.name: sorted((dict(row) for row in connection.execute(select(table)).mappings()), key=repr)
            for table in metadata.sorted_tables
        }


def restored(tmp_path: Path, place: Path | str) -> World:
    """Restore the backup, and open what came of it."""
    restore(tmp_path / "backup", place, tmp_path / "new" / "blobs")
    return World.open(tmp_path / "new", place if isinstance(place, str) else None)


def busy(world: World) -> tuple[str, str]:
    """A ledger in the middle of things: one job with committed, leased and waiting chunks, and one that ended."""
    claim_blobs(world.store, world.blobs.root)
    labels = {"team": "ä\u2028"}
    ended = world.prepared(["a", "fail", 3], callback=CALLBACK, labels=labels, idempotency_key="k", name="😀")
    world.run()
    running = world.prepared(40, callback=CALLBACK)
    first, _ = world.claim(2)
    world.finish(first)
    return ended, running


def test_it_comes_back_as_it_was_and_goes_on(world: World, tmp_path: Path, target: Path | str) -> None:
    ended, running = busy(world)
    cursor = world.store.feed.cursor(world.tenant)
    before, results = rows_of(world), world.results(ended)
    report = backup(world.place, world.blobs, tmp_path / "backup")
    assert ([], report.blobs) == (report.missing, report.copied)
    told = restore(tmp_path / "backup", target, tmp_path / "new" / "blobs")
    assert ({JobStatus.succeeded: 1, JobStatus.running: 1}, 43, 1, 1) == (
        told.jobs, told.rows, told.leases_given_back, told.callbacks_held_back,
    )  # fmt: skip
    new = World.open(tmp_path / "new", target if isinstance(target, str) else None)
    after = rows_of(new)
    changed = {"tenants", "chunks", "callbacks", "secrets", "posts"}
    assert {name: rows for name, rows in before.items() if name not in changed} == {
        name: rows for name, rows in after.items() if name not in changed
    }
    given_back = {"state": "ready", "lease_owner": None, "lease_expires_at": None}
    for old, now in zip(before["chunks"], after["chunks"], strict=True):
        assert old | (given_back if old["state"] == "leased" else {}) == now
    with pytest.raises(CursorLost):
        new.store.feed.changes(new.tenant, cursor, FeedEvents.end, {}, 9)
    assert results == new.results(ended)
    new.run()
    assert JobStatus.succeeded is new.job(running).status
    assert [] == check_ledger(Place(new.blobs.root, new.place))
    assert JobStatus.queued is new.job(new.prepared(24)).status, "numbers go on behind those that came"
    assert new.store.jobs.attach(new.tenant, "k", None).job.id == ended
    claim_blobs(new.store, new.blobs.root)
    assert new.store.installation.id != world.store.installation.id
    new.close()


def test_callbacks_that_were_due_are_held_back(world: World, tmp_path: Path, target: Path | str) -> None:
    """They may have been sent since; a person sends them again, or leaves it."""
    _, running = busy(world)
    backup(world.place, world.blobs, tmp_path / "backup")
    new = restored(tmp_path, target)
    assert [] == new.store.callbacks.due(9)
    [held] = new.store.callbacks.page(new.tenant, limit=9)
    assert (CallbackState.given_up, True) == (held.state, "restore" in (held.last_error or ""))
    new.run()
    assert [running] == [due.job_id for due in new.store.callbacks.due(9)], "one that ends now is sent"
    new.store.callbacks.replay(new.tenant, held.id)
    assert 2 == len(new.store.callbacks.due(9))
    new.close()


def test_a_second_one_copies_what_is_new_and_drops_what_is_gone(world: World, tmp_path: Path) -> None:
    ended, _ = busy(world)
    folder = tmp_path / "backup"
    first = backup(world.place, world.blobs, folder)
    world.prepared(8)
    with world.store.database.write() as connection:
        connection.execute(delete(chunks).where(chunks.c.job_id == ended))
    second = backup(world.place, world.blobs, folder)
    assert (2, 3) == (second.copied, second.dropped), "one new chunk and its input; two chunks, one of them answered"
    assert second.blobs == first.blobs - 1
    names = {path.name for path in (folder / "blobs").rglob("*") if path.is_file()}
    assert second.blobs == len(names)
    assert [(folder / Manifest.read(folder).ledger)] == list(folder.glob("ledger_*"))


def test_what_was_deleted_meanwhile_is_no_longer_in_it(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that goes between the snapshot and the copy of its blobs: the ledger is read again."""
    ended, running = busy(world)
    copy_rows, copies = backups.copy_rows, []

    def then_delete(source: Any, to: Any) -> None:
        copy_rows(source, to)
        copies.append(1)
        if len(copies) == 1:
            with closing(world.another_store()) as other, other.database.write() as connection:
                found = list(connection.execute(select(chunks.c.input_blob).where(chunks.c.job_id == ended)).scalars())
                connection.execute(delete(chunks).where(chunks.c.job_id == ended))
            for name in found:
                world.blobs.delete(name)

    monkeypatch.setattr(backups, "copy_rows", then_delete)
    assert [] == backup(world.place, world.blobs, tmp_path / "backup").missing
    assert 2 == len(copies)
    assert JobStatus.running is world.job(running).status


def test_blobs_that_were_lost_before_are_named(world: World, tmp_path: Path) -> None:
    busy(world)
    [first, second, *_] = sorted(world.blobs.older_than(0.0))
    world.blobs.delete(first)
    damaged = next(name for name in world.blobs.older_than(0.0) if ".out_" in name)
    world.blobs.path(damaged).write_bytes(b"damaged")
    report = backup(world.place, world.blobs, tmp_path / "backup")
    assert {first, damaged} == set(report.missing)
    (tmp_path / "new").mkdir()
    told = restore(tmp_path / "backup", tmp_path / "new" / "milkrun.db", tmp_path / "new" / "blobs")
    assert report.missing == told.missing
    assert (tmp_path / "new" / "blobs" / second).is_file()


def test_what_has_changed_in_a_backup_is_not_restored(world: World, tmp_path: Path, target: Path | str) -> None:
    busy(world)
    folder, root = tmp_path / "backup", tmp_path / "new" / "blobs"
    backup(world.place, world.blobs, folder)
    blob = next(path for path in (folder / "blobs").rglob("*") if path.is_file())
    kept = blob.read_bytes()
    blob.write_bytes(kept + b"!")
    with pytest.raises(BackupError, match="has changed"):
        restore(folder, target, root)
    with pytest.raises(WrongBlobs, match="not finished"):
        check_restored(root)
    blob.unlink()
    with pytest.raises(BackupError, match="lacks blob"):
        restore(folder, target, root)
    blob.write_bytes(kept)
    assert 43 == restore(folder, target, root).rows, "once it is whole the same restore ends"
    with pytest.raises(BackupError, match="holds a ledger already"):
        restore(folder, target, root)
    ledger = folder / Manifest.read(folder).ledger
    ledger.write_bytes(ledger.read_bytes() + b"!")
    with pytest.raises(BackupError, match="has changed"):
        restore(folder, target, root)


def test_only_an_empty_place_is_restored_into(world: World, tmp_path: Path) -> None:
    busy(world)
    folder = tmp_path / "backup"
    backup(world.place, world.blobs, folder)
    with pytest.raises(BackupError, match="holds a ledger already"):
        restore(folder, world.place, tmp_path / "new")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(BackupError, match="not empty"):
        restore(folder, tmp_path / "other.db", tmp_path / "full")
    with pytest.raises(BackupError, match="no whole backup"):
        restore(tmp_path / "full", tmp_path / "other.db", tmp_path / "new")
    assert not (tmp_path / "other.db").exists()


def test_a_restore_that_ended_just_before_its_mark_went_is_run_again(
    world: World, tmp_path: Path, target: Path | str
) -> None:
    busy(world)
    folder, root = tmp_path / "backup", tmp_path / "new" / "blobs"
    backup(world.place, world.blobs, folder)
    restore(folder, target, root)
    database = connect(target)
    with database.read() as connection:
        secret = connection.execute(select(secrets.c.value).where(secrets.c.name == "ledger")).scalar_one()
    database.close()
    marks.write(root, marks.RESTORING, bytes(secret).hex())
    assert 43 == restore(folder, target, root).rows
    assert marks.read(root, marks.RESTORING) is None


def test_a_backup_of_a_newer_version_is_refused(world: World, tmp_path: Path, target: Path | str) -> None:
    busy(world)
    folder = tmp_path / "backup"
    backup(world.place, world.blobs, folder)
    told = json.loads((folder / "backup.json").read_bytes())
    store = connect(folder / told["ledger"])
    with store.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    store.close()
    told["sha256"] = file_sha256(folder / told["ledger"])
    (folder / "backup.json").write_text(json.dumps(told))
    with pytest.raises(LedgerTooNew, match="newer version"):
        restore(folder, target, tmp_path / "new" / "blobs")


def test_a_ledger_of_another_version_is_neither_opened_nor_backed_up(world: World, tmp_path: Path) -> None:
    with world.store.database.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(LedgerTooNew):
        world.another_store()
    with pytest.raises(BackupError, match="the version that runs the engine"):
        backup(world.place, world.blobs, tmp_path / "backup")


def test_a_backup_of_an_older_version_is_migrated_forward(
    world: World, tmp_path: Path, target: Path | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended, _ = busy(world)
    backup(world.place, world.blobs, tmp_path / "backup")
    newer = tmp_path / "migrations"
    shutil.copytree(migrations._FOLDER, newer)
    (newer / "versions" / "9999_a_later_one.py").write_text(
        '"""Later."""\nfrom alembic import op\n\nrevision, down_revision = "9999", '
        f'"{migrations.head()}"\n\n\ndef upgrade():\n    op.execute("UPDATE jobs SET description = \'migrated\'")\n'
    )
    monkeypatch.setattr(migrations, "_FOLDER", newer)
    new = restored(tmp_path, target)
    assert "migrated" == new.job(ended).description
    assert "9999" == migrations.head()
    new.close()


def test_there_must_be_a_ledger(tmp_path: Path, target: Path | str) -> None:
    with pytest.raises(BackupError, match="ledger"):
        backup(target, LocalBlobs(tmp_path / "blobs"), tmp_path / "backup")
    assert isinstance(target, str) or not target.exists()


def test_blobs_of_another_ledger_are_not_backed_up(world: World, tmp_path: Path) -> None:
    busy(world)
    with pytest.raises(WrongBlobs, match="lacks the file"):
        backup(world.place, LocalBlobs(tmp_path / "elsewhere"), tmp_path / "backup")


def test_no_two_at_once(world: World, tmp_path: Path) -> None:
    from milkrun_engine.service.backup_folder import locked

    busy(world)
    with locked(tmp_path / "backup"), pytest.raises(BackupError, match="another backup"):
        backup(world.place, world.blobs, tmp_path / "backup")


def test_a_snapshot_is_one_moment(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is committed while the ledger is copied is not in the copy, not even in part."""
    _, running = busy(world)
    first = backups.scalar

    def then_commit(connection: Any, expression: Any) -> Any:
        connection.execute(select(jobs.c.id)).all()  # a snapshot begins with its first look at a table
        with closing(world.another_store()) as other, other.database.write() as writer:
            writer.execute(update(jobs).where(jobs.c.id == running).values(name="later"))
        return first(connection, expression)

    monkeypatch.setattr(backups, "scalar", then_commit)
    backup(world.place, world.blobs, tmp_path / "backup")
    assert "later" == world.job(running).name
    (tmp_path / "new").mkdir()
    new = restored(tmp_path, tmp_path / "new" / "milkrun.db")
    with closing(new):
        assert new.job(running).name is None
