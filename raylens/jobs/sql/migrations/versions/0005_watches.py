"""Add an index of watches, which are claimed apart from other jobs."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    is_watch = sa.text("type = 'watch'")
    op.create_index(
        "watches",
        "jobs",
        ["state", "rank", "id"],
        sqlite_where=is_watch,
        postgresql_where=is_watch,
    )


def downgrade() -> None:
    op.drop_index("watches", "jobs")
