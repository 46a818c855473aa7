"""
This version beside an older one: does each one's client work with the other's engine, and may they share a ledger?

`--older` is a checkout of the older version; its sources run in this environment. Its engine begins jobs that this
one ends, on SQLite after a `kill -9`, and on Postgres while both run and the ledger is migrated under the older one.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from checker import Place, echo_answers, violations
from fix_postgres import serving
from measure.report import figures, say, table
from stories.server import KEY, Server, wait_for

import milkrun as mr

PATIENCE_SECONDS = 120.0
ROWS = 4_000
PACE = 0.001
TEXTS = [f"row {index}" for index in range(ROWS)]
ANSWERS = [answer.output for answer in echo_answers(TEXTS)]
CLIENT = """
import json, sys
import milkrun as mr
url, key, texts = sys.argv[1], sys.argv[2], json.load(sys.stdin)
with mr.Milkrun(url, key) as client:
    whole = client.infer(texts, idempotency_key="of the client", labels={"a": "b"})
    assert client.infer(texts, idempotency_key="of the client", labels={"a": "b"}) == whole
    outputs = [row.output for row in client.await_job_results(whole, timeout=120)]
    stopped = client.cancel(client.infer(["slow:60 a"]))
    print(json.dumps({"outputs": outputs, "stopped": stopped.status, "jobs": len(client.jobs())}))
"""


def main() -> int:
    """Measure and report; 1 when something did not work."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--older", type=Path, required=True, help="a checkout of the older version")
    older = parser.parse_args().older.resolve()
    sources = os.pathsep.join(str(older / part / "src") for part in ("core", "engine"))
    assert (older / "core" / "src" / "milkrun").is_dir(), f"{older} is no checkout"
    scenes: dict[str, Callable[[Path, dict[str, str]], list[str]]] = {
        "older client, this engine": _older_client,
        "this client, older engine": _older_engine,
        "SQLite: older engine killed, this one goes on": _upgraded,
        "Postgres: both engines, migrated in mid-job": _beside,
    }
    broken: dict[str, list[str]] = {}
    for name, scene in scenes.items():
        with tempfile.TemporaryDirectory(prefix="milkrun-versions-") as folder:
            broken[name] = scene(Path(folder), {"PYTHONPATH": sources})
        say(f"{name}: {broken[name] or 'works'}")
    table(("scene", "what did not work"), [(name, len(found)) for name, found in broken.items()])
    figures("versions", {"rows": ROWS, "broken": broken})
    return 1 if any(broken.values()) else 0


def _older_client(folder: Path, older: dict[str, str]) -> list[str]:
    with Server(folder, pace=PACE) as server:
        asked = [sys.executable, "-c", CLIENT, server.url, KEY]
        done = subprocess.run(
            asked, input=json.dumps(TEXTS), env={**os.environ, **older}, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            return [done.stderr[-500:]]
        return _unlike(json.loads(done.stdout), {"outputs": ANSWERS, "stopped": "cancelled", "jobs": 2})


def _older_engine(folder: Path, older: dict[str, str]) -> list[str]:
    with Server(folder, pace=PACE, environ=older) as server, server.client() as client:
        table_file = folder / "rows.csv"
        table_file.write_text("text\n" + "".join(f"{text}\n" for text in TEXTS))
        # As the integrations submit: the older engine does not know the word.
        submitted = client.submit(str(table_file), prompt="{text}", idempotency_key="k", reuse=mr.Reuse.failed_rows)
        again = client.submit(str(table_file), prompt="{text}", idempotency_key="k", reuse=mr.Reuse.failed_rows)
        outputs = [row.output for row in client.await_job_results(submitted.job.id, timeout=PATIENCE_SECONDS)]
        stopped = client.cancel(client.infer(["slow:60 a"])).status
        told = {"outputs": outputs, "same": again.job.id == submitted.job.id, "stopped": stopped}
        try:
            client.retry_failed(submitted.job.id)
        except mr.MilkrunError as error:
            told["retry"] = type(error).__name__
        wanted = {"outputs": ANSWERS, "same": True, "stopped": "cancelled", "retry": "NotFound"}
        return _unlike(told, wanted)


def _upgraded(folder: Path, older: dict[str, str]) -> list[str]:
    old, new = Server(folder, pace=PACE, environ=older), Server(folder, pace=PACE)
    with old, old.client() as client:
        job_id = client.infer(TEXTS)
        wait_for(lambda: client.job(job_id).rows_succeeded > ROWS // 4, seconds=PATIENCE_SECONDS)
        held = old.kill()
    with new, new.client() as client:
        new.interruptions.append(held)
        client.wait(job_id, timeout=PATIENCE_SECONDS)
        return violations(new.evidence(job_id, echo_answers(TEXTS)))


def _beside(folder: Path, older: dict[str, str]) -> list[str]:
    with serving() as postgres:
        place = Place(folder / "blobs", postgres.database(empty=True))
        for name in ("old", "new"):
            (folder / name).mkdir()
        old = Server(folder / "old", pace=PACE, shared=place, environ=older)
        new = Server(folder / "new", pace=PACE, shared=place)
        with old, old.client() as client:
            jobs = [client.infer(TEXTS)]
            wait_for(lambda: client.job(jobs[0]).rows_succeeded > ROWS // 4, seconds=PATIENCE_SECONDS)
            with new, new.client() as other:  # its start migrates
                jobs.append(client.infer(TEXTS))  # the older one still takes jobs, and dispatches
                wait_for(lambda: client.job(jobs[0]).rows_succeeded > ROWS // 2, seconds=PATIENCE_SECONDS)
                new.interruptions.append(old.stop())
                for job_id in jobs:
                    other.wait(job_id, timeout=PATIENCE_SECONDS)
                new.echo_log.write_bytes(old.echo_log.read_bytes() + new.echo_log.read_bytes())
                return [word for job_id in jobs for word in violations(new.evidence(job_id, echo_answers(TEXTS)))]


def _unlike(told: dict[str, object], wanted: dict[str, object]) -> list[str]:
    return [f"{name}: {str(told.get(name))[:200]}" for name, value in wanted.items() if told.get(name) != value]
