"""Add what waits, limits on storage, the store's own clock, and files need."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

NEW_INDEXES = {
    "jobs_by_deadline": ("deadline", sa.text("state = 'queued'")),
    "batches": ("id", sa.text("type = 'openai_batch'")),
}

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
    for index, (indexed, condition) in NEW_INDEXES.items():
        op.create_index(
            index, "jobs", [indexed], sqlite_where=condition, postgresql_where=condition
        )
    op.create_table(
        "files",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("filename", sa.Text, nullable=False),
        sa.Column("purpose", sa.String(32), nullable=False),
        sa.Column("created_at", sa.Float(53), nullable=False),
        sa.Column("expires_at", sa.Float(53), nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "file_parts",
        sa.Column(
            "file_id",
            sa.String(64),
            sa.ForeignKey("files.id", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False),
    )
    op.create_index("file_parts_by_digest", "file_parts", ["digest"])
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
    for table in ("anchors", "counters", "file_parts", "files"):
        op.drop_table(table)
    for index in NEW_INDEXES:
        op.drop_index(index, "jobs")
    for table, columns in NEW_COLUMNS.items():
        for column in columns:
            op.drop_column(table, column.name)
