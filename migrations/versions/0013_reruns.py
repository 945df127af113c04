"""Runs that repeat others, and what lists of runs are filtered by."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.drop_constraint(op.f("ck_runs_kind"), "runs", type_="check")
    op.create_check_constraint(op.f("ck_runs_kind"), "runs", "kind IN ('chat', 'rerun')")
    op.create_index("ix_runs_agent_id", "runs", ["agent_id", "id"])
    op.create_index("ix_runs_status", "runs", ["status", "id"], postgresql_where=sa.text("status <> 'completed'"))
    op.create_index("ix_runs_cost", "runs", ["cost"], postgresql_where=sa.text("cost > 0"))
    op.create_index("ix_steps_model", "steps", ["model", "run_id"], postgresql_where=sa.text("model IS NOT NULL"))
