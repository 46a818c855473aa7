"""
The tables. A job is planned window by window into chunks; a chunk carries its own lease.

`jobs.epoch` fences every terminal change but the normal finish; `chunks.lease_epoch` fences
a lease that was lost; a commit must find both. `tenants.change_number` numbers the changes of
a tenant's jobs: it is bumped last in a transaction and written to the jobs it changed.
Migrations (`migrations/`) make exactly these tables; a test compares the two.
"""

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    and_,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    }
)

#: a count: 64 bits in both databases (a key of SQLite that numbers itself must be called INTEGER)
Count = BigInteger().with_variant(Integer(), "sqlite")


_UNFINISHED = Column("finished_at", Float).is_(None)


def _only(condition: ColumnElement[bool]) -> dict[str, Any]:
    """Make an index a partial one, in both databases."""
    return {"sqlite_where": condition, "postgresql_where": condition}


secrets = Table(  # values that one installation makes for itself, such as the key that signs page links
    "secrets",
    metadata,
    Column("name", String, primary_key=True),
    Column("value", LargeBinary, nullable=False),
)

posts = Table(  # what one process at a time may do, elected by a lease on the database's clock
    "posts",
    metadata,
    Column("name", String, primary_key=True),
    Column("holder", String, nullable=False),
    Column("term", Count, nullable=False),  # grows with each change of the holder
    Column("expires_at", Float, nullable=False),
    Column("facts", JSON, nullable=False),  # what the holder tells the others
)

tenants = Table(
    "tenants",
    metadata,
    Column("id", String, primary_key=True),
    Column("feed_id", String, nullable=False),  # names the change feed; a restored backup gets a new one
    Column("change_number", Count, nullable=False, default=0),  # the last change
    Column("change_floor", Count, nullable=False, default=0),  # changes up to here may be forgotten
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String, primary_key=True),
    Column("tenant_id", String, ForeignKey("tenants.id"), nullable=False),
    Column("name", String, nullable=False),
    Column("sha256", String, nullable=False, unique=True),  # of the whole key; keys are long and random
    Column("created_at", Float, nullable=False),
    Column("revoked_at", Float),
)

input_files = Table(  # uploads, as they came
    "input_files",
    metadata,
    Column("id", String, primary_key=True),
    Column("tenant_id", String, ForeignKey("tenants.id"), nullable=False),
    Column("format", String, nullable=False),
    Column("bytes", Count, nullable=False),
    Column("sha256", String, nullable=False),
    Column("blob", String, nullable=False, index=True),
    Column("created_at", Float, nullable=False),
)

idempotency = Table(  # (tenant, key) → current job; locked by submit, so twins are decided one after the other
    "idempotency",
    metadata,
    Column("tenant_id", String, ForeignKey("tenants.id"), primary_key=True),
    Column("key", String, primary_key=True),
    Column("job_id", String, nullable=False),
    Column("input_hash", String, nullable=False),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", String, primary_key=True),
    Column("tenant_id", String, ForeignKey("tenants.id"), nullable=False),
    Column("kind", String, nullable=False),
    Column("model", String, nullable=False),
    Column("status", String, nullable=False),
    Column("epoch", Count, nullable=False, default=1),
    Column("claim", Count, nullable=False, default=1),  # grows with each submit and attach
    Column("priority", Count, nullable=False),
    Column("rank", Float, nullable=False),  # order of service, see domain/priorities.py
    Column("paused", Boolean, nullable=False, default=False),
    Column("idempotency_key", String),
    Column("submission_id", String),  # one call of submit; its repeats get this job
    Column("input_hash", String, nullable=False),
    Column("spec", JSON, nullable=False),  # wire.JobSpec
    Column("defaults", LargeBinary, nullable=False),  # what replicas merge under every row
    Column("name", String),
    Column("description", String),
    Column("labels", JSON, nullable=False),
    Column("external_url", String),
    Column("callback", JSON(none_as_null=True)),
    Column("retry_of", String),
    Column("rows_from", String),  # the parent of a run of only its failed rows
    Column("expires_at", Float),  # when its completion window closes
    Column("abort_after_failed_rows", Count),
    Column("retain_seconds", Float),
    Column("created_at", Float, nullable=False),
    Column("started_at", Float),
    Column("finished_at", Float),
    Column("failure_code", String),
    Column("failure_message", String),
    Column("input_blob", String, nullable=False),
    Column("input_format", String, nullable=False),
    Column("input_position", Count, nullable=False, default=0),  # the reader's place after the last window
    Column("next_window", Count, nullable=False, default=0),
    Column("next_chunk", Count, nullable=False, default=0),
    Column("prepared", Boolean, nullable=False, default=False),  # no window will be added
    Column("input_complete", Boolean, nullable=False, default=False),
    Column("rows_total", Count),  # null until the input is read
    Column("rows_read", Count, nullable=False, default=0),
    Column("rows_decided", Count, nullable=False, default=0),
    Column("rows_succeeded", Count, nullable=False, default=0),
    Column("rows_failed", Count, nullable=False, default=0),
    Column("rows_unavailable", Count, nullable=False, default=0),
    Column("rows_refused", Count, nullable=False, default=0),  # in preparation
    Column("prompt_tokens", Count, nullable=False, default=0),
    Column("cached_tokens", Count, nullable=False, default=0),
    Column("completion_tokens", Count, nullable=False, default=0),
    Column("change_number", Count, nullable=False, default=0),  # of its last change, progress included
    Column("status_number", Count, nullable=False, default=0),  # of its last change of status
    Index(None, "tenant_id", "change_number"),
    Index(None, "tenant_id", "status_number"),
    Index(None, "tenant_id", "created_at"),
    Index(None, "tenant_id", "submission_id", unique=True),
    Index(None, "input_blob"),
    Index("ix_jobs_unprepared", "next_window", "rank", **_only(Column("prepared").is_(False))),
    Index("ix_jobs_unfinished", "model", "rank", **_only(_UNFINISHED)),
    Index("ix_jobs_expiring", "expires_at", **_only(and_(Column("expires_at").is_not(None), _UNFINISHED))),
    Index("ix_jobs_paused", "paused", **_only(and_(Column("paused").is_(True), _UNFINISHED))),
)

