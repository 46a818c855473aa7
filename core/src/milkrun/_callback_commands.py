"""
`milkrun callbacks`: what was given up, and how it is sent again.
"""

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from milkrun._client import Milkrun
from milkrun.status import CallbackState
from milkrun.wire import CallbackInfo

app = typer.Typer(help="List callbacks, and send again those that were given up.", invoke_without_command=True)
_ID_WIDTH = 31
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


@app.callback()
def listing(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 20,
    state: Annotated[CallbackState, typer.Option(help="Only those.")] = CallbackState.given_up,
    as_json: AsJson = False,
) -> None:
    """List callbacks, newest first; those that were given up unless --state says otherwise."""
    if context.invoked_subcommand is not None:
        return
    with Milkrun(**context.obj) as client:
        found = client.callbacks(limit, state)
    if as_json:
        typer.echo(json.dumps([callback.model_dump(mode="json") for callback in found]))
        return
    whole = Column("callback", no_wrap=True, min_width=_ID_WIDTH)  # it is there to be copied
    table = Table(whole, "receiver", "tries", "last error", box=None)
    for callback in found:
        table.add_row(*map(escape, _cells(callback)))
    Console().print(table)


@app.command()
def replay(
    context: typer.Context,
    callback_id: Annotated[str | None, typer.Argument(metavar="CALLBACK_ID", help="As the list names it.")] = None,
    receiver: Annotated[str | None, typer.Option(help="Instead: all that were given up on this receiver.")] = None,
    as_json: AsJson = False,
) -> None:
    """Send a callback again, now and under its old id; or with --receiver all that were given up on one."""
    if (callback_id is None) == (receiver is None):
        raise typer.BadParameter("name a callback, or --receiver as the list shows it")
    with Milkrun(**context.obj) as client:
        if callback_id is not None:
            callback = client.replay_callback(callback_id)
            typer.echo(callback.model_dump_json() if as_json else f"{callback.id} is sent again")
        elif receiver is not None:
            count = client.replay_callbacks(receiver)
            typer.echo(json.dumps({"callbacks": count}) if as_json else f"{count:,} callbacks are sent again")


def _cells(callback: CallbackInfo) -> tuple[str, ...]:
    return callback.id, callback.receiver, str(callback.attempts), callback.last_error or ""
