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

run_queue: Final = Table(
    "run_queue",  # what must still run: inserted with its cause, deleted with its execution
    metadata,
    Column("id", Text, primary_key=True),  # the execution's id
    Column("project_id", Text, nullable=False),
    Column("function_id", Text, nullable=False),
    Column("cause", Text, nullable=False),  # write | invoke | call
    Column("handler", Text, nullable=False),
    Column("event_id", Text),
    Column("device_id", Text),
    Column("input", Text),  # JSON; null when the event holds it
    Column("root_id", Text, nullable=False),
    Column("depth", Integer, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    sqlite_with_rowid=False,
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
    Index(None, "function_id", "id"),
    sqlite_with_rowid=False,
)

secrets: Final = Table(
    "secrets",
    metadata,
    Column("project_id", Text, ForeignKey("projects.id"), primary_key=True),
    Column("name", Text, primary_key=True),
    Column("sealed", LargeBinary, nullable=False),
    Column("updated_ms", BigInteger, nullable=False),
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

deliveries: Final = Table(
    "deliveries",
    metadata,
    Column("id", Text, primary_key=True),
    Column("project_id", Text, nullable=False),
    Column("execution_id", Text, nullable=False),
    Column("position", Integer, nullable=False),  # 0, 1, ... among the run's deliveries
    Column("connection", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("payload", Text, nullable=False),  # JSON
    Column("state", Text, nullable=False),  # see engine.deliveries
    Column("attempts", Integer, nullable=False),
    Column("next_ms", BigInteger, nullable=False),  # when to try (again); 0 when it has ended
    Column("created_ms", BigInteger, nullable=False),
    Column("ended_ms", BigInteger),
    UniqueConstraint("execution_id", "position"),
    Index(None, "project_id", "id"),
    Index(None, "state", "next_ms"),
)

delivery_attempts: Final = Table(
    "delivery_attempts",
    metadata,
    Column("delivery_id", Text, primary_key=True),
    Column("attempt", Integer, primary_key=True),  # 1, 2, ...
    Column("at_ms", BigInteger, nullable=False),
    Column("took_ms", Integer, nullable=False),
    Column("status", Integer),  # the provider's HTTP status
    Column("error", Text),
    Column("delivered", Boolean, nullable=False),
)
