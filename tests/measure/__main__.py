"""
The long measurements: `python tests/measure NAME [options]`, with NAME one of kills, chaos, restart, failover, deaths,
scale, waiters, versions, vllm_kills, and in the orchestrators' own environments airflow, dagster, prefect.

Each starts its own engines on temporary folders, prints a table, and ends with its figures as
one line of JSON. The exit code is not zero when a promise was broken.
"""

import importlib
import sys
from pathlib import Path

NAMES = (
    *("kills", "chaos", "restart", "failover", "deaths", "scale", "waiters", "versions", "vllm_kills"),
    *("airflow", "dagster", "prefect"),
)


def main() -> int:
    """Run the measurement that the command line names."""
    if len(sys.argv) < 2 or sys.argv[1] not in NAMES:
        print(__doc__.strip())
        return 2
    # Instead of this folder, whose modules are named after what they measure, as others' packages are.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    name = sys.argv.pop(1)
    sys.argv[0] = f"measure {name}"
    return int(importlib.import_module(f"measure.{name}").main())


if __name__ == "__main__":
    sys.exit(main())
