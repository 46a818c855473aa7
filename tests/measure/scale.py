"""
How time and memory grow with a job: rows a second from submit to results read, and the peaks of memory.

The rows come from a file, order and keys are proved row by row while the results are read,
and every answer is compared with the function of its row.
"""

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from checker import check_ledger, echo_answer
from measure.report import figures, say, table
from stories.server import Server

MEGABYTE = 1_000_000
_BATCH = 50_000


@dataclass
class Peak:
    """The most memory that processes held at once, in bytes."""

    server: int = 0
    client: int = 0


def main() -> int:
    """Measure and report; 1 when a row was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--format", choices=["jsonl", "parquet"], default="jsonl")
    parser.add_argument("--check", action="store_true", help="let the checker read the whole ledger too")
    options = parser.parse_args()
    runs = []
    for rows in options.rows:
        with tempfile.TemporaryDirectory(prefix="milkrun-scale-") as folder:
            runs.append(_measure(Path(folder), rows, options.format, check=options.check))
    names = ("rows", "submit_s", "run_s", "read_s", "rows_per_s", "server_mb", "client_mb", "wrong")
    table(names, [[run[name] for name in names] for run in runs])
    first, last = runs[0], runs[-1]
    ratio = {f"{who}_memory_ratio": round(last[f"{who}_mb"] / first[f"{who}_mb"], 3) for who in ("server", "client")}
    figures("scale", {"format": options.format, **ratio, "runs": runs})
    return 1 if any(run["wrong"] for run in runs) else 0


def _measure(folder: Path, rows: int, form: str, *, check: bool) -> dict[str, float]:
    say(f"{rows:,} rows: writing the input")
    source = _write(folder / f"input.{form}", rows)
    with Server(folder) as server, server.client() as client, _peaks(server) as peak:
        began = time.monotonic()
        job_id = client.infer(source, prompt="{text}", key_column="id")
        submitted = time.monotonic()
        say(f"{rows:,} rows: submitted in {submitted - began:.1f} s")
        results = client.await_job_results(job_id)
        ended = time.monotonic()
        say(f"{rows:,} rows: ended after {ended - began:.1f} s; reading")
        wrong, at = 0, 0
        for at, row in enumerate(results):
            expected = echo_answer(f"row {at}", key=f"k{at}")
            wrong += (row.index, row.key, row.output) != (at, expected.key, expected.output)
        read = time.monotonic()
    wrong += rows - at - 1
    if check:
        wrong += len(check_ledger(server.place))
    return {
        "rows": rows,
        "submit_s": round(submitted - began, 2),
        "run_s": round(ended - submitted, 2),
        "read_s": round(read - ended, 2),
        "rows_per_s": round(rows / (read - began)),
        "server_mb": round(peak.server / MEGABYTE, 1),
        "client_mb": round(peak.client / MEGABYTE, 1),
        "wrong": wrong,
    }


def _write(path: Path, rows: int) -> Path:
    if path.suffix == ".jsonl":
        with path.open("w") as file:
            file.writelines(json.dumps({"id": f"k{index}", "text": f"row {index}"}) + "\n" for index in range(rows))
        return path
    schema = pa.schema([("id", pa.string()), ("text", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, _BATCH):
            batch = range(start, min(start + _BATCH, rows))
            columns = [[f"k{index}" for index in batch], [f"row {index}" for index in batch]]
            writer.write_table(pa.Table.from_arrays([pa.array(column) for column in columns], schema=schema))
    return path


@contextmanager
def _peaks(server: Server) -> Iterator[Peak]:
    """Watch the server's process, without its replica, and this one."""
    peak, done = Peak(), threading.Event()
    processes = psutil.Process(server.pid), psutil.Process()

    def watch() -> None:
        while not done.wait(0.1):
            peak.server = max(peak.server, processes[0].memory_info().rss)
            peak.client = max(peak.client, processes[1].memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()
