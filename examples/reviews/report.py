"""
What each route tells of its job, and what is asked of all of them.
"""

import argparse
import contextlib
import json
import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import milkrun as mr
from task import LABELS, TOO_LONG, read_reviews


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One route's job, as its orchestrator delivered it."""

    route: str
    page: str  #: the job's page
    keys: list[str]  #: of all rows, in the order in which they were delivered
    answers: list[str | None]  #: of all rows; None for a failed one
    errors: dict[str, str]  #: key → code, of the failed ones
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    start_seconds: float  #: until the orchestrator's own processes were up
    seconds: float  #: from asking for the run to its end
    waited: str  #: what was seen to wait while the job ran

    @classmethod
    def of(
        cls,
        route: str,
        job: mr.Job,
        rows: Iterable[Mapping[str, Any]],
        *,
        seconds: float,
        waited: str,
        start_seconds: float = 0.0,
    ) -> Self:
        """Make a route's report from its job and from the table that it delivered."""
        table = list(rows)
        return cls(
            route=route,
            page=job.url,
            keys=[row["key"] for row in table],
            answers=[None if row["error_code"] else row["output"] for row in table],
            errors={row["key"]: row["error_code"] for row in table if row["error_code"]},
            prompt_tokens=job.usage.prompt_tokens,
            completion_tokens=job.usage.completion_tokens,
            cached_tokens=job.usage.cached_tokens,
            start_seconds=start_seconds,
            seconds=seconds,
            waited=waited,
        )

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what another process wrote."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def write(self, path: Path) -> None:
        """Leave it to the process that compares."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @property
    def agreement(self) -> str:
        """How many answers are the label that a person gave."""
        labels = {review["id"]: review["label"] for review in read_reviews()}
        pairs = [(answer, labels[key]) for key, answer in zip(self.keys, self.answers, strict=True) if answer]
        agreeing = sum(answer == label for answer, label in pairs)
        return f"{agreeing} of {len(pairs)} ({agreeing / len(pairs):.0%})" if pairs else "-"


def problems_of(report: Report, keys: Sequence[str]) -> list[str]:
    """Say what is not as promised: one typed row error, every other row within the labels, order kept."""
    problems = []
    if report.errors != {TOO_LONG: mr.RowErrorCode.context_length_exceeded}:
        problems.append(f"expected one context_length_exceeded, for {TOO_LONG}; the row errors are {report.errors}")
    if report.keys != list(keys):
        problems.append("the results are not in the order of the rows")
    if strangers := {answer for answer in report.answers if answer is not None and answer not in LABELS}:
        problems.append(f"answers that are no label: {strangers}")
    return [f"{report.route}: {problem}" for problem in problems]


def arguments(description: str | None) -> argparse.Namespace:
    """Read a route's command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("report", type=Path, help="where to write the report")
    parser.add_argument("--stay", action="store_true", help="leave the pages open until Ctrl-C")
    for number in (signal.SIGINT, signal.SIGTERM):  # what was started is put away; a background job ignores SIGINT
        signal.signal(number, signal.default_int_handler)
    return parser.parse_args()


def stay(url: str) -> None:
    """Wait until somebody says that it is enough."""
    print(f"{url} stays open until Ctrl-C", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()
