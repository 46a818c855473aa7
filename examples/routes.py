"""
The main job on each route against one engine, and one table: `python3 examples/run.py` runs this.

Every route is a process under its own environment; the orchestrators are real ones, started for the occasion in
temporary folders, and nothing of them is left.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import environments
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from milkrun import local
from milkrun.settings import Settings
from report import Report, problems_of
from task import read_reviews, with_one_too_long

ROOT = Path(__file__).resolve().parent.parent
SOURCES = (ROOT / "tests", ROOT / "examples" / "reviews")  #: what a route imports beside its environment
console = Console()


@dataclass(frozen=True, slots=True)
class Route:
    """A way to the engine."""

    environment: str
    script: str


ROUTES = {
    "sdk": Route("engine", "reviews/classify.py"),
    "airflow": Route("airflow", "airflow/route.py"),
    "dagster": Route("dagster", "dagster/route.py"),
    "prefect": Route("prefect", "prefect/route.py"),
}

LEGEND = (
    "One row is longer than the model's context on purpose: it fails alone. The model is a toy, and often wrong.",
    "Seconds are from asking for the run to its end; those of the first route have the model's loading in them.",
)


def main() -> int:
    """Run the wanted routes one after the other, compare, and say by the exit code whether everything held."""
    parser = argparse.ArgumentParser(prog="python3 examples/run.py", description=__doc__)
    parser.add_argument("routes", nargs="*", metavar="ROUTE", help=f"{', '.join(ROUTES)}; all of them by default")
    parser.add_argument("--stay", action="store_true", help="leave the one named orchestrator's pages open")
    options = parser.parse_args()
    names = options.routes or list(ROUTES)
    if strangers := [name for name in names if name not in ROUTES]:
        parser.error(f"no such route: {', '.join(strangers)}; there are {', '.join(ROUTES)}")
    if options.stay and (len(names) != 1 or names == ["sdk"]):
        parser.error("--stay is for one orchestrator: airflow, dagster or prefect")
    with tempfile.TemporaryDirectory(prefix="milkrun-routes-") as folder:
        reports, problems = [], []
        for number, name in enumerate(names, 1):
            console.rule(f"{number} of {len(names)}: {name}")
            path = Path(folder) / f"{name}.json"
            code = run(ROUTES[name], path, *(["--stay"] if options.stay else []))
            if code or not path.exists():
                problems.append(f"{name}: the route ended with {code}; what it said stands above")
            if path.exists():
                reports.append(Report.read(path))
    problems += compare(reports)
    show(reports)
    for problem in problems:
        console.print(f"[red]not as it should be:[/] {escape(problem)}", soft_wrap=True)
    milkrun = Path(sys.executable).parent / "milkrun"
    console.print("Next: the code is in examples/, the guides are in */docs/guide.md and the README.", soft_wrap=True)
    console.print("The engine stays warm, and stops by itself after ten idle minutes or by:", soft_wrap=True)
    console.print(f"    {milkrun} stop", soft_wrap=True, highlight=False)
    return 1 if problems else 0


def run(route: Route, report: Path, *options: str) -> int:
    """Run a route under its environment; returns its exit code."""
    environments.create(route.environment)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, SOURCES))}
    if route != ROUTES["sdk"] and Settings.load().url is None:
        engine = local.ensure(local.default_data_dir())  # an orchestrator is told its engine, and starts none
        environment |= {"MILKRUN_URL": engine.url, "MILKRUN_API_KEY": engine.api_key}
    script = ROOT / "examples" / route.script
    command = [str(environments.python(route.environment)), str(script), str(report), *options]
    with subprocess.Popen(command, env=environment) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:  # it heard of it too, and puts away what it started
                continue


def compare(reports: Sequence[Report]) -> list[str]:
    """Say what is not as promised of any route, or unlike the first one's answers."""
    keys = [review["id"] for review in with_one_too_long(read_reviews())]
    problems = [problem for report in reports for problem in problems_of(report, keys)]
    for other in reports[1:]:
        unlike = sum(one != two for one, two in zip(reports[0].answers, other.answers, strict=False))
        if unlike:
            problems.append(f"{other.route}: {unlike} answers differ from those of {reports[0].route}")
    return problems


def show(reports: Sequence[Report]) -> None:
    """Print a column a route."""
    table = Table(title="One job on each route", title_justify="left")
    table.add_column()
    for report in reports:
        table.add_column(report.route, justify="right", ratio=1)
    lines: dict[str, Callable[[Report], str]] = {
        "rows": lambda report: f"{len(report.keys):,}",
        "succeeded": lambda report: f"{len(report.keys) - len(report.errors):,}",
        "failed": lambda report: f"{len(report.errors):,}",
        "seconds": lambda report: f"{report.seconds:.1f}",
        "start-up seconds": lambda report: f"{report.start_seconds:.1f}",
        "tokens in": lambda report: f"{report.prompt_tokens:,}",
        "tokens out": lambda report: f"{report.completion_tokens:,}",
        "tokens cached": lambda report: f"{report.cached_tokens:,}",
        "same as a person": lambda report: report.agreement,
        "what waited": lambda report: report.waited,
    }
    for name, value in lines.items():
        table.add_row(name, *map(value, reports))
    console.print(table)
    for line in LEGEND:
        console.print(line, soft_wrap=True, highlight=False)
    for report in reports:
        console.print(f"{report.route}: {report.page}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    sys.exit(main())
