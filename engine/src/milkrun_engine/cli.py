"""
The engine's commands under `milkrun`: serve and stop; those of an operator are in modules of their own.
"""

import asyncio
import logging
import os
import signal
import time
from pathlib import Path
from typing import Annotated

import typer

from milkrun import local
from milkrun_engine import failpoints, logs
from milkrun_engine.cli_backup import backup, restore
from milkrun_engine.cli_doctor import doctor
from milkrun_engine.lock import DataDirInUse, DataDirLock
from milkrun_engine.settings import EngineSettings

commands = typer.Typer(no_args_is_help=True, help="Run Milkrun's engine.")
commands.command()(backup)
commands.command()(restore)
commands.command()(doctor)
_STOP_SECONDS = 45.0
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Ledger, blobs, models and logs. [default: the user's data folder]")
]


@commands.command()
def serve(
    context: typer.Context,
    host: Annotated[str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="0 takes a free port. [default: 8787]")] = None,
    data_dir: DataDir = None,
    replica: Annotated[str | None, typer.Option(help="vllm, or echo: a stand-in for tests. [default: vllm]")] = None,
    pool: Annotated[str | None, typer.Option(help="ray or local. [default: ray for vllm, local for echo]")] = None,
    models: Annotated[Path | None, typer.Option(help="A models.yaml. [default: the small models]")] = None,
    is_local: Annotated[bool, typer.Option("--local", help="End when idle, as clients start it.", hidden=True)] = False,
) -> None:
    """
    Run the engine until Ctrl-C or SIGTERM.

    MILKRUN_ADMIN_KEY names the API key; without it a new one is made. `engine.json` in the data
    directory holds address and key.
    """
    from milkrun_engine.app import MissingExtra  # these bring the whole server: not for every `milkrun` command
    from milkrun_engine.serve import serve as run_engine

    logs.configure(os.environ.get("MILKRUN_LOG_LEVEL", "INFO"))
    try:
        settings = EngineSettings.read(
            host=host,
            port=0 if is_local and port is None else port,
            data_dir=data_dir or _common_data_dir(context),
            replica=replica,
            pool=pool,
            models=models,
            is_local=is_local or None,
        )
        failpoints.arm(os.environ.pop("MILKRUN_FAILPOINTS", None))
        os.environ.pop("MILKRUN_ADMIN_KEY", None)  # not for the replicas, which inherit the environment
        asyncio.run(run_engine(settings))
    except (DataDirInUse, MissingExtra, ValueError, OSError) as error:
        logging.getLogger(__name__).debug("serve failed", exc_info=True)
        typer.echo(f"milkrun serve: {error}", err=True)
        raise typer.Exit(local.IN_USE_EXIT if isinstance(error, DataDirInUse) else 1) from None


@commands.command()
def stop(context: typer.Context, data_dir: DataDir = None) -> None:
    """Stop the engine of a data directory, with its replicas; running jobs go on at its next start."""
    where = data_dir or _common_data_dir(context) or local.default_data_dir()
    engine = local.find(where)
    if engine is None:
        _refuse_unready(where)
        typer.echo(f"No engine runs in {where}.")
        return
    os.kill(engine.pid, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_SECONDS
    while _runs(engine.pid):
        if time.monotonic() > deadline:
            typer.echo(
                f"Process {engine.pid} is still stopping after {_STOP_SECONDS:.0f} s; see {where}/engine.log.", err=True
            )
            raise typer.Exit(1)
        time.sleep(0.1)
    typer.echo(f"Stopped the engine (process {engine.pid}).")


def _common_data_dir(context: typer.Context) -> Path | None:
    """What stands before the command: `milkrun --data-dir DIR stop`."""
    return (context.obj or {}).get("data_dir")


def _refuse_unready(data_dir: Path) -> None:
    """Tell an engine that does not answer (it starts, stops or hangs) from none at all."""
    if not (data_dir / "engine.lock").is_file():
        return
    lock = DataDirLock(data_dir)
    try:
        lock.acquire()
    except DataDirInUse as error:
        typer.echo(
            f"milkrun stop: the engine of {data_dir} (process {error.holder}) does not answer: "
            "it is starting, stopping or hanging. Try again in a moment.",
            err=True,
        )
        raise typer.Exit(1) from None
    lock.release()


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
    return state != "Z"
