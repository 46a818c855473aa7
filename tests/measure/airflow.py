"""
Deferred tasks on a real Airflow: what hundreds of triggers cost, how soon an end wakes its task, who holds a worker.

First `--triggers` tasks that have deferred, in one real triggerer. One slow job holds the replica while their jobs
wait behind it; it is cancelled, and they end one after the other. Then `--tasks` whole tasks, from the scheduler
through workers, triggerer and workers again.
"""

import argparse
import json
import sqlite3
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hosts.airflow import Components, until
from measure.relay import Relay
from measure.report import figures, median, percentile, say, table
from stories.server import KEY, Server, wait_for

import milkrun as mr

QUIET_SECONDS = 20.0
BLOCKER_SECONDS = 3_000
SUBMITTERS = 8
LATE_SECONDS = 2.0  # the 99th percentile's bound
REQUESTS_A_MINUTE = 6.0
MANY = """
from airflow.sdk import DAG
from airflow_provider_milkrun.operators import MilkrunInferOperator

with DAG("many", schedule=None, max_active_tasks={count}):
    MilkrunInferOperator.partial(task_id="label").expand(rows=[[f"row of {{n}}"] for n in range({count})])
"""


def main() -> int:
    """Measure and report; 1 when a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--triggers", type=int, default=500, help="0 leaves this part out")
    parser.add_argument("--tasks", type=int, default=20, help="0 leaves this part out")
    parser.add_argument("--idle-seconds", type=float, default=60.0)
    parser.add_argument("--pace", type=float, default=0.02, help="seconds between two ends")
    options = parser.parse_args()
    broken = []
    if options.triggers:
        broken += _measured(_triggers, options.triggers, options)
    if options.tasks:
        broken += _measured(_tasks, options.tasks, options)
    for promise in broken:
        print(f"broken: {promise}", file=sys.stderr)
    return 1 if broken else 0


def _measured(part: Any, count: int, options: argparse.Namespace) -> list[str]:
    with tempfile.TemporaryDirectory(prefix="milkrun-airflow-") as name:
        folder = Path(name)
        server = Server(folder, pace=options.pace, engine_args={"window_rows": 1, "handout_rows": 1})
        with server, server.client() as client, Relay(server.url) as relay:
            connection = {"conn_type": "milkrun", "host": relay.url, "password": KEY}
            airflow = Components(folder / "airflow", {"AIRFLOW_CONN_MILKRUN_DEFAULT": json.dumps(connection)})
            blocker = client.infer([f"slow:{BLOCKER_SECONDS}"], job_priority=0)
            wait_for(lambda: client.job(blocker).status is mr.JobStatus.running, what="the blocker")
            found: list[str] = part(airflow, client, relay, blocker, count, options)
            return found


def _triggers(
    airflow: Components, client: mr.Milkrun, relay: Relay, blocker: str, count: int, options: argparse.Namespace
) -> list[str]:
    with ThreadPoolExecutor(SUBMITTERS) as threads:
        job_ids = list(threads.map(lambda number: client.infer([f"job {number}"]), range(count)))
    with airflow.only():
        airflow.python(Path(__file__).with_name("airflow_deferred.py"), "\n".join(job_ids))
        database = airflow.folder / "airflow.db"
        began = time.monotonic()
        airflow.start("triggerer")
        taken = "select count(*) from trigger where triggerer_id is not null"
        until(lambda: _ask(database, taken)[0][0] == count, 300, "all triggers are taken", airflow.logs)
        ramp = time.monotonic() - began
        say(f"{count} triggers taken after {ramp:.1f} s; nothing happens for {options.idle_seconds:.0f} s")
        time.sleep(QUIET_SECONDS)
        usage, began, connected = airflow.usage("triggerer"), time.monotonic(), len(relay.connections)
        time.sleep(options.idle_seconds)
        ended = time.monotonic()
        idle = {
            role: (round((cpu - usage.get(role, (0.0, 0.0))[0]) / (ended - began) * 100, 2), round(mebibytes))
            for role, (cpu, mebibytes) in airflow.usage("triggerer").items()
        }
        requests, opened = relay.a_minute(began, ended), len(relay.connections) - connected
        say("the jobs end now")
        client.cancel(blocker)
        waiting = "select count(*) from task_instance where state = 'deferred'"
        until(lambda: not _ask(database, waiting)[0][0], 300, "all tasks are woken", airflow.logs)
        woken = dict(_ask(database, "select map_index, updated_at from task_instance"))
    ends = {job.id: job.finished_at for job in client.jobs(limit=None)}
    late = [
        (datetime.fromisoformat(woken[number]).replace(tzinfo=UTC) - ends[job_id]).total_seconds()
        for number, job_id in enumerate(job_ids)
    ]
    names = (
        "triggers", "ramp_s", "idle_s", "requests_a_minute", "new_connections", "cpu_percent", "memory_mib",
        "end_to_event_median_s", "end_to_event_p99_s", "end_to_event_max_s",
    )  # fmt: skip
    facts = (
        count, round(ramp, 1), options.idle_seconds, requests, opened,
        round(sum(cpu for cpu, _ in idle.values()), 2), sum(mebibytes for _, mebibytes in idle.values()),
        median(late), percentile(late, 0.99), round(max(late), 3),
    )  # fmt: skip
    table([name.replace("_", " ") for name in names], [facts])
    table(("process", "CPU %", "PSS MiB"), [(role, *values) for role, values in idle.items()])
    figures("airflow triggers", {**dict(zip(names, facts, strict=True)), "processes": idle})
    return [
        *([f"99 % of the tasks are woken within {LATE_SECONDS} s"] if percentile(late, 0.99) > LATE_SECONDS else []),
        *(["an idle triggerer asks a few times a minute"] if requests > REQUESTS_A_MINUTE else []),
    ]


def _tasks(
    airflow: Components, client: mr.Milkrun, relay: Relay, blocker: str, count: int, options: argparse.Namespace
) -> list[str]:
    (airflow.dags / "many.py").write_text(MANY.format(count=count))
    with airflow:
        began = time.monotonic()
        airflow.trigger("many", "run")
        until(lambda: _states(airflow).count("deferred") == count, 600, "all tasks are deferred", airflow.logs)
        deferred = time.monotonic() - began
        slots = []
        for _ in range(10):
            pool = airflow.call("GET", "/pools/default_pool")
            slots.append(pool["running_slots"] + pool["queued_slots"])
            time.sleep(1)
        say(f"{count} tasks deferred after {deferred:.1f} s, worker slots held: {max(slots)}")
        client.cancel(blocker)
        began = time.monotonic()
        until(lambda: set(_states(airflow)) <= {"success", "failed"}, 600, "all tasks have ended", airflow.logs)
        collected = time.monotonic() - began
        states = _states(airflow)
    jobs = client.jobs(labels={"dag_id": "many"}, limit=None)
    succeeded = sum(job.status is mr.JobStatus.succeeded for job in jobs)
    names = ("tasks", "deferred_s", "worker_slots_held", "collected_s", "succeeded", "jobs", "jobs_succeeded")
    facts = (
        count, round(deferred, 1), max(slots), round(collected, 1), states.count("success"), len(jobs), succeeded,
    )  # fmt: skip
    table([name.replace("_", " ") for name in names], [facts])
    figures("airflow tasks", dict(zip(names, facts, strict=True)))
    return [
        *(["a deferred task holds no worker"] if max(slots) else []),
        *(
            ["one job a task, and each succeeds"]
            if (states.count("success"), len(jobs), succeeded) != (count,) * 3
            else []
        ),
    ]


def _states(airflow: Components) -> list[str]:
    answer = airflow.call("GET", "/dags/many/dagRuns/run/taskInstances?limit=1000")
    return [str(instance["state"]) for instance in answer["task_instances"]]


def _ask(database: Path, question: str) -> list[Any]:
    with sqlite3.connect(database, timeout=60) as connection:
        return connection.execute(question).fetchall()
