"""What was saved; budgets, what was used of them, and what calls under way have reserved."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    for table in ("runs", "steps", "ledger"):
        saved = sa.Column("saved", sa.Numeric(18, 9), server_default=sa.text("0"), nullable=False)
        op.add_column(table, saved)
    op.add_column("steps", sa.Column("from_cache", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.create_table(
        "budgets",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("scope_id", sa.Text(), nullable=False),
        sa.Column("period", sa.Text(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=True),
        sa.Column("money", sa.Numeric(precision=18, scale=9), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_by", sa.Uuid(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_budgets")),
        sa.UniqueConstraint("scope", "scope_id", "period", name=op.f("uq_budgets_scope_scope_id_period")),
        sa.CheckConstraint("scope IN ('user', 'group', 'agent', 'session', 'key')", name=op.f("ck_budgets_scope")),
        sa.CheckConstraint("period IN ('hour', 'day', 'month', 'total')", name=op.f("ck_budgets_period")),
        sa.CheckConstraint("tokens IS NOT NULL OR money IS NOT NULL", name=op.f("ck_budgets_limit")),
    )
    op.create_table(
        "budget_counters",
        sa.Column("budget_id", sa.Uuid(), nullable=False),
        sa.Column("starts_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("money", sa.Numeric(precision=24, scale=9), nullable=False),
        sa.ForeignKeyConstraint(
            ["budget_id"], ["budgets.id"], name=op.f("fk_budget_counters_budget_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("budget_id", "starts_at", name=op.f("pk_budget_counters")),
    )
    op.create_table(
        "reservations",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("budget_id", sa.Uuid(), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("money", sa.Numeric(precision=24, scale=9), nullable=False),
        sa.Column("starts_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["budget_id"], ["budgets.id"], name=op.f("fk_reservations_budget_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", "budget_id", name=op.f("pk_reservations")),
    )
    op.create_index(op.f("ix_reservations_budget_id"), "reservations", ["budget_id"], unique=False)
    op.create_index(op.f("ix_reservations_run_id"), "reservations", ["run_id"], unique=False)
    op.create_index("ix_ledger_created_at", "ledger", ["created_at"], unique=False)
