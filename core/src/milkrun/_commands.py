"""
The commands over a `Milkrun` client, a few lines each.

Data goes to stdout, everything for a person's eyes to stderr. Other distributions add
commands by the entry-point group `milkrun.commands`: each entry is a `typer.Typer`.
"""

import json
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from milkrun import _callback_commands, _outputs, local, outcome
from milkrun._bar import Bar
from milkrun._client import Milkrun
from milkrun._results import Results
from milkrun.exceptions import JobError, MilkrunError, WaitTimeout
from milkrun.status import JobKind, JobStatus, OnMismatch, ResultFormat
from milkrun.wire import Job, OutputSchema

_EXITS = "Exit codes: 0 ok, 1 error, 2 wrong usage, 3 the job failed, was cancelled or expired, 4 the wait timed out."
_SHOWN_ROWS = 20
_WIDE = 100  # columns of a terminal that has room for models, too
_PIPED_WIDTH = 160  # nobody's window ends there
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
app = typer.Typer(
    help="Batch LLM inference on your own machines.",
    epilog=_EXITS,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(_callback_commands.app, name="callbacks")
_err = Console(stderr=True)

JobId = Annotated[str, typer.Argument(metavar="JOB_ID", help="As printed by submit.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Timeout = Annotated[float | None, typer.Option(help="Stop waiting after this many seconds (exit code 4).")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Write the results to this file.")]
Labels = Annotated[list[str] | None, typer.Option("--label", metavar="K=V", help="May be repeated.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(version("milkrun"))
        raise typer.Exit


@app.callback()
def _common(
    context: typer.Context,
    url: Annotated[str | None, typer.Option(help="The engine; else MILKRUN_URL, else the local engine.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where the local engine lives.")] = None,
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    context.obj = {"url": url, "data_dir": data_dir}


@app.command()
def submit(
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE", help="A CSV, TSV, JSONL or Parquet file; - reads JSON Lines.")],
    prompt: Annotated[str | None, typer.Option(help='A template over the columns: "Classify: {text}".')] = None,
    column: Annotated[str | None, typer.Option(help="The column that is the prompt.")] = None,
    model: Annotated[str | None, typer.Option(help="Else the engine's default model.")] = None,
    system_prompt: Annotated[str | None, typer.Option(help="Goes before every row.")] = None,
    choices: Annotated[str | None, typer.Option(metavar="A,B", help="Answer with one of these.")] = None,
    schema: Annotated[Path | None, typer.Option(help="A file with the JSON schema of an answer.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Of an answer. [default: 1024]")] = None,
    kind: Annotated[JobKind, typer.Option(help="generate answers, or embed.")] = JobKind.generate,
    priority: Annotated[int, typer.Option(min=0, max=10, help="Smaller is sooner.")] = 1,
    name: Annotated[str | None, typer.Option(help="Shown in lists and on the page.")] = None,
    label: Labels = None,
    key_column: Annotated[str | None, typer.Option(help="The column that labels a row in the results.")] = None,
    idempotency_key: Annotated[str | None, typer.Option(help="The same key and inputs give the same job.")] = None,
    on_mismatch: Annotated[OnMismatch, typer.Option(help="The key's job has other inputs.")] = OnMismatch.fail,
    window: Annotated[str | None, typer.Option(metavar="TIME", help="End as expired after this: 90m, 6h, 2d.")] = None,
    abort_after: Annotated[int | None, typer.Option(min=1, help="Fail as soon as so many rows have failed.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end.")] = False,
    timeout: Timeout = None,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Submit a file of rows; print the job's id. --output waits and saves the results."""
    if choices is not None and schema is not None:
        raise typer.BadParameter("give --choices or --schema, not both")
    _check_target(output)
    output_schema: Any = [each.strip() for each in choices.split(",")] if choices is not None else None
    if schema is not None:
        output_schema = _read_schema(schema)
    with Milkrun(**context.obj) as client:
        submitted = client.submit(
            _stdin_rows() if file == "-" else file,
            prompt=prompt,
            column=column,
            model=model,
            system_prompt=system_prompt,
            output_schema=output_schema,
            sampling={"max_tokens": max_tokens} if max_tokens is not None else None,
            kind=kind,
            job_priority=priority,
            name=name,
            labels=_labels(label),
            key_column=key_column,
            idempotency_key=idempotency_key,
            on_mismatch=on_mismatch,
            completion_window=_span(window),
            abort_after_failed_rows=abort_after,
        )
        job = submitted.job
        if not wait and output is None:
            _print(submitted, job.id, as_json=as_json)
            return
        _err.print(f"job {job.id}  {job.url}", soft_wrap=True, highlight=False)
        _finish(client, job.id, timeout, output, as_json=as_json)


@app.command()
def status(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Show a job as it stands."""
    with Milkrun(**context.obj) as client:
        job = client.job(job_id)
        _print(job, _facts(job), as_json=as_json)


@app.command()
def wait(
    context: typer.Context, job_id: JobId, timeout: Timeout = None, output: Output = None, as_json: AsJson = False
) -> None:
    """Wait until a job has ended, with a live bar."""
    with Milkrun(**context.obj) as client:
        _finish(client, job_id, timeout, output, as_json=as_json)


@app.command()
def results(
    context: typer.Context,
    job_id: JobId,
    output: Output = None,
    form: Annotated[ResultFormat | None, typer.Option("--format", help="Else by the file's suffix.")] = None,
    as_json: AsJson = False,
) -> None:
    """
    Show a job's first rows; or write all that are readable to a file, or to stdout (--format; --json is JSON Lines).
    """
    if as_json and output is None and form not in (None, ResultFormat.jsonl):
        raise typer.BadParameter(f"--json writes JSON Lines; leave it out to get {form}")
    with Milkrun(**context.obj) as client:
        found = client.results(job_id)
        if output is not None:
            _save(found, output, form, as_json=as_json)
        elif form is not None or as_json:
            with tempfile.TemporaryDirectory(prefix="milkrun-") as folder:
                with found.save(Path(folder) / "results", format=form or ResultFormat.jsonl).open("rb") as file:
                    shutil.copyfileobj(file, sys.stdout.buffer)
                sys.stdout.buffer.flush()
        else:
            _show_rows(found)


@app.command()
def jobs(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 20,
    state: Annotated[list[JobStatus] | None, typer.Option("--status", help="Only those; may be repeated.")] = None,
    label: Labels = None,
    name: Annotated[str | None, typer.Option(help="The whole name, or its beginning and *.")] = None,
    since: Annotated[str | None, typer.Option(metavar="WHEN", help="Submitted after: 90m, 6h, 2d or a date.")] = None,
    before: Annotated[str | None, typer.Option(metavar="WHEN", help="Submitted before.")] = None,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    with Milkrun(**context.obj) as client:
        found = client.jobs(
            limit, state, _labels(label), name=name, created_after=_instant(since), created_before=_instant(before)
        )
    if as_json:
        typer.echo(json.dumps([job.model_dump(mode="json") for job in found]))
        return
    console = Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH)
    names = ["job", "status", "done", "failed", "created", "name"]
    lines = [[job.id, job.status.value, _done(job), f"{job.rows_failed:,}", _short(job.created_at), job.name or ""]
             for job in found]  # fmt: skip
    if console.width >= _WIDE:
        names.append("model")
        lines = [[*line, job.model] for line, job in zip(lines, found, strict=True)]
    widths = [max(map(len, cells)) for cells in zip(names, *lines, strict=True)]
    # What is there to be copied and compared is shown whole; names and models give way.
    columns = [Column(name, no_wrap=True, min_width=width if place < 5 else None, overflow="ellipsis")
               for place, (name, width) in enumerate(zip(names, widths, strict=True))]  # fmt: skip
    table = Table(*columns, box=None)
    for line in lines:
        table.add_row(*map(escape, line))
    console.print(table)


def _done(job: Job) -> str:
    return f"{job.rows_done:,}/{'?' if job.rows_total is None else f'{job.rows_total:,}'}"


def _short(instant: datetime) -> str:
    return f"{instant.astimezone():%m-%d %H:%M}"


@app.command()
def cancel(
    context: typer.Context,
    job_id: JobId,
    claim: Annotated[int | None, typer.Option(help="Refuse if a newer attempt owns the job.")] = None,
    as_json: AsJson = False,
) -> None:
    """Stop a job; what was committed stays readable."""
    with Milkrun(**context.obj) as client:
        job = client.cancel(job_id, claim)
        _print(job, _facts(job), as_json=as_json)


@app.command()
def pause(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Start no more rows of a job; those that the model has already are finished."""
    with Milkrun(**context.obj) as client:
        job = client.pause(job_id)
        _print(job, _facts(job), as_json=as_json)


@app.command()
def resume(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Let a paused job go on."""
    with Milkrun(**context.obj) as client:
        job = client.resume(job_id)
        _print(job, _facts(job), as_json=as_json)


@app.command()
def delete(
    context: typer.Context,
    job_id: JobId,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete an ended job with its results and its input."""
    if not yes:
        typer.confirm(f"Delete job {job_id} with its results?", abort=True, err=True)
    with Milkrun(**context.obj) as client:
        client.delete(job_id)
    _err.print(f"job {job_id} is deleted", highlight=False)


@app.command()
def retry(
    context: typer.Context,
    job_id: JobId,
    priority: Annotated[int | None, typer.Option(min=0, max=10, help="Else the ended job's.")] = None,
    name: Annotated[str | None, typer.Option(help="Else the ended job's.")] = None,
    label: Labels = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end.")] = False,
    timeout: Timeout = None,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """
    Run only the failed and undecided rows of an ended job; print the new job's id.

    The new job has the whole table: answers that are there are taken over. --output waits and saves the results.
    """
    _check_target(output)
    labels = _labels(label) if label else None
    with Milkrun(**context.obj) as client:
        new_id = client.retry_failed(job_id, name=name, labels=labels, job_priority=priority)
        job = client.job(new_id)
        if not wait and output is None:
            _print(job, job.id, as_json=as_json)
            return
        _err.print(f"job {job.id}  {job.url}", soft_wrap=True, highlight=False)
        _finish(client, job.id, timeout, output, as_json=as_json)


@app.command()
def env(context: typer.Context) -> None:
    """
    Print the local engine's address and key as shell lines: eval "$(milkrun env)". Starts it if need be.

    It ends after ten idle minutes, and another one has another port: for a connection that lasts, run `milkrun serve`.
    """
    engine = local.ensure(context.obj["data_dir"] or local.default_data_dir())
    for name, value in (("MILKRUN_URL", engine.url), ("MILKRUN_API_KEY", engine.api_key)):
        typer.echo(f"export {name}={shlex.quote(value)}")


def _finish(client: Milkrun, job_id: str, timeout: float | None, output: Path | None, *, as_json: bool) -> None:
    _check_target(output)
    with Bar(_err) as bar:
        job = client.wait(job_id, timeout, bar.show)
    _print(job, _facts(job), as_json=as_json)
    outcome.check(job)
    if output is not None:
        path = client.results(job_id).save(output)
        _err.print(f"{job.rows_total:,} rows in {path}", soft_wrap=True, highlight=False)


def _save(found: Results, output: Path, form: ResultFormat | None, *, as_json: bool) -> None:
    path = found.save(output, format=form)
    typer.echo(json.dumps({"rows": len(found), "path": str(path)}) if as_json else f"{len(found):,} rows in {path}")


def _show_rows(found: Results) -> None:
    table = Table("index", "key", "output", "error", box=None)
    for row in found:
        if row.index >= _SHOWN_ROWS:
            break
        answer = row.text if row.text is not None or row.error else json.dumps(row.output)[:60]
        error = f"{row.error.code}: {row.error.message}" if row.error else ""
        table.add_row(str(row.index), *map(escape, (row.key or "", answer or "", error)))
    Console().print(table)
    _err.print(f"{len(found):,} rows readable, job {found.job.status.value}; --output FILE writes them all")


def _stdin_rows() -> Iterator[Any]:
    # Lines as bytes: text mode and str.splitlines would also cut at U+2028, which is legal inside a JSON string.
    for number, line in enumerate(sys.stdin.buffer, 1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number} of the input is no JSON: {error}") from None


def _check_target(output: Path | None) -> None:
    """Refuse what can't be written before the work, not after it."""
    if output is not None:
        _outputs.format_of(output)
        if not output.expanduser().parent.is_dir():
            raise FileNotFoundError(f"there is no folder {output.parent} to write {output.name} to")


def _read_schema(path: Path) -> OutputSchema:
    try:
        return OutputSchema(json_schema=json.loads(path.read_bytes()))
    except ValueError as error:  # also pydantic's
        raise ValueError(f"{path} holds no JSON schema (a JSON object)") from error


def _span(text: str | None) -> timedelta | None:
    """A length of time: 90s, 30m, 6h, 2d."""
    if text is None:
        return None
    number, unit = text[:-1], _UNITS.get(text[-1:])
    try:
        return timedelta(**{unit: float(number)} if unit else {"seconds": float(text)})
    except (ValueError, OverflowError):
        raise typer.BadParameter(f"{text!r} is no length of time; write 90s, 30m, 6h or 2d") from None


def _instant(text: str | None) -> datetime | None:
    """A date and time, or so long ago."""
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError:
        pass
    try:
        return datetime.now(UTC) - (_span(text) or timedelta())
    except (typer.BadParameter, OverflowError):
        raise typer.BadParameter(
            f"{text!r} is no time; write 2026-11-24, 2026-11-24T08:00, or 6h for so long ago"
        ) from None


def _labels(pairs: list[str] | None) -> dict[str, str]:
    labels = dict(pair.partition("=")[::2] for pair in pairs or [])
    if not all(labels.values()) or "" in labels:
        raise typer.BadParameter("a label is written key=value")
    return labels


def _facts(job: Job) -> str:
    facts = {name: value for name, value in outcome.summary(job).items() if value is not None}
    if job.waiting_reason:
        facts["waiting_reason"] = job.waiting_reason
    if job.queue:
        facts["ahead"] = f"{job.queue.jobs_ahead:,} jobs, {job.queue.rows_ahead:,} rows"
        if job.queue.estimated_seconds is not None:
            facts["estimated end"] = f"in {timedelta(seconds=round(job.queue.estimated_seconds))}"
    if job.expires_at and not job.is_terminal:
        facts["expires"] = f"{job.expires_at.astimezone():%Y-%m-%d %H:%M:%S}"
    for code, count in job.row_errors.items():
        facts[code] = f"{count:,} (milkrun results {job.id} says why)"
    return "\n".join(f"{name:<24}{value}" for name, value in facts.items())


def _print(answer: BaseModel, text: str, *, as_json: bool) -> None:
    typer.echo(answer.model_dump_json() if as_json else text)


def _add_plugins() -> None:
    for entry in entry_points(group="milkrun.commands"):
        try:
            plugin = entry.load()
        except Exception as error:
            _err.print(f"milkrun: the commands of {entry.value} could not be loaded: {error}", markup=False)
            continue
        app.registered_commands += plugin.registered_commands
        app.registered_groups += plugin.registered_groups


def main() -> None:
    """Run the command line; errors are one line and an exit code."""
    _add_plugins()
    try:
        app()
    except JobError as error:
        _fail(error, 3)
    except WaitTimeout as error:
        _fail(error, 4)
    except (MilkrunError, OSError, ImportError) as error:
        _fail(error, 1)
    except (ValueError, TypeError) as error:
        _fail(error, 2)


def _fail(error: Exception, code: int) -> None:
    _err.print(f"milkrun: {error}", markup=False, highlight=False, soft_wrap=True)
    sys.exit(code)
