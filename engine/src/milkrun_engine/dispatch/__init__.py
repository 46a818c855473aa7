"""
The background duties: each a small loop over the ledger.

`preparer` cuts inputs into windows and chunks; `dispatcher` claims chunks, hands rows to
replicas and records what comes back; `housekeeping` keeps leases, progress and files in order.
"""
