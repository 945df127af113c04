"""What responses repeat of their requests, and the metadata of conversations."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("runs", sa.Column("echo", JSONB()))
    op.add_column("sessions", sa.Column("metadata", JSONB()))
