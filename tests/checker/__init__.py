"""
The checker: says of a job, from outside the engine, which promises were broken.

It reads the HTTP API, exported files, the ledger and its blobs, and echo's log of executed
rows; never the engine's code. `gather` collects the facts of a job, `violations` judges
them: an empty list is a right run. `check_ledger` judges by the ledger and its files alone.
"""

from checker.api import gather
from checker.echo import echo_answer, echo_answers
from checker.facts import Answer, Evidence, Interruption, Row, Sighting
from checker.ledger import Place, check_ledger, interruption, leased_rows
from checker.rules import violations
from checker.watcher import FeedWatcher

__all__ = [
    "Answer",
    "Evidence",
    "FeedWatcher",
    "Interruption",
    "Place",
    "Row",
    "Sighting",
    "check_ledger",
    "echo_answer",
    "echo_answers",
    "gather",
    "interruption",
    "leased_rows",
    "violations",
]
