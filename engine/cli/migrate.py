"""`cloudcode migrate`: the tables as this release has them, or back as an older one had them.

Path:   Settings -> Database.migrate, Database.downgrade
Never:  takes tables away under a node that runs: whoever goes back stops every node first.
"""

from contextlib import ExitStack
from inspect import Parameter
from typing import Annotated, Any, Final

import typer

from engine.cli.failures import Failure
from engine.cli.serve import options, settings_from
from engine.cli.session import Session
from engine.clock import wall_clock
from engine.errors import EngineError
from engine.settings import Settings

SEEN_LEASES: Final = 2  # a node that was seen within so many leases may be alive


def migrate(session: Session, *, to: str, **given: str | None) -> None:
    """Bring the database's tables to this release's, as each node does itself when it starts.

    Back to an older release's with --to, once every node has stopped: what that release has no
    room for is lost.
    """
    settings = settings_from(given)
    with ExitStack() as stack:
        try:
            before, after = _go(settings, to, stack)
        except EngineError as error:
            raise Failure(str(error)) from error
    text = f"the tables are those of revision {after}"
    text += "" if before == after else f", before {before or 'there were none'}"
    session.screen.text({"before": before, "revision": after}, text)


def parameters() -> list[Parameter]:
    """Return the command line's options: `--to`, and the settings of where the database is."""
    option = typer.Option("--to", help="Back to this revision, as 0003.", show_default=False)
    to = Parameter("to", Parameter.KEYWORD_ONLY, default="", annotation=Annotated[str, option])
    return [to, *options("data_dir", "database_url", "lease_seconds")]


def _go(settings: Settings, to: str, stack: ExitStack) -> tuple[Any, Any]:
    from engine.store.database import Database, UnknownRevision  # half a second to load
    from engine.store.schema import current_revision, nodes_seen
    from engine.store.sole import hold

    if not settings.database_url:
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        stack.enter_context(hold(settings.data_dir / "engine.lock"))
    database = Database(settings.database())
    stack.callback(database.close)
    before = database.read_here(current_revision)
    if not to:
        database.migrate()
    else:
        lately_ms = wall_clock() - round(SEEN_LEASES * settings.lease_seconds * 1000)
        if not database.is_sqlite and (alive := database.read_here(nodes_seen, (lately_ms,))):
            raise Failure(f"these nodes run: {', '.join(alive)}", remedy="stop every node first")
        try:
            database.downgrade(to)
        except UnknownRevision as error:
            raise Failure(
                str(error), remedy=f"these are known: {', '.join(error.known)}"
            ) from error
    return before, database.read_here(current_revision)
