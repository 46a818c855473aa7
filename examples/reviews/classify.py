"""
Classify customer reviews with a real model on this machine: what a batch job looks like from Python.

It shows rows with a key, a prompt template over columns, an answer that can only be one of
three words, live progress, and a row that cannot work: it gets a typed error, the job succeeds.
`python3 examples/run.py` makes the environment and runs this.
"""

import csv
import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import milkrun as mr

LABELS = ["positive", "negative", "neutral"]
PROMPT = "Classify the sentiment of this customer review as positive, negative or neutral.\n\nReview: {text}"
TOO_LONG = "R-LONG"
SHOWN = 12

console = Console()


def main() -> int:
    """Run the job, show it, and say by the exit code whether everything held."""
    reviews = read_reviews()
    columns = ("id", "product", "text")  # the true label stays here
    rows = [{name: review[name] for name in columns} for review in reviews]

    console.print(f"{len(rows)} reviews; the engine starts by itself (the model takes a moment the first time)")
    job_id = mr.infer(
        rows, prompt=PROMPT, output_schema=LABELS, sampling={"temperature": 0}, key_column="id", name="Customer reviews"
    )
    results = await_with_bar(job_id)

    answers = results.to_list()
    show_answers(reviews, answers)
    show_summary(reviews, answers, results.job)
    problems = check(reviews, answers, results.job)
    for problem in problems:
        console.print(f"[red]not as it should be:[/] {escape(problem)}")
    console.print("The engine stays warm for the next job, and stops by itself after ten idle minutes or by:")
    console.print(f"    {Path(sys.executable).parent / 'milkrun'} stop", soft_wrap=True, highlight=False)
    return 1 if problems else 0


def read_reviews() -> list[dict[str, str]]:
    """Read the reviews, and put one row among them that no context can hold."""
    path = Path(__file__).parent / "reviews.csv"
    with path.open(encoding="utf-8", newline="") as file:
        reviews = list(csv.DictReader(file))
    everything = "\n".join(review["text"] for review in reviews)
    pasted = {
        "id": TOO_LONG,
        "product": "(a whole export, pasted into one cell)",
        "text": f"{everything}\n{everything}",
    }
    reviews.insert(len(reviews) // 2, {**pasted, "label": ""})
    return reviews


def await_with_bar(job_id: str) -> mr.Results:
    """Wait for the job with a live bar."""
    moving = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*moving, console=console) as progress:
        task = progress.add_task("submitted", total=None)

        def show(job: mr.Job) -> None:
            state = (job.waiting_reason or job.status.value).replace("_", " ")
            progress.update(task, description=state, completed=job.rows_done, total=job.rows_total)

        return mr.await_job_results(job_id, timeout=1_800, on_progress=show)


def show_answers(reviews: list[dict[str, str]], answers: list[mr.ResultRow]) -> None:
    """Show the first rows of the results, and each row error."""
    table = Table(title="First rows", title_justify="left")
    for heading in ("key", "review", "answer", "label"):
        table.add_column(heading, no_wrap=heading == "review", overflow="ellipsis")
    for review, answer in list(zip(reviews, answers, strict=True))[:SHOWN]:
        table.add_row(answer.key, escape(review["text"][:60]), answer.text, review["label"])
    console.print(table)
    for answer in answers:
        if answer.error:
            console.print(f"row {answer.key}: [yellow]{answer.error.code}[/]: {escape(answer.error.message)}")


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
        ("job page", job.url),
    ):
        table.add_row(name, value)
    console.print(table, soft_wrap=True)


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
