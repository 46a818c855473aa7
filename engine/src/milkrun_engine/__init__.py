"""
Milkrun's engine: the HTTP service, the durable job store, the scheduler and the replicas.

`app.py` puts it together; `domain` holds the rules, `store` and `blobs` the state,
`replicas` the models, `service` the use cases, `dispatch` the background duties and `api`
the dialects that it speaks.
"""

from importlib.metadata import version

__version__ = version("milkrun-engine")
