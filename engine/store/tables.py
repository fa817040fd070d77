"""Every table, as SQLAlchemy Core sees it. `migrations/` makes them; a test holds the two together.

Times are integers, milliseconds since the epoch, UTC (`*_ms`). JSON is TEXT that the engine wrote
itself. Ids are `prefix_` + UUIDv7, so that an id's order is the order of creation.
"""

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    false,
    text,
)

metadata: Final = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

projects: Final = Table(
    "projects",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("created_ms", BigInteger, nullable=False),
    Column("isolation", Text, nullable=False, server_default="standard"),  # standard | hardened
    # JSON of engine.allowances.Allowances; {}: the operator's defaults
    Column("allowances", Text, nullable=False, server_default="{}"),
)

api_keys: Final = Table(
    "api_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("project_id", Text, ForeignKey("projects.id"), nullable=False, index=True),
    Column("name", Text, nullable=False),
    Column("hash", Text, nullable=False, unique=True),  # SHA-256 of a 256-bit random key, hex
    Column("scopes", Text, nullable=False),  # JSON list
    Column("created_ms", BigInteger, nullable=False),
    Column("requests_per_minute", Integer),  # null: what the project allows each of its keys
)

products: Final = Table(
    "products",
    metadata,
    Column("id", Text, primary_key=True),
    Column("project_id", Text, ForeignKey("projects.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    UniqueConstraint("project_id", "name"),
)

devices: Final = Table(
    "devices",
    metadata,
    Column("id", Text, primary_key=True),
    Column("project_id", Text, ForeignKey("projects.id"), nullable=False, index=True),
    Column("product_id", Text, ForeignKey("products.id"), nullable=False, index=True),
    Column("name", Text, nullable=False),
    Column("token", Text, nullable=False, unique=True),  # shown to guests: the classic contract
    Column("timezone", Text, nullable=False),  # IANA name
    Column("tags", Text, nullable=False),  # JSON list of strings
    Column("created_ms", BigInteger, nullable=False),
)

functions: Final = Table(
    "functions",
    metadata,
    Column("id", Text, primary_key=True),
    Column("project_id", Text, ForeignKey("projects.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("runtime", Text, nullable=False),  # javascript | wasm
    Column("created_ms", BigInteger, nullable=False),
    UniqueConstraint("project_id", "name"),
)

versions: Final = Table(
    "versions",
    metadata,
    Column("id", Text, primary_key=True),
    Column("function_id", Text, ForeignKey("functions.id", ondelete="CASCADE"), nullable=False),
    Column("number", Integer, nullable=False),  # 1, 2, 3 ... within the function
    Column("files", Text, nullable=False),  # JSON {name: source}
    Column("main", Text, nullable=False),
    Column("program", Text, nullable=False),  # JSON: what a cell evaluates; wasm: in artifacts
    Column("handlers", Text, nullable=False),  # JSON list
    Column("limits", Text, nullable=False),  # JSON of the author's overrides
    Column("allowed_hosts", Text, nullable=False),  # JSON list
    Column("variables", Text, nullable=False),  # JSON {NAME: string}
    Column("secrets", Text, nullable=False),  # JSON list of names
    Column("message", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    # JSON of engine.bundles.WasmOptions; javascript: {}
    Column("options", Text, nullable=False, server_default="{}"),
    # JSON of engine.policies.Policy: retries, flow, batch; {}: none
    Column("policy", Text, nullable=False, server_default="{}"),
    UniqueConstraint("function_id", "number"),
)

wasm_modules: Final = Table(
    "wasm_modules",  # what was uploaded, to the byte
    metadata,
    Column("version_id", Text, ForeignKey("versions.id", ondelete="CASCADE"), primary_key=True),
    Column("kind", Text, nullable=False),  # command | core
    Column("sha256", Text, nullable=False),  # hex
    Column("bytes", Integer, nullable=False),
    # Last: SQLite reads a row from its start, and lists want only what stands before.
    Column("wasm", LargeBinary, nullable=False),
)

artifacts: Final = Table(
    "artifacts",  # modules compiled for one kind of machine; can all be made again
    metadata,
    Column("version_id", Text, ForeignKey("versions.id", ondelete="CASCADE"), primary_key=True),
    Column("fingerprint", Text, primary_key=True),  # of what compiled it: Sandbox.fingerprint
    Column("created_ms", BigInteger, nullable=False),
    Column("sealed", LargeBinary, nullable=False),  # a cell runs it as it is: nobody may forge one
)

deployments: Final = Table(
    "deployments",
    metadata,
    Column("id", Text, primary_key=True),  # the newest is live
    Column("function_id", Text, ForeignKey("functions.id", ondelete="CASCADE"), nullable=False),
    Column("versions", Text, nullable=False),  # JSON [{"version": n, "percent": p}]
    Column("message", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Index(None, "function_id", "id"),
)

triggers: Final = Table(
    "triggers",
    metadata,
    Column("id", Text, primary_key=True),
    Column("project_id", Text, ForeignKey("projects.id"), nullable=False, index=True),
    Column("function_id", Text, ForeignKey("functions.id", ondelete="CASCADE"), nullable=False),
    Column("product_id", Text, ForeignKey("products.id"), nullable=False),
    Column("on", Text, nullable=False),  # write
    Column("phase", Text, nullable=False),  # after
    Column("keys", Text, nullable=False),  # JSON list; empty: every key
    Column("created_ms", BigInteger, nullable=False),
    Column("order", Text),  # device: one run of a device at a time, in order; null: as they come
    Column("lateness_ms", BigInteger),  # with order: how long to wait for earlier event times
)

events: Final = Table(
    "events",
    metadata,
    Column("id", Text, primary_key=True),
    Column("project_id", Text, nullable=False),
    Column("device_id", Text, nullable=False),
    Column("received_ms", BigInteger, nullable=False),
    Column("source", Text, nullable=False),  # http | gateway | function
    Column("payload", Text, nullable=False),  # JSON: what the handlers get (see engine.events)
    sqlite_with_rowid=False,
)

resources: Final = Table(
    "resources",
    metadata,
    Column("device_id", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("created_ms", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

values: Final = Table(
    "values",
    metadata,
    Column("device_id", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("at_ms", BigInteger, primary_key=True),
    Column("seq", BigInteger, primary_key=True),  # order of arrival among equal times
    Column("value", Text, nullable=False),  # JSON
    Column("geo", Text),  # JSON {"lat":..,"long":..}
    sqlite_with_rowid=False,
)

PARKED: Final = "parked"  # as a run's node: its lane is full, so nobody may claim it yet

run_queue: Final = Table(
    "run_queue",  # what must still run: inserted with its cause, deleted with its execution
    metadata,
    Column("id", Text, primary_key=True),  # the execution's id
    Column("project_id", Text, nullable=False),
    Column("function_id", Text, nullable=False),
    Column("cause", Text, nullable=False),  # write | invoke | call | job | schedule | replay
    Column("handler", Text, nullable=False),
    Column("event_id", Text),
    Column("device_id", Text),
    Column("input", Text),  # JSON; null when the event holds it
    Column("root_id", Text, nullable=False),
    Column("depth", Integer, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    # The defaults below are what rows of an earlier release have.
    Column("due_ms", BigInteger, nullable=False, server_default="0"),  # not before
    Column("priority", Integer, nullable=False, server_default="1"),  # 0 first, 1, 2 last
    Column("node_id", Text),  # whose it is now; null: free for any node; `parked`: see engine.flow
    Column("attempt", Integer, nullable=False, server_default="1"),  # the 1st, 2nd, ... to come
    Column("takeovers", Integer, nullable=False, server_default="0"),  # of nodes that died
    Column("job_id", Text),
    Column("schedule_id", Text),
    Column("lane", Text),  # runs of one lane share a limit or an order: see engine.flow
    Column("position_ms", BigInteger),  # its place in an ordered lane
    Column("policy", Text),  # JSON of engine.policies.Queued; null: nothing special
    Column("origin", Text),  # null: the root_id; see engine.intents
    Column("path", Text),  # functions above it, "a > b"; null: none. See engine.causality
    Column("budget", Integer),  # of runs that it may cause, all told; null: of an earlier release
    Index("ix_run_queue_free", "project_id", "priority", "due_ms", "id",
          sqlite_where=text("node_id IS NULL"), postgresql_where=text("node_id IS NULL")),
    Index("ix_run_queue_node", "node_id", "id",
          sqlite_where=text("node_id IS NOT NULL"), postgresql_where=text("node_id IS NOT NULL")),
    # Who has a lane's runs, and the first that waits: each is one range, however many are parked.
    Index("ix_run_queue_lane", "lane", "node_id", "priority", "position_ms", "event_id", "id",
          sqlite_where=text("lane IS NOT NULL"), postgresql_where=text("lane IS NOT NULL")),
    Index("ix_run_queue_job", "job_id",
          sqlite_where=text("job_id IS NOT NULL"), postgresql_where=text("job_id IS NOT NULL")),
    Index("ix_run_queue_schedule", "schedule_id",
          sqlite_where=text("schedule_id IS NOT NULL"),
          postgresql_where=text("schedule_id IS NOT NULL")),
    sqlite_with_rowid=False,
)  # fmt: skip

nodes: Final = Table(
    "nodes",  # processes that are alive; a row that another one deletes has lost all that was its
    metadata,
    Column("id", Text, primary_key=True),  # of one life of the process
    Column("kind", Text, nullable=False),  # serve | worker
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("release", Text, nullable=False),
    Column("started_ms", BigInteger, nullable=False),
    Column("seen_ms", BigInteger, nullable=False),  # by its own clock, for people
    Column("beat", BigInteger, nullable=False),  # rises while it lives
    Column("journal_seq", BigInteger, nullable=False),  # of its last transaction
    Column("state", Text, nullable=False),  # JSON: busy, held, draining: for people
)

changes: Final = Table(
    "changes",  # of what nodes keep in memory (engine.catalogue); each reads on from where it was
    metadata,
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True,
           autoincrement=True),
    Column("node_id", Text),  # who did it and knows already
    Column("kind", Text, nullable=False),  # function | triggers | device | keys | projects | ...
    Column("of", Text, nullable=False),  # the id of what changed
    Column("at_ms", BigInteger, nullable=False),
)  # fmt: skip

flow_marks: Final = Table(
    "flow_marks",  # what throttles, rate limits and debounces remember: see engine.flow
    metadata,
    Column("key", Text, primary_key=True),
    Column("newest_id", Text),  # debounce: the run that counts
    Column("since_ms", BigInteger),  # debounce: the first of the burst
    Column("free_ms", BigInteger),  # throttle, rate limit: theoretical arrival time (GCRA)
    Column("touched_ms", BigInteger, nullable=False, index=True),
)

jobs: Final = Table(
    "jobs",  # one-off runs that somebody asked for by POST /v1/jobs
    metadata,
    Column("id", Text, primary_key=True),
    Column("project_id", Text, nullable=False),
    Column("function_id", Text, nullable=False),
    Column("function", Text, nullable=False),  # its name then
    Column("handler", Text, nullable=False),
    Column("queue", Text, nullable=False),
    Column("priority", Integer, nullable=False),  # 0 high, 1 default, 2 low
    Column("status", Text, nullable=False),  # see engine.jobs
    Column("payload", Text, nullable=False),  # JSON
    Column("policy", Text, nullable=False),  # JSON of engine.policies.Queued
    Column("run_at_ms", BigInteger, nullable=False),  # as asked for
    Column("created_ms", BigInteger, nullable=False),
    Column("ended_ms", BigInteger),
    Column("attempts", Integer, nullable=False),  # made
    Column("execution_id", Text),  # of the last attempt
    Column("result", Text),  # JSON
    Column("error", Text),  # JSON {name, message, ...}
    Column("progress", Text),  # JSON {value, message, at}
    Column("batch_id", Text),  # jobs of one call
    Index(None, "project_id", "id"),
    Index(None, "project_id", "status", "id"),
)

dead_letters: Final = Table(
    "dead_letters",  # what failed at every attempt it had
    metadata,
    Column("id", Text, primary_key=True),  # dlq_
    Column("project_id", Text, nullable=False),
    Column("function_id", Text, nullable=False),
    Column("function", Text, nullable=False),
    Column("handler", Text, nullable=False),
    Column("cause", Text, nullable=False),
    Column("execution_id", Text, nullable=False),  # of the last attempt
    Column("job_id", Text),
    Column("event_id", Text),
    Column("device_id", Text),
    Column("schedule_id", Text),
    Column("payload", Text),  # JSON; null when the event holds it
    Column("policy", Text),
    Column("queue", Text, nullable=False),
    Column("status", Text, nullable=False),  # of the last attempt: failed, timed_out, ...
    Column("error", Text),  # JSON
    Column("attempts", Integer, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("origin", Text),  # of the run; null: of an earlier release
    Column("breaker_id", Text),  # it did not run: this breaker had set its device aside
    Index(None, "project_id", "id"),
    Index("ix_dead_letters_breaker", "breaker_id",
          sqlite_where=text("breaker_id IS NOT NULL"),
          postgresql_where=text("breaker_id IS NOT NULL")),
)  # fmt: skip

schedules: Final = Table(
    "schedules",
    metadata,
    Column("id", Text, primary_key=True),
    Column("project_id", Text, ForeignKey("projects.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("function_id", Text, ForeignKey("functions.id", ondelete="CASCADE"), nullable=False),
    Column("spec", Text, nullable=False),  # JSON of jobs.schedule.Spec: cron|every|at, zone, dst
    Column("options", Text, nullable=False),  # JSON: overlap, catchup, jitter, on_failure, ...
    Column("payload", Text, nullable=False),  # JSON
    Column("product_id", Text, ForeignKey("products.id")),  # device-local: one run a device
    Column("paused_ms", BigInteger),
    Column("paused_reason", Text),
    Column("failures", Integer, nullable=False),  # in a row
    Column("created_ms", BigInteger, nullable=False),
    Column("updated_ms", BigInteger, nullable=False),
    UniqueConstraint("project_id", "name"),
)

schedule_cursors: Final = Table(
    "schedule_cursors",  # where each schedule stands; a device-local one has a row per zone
    metadata,
    Column("schedule_id", Text, ForeignKey("schedules.id", ondelete="CASCADE"), primary_key=True),
    Column("timezone", Text, primary_key=True),
    Column("next_ms", BigInteger, nullable=False),  # the next due time; far future: none, or paused
    Index(None, "next_ms"),
)

schedule_fires: Final = Table(
    "schedule_fires",  # each due time once, whoever was there first
    metadata,
    Column("schedule_id", Text, ForeignKey("schedules.id", ondelete="CASCADE"), primary_key=True),
    Column("due_ms", BigInteger, primary_key=True),
    Column("device_id", Text, primary_key=True),  # device-local; else empty
    Column("fired_ms", BigInteger, nullable=False),
    Column("outcome", Text, nullable=False),  # queued | overlapped | missed | buffered | ...
    Column("execution_id", Text),
    Index(None, "fired_ms"),
)

idempotency_keys: Final = Table(
    "idempotency_keys",  # answers that are given again, for a day
    metadata,
    Column("project_id", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("request", Text, nullable=False),  # SHA-256 of method, path and body, hex
    Column("state", Text, nullable=False),  # running | applied | answered
    Column("node_id", Text),  # who works on it
    Column("created_ms", BigInteger, nullable=False, index=True),
    Column("status", Integer),
    Column("answer", LargeBinary),  # headers and body; sealed, for it may show a secret
)

value_ids: Final = Table(
    "value_ids",  # of values whose senders number them, so that one sent twice is known
    metadata,
    Column("device_id", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("at_ms", BigInteger, primary_key=True),
    Column("value_id", Text, primary_key=True),
    Column("created_ms", BigInteger, nullable=False, index=True),
    sqlite_with_rowid=False,
)

retentions: Final = Table(
    "retentions",  # how much of what a project keeps; none: the settings'
    metadata,
    Column("project_id", Text, ForeignKey("projects.id"), primary_key=True),
    Column("kind", Text, primary_key=True),  # executions | logs | values | events | jobs
    Column("rows_max", BigInteger),
    Column("bytes_max", BigInteger),
    Column("age_ms_max", BigInteger),
)

executions: Final = Table(
    "executions",  # one row per ended run; never updated
    metadata,
    Column("project_id", Text, primary_key=True),
    Column("id", Text, primary_key=True),
    Column("function_id", Text, nullable=False),
    Column("function", Text, nullable=False),  # its name then
    Column("version", Integer, nullable=False),
    Column("cause", Text, nullable=False),  # write | invoke | http | call
    Column("handler", Text, nullable=False),
    Column("event_id", Text),
    Column("device_id", Text),
    Column("status", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),  # asked for
    Column("clock_ms", BigInteger, nullable=False),  # the guest's clock at its start
    Column("seed", Text, nullable=False),  # of the guest's random numbers
    Column("attempt", Integer, nullable=False),
    Column("queue_us", BigInteger, nullable=False),
    Column("wall_us", BigInteger, nullable=False),
    Column("cpu_us", BigInteger, nullable=False),
    Column("peak_memory_bytes", BigInteger, nullable=False),  # of the cell
    Column("input", Text),  # JSON; null when the event holds it
    Column("result", Text),  # JSON
    Column("report", Text),  # JSON: error, limit, effects, root, depth, cold_start, transcript
    Column("log", Text),  # JSON [[level, at_ms, text], ...]
    Column("job_id", Text),
    Column("schedule_id", Text),
    Index(None, "function_id", "id"),
    Index("ix_executions_job", "job_id",
          sqlite_where=text("job_id IS NOT NULL"), postgresql_where=text("job_id IS NOT NULL")),
    Index("ix_executions_schedule", "schedule_id", "id",
          sqlite_where=text("schedule_id IS NOT NULL"),
          postgresql_where=text("schedule_id IS NOT NULL")),
    Index("ix_executions_retried", "event_id",
          sqlite_where=text("event_id IS NOT NULL AND attempt > 1"),
          postgresql_where=text("event_id IS NOT NULL AND attempt > 1")),
    sqlite_with_rowid=False,
)  # fmt: skip

secrets: Final = Table(
    "secrets",
    metadata,
    Column("project_id", Text, ForeignKey("projects.id"), primary_key=True),
    Column("name", Text, primary_key=True),
    Column("sealed", LargeBinary, nullable=False),
    Column("updated_ms", BigInteger, nullable=False),
    Column("functions", Text),  # JSON list of the functions that may have it; null: all
)

connections: Final = Table(
    "connections",
    metadata,
    Column("project_id", Text, ForeignKey("projects.id"), primary_key=True),
    Column("name", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("sealed", LargeBinary, nullable=False),  # credentials
    Column("settings", Text, nullable=False),  # JSON
    Column("updated_ms", BigInteger, nullable=False),
    Column("functions", Text),  # JSON list of the functions that may use it; null: all
)

# Bytes decide the order, as in SQLite and Python: other collations would break lists by prefix.
_IN_BYTES: Final = Text().with_variant(Text(collation="C"), "postgresql")

kv: Final = Table(
    "kv",
    metadata,
    Column("project_id", Text, ForeignKey("projects.id"), primary_key=True),
    Column("namespace", Text, primary_key=True),
    Column("key", _IN_BYTES, primary_key=True),
    Column("expires_ms", BigInteger),
    Column("updated_ms", BigInteger, nullable=False),
    # Last: SQLite reads a row from its start, and lists want only what stands before.
    Column("value", Text, nullable=False),  # JSON
    Index(
        None,
        "expires_ms",
        sqlite_where=text("expires_ms IS NOT NULL"),
        postgresql_where=text("expires_ms IS NOT NULL"),
    ),
)

# Those that hold up younger ones of their line; what is held or has ended does not.
_IN_ORDER: Final = text("ended_ms IS NULL AND line IS NOT NULL AND state <> 'held'")
# Those that are queued, or retrying.
_WAITS: Final = text("ended_ms IS NULL AND state <> 'held' AND state <> 'sending'")

deliveries: Final = Table(
    "deliveries",  # one row for each intent: the id is made from it, see engine.intents
    metadata,
    Column("id", Text, primary_key=True),
    Column("project_id", Text, nullable=False),
    Column("execution_id", Text, nullable=False),  # the first run that wanted it
    Column("position", Integer, nullable=False),  # 0, 1, ... among the run's deliveries
    Column("connection", Text, nullable=False),  # its name; `inline:...`: see `sealed`
    Column("kind", Text, nullable=False),
    Column("payload", Text, nullable=False),  # JSON
    Column("state", Text, nullable=False),  # see engine.deliveries
    Column("attempts", Integer, nullable=False),
    Column("next_ms", BigInteger, nullable=False),  # when to try (again); 0 when it has ended
    Column("created_ms", BigInteger, nullable=False),
    Column("ended_ms", BigInteger),
    Column("node_id", Text),  # whose outbox has it; null: free for any node
    # The defaults below are what rows of an earlier release have.
    Column("function", Text),  # its name, as it was
    Column("action", Text, nullable=False, server_default="send"),
    Column("recipient", Text),  # whom it is for; null: nobody in particular
    Column("line", Text),  # those of one line go one after the other; null: no order
    Column("sealed", LargeBinary),  # credentials that the script gave, instead of a stored ones'
    Column("base_attempts", Integer, nullable=False, server_default="0"),  # before it was resent
    Column("cleared", Boolean, nullable=False, server_default=false()),  # by guard or by hand
    Column("reason", Text),  # why it is held, cancelled, or failed after all
    Column("message_id", Text),  # the provider's
    Column("provider_status", Text),  # what the provider said afterwards, in its own word
    Column("provider_ms", BigInteger),  # when
    Column("provider_final", Text),  # delivered | failed: its last word; null: not said yet
    Column("since_ms", BigInteger),  # when its schedule began; null: with it, at created_ms
    Column("via", Text),  # a header that says whose run it was; see engine.causality
    UniqueConstraint("execution_id", "position"),
    Index(None, "project_id", "created_ms", "id"),
    Index(None, "state", "next_ms"),
    Index("ix_deliveries_order", "project_id", "connection", "line", "created_ms",
          "execution_id", "position", sqlite_where=_IN_ORDER, postgresql_where=_IN_ORDER),
    Index("ix_deliveries_waiting", "project_id", "connection", "next_ms", "created_ms",
          "execution_id", "position", sqlite_where=_WAITS, postgresql_where=_WAITS),
)  # fmt: skip

delivery_attempts: Final = Table(
    "delivery_attempts",
    metadata,
    Column("delivery_id", Text, primary_key=True),
    Column("attempt", Integer, primary_key=True),  # 1, 2, ...
    Column("at_ms", BigInteger, nullable=False),
    Column("took_ms", Integer, nullable=False),
    Column("status", Integer),  # the provider's HTTP status, or SMTP's
    Column("error", Text),
    Column("delivered", Boolean, nullable=False),
    Column("message_id", Text),  # the provider's
)

delivery_counts: Final = Table(
    "delivery_counts",  # for the cost guard: deliveries that were let through in an hour or a day
    metadata,
    Column("project_id", Text, primary_key=True),
    Column("connection", Text, primary_key=True),
    Column("recipient", Text, primary_key=True),  # `to:` and whom; empty: all of them
    Column("window_ms", BigInteger, primary_key=True),  # where the clock hour or UTC day begins
    Column("count", Integer, nullable=False),
    Index(None, "window_ms"),
)

connection_gates: Final = Table(
    "connection_gates",  # what all nodes must know before they send through a connection
    metadata,
    Column("project_id", Text, primary_key=True),
    Column("connection", Text, primary_key=True),
    Column("next_ms", BigInteger, nullable=False),  # the rate's next free place
    Column("breaker", Text, nullable=False),  # closed | open | half_open
    Column("until_ms", BigInteger, nullable=False),  # open: no attempt before; half_open: one
    Column("failures", Integer, nullable=False),  # in a row, as far as they were written
    Column("since_ms", BigInteger),  # of the first of these failures
    Column("last_error", Text),
    Column("disabled", Text),  # why nothing is sent until the operator enables it
)

usage: Final = Table(
    "usage",  # what projects have used, summed over all nodes
    metadata,
    Column("project_id", Text, primary_key=True),
    Column("period", Text, primary_key=True),  # minute:29384756 (of the epoch) | month:2026-11
    Column("cpu_us", BigInteger, nullable=False),
    Column("runs", BigInteger, nullable=False),
    Index(None, "period"),
)

breakers: Final = Table(
    "breakers",  # functions, and devices of functions, that are held back for what they did
    metadata,
    Column("id", Text, primary_key=True),  # brk_
    Column("project_id", Text, nullable=False),
    Column("function_id", Text, ForeignKey("functions.id", ondelete="CASCADE"), nullable=False),
    Column("version_id", Text, nullable=False),
    Column("device_id", Text, nullable=False),  # empty: the whole version
    Column("state", Text, nullable=False),  # open | half_open
    Column("node_id", Text),  # half_open: whose trial is under way
    Column("error", Text, nullable=False),  # JSON {status, name, message} of the last failure
    Column("failures", Integer, nullable=False),  # that opened it
    Column("openings", Integer, nullable=False),  # in a row: each is longer than the one before
    Column("opened_ms", BigInteger, nullable=False),
    Column("until_ms", BigInteger, nullable=False),  # then one run is let through
    UniqueConstraint("version_id", "device_id"),
    Index(None, "project_id", "id"),
)
