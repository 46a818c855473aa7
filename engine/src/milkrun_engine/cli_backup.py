"""
`milkrun backup` and `milkrun restore`.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from milkrun_engine.lock import DataDirInUse, DataDirLock
from milkrun_engine.settings import EngineSettings

DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="The engine's data directory. [default: the user's data folder]")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Of the backup.", file_okay=False)]


def backup(context: typer.Context, folder: Folder, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """
    Copy ledger and blobs into FOLDER, while engines run; again into the same folder copies only what is new.

    MILKRUN_DATABASE_URL and MILKRUN_BLOB_DIR are read as `milkrun serve` reads them.
    """
    from milkrun_engine.blobs.local import LocalBlobs
    from milkrun_engine.service import backup as service

    settings = settings_of(context, data_dir, "backup")
    os.umask(0o077)  # it holds prompts and the secrets of callbacks
    try:
        service.check_version(settings.ledger)
        report = service.backup(settings.ledger, LocalBlobs(settings.blobs), folder)
    except (ValueError, OSError) as error:
        _fail("backup", error)
    counts = f"{report.blobs:,} blobs, {report.copied:,} of them copied now ({report.copied_bytes:,} bytes)"
    lines = [f"Backed up into {folder}, as of {report.made_at}: {counts}."]
    if report.dropped:
        lines.append(f"{report.dropped:,} blobs of the backup before were dropped: nothing names them any more.")
    if report.missing:
        lines.append(f"Warning: {len(report.missing):,} blobs are gone or damaged where they should be (--json lists).")
    _print(report, "\n".join(lines), as_json=as_json)


def restore(context: typer.Context, folder: Folder, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """
    Bring the backup in FOLDER into an empty data directory, or into an empty database and blob folder.

    Every blob's sha256 is checked. If it was cut off, run it again.
    """
    from milkrun_engine.service import restore as service

    settings = settings_of(context, data_dir, "restore")
    lock = DataDirLock(settings.data_dir)
    try:
        lock.acquire()
        report = service.restore(folder, settings.ledger, settings.blobs)
    except (DataDirInUse, ValueError, OSError) as error:
        _fail("restore", error)
    finally:
        lock.release()
    jobs = ", ".join(f"{count:,} {status}" for status, count in report.jobs.items()) or "none"
    counts = f"{sum(report.jobs.values()):,} jobs ({jobs}), {report.rows:,} rows, {report.blobs:,} blobs"
    lines = [
        f"Restored the backup of {report.made_at}: {counts}.",
        "Unfinished jobs go on when an engine starts; readers of the change feed begin anew.",
    ]
    if report.leases_given_back:
        lines.append(f"{report.leases_given_back:,} chunks were being worked on; they are computed again.")
    if report.callbacks_held_back:
        lines.append(
            f"{report.callbacks_held_back:,} callbacks were due and are held back, since they may have been sent after "
            "the backup: `milkrun callbacks` lists them, `milkrun callbacks replay` sends them."
        )
    if report.missing:
        lines.append(f"Warning: the backup lacked {len(report.missing):,} blobs (--json lists them).")
    _print(report, "\n".join(lines), as_json=as_json)


def settings_of(context: typer.Context, data_dir: Path | None, command: str) -> EngineSettings:
    """
    The settings as an engine here would read them.

    Raises:
        typer.Exit: a variable can't be used; it has been said.
    """
    try:
        return EngineSettings.read(
            data_dir=data_dir or (context.obj or {}).get("data_dir"),
            admin_key=os.environ.get("MILKRUN_ADMIN_KEY") or "none",  # nobody is let in here
        )
    except ValueError as error:
        _fail(command, error)


def _print(report: Any, text: str, *, as_json: bool) -> None:
    typer.echo(json.dumps(dataclasses.asdict(report)) if as_json else text)


def _fail(command: str, error: Exception) -> NoReturn:
    typer.echo(f"milkrun {command}: {error}", err=True)
    raise typer.Exit(1) from None
