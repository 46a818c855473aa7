"""Public ids: a prefix that says what they name, and 128 random bits."""

import secrets

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_LENGTH = 22  # 62**22 > 2**128


def new_id(prefix: str) -> str:
    """Make an id such as `job_5Y…`; safe in a URL path and as a file name."""
    return f"{prefix}_{''.join(secrets.choice(_ALPHABET) for _ in range(_LENGTH))}"
