"""
The main job in one command: classify the reviews from Python, Airflow, Dagster and Prefect, against one engine.

    python3 examples/run.py                      # all four
    python3 examples/run.py sdk                  # the engine and plain Python alone
    python3 examples/run.py airflow --stay       # one orchestrator, its pages left open to look at

Makes the environments first; safe to repeat. Needs CPython 3.11 on Linux.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "environments"))

import environments  # noqa: E402  # found by the line above, under any Python


def main() -> None:
    """Hand over to the routes, under the engine's environment."""
    environments.require_python()
    environments.create("engine")
    python = str(environments.python("engine"))
    folders = [ROOT / "tests" / "environments", ROOT / "examples" / "reviews"]
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, folders))
    os.execv(python, [python, str(ROOT / "examples" / "routes.py"), *sys.argv[1:]])


if __name__ == "__main__":
    main()
