"""Test benches."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0015"
down_revision = "0014"

STATES = "'loading', 'running', 'stopped', 'completed', 'cancelled', 'failed'"


def upgrade() -> None:
    op.create_table(
        "benches",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("credential_id", sa.Uuid(), nullable=True),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("edition", sa.Integer(), nullable=False),
        sa.Column("suite", postgresql.JSONB(), nullable=False),
        sa.Column("versions", postgresql.JSONB(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("rows", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("skipped", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_benches_user_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_benches")),
        sa.UniqueConstraint("user_id", "digest", "edition", name=op.f("uq_benches_user_id_digest_edition")),
        sa.CheckConstraint(f"status IN ({STATES})", name=op.f("ck_benches_status")),
    )
    op.create_index("ix_benches_user_id", "benches", ["user_id", "id"], unique=False)
    op.create_table(
        "bench_blocks",
        sa.Column("bench_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("rows", sa.LargeBinary(), nullable=False),
        sa.Column("items", sa.Integer(), nullable=False),
        sa.Column("replica", sa.Uuid(), nullable=True),
        sa.Column("attempt", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("done", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("failed", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("score", sa.Float(), server_default=sa.text("0"), nullable=False),
        sa.Column("cost", sa.Numeric(24, 9), server_default=sa.text("0"), nullable=False),
        sa.ForeignKeyConstraint(
            ["bench_id"], ["benches.id"], name=op.f("fk_bench_blocks_bench_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("bench_id", "number", name=op.f("pk_bench_blocks")),
    )
    counts = [
        sa.Column(f"{kind}_tokens", sa.Integer(), server_default=sa.text("0"), nullable=False)
        for kind in ("prompt", "completion", "cached", "reasoning")
    ]
    op.create_table(
        "bench_results",
        sa.Column("bench_id", sa.Uuid(), nullable=False),
        sa.Column("row", sa.Integer(), nullable=False),
        sa.Column("cell", sa.SmallInteger(), nullable=False),
        sa.Column("repeat", sa.SmallInteger(), nullable=False),
        sa.Column("key", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("answer", sa.Text(), nullable=True),
        sa.Column("score", sa.Float(), nullable=True),
        sa.Column("scores", postgresql.JSONB(), nullable=True),
        sa.Column("error", postgresql.JSONB(), nullable=True),
        *counts,
        sa.Column("cost", sa.Numeric(18, 9), server_default=sa.text("0"), nullable=False),
        sa.Column("estimated", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("saved", sa.Numeric(18, 9), server_default=sa.text("0"), nullable=False),
        sa.Column("seconds", sa.REAL(), nullable=False),
        sa.Column("from_cache", sa.Boolean(), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=True),
        sa.ForeignKeyConstraint(
            ["bench_id"], ["benches.id"], name=op.f("fk_bench_results_bench_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("bench_id", "row", "cell", "repeat", name=op.f("pk_bench_results")),
        sa.CheckConstraint("status IN ('completed', 'failed', 'unscored')", name=op.f("ck_bench_results_status")),
    )
