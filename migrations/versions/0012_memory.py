"""Summaries of what was said before, and the vectors of what agents remember."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.add_column("messages", sa.Column("summary", postgresql.JSONB(), nullable=True))
    op.add_column("memories", sa.Column("vector", postgresql.ARRAY(sa.REAL()), nullable=True))
    op.add_column("memories", sa.Column("model", sa.Text(), nullable=True))
