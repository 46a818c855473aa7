"""
What every outcome of a replica must hold, whatever generated it, before it may count.
"""

import msgspec

from milkrun_engine.replicas.base import Outcome

_MOST_TOKENS = 2**31 - 1


def breach(outcome: Outcome) -> str | None:
    """Why an outcome can't be right, without quoting it; None when it may be."""
    if (outcome.output is None) == (outcome.error_code is None):
        return "an outcome has neither an output nor an error, or both"
    if outcome.output is not None and not _is_json(outcome.output):
        return "an output is not JSON in UTF-8"
    tokens = (outcome.prompt_tokens, outcome.cached_tokens, outcome.completion_tokens)
    if not all(0 <= count <= _MOST_TOKENS for count in tokens):
        return "a count of tokens can't be"
    return None


def _is_json(output: bytes) -> bool:
    try:
        msgspec.json.decode(output)  # it takes no NaN, and no text that is not UTF-8
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True
