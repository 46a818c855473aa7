"""Completion windows, limits of failed rows, deleted jobs."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


COUNT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Add them."""
    op.add_column("jobs", sa.Column("abort_after_failed_rows", COUNT, nullable=True))
    unfinished = sa.text("finished_at IS NULL")
    op.create_index(
        "ix_jobs_unfinished",
        "jobs",
        ["model", "rank"],
        unique=False,
        sqlite_where=unfinished,
        postgresql_where=unfinished,
    )
    expiring = sa.text("expires_at IS NOT NULL AND finished_at IS NULL")
    op.create_index(
        "ix_jobs_expiring", "jobs", ["expires_at"], unique=False, sqlite_where=expiring, postgresql_where=expiring
    )
    op.create_index(
        "ix_jobs_paused",
        "jobs",
        ["paused"],
        unique=False,
        sqlite_where=sa.text("paused IS 1 AND finished_at IS NULL"),
        postgresql_where=sa.text("paused IS true AND finished_at IS NULL"),
    )
    op.create_table(
        "deleted_jobs",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("deleted_at", sa.Float(), nullable=False),
        sa.Column("change_number", COUNT, nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_deleted_jobs_tenant_id")),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_deleted_jobs")),
    )
    op.create_index(op.f("ix_deleted_jobs_tenant_id_change_number"), "deleted_jobs", ["tenant_id", "change_number"])
