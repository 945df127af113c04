"""What agents remember."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.create_table(
        "memories",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("message_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("session_id", sa.Uuid(), nullable=True),
        sa.Column("agent_id", sa.Text(), nullable=False),
        sa.Column("memory_id", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("score", sa.Float(), nullable=False),
        sa.Column("importance", sa.Float(), nullable=False),
        sa.Column("tags", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("uses", sa.Integer(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("term", sa.Text(), nullable=False),
        sa.Column("beside", postgresql.JSONB(), nullable=True),
        sa.Column("forgotten", sa.Boolean(), nullable=False),
        sa.CheckConstraint("term IN ('short', 'long')", name=op.f("ck_memories_term")),
        sa.ForeignKeyConstraint(
            ["session_id"], ["sessions.id"], name=op.f("fk_memories_session_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", "message_id", name=op.f("pk_memories")),
    )
    of_session = sa.text("session_id IS NOT NULL")
    op.create_index("ix_memories_session_id", "memories", ["session_id", "agent_id"], postgresql_where=of_session)
    of_user = sa.text("session_id IS NULL")
    op.create_index("uq_memories_user_id", "memories", ["user_id", "id"], unique=True, postgresql_where=of_user)
    ends = sa.text("expires_at IS NOT NULL")
    op.create_index("ix_memories_expires_at", "memories", ["expires_at"], postgresql_where=ends)
