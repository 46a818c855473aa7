"""
Runs `definitions.py` on a real `dagster dev` of its own: web server, daemon, code server, and a process a run.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import polars as pl
from hosts.dagster import Dev

import milkrun as mr
from report import Report, arguments, stay

PROJECT = Path(__file__).with_name("definitions.py")
ASSET = "moods"
GIVE_UP_SECONDS = 600.0


def main() -> None:
    """Materialize the assets once, and report what was seen."""
    options = arguments(__doc__)
    with tempfile.TemporaryDirectory(prefix="milkrun-dagster-") as name:
        home = Path(name)
        print("Dagster: starting `dagster dev`, with a line in dagster.yaml that holds waiting runs", flush=True)
        began = time.monotonic()
        with Dev(home, PROJECT) as dev:
            start_seconds = time.monotonic() - began
            print(f"Dagster: {dev.url}/assets/{ASSET}", flush=True)
            began = time.monotonic()
            first = dev.launch("reviews", ASSET)
            second, waited = watch(dev, first)
            seconds = time.monotonic() - began
            table = home / "storage" / f"{ASSET}.parquet"
            rows = pl.read_parquet(table).to_dicts()
            print(f"Dagster: {ASSET} is materialized, {len(rows)} rows of Parquet", flush=True)
            with mr.Milkrun() as client:
                job = client.job(second["tags"]["milkrun/job_id"])
            Report.of("Dagster", job, rows, seconds=seconds, waited=waited, start_seconds=start_seconds).write(
                options.report
            )
            if options.stay:
                stay(f"{dev.url}/assets/{ASSET}")


def watch(dev: Dev, first: str) -> tuple[dict[str, Any], str]:
    """Wait until the second run has succeeded; that run, and what waited for the job meanwhile."""
    waited = "nothing: the job ended first"
    deadline = time.monotonic() + GIVE_UP_SECONDS
    while time.monotonic() < deadline:
        assert dev.status(first) != "FAILURE", f"the run {first} failed; see {dev.url}/runs/{first}"
        for run in dev.runs(milkrun__asset=ASSET):
            if run["status"] == "SUCCESS":
                return run, waited
            assert run["status"] not in {"FAILURE", "CANCELED"}, f"the run ended as {run['status']}"
            is_held = run["status"] == "QUEUED" and run["tags"]["milkrun/state"] == "waiting"
            if is_held and waited.startswith("nothing") and not dev.run_processes():
                waited = f"run {run['runId'][:8]}, queued; processes of runs: 0"
                print(f"Dagster: {waited}", flush=True)
        time.sleep(1)
    raise TimeoutError(f"not materialized after {GIVE_UP_SECONDS:.0f} s; see {dev.log}")


if __name__ == "__main__":
    main()
