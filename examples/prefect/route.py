"""
Runs `flow.py` on a real Prefect of its own: a server, and the process that serves the flow.
"""

import csv
import tempfile
import time
from pathlib import Path

from hosts.prefect import Prefect, until

import milkrun as mr
from report import Report, arguments, stay

DEPLOYMENT = "classify-reviews/reviews"


def main() -> None:
    """Run the flow once, and report what was seen."""
    options = arguments(__doc__)
    with tempfile.TemporaryDirectory(prefix="milkrun-prefect-") as name, mr.Milkrun() as client:
        folder = Path(name)
        output = folder / "reviews.csv"
        print("Prefect: starting its server, and a process that serves the flow", flush=True)
        began = time.monotonic()
        with Prefect(folder, ui=options.stay) as prefect:
            prefect.serve(Path(__file__).with_name("flow.py"))
            start_seconds = time.monotonic() - began
            began = time.monotonic()
            run_id = prefect.trigger(DEPLOYMENT, output=str(output))
            page = f"{prefect.url}/runs/flow-run/{run_id}"
            print(f"Prefect: {page if options.stay else f'flow run {run_id}'}", flush=True)
            waited = watch(prefect, run_id)
            seconds = time.monotonic() - began
            (job,) = client.jobs(labels={"prefect_flow_run_id": run_id})
            with output.open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
            Report.of("Prefect", job, rows, seconds=seconds, waited=waited, start_seconds=start_seconds).write(
                options.report
            )
            if options.stay:
                stay(page)


def watch(prefect: Prefect, run_id: str) -> str:
    """Wait for the run's end; say what waited meanwhile, in Prefect's own words."""
    waited = "nothing: the job ended first"
    if prefect.await_state(run_id, "Suspended", "Completed")["state_name"] == "Suspended":
        until(lambda: not prefect.flow_processes(), "the end of the flow's process", logs=prefect.logs)
        if prefect.run(run_id)["state_name"] == "Suspended":
            waited = "a suspended flow run; flow processes: 0"
            print(f"Prefect: {waited}", flush=True)
    prefect.await_state(run_id, "Completed", seconds=600)
    return waited


if __name__ == "__main__":
    main()
