"""
How measurements speak: a table for people, one line of JSON for programs.
"""

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any


def say(text: str) -> None:
    """Tell how far it is."""
    print(text, file=sys.stderr, flush=True)


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print rows below their columns."""
    texts = [[_text(value) for value in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(columns, *texts, strict=True)]
    for line in (columns, ["-" * width for width in widths], *texts):
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)), flush=True)


def figures(name: str, values: Mapping[str, Any]) -> None:
    """Print all figures as one line of JSON."""
    print(json.dumps({"measurement": name, **values}, default=str), flush=True)


def median(values: Sequence[float]) -> float:
    """The middle one, rounded."""
    return round(statistics.median(values), 3)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of them do not exceed, rounded."""
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(len(ordered) * share))], 3)


def _text(value: Any) -> str:
    return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
