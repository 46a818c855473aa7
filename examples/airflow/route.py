"""
Runs `classify_reviews.py` on a real Airflow of its own: scheduler, DAG processor, API server, triggerer, worker.
"""

import csv
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

from hosts.airflow import Components

import milkrun as mr
from report import Report, arguments, stay

DAG, TASK, RUN = "classify_reviews", "label", "example"


def main() -> None:
    """Run the DAG once, and report what was seen."""
    options = arguments(__doc__)
    connection = {"conn_type": "milkrun", "host": os.environ["MILKRUN_URL"], "password": os.environ["MILKRUN_API_KEY"]}
    with tempfile.TemporaryDirectory(prefix="milkrun-airflow-") as name:
        folder = Path(name)
        airflow = Components(folder, {"AIRFLOW_CONN_MILKRUN_DEFAULT": json.dumps(connection)})
        shutil.copy(Path(__file__).with_name(f"{DAG}.py"), airflow.dags)
        print("Airflow: starting its database, scheduler, DAG processor, API server and triggerer", flush=True)
        began = time.monotonic()
        with airflow:
            start_seconds = time.monotonic() - began
            print(f"Airflow: {airflow.url}/dags/{DAG}/runs/{RUN}", flush=True)
            output = folder / "reviews.csv"
            began = time.monotonic()
            airflow.trigger(DAG, RUN, {"output": str(output)})
            waited = watch(airflow)
            airflow.await_state(DAG, RUN, "success", task="tell", seconds=600)
            seconds = time.monotonic() - began
            with mr.Milkrun() as client, output.open(encoding="utf-8", newline="") as file:
                job = client.job(airflow.returned(DAG, RUN)["job_id"])
                Report.of(
                    "Airflow", job, csv.DictReader(file), seconds=seconds, waited=waited, start_seconds=start_seconds
                ).write(options.report)
            if options.stay:
                stay(airflow.url)


def watch(airflow: Components) -> str:
    """Wait for the task's end; say what waited meanwhile, in Airflow's own words."""
    waited = "nothing: the job ended first"
    if airflow.await_state(DAG, RUN, "deferred", "success")["state"] == "deferred":
        pool = airflow.call("GET", "/pools/default_pool")
        waited = f"{pool['deferred_slots']} deferred trigger, {pool['running_slots']} worker slots"
        print(f"Airflow: {waited}", flush=True)
    airflow.await_state(DAG, RUN, "success", seconds=600)
    return waited


if __name__ == "__main__":
    main()
