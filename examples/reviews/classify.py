"""
Classify customer reviews with a real model on this machine: what a batch job looks like from Python.

It shows rows with a key, an answer that can only be one of three words, live progress, and
a row that cannot work: it gets a typed error, the job succeeds.
`python3 examples/run.py sdk` makes the environment and runs this.
"""

import argparse
import time
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import milkrun as mr
from report import Report
from task import LABELS, SAMPLING, read_reviews, read_rows, with_one_too_long

SHOWN = 12

console = Console()


def main() -> None:
    """Run the job, show it, and leave a report for the comparison of routes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path, nargs="?", help="where to write what `examples/run.py` compares")
    path: Path | None = parser.parse_args().report
    rows = read_rows()

    console.print(
        f"{len(rows)} reviews. The engine starts by itself; the model takes some minutes to load the first time.",
        soft_wrap=True,
    )
    began = time.monotonic()
    job_id = mr.infer(rows, output_schema=LABELS, sampling=SAMPLING, key_column="id", name="Customer reviews")
    results = await_with_bar(job_id)

    show_answers(results.to_list())
    table = [row.flat() for row in results]
    if path:
        seconds = time.monotonic() - began
        Report.of("Python SDK", results.job, table, seconds=seconds, waited="this process").write(path)
    console.print(f"The job's page: {results.job.url}", soft_wrap=True, highlight=False)


def await_with_bar(job_id: str) -> mr.Results:
    """Wait for the job with a live bar, or with a line now and then where the output is no terminal."""
    moving = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*moving, console=console) as progress:
        task = progress.add_task("submitted", total=None)
        said = ""

        def show(job: mr.Job) -> None:
            nonlocal said
            state = (job.waiting_reason or job.status.value).replace("_", " ")
            progress.update(task, description=state, completed=job.rows_done, total=job.rows_total)
            done = job.rows_done if job.is_terminal else job.rows_done // 50 * 50
            line = f"{state}: {done} of {job.rows_total or '?'} rows"
            if not console.is_terminal and line != said:
                console.print(said := line)

        return mr.await_job_results(job_id, timeout=1_800, on_progress=show)


def show_answers(answers: list[mr.ResultRow]) -> None:
    """Show the first rows of the results, and each row error."""
    table = Table(title="First rows", title_justify="left", expand=True)
    table.add_column("key", no_wrap=True)
    table.add_column("review", no_wrap=True, ratio=1)
    table.add_column("model says", no_wrap=True, min_width=10)
    table.add_column("a person says", no_wrap=True, min_width=13)
    for review, answer in list(zip(with_one_too_long(read_reviews()), answers, strict=True))[:SHOWN]:
        table.add_row(answer.key, escape(review["text"]), answer.text, review["label"])
    console.print(table)
    for answer in answers:
        if answer.error:
            console.print(
                f"row {answer.key}: [yellow]{answer.error.code}[/]: {escape(answer.error.message)}", soft_wrap=True
            )


if __name__ == "__main__":
    main()
