"""What the database says of its own schema, and of who may be using it."""

from importlib.metadata import version
from pathlib import Path

from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, select

from engine.errors import EngineError
from engine.store.tables import nodes


class SchemaTooNew(EngineError):
    """A newer release has changed the tables; this one must not write into them."""

    code = "schema_too_new"

    def __init__(self, found: str, head: str) -> None:
        release = version("cloudcode-engine")
        super().__init__(
            f"the database's tables are those of revision {found}, which release {release} does "
            "not know: a newer release made them. Start that release; or, to stay with this one, "
            f"stop every node and take them back with the newer one's `cloudcode migrate --to "
            f"{head}`, which loses what only that one knows"
        )


def known_revisions() -> tuple[frozenset[str], str]:
    """Return the migrations that this release has, and the last of them."""
    scripts = ScriptDirectory(str(Path(__file__).parent / "migrations"))
    head = scripts.get_current_head()
    assert head is not None
    return frozenset(one.revision for one in scripts.walk_revisions()), head


def refuse_newer(connection: Connection) -> None:
    """Refuse tables of a release that comes after this one.

    Raises:
        SchemaTooNew: says what to do.
    """
    found = current_revision(connection)
    known, head = known_revisions()
    if found is not None and found not in known:
        raise SchemaTooNew(found, head)


def current_revision(connection: Connection) -> str | None:
    """Return the migration that was the last one here, `0004`; None: no table yet."""
    return MigrationContext.configure(connection).get_current_revision()


def nodes_seen(connection: Connection, since_ms: int) -> list[str]:
    """Return the nodes that have shown since then that they live, as host and process."""
    if not inspect(connection).has_table(nodes.name):
        return []
    query = select(nodes.c.host, nodes.c.pid).where(nodes.c.seen_ms >= since_ms)
    return [f"{row.host} (process {row.pid})" for row in connection.execute(query)]
