"""
`milkrun doctor`.
"""

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from milkrun_engine.doctor.findings import Finding, Level
from milkrun_engine.settings import EngineSettings

_STYLES = {Level.ok: "green", Level.warning: "yellow", Level.wrong: "bold red"}


def doctor(
    context: typer.Context,
    data_dir: Annotated[Path | None, typer.Option("--data-dir", help="The engine's data directory.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """
    Say what is wrong with this installation, or with the engine at MILKRUN_URL, and what to do. Exit code 1 if so.

    It reads the environment and files that `milkrun serve` would read, and changes nothing.
    """
    from milkrun_engine.doctor import examine  # it brings the ledger's libraries

    common = context.obj or {}
    if url := common.get("url") or os.environ.get("MILKRUN_URL"):
        found = list(examine.there(url.rstrip("/"), os.environ.get("MILKRUN_API_KEY")))
    else:
        found = list(examine.here(_settings(data_dir or common.get("data_dir"))))
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(finding) for finding in found]))
    else:
        _show(found)
    if any(finding.level is Level.wrong for finding in found):
        raise typer.Exit(1)


def _settings(data_dir: Path | None) -> EngineSettings | str:
    try:
        return EngineSettings.read(data_dir=data_dir)
    except ValueError as error:
        return str(error)


def _show(found: Sequence[Finding]) -> None:
    table = Table(Column("", no_wrap=True), Column("check", no_wrap=True), "found", "what to do", box=None)
    for finding in found:
        level = f"[{_STYLES[finding.level]}]{finding.level}[/]"
        table.add_row(level, *map(escape, (finding.check, finding.found, finding.do)))
    console = Console()
    console.print(table)
    counts = Counter(finding.level for finding in found)
    words = f"{counts[Level.wrong] or 'nothing'} wrong, {counts[Level.warning] or 'no'} warnings"
    console.print(words, highlight=False)
