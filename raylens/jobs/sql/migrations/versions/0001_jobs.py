"""Create the tables for jobs, deliveries, gone endpoints and blobs."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("type", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("rank", sa.Float(53), nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("input", sa.Text, nullable=False),
        sa.Column("extra", sa.Text, nullable=False),
        sa.Column("blobs", sa.Text, nullable=False),
        sa.Column("output", sa.Text),
        sa.Column("problem", sa.Text),
        sa.Column("progress", sa.Text),
        sa.Column("webhook_url", sa.Text),
        sa.Column("webhook_secret", sa.Text),
        sa.Column("idempotency_key", sa.String(255), unique=True),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Float(53), nullable=False),
        sa.Column("run_after", sa.Float(53), nullable=False),
        sa.Column("deadline", sa.Float(53), nullable=False),
        sa.Column("started_at", sa.Float(53)),
        sa.Column("finished_at", sa.Float(53)),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("max_attempts", sa.Integer, nullable=False),
        sa.Column("fence", sa.Integer, nullable=False),
        sa.Column("lease_owner", sa.String(64)),
        sa.Column("lease_until", sa.Float(53)),
    )
    op.create_index("jobs_by_state", "jobs", ["state", "id"])
    op.create_index("jobs_by_rank", "jobs", ["state", "rank", "id"])
    op.create_index("jobs_by_end", "jobs", ["state", "finished_at"])
    op.create_table(
        "deliveries",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column(
            "job_id", sa.String(36), sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False
        ),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("event", sa.String(64), nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("secret", sa.Text),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("created_at", sa.Float(53), nullable=False),
        sa.Column("next_at", sa.Float(53), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("status", sa.Integer),
        sa.Column("problem", sa.Text),
        sa.Column("delivered_at", sa.Float(53)),
        sa.Column("fence", sa.Integer, nullable=False),
        sa.Column("lease_until", sa.Float(53)),
    )
    op.create_index("deliveries_of_job", "deliveries", ["job_id", "number"], unique=True)
    op.create_index("deliveries_by_time", "deliveries", ["state", "next_at", "id"])
    op.create_table("gone_endpoints", sa.Column("url", sa.Text, primary_key=True))
    op.create_table(
        "blobs",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("touched_at", sa.Float(53), nullable=False),
    )
    op.create_table(
        "job_blobs",
        sa.Column(
            "job_id", sa.String(36), sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True
        ),
        sa.Column("digest", sa.String(64), primary_key=True),
    )
    op.create_index("job_blobs_by_digest", "job_blobs", ["digest"])


def downgrade() -> None:
    for table in ("job_blobs", "blobs", "gone_endpoints", "deliveries", "jobs"):
        op.drop_table(table)
