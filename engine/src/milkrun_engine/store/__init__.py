"""
The ledger: jobs, windows, chunks with their leases, the change feed and the keys, in SQL.

Each class holds the verbs of one noun, each verb is one transaction, and a verb that changes
something is a conditional statement, never "read, think, then write". Rows are not here:
they lie in blobs that the ledger names.

Lock order, everywhere: idempotency row → jobs by id → chunks by id → the tenant's change
counter; then only rows already locked.
"""

from milkrun_engine.store.store import Store

__all__ = ["Store"]
