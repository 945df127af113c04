"""Sessions of requests that name none."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    ephemeral = sa.Column("ephemeral", sa.Boolean(), server_default=sa.text("false"), nullable=False)
    op.add_column("sessions", ephemeral)
    op.drop_index("ix_sessions_user_id_updated_at", "sessions")
    columns = ["user_id", "ephemeral", sa.literal_column("updated_at DESC"), sa.literal_column("id DESC")]
    op.create_index("ix_sessions_user_id_updated_at", "sessions", columns, unique=False)
    op.create_index(
        "ix_sessions_ephemeral", "sessions", ["created_at"], unique=False, postgresql_where=sa.text("ephemeral")
    )
