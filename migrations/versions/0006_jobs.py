"""Jobs, background runs, and the tables of PgQueuer that wake workers up."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from app.store import queue

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    background = sa.Column("background", sa.Boolean(), server_default=sa.text("false"), nullable=False)
    op.add_column("runs", background)
    op.create_table(
        "jobs",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("owner_id", sa.Uuid(), nullable=False),
        sa.Column("subject_id", sa.Uuid(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("lost", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("replica", sa.Uuid(), nullable=True),
        sa.Column("error", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name=op.f("fk_jobs_owner_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
        sa.CheckConstraint(
            "state IN ('waiting', 'queued', 'running', 'completed', 'failed', 'cancelled')", name=op.f("ck_jobs_state")
        ),
    )
    for name, columns, where in (
        ("ix_jobs_owner_id", ["owner_id", "kind"], "state IN ('waiting', 'queued')"),
        ("ix_jobs_queued", ["id"], "state = 'queued'"),
        ("ix_jobs_replica", ["replica"], "state = 'running'"),
        ("ix_jobs_ended_at", ["ended_at"], "ended_at IS NOT NULL"),
    ):
        op.create_index(name, "jobs", columns, unique=False, postgresql_where=sa.text(where))
    op.create_index("ix_jobs_subject_id", "jobs", ["subject_id"], unique=False)
    script = queue.install_script()  # of several statements, which only asyncpg's own `execute` takes
    op.get_bind().connection.run_async(lambda connection: connection.execute(script))
