"""Add the owners of jobs and files."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("jobs", "files"):
        column = sa.Column("owner", sa.String(64), nullable=False, server_default="")
        op.add_column(table, column)
    op.create_index("jobs_by_owner", "jobs", ["owner", "id"])


def downgrade() -> None:
    op.drop_index("jobs_by_owner", "jobs")
    for table in ("jobs", "files"):
        op.drop_column(table, "owner")
