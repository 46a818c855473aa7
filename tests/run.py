"""
All checks and all tests in one command: lint, import rules, types, then pytest in each environment, in two lanes.

    python3 tests/run.py

Makes the environments first; safe to repeat. Every step runs, whatever the one before it said;
the exit code is not zero if any of them failed. Needs CPython 3.11 on Linux.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from xml.etree import ElementTree as ET

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "environments"))

import environments  # noqa: E402  # found by the line above, under any Python

#: What pytest runs beside the engine's own tests, by environment; the last are the stories of whole engines.
TESTS = {
    "core": "tests/core",
    "airflow": "tests/airflow_provider",
    "dagster": "tests/dagster_integration",
    "prefect": "tests/prefect_integration",
    "engine": "tests/stories",
}
#: The client's tests run in both, alone and with an engine.
ENGINE_TESTS = ["tests", *(f"--ignore={folder}" for name, folder in TESTS.items() if name != "core")]
#: Sources that only their orchestrator's environment can check.
TYPES = {
    "airflow": ["airflow_provider/src", "examples/airflow"],
    "dagster": ["dagster_integration/src", "examples/dagster"],
    "prefect": ["prefect_integration/src", "examples/prefect"],
}
#: Run with the engine environment's tools; the import rules also read sources that are not installed there.
CHECKS = {
    "lint": ["ruff", "check", "--quiet"],
    "format": ["ruff", "format", "--check", "--quiet"],
    "imports": [
        "env",
        f"PYTHONPATH={os.pathsep.join(paths[0] for paths in TYPES.values())}",
        "lint-imports",
        "--no-logo",
    ],
    "types": ["mypy"],
    **{f"types of {name}": [str(environments.python(name)), "-m", "mypy", *paths] for name, paths in TYPES.items()},
}
_NO_TESTS = 5  # pytest's exit code when the caller's own selection leaves an environment none


def main() -> int:
    """Run every step; end with pytest's own closing line, or with the names of the steps that failed."""
    environments.require_python()
    environments.create(*TESTS)
    failed = [name for name, command in CHECKS.items() if not step(name, command)]
    allowed = {0, _NO_TESTS} if sys.argv[1:] else {0}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="milkrun-tests-")))
        # The engine's own tests take as long as all the others, and both wait a lot: they run side by side.
        own = pytest_in("engine", folder / "own.xml", ENGINE_TESTS)
        engine = stack.enter_context(beside(own, folder / "engine.log"))
        for name, tests in TESTS.items():
            report = folder / f"{name}.xml"
            good = step(f"{tests} in the {name} environment", pytest_in(name, report, [tests]), allowed)
            failed += [] if good else [f"{tests} ({name})"]
            print(f"    {counts(report)}", flush=True)
        if failed:
            print(f"failed: {', '.join(failed)}", flush=True)
        print("--- tests in the engine environment, since then", flush=True)
        status = engine()  # its closing line is ours
    return 1 if failed or status not in allowed else 0


def pytest_in(name: str, report: Path, tests: list[str]) -> list[str]:
    """Return the command that runs tests in an environment."""
    return [str(environments.python(name)), "-m", "pytest", f"--junit-xml={report}", *tests, *sys.argv[1:]]


@contextmanager
def beside(command: list[str], log: Path) -> Iterator[Callable[[], int]]:
    """Run a command in the background; the function shows what it has said and says, and returns its exit code."""
    with log.open("wb") as out, log.open("rb") as said:
        process = subprocess.Popen(command, cwd=ROOT, env=environ(), stdout=out, stderr=subprocess.STDOUT)

        def follow() -> int:
            while True:
                ended = process.poll() is not None
                sys.stdout.buffer.write(said.read())
                sys.stdout.buffer.flush()
                if ended:
                    return process.returncode
                time.sleep(0.5)

        try:
            yield follow
        finally:
            process.terminate()
            process.wait()


def step(name: str, command: list[str], allowed: Collection[int] = (0,)) -> bool:
    """Run a step and say how it went."""
    print(f"--- {name}", flush=True)
    started = time.monotonic()
    good = run(command) in allowed
    print(f"    {name}: {'ok' if good else 'FAILED'} after {time.monotonic() - started:.0f} s", flush=True)
    return good


def run(command: list[str]) -> int:
    """Run a command from the top of the checkout; returns its exit code."""
    return subprocess.run(command, cwd=ROOT, env=environ(), check=False).returncode


def environ() -> dict[str, str]:
    """Return the variables of every command: the engine environment's tools come first."""
    return {**os.environ, "PATH": f"{environments.python('engine').parent}{os.pathsep}{os.environ['PATH']}"}


def counts(report: Path) -> str:
    """How many tests ran, from pytest's report."""
    if not report.is_file():
        return "no tests ran"
    suite = next(ET.parse(report).iter("testsuite")).attrib
    return f"{suite['tests']} tests, {suite['failures']} failed, {suite['errors']} errors, {suite['skipped']} skipped"


if __name__ == "__main__":
    sys.exit(main())
