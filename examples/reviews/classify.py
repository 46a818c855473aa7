"""
Classify customer reviews with a real model on this machine: what a batch job looks like from Python.

It shows rows with a key, an answer that can only be one of three words, live progress, and
a row that cannot work: it gets a typed error, the job succeeds.
`python3 examples/run.py` makes the environment and runs this.
"""

import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import milkrun as mr
from task import LABELS, messages, read_reviews

TOO_LONG = "R-LONG"
SHOWN = 12

console = Console()


def main() -> int:
    """Run the job, show it, and say by the exit code whether everything held."""
    reviews = with_one_too_long(read_reviews())
    rows = [{"id": review["id"], "messages": messages(review["text"])} for review in reviews]

    console.print(
        f"{len(rows)} reviews. The engine starts by itself; the model takes a moment the first time.", soft_wrap=True
    )
    job_id = mr.infer(rows, output_schema=LABELS, sampling={"temperature": 0}, key_column="id", name="Customer reviews")
    results = await_with_bar(job_id)

    answers = results.to_list()
    show_answers(reviews, answers)
    show_summary(reviews, answers, results.job)
    problems = check(reviews, answers, results.job)
    for problem in problems:
        console.print(f"[red]not as it should be:[/] {escape(problem)}")
    console.print(
        "The engine stays warm for the next job, and stops by itself after ten idle minutes or by:", soft_wrap=True
    )
    console.print(f"    {Path(sys.executable).parent / 'milkrun'} stop", soft_wrap=True, highlight=False)
    return 1 if problems else 0


def with_one_too_long(reviews: list[dict[str, str]]) -> list[dict[str, str]]:
    """Put one row in their midst that no context can hold: a whole export, pasted into one cell by mistake."""
    everything = "\n".join(review["text"] for review in reviews)
    pasted = {"id": TOO_LONG, "product": "", "text": f"{everything}\n{everything}", "label": ""}
    middle = len(reviews) // 2
    return [*reviews[:middle], pasted, *reviews[middle:]]


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
            line = f"{state}: {job.rows_done // 50 * 50} of {job.rows_total or '?'} rows"
            if not console.is_terminal and line != said:
                console.print(said := line)

        return mr.await_job_results(job_id, timeout=1_800, on_progress=show)


def show_answers(reviews: list[dict[str, str]], answers: list[mr.ResultRow]) -> None:
    """Show the first rows of the results, and each row error."""
    table = Table(title="First rows", title_justify="left", expand=True)
    table.add_column("key", no_wrap=True)
    table.add_column("review", no_wrap=True, ratio=1)
    table.add_column("answer", no_wrap=True, min_width=8)
    table.add_column("label", no_wrap=True, min_width=8)
    for review, answer in list(zip(reviews, answers, strict=True))[:SHOWN]:
        table.add_row(answer.key, escape(review["text"]), answer.text, review["label"])
    console.print(table)
    for answer in answers:
        if answer.error:
            console.print(
                f"row {answer.key}: [yellow]{answer.error.code}[/]: {escape(answer.error.message)}", soft_wrap=True
            )


def show_summary(reviews: list[dict[str, str]], answers: list[mr.ResultRow], job: mr.Job) -> None:
    """Show the job's figures."""
    pairs = [(review["label"], answer.text) for review, answer in zip(reviews, answers, strict=True) if answer.text]
    agreeing = sum(label == text for label, text in pairs)
    table = Table(title="Job", title_justify="left", show_header=False)
    for name, value in (
        ("rows", f"{job.rows_total:,}"),
        ("succeeded", f"{job.rows_succeeded:,}"),
        ("failed", f"{job.rows_failed:,}"),
        ("seconds", f"{job.seconds:.1f}"),
        ("tokens in", f"{job.usage.prompt_tokens:,}"),
        ("tokens out", f"{job.usage.completion_tokens:,}"),
        ("tokens cached", f"{job.usage.cached_tokens:,}"),
        ("agreement with the labels", f"{agreeing} of {len(pairs)} ({agreeing / len(pairs):.0%})" if pairs else "-"),
    ):
        table.add_row(name, value)
    console.print(table)
    console.print(f"The job's page: {job.url}", soft_wrap=True, highlight=False)


def check(reviews: list[dict[str, str]], answers: list[mr.ResultRow], job: mr.Job) -> list[str]:
    """Say what is not as promised: one typed row error, every other row within the labels, order kept."""
    problems = []
    errors = {answer.key: answer.error.code for answer in answers if answer.error}
    if errors != {TOO_LONG: mr.RowErrorCode.context_length_exceeded}:
        problems.append(f"expected one context_length_exceeded, for {TOO_LONG}; the row errors are {errors}")
    if job.status is not mr.JobStatus.succeeded:
        problems.append(f"the job is {job.status}")
    if [answer.key for answer in answers] != [review["id"] for review in reviews]:
        problems.append("the results are not in the order of the rows")
    if strangers := {str(answer.text) for answer in answers if not answer.error and answer.text not in LABELS}:
        problems.append(f"answers that are no label: {strangers}")
    return problems


if __name__ == "__main__":
    sys.exit(main())
