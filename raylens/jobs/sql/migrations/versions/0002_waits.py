"""Add what waiting for capacity, limits on storage and the store's own clock need."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

IS_QUEUED = sa.text("state = 'queued'")


NEW_COLUMNS = {
    "jobs": (
        sa.Column("model", sa.String(128), nullable=False, server_default=""),
        sa.Column("capacity_failures", sa.Integer, nullable=False, server_default="0"),
        sa.Column("pictures_removed", sa.Boolean, nullable=False, server_default=sa.false()),
    ),
    "blobs": (
        sa.Column("size", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("removing_until", sa.Float(53)),
    ),
}


def upgrade() -> None:
    for table, columns in NEW_COLUMNS.items():
        for column in columns:
            op.add_column(table, column)
    for name in ("deadline", "run_after"):
        index = f"jobs_by_{name}"
        op.create_index(index, "jobs", [name], sqlite_where=IS_QUEUED, postgresql_where=IS_QUEUED)
    op.create_table(
        "counters",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("value", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "anchors",
        sa.Column("boot_id", sa.String(64), primary_key=True),
        sa.Column("epoch", sa.Float(53), nullable=False),
    )


def downgrade() -> None:
    for table in ("anchors", "counters"):
        op.drop_table(table)
    for name in ("deadline", "run_after"):
        op.drop_index(f"jobs_by_{name}", "jobs")
    for table, columns in NEW_COLUMNS.items():
        for column in columns:
            op.drop_column(table, column.name)