deleted_jobs = Table(  # what readers of the feed are told of a job that is gone
    "deleted_jobs",
    metadata,
    Column("job_id", String, primary_key=True),
    Column("tenant_id", String, ForeignKey("tenants.id"), nullable=False),
    Column("deleted_at", Float, nullable=False),
    Column("change_number", Count, nullable=False),
    Index(None, "tenant_id", "change_number"),
)

job_labels = Table(  # for filters; `jobs.labels` is what readers see
    "job_labels",
    metadata,
    Column("job_id", String, ForeignKey("jobs.id"), primary_key=True),
    Column("name", String, primary_key=True),
    Column("value", String, nullable=False),
    Column("tenant_id", String, ForeignKey("tenants.id"), nullable=False),
    Index(None, "tenant_id", "name", "value"),
)

callbacks = Table(  # the outbox: a row is written by the transaction that ends its job; what to send stands on the job
    "callbacks",
    metadata,
    Column("id", String, primary_key=True),  # the `webhook-id` of every attempt
    Column("job_id", String, ForeignKey("jobs.id"), nullable=False, unique=True),
    Column("tenant_id", String, ForeignKey("tenants.id"), nullable=False),
    Column("receiver", String, nullable=False),  # scheme, host and port: a slow one must not delay the others
    Column("state", String, nullable=False),
    Column("attempts", Count, nullable=False, default=0),
    Column("created_at", Float, nullable=False),
    Column("due_at", Float, nullable=False),
    Column("last_error", String),
    Index("ix_callbacks_due", "due_at", **_only(Column("state") == "pending")),
)

windows = Table(
    "windows",
    metadata,
    Column("job_id", String, ForeignKey("jobs.id"), primary_key=True),
    Column("number", Count, primary_key=True),
    Column("tenant_id", String, ForeignKey("tenants.id"), nullable=False),
    Column("first_index", Count, nullable=False),
    Column("rows", Count, nullable=False),
    Column("position", Count, nullable=False),  # the reader's place after it
    Column("permutation", LargeBinary, nullable=False),  # index → (chunk, slot), see domain/planning.py
)

chunks = Table(
    "chunks",
    metadata,
    Column("id", Count, primary_key=True),
    Column("job_id", String, ForeignKey("jobs.id"), nullable=False),
    Column("number", Count, nullable=False),
    Column("window", Count, nullable=False),
    Column("tenant_id", String, ForeignKey("tenants.id"), nullable=False),
    Column("pool", String, nullable=False),
    Column("adapter", String),
    Column("rank", Float, nullable=False),
    Column("state", String, nullable=False),
    Column("rows", Count, nullable=False),
    Column("first_index", Count, nullable=False),  # smallest index, copies included
    Column("input_blob", String, nullable=False),
    Column("input_sha256", String, nullable=False),
    Column("lease_owner", String),
    Column("lease_epoch", Count, nullable=False, default=0),
    Column("lease_expires_at", Float),
    Column("attempts", Count, nullable=False, default=0),  # claims; a crash counts because the claim did
    Column("suspects", JSON, nullable=False, default=dict),  # slot → [engine deaths, deaths alone]
    Column("rows_in_hand", Count, nullable=False, default=0),  # advisory, from heartbeats
    Column("result_blob", String),
    Column("result_sha256", String),
    Column("rows_failed", Count, nullable=False, default=0),
    Column("errors", JSON(none_as_null=True)),  # failed rows by code
    Column("committed_at", Float),
    UniqueConstraint("job_id", "number"),
    Index("ix_chunks_ready", "pool", "rank", "id", **_only(Column("state") == "ready")),
    Index("ix_chunks_leased", "lease_expires_at", **_only(Column("state") == "leased")),
    Index("ix_chunks_first", "job_id", "state", "first_index"),
    Index("ix_chunks_window", "job_id", "window"),
)
