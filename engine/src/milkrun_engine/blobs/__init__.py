"""
Blobs: immutable files for the rows of inputs and results.

`local` keeps them on disk, `chunk_files` are the Parquet files of chunks, `inputs` reads what
callers upload. Truth is the ledger: a blob counts only once a transaction names it.
"""
