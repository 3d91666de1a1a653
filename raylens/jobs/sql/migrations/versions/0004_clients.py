"""Add the clients of jobs and files, whose limits they count towards."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("jobs", "files"):
        column = sa.Column("client", sa.String(64), nullable=False, server_default="")
        op.add_column(table, column)
        op.execute(f"UPDATE {table} SET client = owner")
    op.create_index("jobs_by_client", "jobs", ["client", "state"])
    op.create_index("files_by_client", "files", ["client"])


def downgrade() -> None:
    op.drop_index("files_by_client", "files")
    op.drop_index("jobs_by_client", "jobs")
    for table in ("jobs", "files"):
        op.drop_column(table, "client")
