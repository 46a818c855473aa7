"""
Priorities: an integer, smaller is sooner; 1 by default, 0 for someone who waits.

The rule lives here alone. A chunk's place in the queue is its job's `rank`, fixed at submit:
the submit time plus an hour for each step of priority. So a sooner job overtakes whatever
later-priority work came in during the last hour, and nothing waits behind sooner jobs that
were submitted more than `AGEING_SECONDS` a step after it: a later priority never starves.
"""

AGEING_SECONDS = 3_600.0


def rank(priority: int, submitted_at: float) -> float:
    """Order of service, smallest first; `submitted_at` in seconds on the database's clock."""
    return submitted_at + priority * AGEING_SECONDS
