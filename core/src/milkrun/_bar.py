"""The live bar of one job: rows, tokens, and what it waits for."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from milkrun.wire import Job


class Bar:
    """A context manager; hand its `show` to `wait` or `await_job_results` as `on_progress`."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self._task = self._progress.add_task("submitted", total=None, facts="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, job: Job) -> None:
        """Show how far the job is."""
        facts = f"{job.usage.completion_tokens:,} tokens"
        if job.rows_failed:
            facts += f", {job.rows_failed:,} rows failed"
        self._progress.update(
            self._task,
            description=job.waiting_reason or job.status.value,
            total=job.rows_total,
            completed=job.rows_done,
            facts=facts,
        )
