"""
What echo answers, written down a second time: a function of the request alone.
"""

import hashlib
import json
from collections.abc import Iterable

from checker.facts import Answer


def echo_answer(text: str, *, key: str | None = None) -> Answer:
    """The answer to a plain text asked as a chat, by a job without system prompt, sampling and schema."""
    if text.startswith(("die:", "lie:")):
        return Answer(key, "failed", "engine_crash", None)
    if text.startswith("fail:"):
        return Answer(key, "failed", text.removeprefix("fail:").strip() or "invalid_row", None)
    request = {"messages": [{"content": text, "role": "user"}], "seed": None}
    asked = "/v1/chat/completions" + json.dumps(request, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    digest = hashlib.blake2b(asked.encode(), digest_size=32).digest()
    return Answer(key, "succeeded", None, f"echo {digest[:8].hex()}: {text[:40]}")


def echo_answers(texts: Iterable[str]) -> list[Answer]:
    """The answers to plain texts without keys."""
    return [echo_answer(text) for text in texts]
