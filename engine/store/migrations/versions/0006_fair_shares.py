"""What projects may use and have used, who is held back, and what causes what."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_HELD_BACK = "breaker_id IS NOT NULL"


def upgrade() -> None:
    """Make room; every project is as before: standard isolation, the operator's defaults."""
    op.add_column(
        "projects", sa.Column("isolation", sa.Text(), server_default="standard", nullable=False)
    )
    op.add_column(
        "projects", sa.Column("allowances", sa.Text(), server_default="{}", nullable=False)
    )
    op.add_column("api_keys", sa.Column("requests_per_minute", sa.Integer(), nullable=True))
    op.add_column("run_queue", sa.Column("path", sa.Text(), nullable=True))
    op.add_column("run_queue", sa.Column("budget", sa.Integer(), nullable=True))
    op.add_column("deliveries", sa.Column("via", sa.Text(), nullable=True))
    op.add_column("dead_letters", sa.Column("breaker_id", sa.Text(), nullable=True))
    op.create_index(
        "ix_dead_letters_breaker",
        "dead_letters",
        ["breaker_id"],
        sqlite_where=sa.text(_HELD_BACK),
        postgresql_where=sa.text(_HELD_BACK),
    )
    op.create_table(
        "usage",
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("period", sa.Text(), nullable=False),
        sa.Column("cpu_us", sa.BigInteger(), nullable=False),
        sa.Column("runs", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("project_id", "period", name=op.f("pk_usage")),
    )
    op.create_index(op.f("ix_usage_period"), "usage", ["period"])
    op.create_table(
        "breakers",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("function_id", sa.Text(), nullable=False),
        sa.Column("version_id", sa.Text(), nullable=False),
        sa.Column("device_id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("node_id", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("openings", sa.Integer(), nullable=False),
        sa.Column("opened_ms", sa.BigInteger(), nullable=False),
        sa.Column("until_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["function_id"],
            ["functions.id"],
            name=op.f("fk_breakers_function_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_breakers")),
        sa.UniqueConstraint(
            "version_id", "device_id", name=op.f("uq_breakers_version_id_device_id")
        ),
    )
    op.create_index(op.f("ix_breakers_project_id_id"), "breakers", ["project_id", "id"])


def downgrade() -> None:
    """Go back to projects that share alike; a hardened project runs in standard cells then."""
    op.drop_table("breakers")
    op.drop_table("usage")
    op.drop_index("ix_dead_letters_breaker", table_name="dead_letters")
    op.drop_column("dead_letters", "breaker_id")
    op.drop_column("deliveries", "via")
    op.drop_column("run_queue", "budget")
    op.drop_column("run_queue", "path")
    op.drop_column("api_keys", "requests_per_minute")
    op.drop_column("projects", "allowances")
    op.drop_column("projects", "isolation")
