"""Deliveries as a ledger: what they are for, to whom, in which order, and what holds them back."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_IN_ORDER = "ended_ms IS NULL AND line IS NOT NULL AND state <> 'held'"
_WAITS = "ended_ms IS NULL AND state <> 'held' AND state <> 'sending'"


def upgrade() -> None:
    """Make room; deliveries that wait are sent as before, without an order among them."""
    op.add_column("run_queue", sa.Column("origin", sa.Text(), nullable=True))
    op.add_column("dead_letters", sa.Column("origin", sa.Text(), nullable=True))
    op.add_column("secrets", sa.Column("functions", sa.Text(), nullable=True))
    op.add_column("connections", sa.Column("functions", sa.Text(), nullable=True))
    for column in _delivery_columns():
        op.add_column("deliveries", column)
    op.add_column("delivery_attempts", sa.Column("message_id", sa.Text(), nullable=True))
    op.drop_index("ix_deliveries_project_id_id", table_name="deliveries")
    op.create_index(
        "ix_deliveries_project_id_created_ms_id", "deliveries", ["project_id", "created_ms", "id"]
    )
    op.create_index(
        "ix_deliveries_order",
        "deliveries",
        ["project_id", "connection", "line", "created_ms", "execution_id", "position"],
        sqlite_where=sa.text(_IN_ORDER),
        postgresql_where=sa.text(_IN_ORDER),
    )
    op.create_index(
        "ix_deliveries_waiting",
        "deliveries",
        ["project_id", "connection", "next_ms", "created_ms", "execution_id", "position"],
        sqlite_where=sa.text(_WAITS),
        postgresql_where=sa.text(_WAITS),
    )
    op.create_table(
        "delivery_counts",
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("connection", sa.Text(), nullable=False),
        sa.Column("recipient", sa.Text(), nullable=False),
        sa.Column("window_ms", sa.BigInteger(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint(
            "project_id", "connection", "recipient", "window_ms", name=op.f("pk_delivery_counts")
        ),
    )
    op.create_index(op.f("ix_delivery_counts_window_ms"), "delivery_counts", ["window_ms"])
    op.create_table(
        "connection_gates",
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("connection", sa.Text(), nullable=False),
        sa.Column("next_ms", sa.BigInteger(), nullable=False),
        sa.Column("breaker", sa.Text(), nullable=False),
        sa.Column("until_ms", sa.BigInteger(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("since_ms", sa.BigInteger(), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("disabled", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("project_id", "connection", name=op.f("pk_connection_gates")),
    )


def downgrade() -> None:
    """Go back to deliveries that only wait for their time.

    What is held is cancelled, and so is what waits with credentials that a script gave, or for an
    action or a kind of connection that the older release does not know: it would send it wrongly.
    Lists of the functions that may use a secret or a connection are gone: every function of the
    project may then. Rates, breakers and cost guards end with their tables.
    """
    op.execute(
        "UPDATE deliveries SET state = 'cancelled', next_ms = 0, ended_ms = created_ms "
        "WHERE state = 'held' OR (state IN ('queued', 'retrying', 'sending') AND "
        "(sealed IS NOT NULL OR action <> 'send' OR kind NOT IN ('slack', 'webhook')))"
    )
    op.drop_table("connection_gates")
    op.drop_table("delivery_counts")
    op.drop_index("ix_deliveries_waiting", table_name="deliveries")
    op.drop_index("ix_deliveries_order", table_name="deliveries")
    op.drop_index("ix_deliveries_project_id_created_ms_id", table_name="deliveries")
    op.create_index("ix_deliveries_project_id_id", "deliveries", ["project_id", "id"])
    op.drop_column("delivery_attempts", "message_id")
    for column in reversed(_delivery_columns()):
        op.drop_column("deliveries", column.name)
    op.drop_column("connections", "functions")
    op.drop_column("secrets", "functions")
    op.drop_column("dead_letters", "origin")
    op.drop_column("run_queue", "origin")


def _delivery_columns() -> list[sa.Column[Any]]:
    return [
        # The defaults are kept: they are what rows have that are there already.
        sa.Column("function", sa.Text(), nullable=True),
        sa.Column("action", sa.Text(), server_default="send", nullable=False),
        sa.Column("recipient", sa.Text(), nullable=True),
        sa.Column("line", sa.Text(), nullable=True),
        sa.Column("sealed", sa.LargeBinary(), nullable=True),
        sa.Column("base_attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("cleared", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("message_id", sa.Text(), nullable=True),
        sa.Column("provider_status", sa.Text(), nullable=True),
        sa.Column("provider_ms", sa.BigInteger(), nullable=True),
        sa.Column("provider_final", sa.Text(), nullable=True),
        sa.Column("since_ms", sa.BigInteger(), nullable=True),
    ]
