"""
The main job in one command: make the environment, start the local engine, classify the reviews.

    python3 examples/run.py

Safe to repeat; from the second time on it starts at once. Needs CPython 3.11 on Linux.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "environments"))

import environments  # noqa: E402  # found by the line above, under any Python


def main() -> None:
    """Hand over to the example, under the engine's environment."""
    environments.require_python()
    environments.create("engine")
    python = str(environments.python("engine"))
    os.execv(python, [python, str(ROOT / "examples" / "reviews" / "classify.py"), *sys.argv[1:]])


if __name__ == "__main__":
    main()
