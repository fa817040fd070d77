"""Jobs, schedules and many nodes: leases on runs, what must be once, idempotency, retention."""

import time
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make room; what is there stays, and what waits in the queue is free for any node."""
    _upgrade_run_queue()
    _upgrade_executions()
    op.add_column("deliveries", sa.Column("node_id", sa.Text(), nullable=True))
    op.add_column("triggers", sa.Column("order", sa.Text(), nullable=True))
    op.add_column("triggers", sa.Column("lateness_ms", sa.BigInteger(), nullable=True))
    op.add_column("versions", sa.Column("policy", sa.Text(), server_default="{}", nullable=False))
    _create_nodes()
    _create_jobs()
    _create_schedules()
    _create_what_must_be_once()
    op.create_table(
        "retentions",
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("rows_max", sa.BigInteger(), nullable=True),
        sa.Column("bytes_max", sa.BigInteger(), nullable=True),
        sa.Column("age_ms_max", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_retentions_project_id")
        ),
        sa.PrimaryKeyConstraint("project_id", "kind", name=op.f("pk_retentions")),
    )


def downgrade() -> None:
    """Go back to one node without jobs and schedules.

    What waits in the queue, the older release runs at once, each row once: a retry before its
    time, and runs that waited for each other, for a limit or for the end of a burst all together.
    Jobs that are asked for at a time yet to come do not run: never is less wrong than now. Gone
    with their tables are jobs (their runs stay in `executions`), dead letters, schedules, answers
    kept for idempotency keys, numbers of values that were sent, and retentions. Deliveries,
    triggers and versions stay, without what the older release does not know of them.
    """
    yet_to_come = sa.text(
        "DELETE FROM run_queue WHERE job_id IN (SELECT id FROM jobs WHERE run_at_ms > :now_ms)"
    )
    op.execute(yet_to_come.bindparams(now_ms=time.time_ns() // 1_000_000))
    for table in (
        "retentions", "value_ids", "idempotency_keys", "schedule_fires", "schedule_cursors",
        "schedules", "dead_letters", "jobs", "flow_marks", "changes", "nodes",
    ):  # fmt: skip
        op.drop_table(table)  # and with it its indexes
    # Columns not by `batch_alter_table`: see 0002.
    op.drop_column("versions", "policy")
    op.drop_column("triggers", "lateness_ms")
    op.drop_column("triggers", "order")
    op.drop_column("deliveries", "node_id")
    for name in ("job", "schedule", "retried"):
        op.drop_index(f"ix_executions_{name}", table_name="executions")
    for column in ("schedule_id", "job_id"):
        op.drop_column("executions", column)
    for name in ("free", "node", "lane", "job", "schedule"):
        op.drop_index(f"ix_run_queue_{name}", table_name="run_queue")
    for column in (
        "policy", "position_ms", "lane", "schedule_id", "job_id", "takeovers", "attempt", "node_id",
        "priority", "due_ms",
    ):  # fmt: skip
        op.drop_column("run_queue", column)


def _only(condition: str) -> dict[str, Any]:
    """Return what makes an index hold only the rows of which `condition` is true."""
    return {"sqlite_where": sa.text(condition), "postgresql_where": sa.text(condition)}


def _upgrade_run_queue() -> None:
    for column in (
        # The defaults are kept: they are what rows have that wait already.
        sa.Column("due_ms", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("priority", sa.Integer(), server_default="1", nullable=False),
        sa.Column("node_id", sa.Text(), nullable=True),
        sa.Column("attempt", sa.Integer(), server_default="1", nullable=False),
        sa.Column("takeovers", sa.Integer(), server_default="0", nullable=False),
        sa.Column("job_id", sa.Text(), nullable=True),
        sa.Column("schedule_id", sa.Text(), nullable=True),
        sa.Column("lane", sa.Text(), nullable=True),
        sa.Column("position_ms", sa.BigInteger(), nullable=True),
        sa.Column("policy", sa.Text(), nullable=True),
    ):
        op.add_column("run_queue", column)
    for name, columns, condition in (
        ("free", ["project_id", "priority", "due_ms", "id"], "node_id IS NULL"),
        ("node", ["node_id", "id"], "node_id IS NOT NULL"),
        (
            "lane",
            ["lane", "node_id", "priority", "position_ms", "event_id", "id"],
            "lane IS NOT NULL",
        ),
        ("job", ["job_id"], "job_id IS NOT NULL"),
        ("schedule", ["schedule_id"], "schedule_id IS NOT NULL"),
    ):
        op.create_index(f"ix_run_queue_{name}", "run_queue", columns, **_only(condition))


def _upgrade_executions() -> None:
    op.add_column("executions", sa.Column("job_id", sa.Text(), nullable=True))
    op.add_column("executions", sa.Column("schedule_id", sa.Text(), nullable=True))
    for name, columns, condition in (
        ("job", ["job_id"], "job_id IS NOT NULL"),
        ("schedule", ["schedule_id", "id"], "schedule_id IS NOT NULL"),
        ("retried", ["event_id"], "event_id IS NOT NULL AND attempt > 1"),
    ):
        op.create_index(f"ix_executions_{name}", "executions", columns, **_only(condition))


def _create_nodes() -> None:
    op.create_table(
        "nodes",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("release", sa.Text(), nullable=False),
        sa.Column("started_ms", sa.BigInteger(), nullable=False),
        sa.Column("seen_ms", sa.BigInteger(), nullable=False),
        sa.Column("beat", sa.BigInteger(), nullable=False),
        sa.Column("journal_seq", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_nodes")),
    )
    op.create_table(
        "changes",
        sa.Column(
            "seq",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("node_id", sa.Text(), nullable=True),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("of", sa.Text(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_changes")),
    )
    op.create_table(
        "flow_marks",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("newest_id", sa.Text(), nullable=True),
        sa.Column("since_ms", sa.BigInteger(), nullable=True),
        sa.Column("free_ms", sa.BigInteger(), nullable=True),
        sa.Column("touched_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_flow_marks")),
    )
    op.create_index(op.f("ix_flow_marks_touched_ms"), "flow_marks", ["touched_ms"])


def _create_jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("function_id", sa.Text(), nullable=False),
        sa.Column("function", sa.Text(), nullable=False),
        sa.Column("handler", sa.Text(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("policy", sa.Text(), nullable=False),
        sa.Column("run_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("ended_ms", sa.BigInteger(), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("execution_id", sa.Text(), nullable=True),
        sa.Column("result", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("progress", sa.Text(), nullable=True),
        sa.Column("batch_id", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
    )
    op.create_index(op.f("ix_jobs_project_id_id"), "jobs", ["project_id", "id"])
    op.create_index(op.f("ix_jobs_project_id_status_id"), "jobs", ["project_id", "status", "id"])
    op.create_table(
        "dead_letters",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("function_id", sa.Text(), nullable=False),
        sa.Column("function", sa.Text(), nullable=False),
        sa.Column("handler", sa.Text(), nullable=False),
        sa.Column("cause", sa.Text(), nullable=False),
        sa.Column("execution_id", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=True),
        sa.Column("event_id", sa.Text(), nullable=True),
        sa.Column("device_id", sa.Text(), nullable=True),
        sa.Column("schedule_id", sa.Text(), nullable=True),
        sa.Column("payload", sa.Text(), nullable=True),
        sa.Column("policy", sa.Text(), nullable=True),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dead_letters")),
    )
    op.create_index(op.f("ix_dead_letters_project_id_id"), "dead_letters", ["project_id", "id"])


def _create_schedules() -> None:
    op.create_table(
        "schedules",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("function_id", sa.Text(), nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.Column("options", sa.Text(), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("product_id", sa.Text(), nullable=True),
        sa.Column("paused_ms", sa.BigInteger(), nullable=True),
        sa.Column("paused_reason", sa.Text(), nullable=True),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("updated_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["function_id"],
            ["functions.id"],
            name=op.f("fk_schedules_function_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["product_id"], ["products.id"], name=op.f("fk_schedules_product_id")
        ),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_schedules_project_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_schedules")),
        sa.UniqueConstraint("project_id", "name", name=op.f("uq_schedules_project_id_name")),
    )
    op.create_table(
        "schedule_cursors",
        sa.Column("schedule_id", sa.Text(), nullable=False),
        sa.Column("timezone", sa.Text(), nullable=False),
        sa.Column("next_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["schedule_id"],
            ["schedules.id"],
            name=op.f("fk_schedule_cursors_schedule_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("schedule_id", "timezone", name=op.f("pk_schedule_cursors")),
    )
    op.create_index(op.f("ix_schedule_cursors_next_ms"), "schedule_cursors", ["next_ms"])
    op.create_table(
        "schedule_fires",
        sa.Column("schedule_id", sa.Text(), nullable=False),
        sa.Column("due_ms", sa.BigInteger(), nullable=False),
        sa.Column("device_id", sa.Text(), nullable=False),
        sa.Column("fired_ms", sa.BigInteger(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("execution_id", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["schedule_id"],
            ["schedules.id"],
            name=op.f("fk_schedule_fires_schedule_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint(
            "schedule_id", "due_ms", "device_id", name=op.f("pk_schedule_fires")
        ),
    )
    op.create_index(op.f("ix_schedule_fires_fired_ms"), "schedule_fires", ["fired_ms"])


def _create_what_must_be_once() -> None:
    op.create_table(
        "idempotency_keys",
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("request", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("node_id", sa.Text(), nullable=True),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("answer", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("project_id", "key", name=op.f("pk_idempotency_keys")),
    )
    op.create_index(op.f("ix_idempotency_keys_created_ms"), "idempotency_keys", ["created_ms"])
    op.create_table(
        "value_ids",
        sa.Column("device_id", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("value_id", sa.Text(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("device_id", "key", "at_ms", "value_id", name=op.f("pk_value_ids")),
        sqlite_with_rowid=False,
    )
    op.create_index(op.f("ix_value_ids_created_ms"), "value_ids", ["created_ms"])
