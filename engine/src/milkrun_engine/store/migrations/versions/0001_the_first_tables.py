"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


COUNT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make them."""
    op.create_table(
        "secrets",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_secrets")),
    )
    op.create_table(
        "posts",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("holder", sa.String(), nullable=False),
        sa.Column("term", COUNT, nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=False),
        sa.Column("facts", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_posts")),
    )
    op.create_table(
        "tenants",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("feed_id", sa.String(), nullable=False),
        sa.Column("change_number", COUNT, nullable=False),
        sa.Column("change_floor", COUNT, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tenants")),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("revoked_at", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_api_keys_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("sha256", name=op.f("uq_api_keys_sha256")),
    )
    op.create_table(
        "idempotency",
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("input_hash", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_idempotency_tenant_id")),
        sa.PrimaryKeyConstraint("tenant_id", "key", name=op.f("pk_idempotency")),
    )
    op.create_table(
        "input_files",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("format", sa.String(), nullable=False),
        sa.Column("bytes", COUNT, nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("blob", sa.String(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_input_files_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_input_files")),
    )
    with op.batch_alter_table("input_files", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_input_files_blob"), ["blob"], unique=False)

    op.create_table(
        "jobs",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("epoch", COUNT, nullable=False),
        sa.Column("claim", COUNT, nullable=False),
        sa.Column("priority", COUNT, nullable=False),
        sa.Column("rank", sa.Float(), nullable=False),
        sa.Column("paused", sa.Boolean(), nullable=False),
        sa.Column("idempotency_key", sa.String(), nullable=True),
        sa.Column("submission_id", sa.String(), nullable=True),
        sa.Column("input_hash", sa.String(), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("defaults", sa.LargeBinary(), nullable=False),
        sa.Column("name", sa.String(), nullable=True),
        sa.Column("description", sa.String(), nullable=True),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("external_url", sa.String(), nullable=True),
        sa.Column("callback", sa.JSON(), nullable=True),
        sa.Column("retry_of", sa.String(), nullable=True),
        sa.Column("rows_from", sa.String(), nullable=True),
        sa.Column("expires_at", sa.Float(), nullable=True),
        sa.Column("retain_seconds", sa.Float(), nullable=True),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("started_at", sa.Float(), nullable=True),
        sa.Column("finished_at", sa.Float(), nullable=True),
        sa.Column("failure_code", sa.String(), nullable=True),
        sa.Column("failure_message", sa.String(), nullable=True),
        sa.Column("input_blob", sa.String(), nullable=False),
        sa.Column("input_format", sa.String(), nullable=False),
        sa.Column("input_position", COUNT, nullable=False),
        sa.Column("next_window", COUNT, nullable=False),
        sa.Column("next_chunk", COUNT, nullable=False),
        sa.Column("prepared", sa.Boolean(), nullable=False),
        sa.Column("input_complete", sa.Boolean(), nullable=False),
        sa.Column("rows_total", COUNT, nullable=True),
        sa.Column("rows_read", COUNT, nullable=False),
        sa.Column("rows_decided", COUNT, nullable=False),
        sa.Column("rows_succeeded", COUNT, nullable=False),
        sa.Column("rows_failed", COUNT, nullable=False),
        sa.Column("rows_unavailable", COUNT, nullable=False),
        sa.Column("rows_refused", COUNT, nullable=False),
        sa.Column("prompt_tokens", COUNT, nullable=False),
        sa.Column("cached_tokens", COUNT, nullable=False),
        sa.Column("completion_tokens", COUNT, nullable=False),
        sa.Column("change_number", COUNT, nullable=False),
        sa.Column("status_number", COUNT, nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_jobs_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
    )
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_jobs_input_blob"), ["input_blob"], unique=False)
        batch_op.create_index(
            batch_op.f("ix_jobs_tenant_id_change_number"), ["tenant_id", "change_number"], unique=False
        )
        batch_op.create_index(batch_op.f("ix_jobs_tenant_id_created_at"), ["tenant_id", "created_at"], unique=False)
        batch_op.create_index(
            batch_op.f("ix_jobs_tenant_id_submission_id"), ["tenant_id", "submission_id"], unique=True
        )
        batch_op.create_index(
            batch_op.f("ix_jobs_tenant_id_status_number"), ["tenant_id", "status_number"], unique=False
        )
        batch_op.create_index(
            "ix_jobs_unprepared",
            ["next_window", "rank"],
            unique=False,
            sqlite_where=sa.text("prepared IS 0"),
            postgresql_where=sa.text("prepared IS false"),
        )

    op.create_table(
        "callbacks",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("receiver", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("attempts", COUNT, nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("due_at", sa.Float(), nullable=False),
        sa.Column("last_error", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_callbacks_job_id")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_callbacks_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_callbacks")),
        sa.UniqueConstraint("job_id", name=op.f("uq_callbacks_job_id")),
    )
    with op.batch_alter_table("callbacks", schema=None) as batch_op:
        batch_op.create_index(
            "ix_callbacks_due",
            ["due_at"],
            unique=False,
            sqlite_where=sa.text("state = 'pending'"),
            postgresql_where=sa.text("state = 'pending'"),
        )

    op.create_table(
        "chunks",
        sa.Column("id", COUNT, nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("number", COUNT, nullable=False),
        sa.Column("window", COUNT, nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("pool", sa.String(), nullable=False),
        sa.Column("adapter", sa.String(), nullable=True),
        sa.Column("rank", sa.Float(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("rows", COUNT, nullable=False),
        sa.Column("first_index", COUNT, nullable=False),
        sa.Column("input_blob", sa.String(), nullable=False),
        sa.Column("input_sha256", sa.String(), nullable=False),
        sa.Column("lease_owner", sa.String(), nullable=True),
        sa.Column("lease_epoch", COUNT, nullable=False),
        sa.Column("lease_expires_at", sa.Float(), nullable=True),
        sa.Column("attempts", COUNT, nullable=False),
        sa.Column("suspects", sa.JSON(), nullable=False),
        sa.Column("rows_in_hand", COUNT, nullable=False),
        sa.Column("result_blob", sa.String(), nullable=True),
        sa.Column("result_sha256", sa.String(), nullable=True),
        sa.Column("rows_failed", COUNT, nullable=False),
        sa.Column("errors", sa.JSON(), nullable=True),
        sa.Column("committed_at", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_chunks_job_id")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_chunks_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_chunks")),
        sa.UniqueConstraint("job_id", "number", name=op.f("uq_chunks_job_id_number")),
    )
    with op.batch_alter_table("chunks", schema=None) as batch_op:
        batch_op.create_index("ix_chunks_first", ["job_id", "state", "first_index"], unique=False)
        batch_op.create_index(
            "ix_chunks_leased",
            ["lease_expires_at"],
            unique=False,
            sqlite_where=sa.text("state = 'leased'"),
            postgresql_where=sa.text("state = 'leased'"),
        )
        batch_op.create_index(
            "ix_chunks_ready",
            ["pool", "rank", "id"],
            unique=False,
            sqlite_where=sa.text("state = 'ready'"),
            postgresql_where=sa.text("state = 'ready'"),
        )
        batch_op.create_index("ix_chunks_window", ["job_id", "window"], unique=False)

    op.create_table(
        "job_labels",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("value", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_labels_job_id")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_job_labels_tenant_id")),
        sa.PrimaryKeyConstraint("job_id", "name", name=op.f("pk_job_labels")),
    )
    with op.batch_alter_table("job_labels", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_job_labels_tenant_id_name_value"), ["tenant_id", "name", "value"], unique=False
        )

    op.create_table(
        "windows",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("number", COUNT, nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("first_index", COUNT, nullable=False),
        sa.Column("rows", COUNT, nullable=False),
        sa.Column("position", COUNT, nullable=False),
        sa.Column("permutation", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_windows_job_id")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_windows_tenant_id")),
        sa.PrimaryKeyConstraint("job_id", "number", name=op.f("pk_windows")),
    )
