"""
Random kills, run after run, and a long mix of all faults: is a row ever lost or doubled, does a job ever not end?

Each run appends one line of JSON to the results, so that the same command goes on where it was interrupted. A run is
repeated alone by its seed, which is its number. The report counts the whole file.
"""

import argparse
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from measure import chaos_kills, chaos_mix
from measure.report import figures, say, table

DATABASES = ("sqlite", "postgres")
RESULTS = Path(tempfile.gettempdir()) / "milkrun-chaos.jsonl"


def main() -> int:
    """Run what is missing and report; 1 when a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=0, help="random-kill runs, with the seeds from 1 on")
    parser.add_argument("--only", type=int, help="one random-kill run, also if it has a result")
    parser.add_argument("--minutes", type=float, default=0.0, help="the long mix, for so long on each database")
    parser.add_argument(
        "--databases", nargs="+", choices=DATABASES, default=DATABASES, help="of the long mix; both if not given"
    )
    parser.add_argument("--beside", type=int, default=os.cpu_count() or 1, help="runs at a time")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    say(f"results: {options.results}")
    seeds = [options.only] if options.only is not None else _missing(options.results, options.runs)
    for result in _kill_runs(seeds, options.beside):
        _append(options.results, result)
    done = {result["mode"] for result in _results(options.results) if result.get("minutes", 0) >= options.minutes}
    for database in options.databases if options.minutes else ():
        if f"mix {database}" not in done:
            _append(options.results, mix_run(database, options.minutes))
    return report(_results(options.results))


def _missing(results: Path, runs: int) -> list[int]:
    done = {result["seed"] for result in _results(results) if result["mode"] == "kills"}
    return [seed for seed in range(1, runs + 1) if seed not in done]


def _kill_runs(seeds: list[int], beside: int) -> Iterator[dict[str, Any]]:
    with ThreadPoolExecutor(beside) as pool:
        for done in as_completed([pool.submit(kill_run, seed) for seed in seeds]):
            yield done.result()


def kill_run(seed: int) -> dict[str, Any]:
    """One random-kill run."""
    return {"mode": "kills", "seed": seed, **_result(lambda folder: chaos_kills.run(seed, folder))}


def mix_run(database: str, minutes: float) -> dict[str, Any]:
    """The long mix on one database."""
    result = _result(lambda folder: chaos_mix.run(database, minutes, folder))
    return {"mode": f"mix {database}", "seed": chaos_mix.SEED, "minutes": minutes, **result}


def _result(run: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Of a run on a new folder; one that breaks off has a violation instead of figures."""
    with tempfile.TemporaryDirectory(prefix="milkrun-chaos-") as folder:
        try:
            return run(Path(folder))
        except Exception as error:
            return {"violations": [f"the run broke off: {type(error).__name__}: {error}"]}


def _append(results: Path, result: dict[str, Any]) -> None:
    with results.open("a") as lines:
        lines.write(json.dumps(result) + "\n")
    broken = f", VIOLATIONS {result['violations'][:3]}" if result["violations"] else ""
    say(f"{result['mode']} {result['seed']}: {result.get('seconds')} s, {result.get('faults')}{broken}")


def _results(results: Path) -> list[dict[str, Any]]:
    if not results.exists():
        return []
    read = [json.loads(line) for line in results.read_text().splitlines()]
    return list(
        {(result["mode"], result["seed"]): result for result in read}.values()
    )  # one that is repeated: its last


def report(results: list[dict[str, Any]]) -> int:
    """Print what all results come to; 1 when one of them broke a promise."""
    modes = sorted({result["mode"] for result in results})
    columns = (
        "mode",
        "runs",
        "jobs",
        "rows",
        "faults",
        "rows lost",
        "rows doubled",
        "not ended",
        "broken",
        "s recovery",
    )
    table(columns, [_sum(mode, [each for each in results if each["mode"] == mode]) for mode in modes])
    faults: Counter[str] = Counter()
    for result in results:
        faults.update(result.get("faults", {}))
    broken = {result["seed"]: result["violations"][:3] for result in results if result["violations"]}
    figures("chaos", {
        "runs": Counter(result["mode"] for result in results), "faults": faults, "broken": broken,
        **{name: sum(result.get(name, 0) for result in results) for name in SUMS},
        "recovery_seconds_longest": max((result.get("recovery_seconds", 0) for result in results), default=0),
        "seconds": round(sum(result.get("seconds", 0) for result in results)),
    })  # fmt: skip
    return 1 if broken or any(result.get(name) for result in results for name in SUMS[2:]) else 0


SUMS = ("jobs", "rows", "rows_lost", "rows_doubled", "not_terminal")


def _sum(mode: str, results: list[dict[str, Any]]) -> list[Any]:
    return [
        mode,
        len(results),
        *(sum(result.get(name, 0) for result in results) for name in SUMS[:2]),
        sum(sum(result.get("faults", {}).values()) for result in results),
        *(sum(result.get(name, 0) for result in results) for name in SUMS[2:]),
        sum(bool(result["violations"]) for result in results),
        float(max(result.get("recovery_seconds", 0) for result in results)),
    ]
