"""
The use cases that every dialect shares: submit, get, list, changes, cancel, upload, results.

Nothing here knows HTTP. `jobs` is the front door; `door` refuses bad input there; `results`
and `exports` read; `signals` wakes whoever waits.
"""
