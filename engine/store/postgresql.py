"""What each connection to PostgreSQL is told, so that a lost peer is noticed and frees its locks.

Path:   store.database -> here
Never:  is imported by an engine on SQLite, which so does without the driver's 9 MB.
"""

from typing import Any, Final

import psycopg
from psycopg.types.numeric import Int8BinaryDumper, Int8Dumper
from sqlalchemy import URL, Engine, create_engine, event

# Both ends ask a silent peer whether it is still there: seconds, seconds, unanswered probes.
KEEPALIVE: Final = {"idle": 15, "interval": 10, "count": 3}
CONNECT: Final = {
    "application_name": "cloudcode",  # in pg_stat_activity
    "connect_timeout": 10,  # seconds, for each address that the host has
    "tcp_user_timeout": 45_000,  # ms that what was sent may stay unacknowledged
    "keepalives": 1,
    **{f"keepalives_{name}": value for name, value in KEEPALIVE.items()},
}
SESSION: Final = {
    # A node that hangs in the middle of a transaction must not keep its locks from the others.
    "idle_in_transaction_session_timeout": 10_000,  # ms; below the lease of a node
    "jit": "off",  # our statements are short: compiling one costs more than it saves
    **{f"tcp_keepalives_{name}": value for name, value in KEEPALIVE.items()},
}
STATEMENTS_MAX: Final = 500  # kept prepared by each connection: the journal's, by table and size


def create_postgresql_engine(url: URL, **options: Any) -> Engine:
    """Return an engine whose connections are told all of the above.

    Args:
        url: where; what it says of an option of the driver comes before what we say.
        options: for `create_engine`.
    """
    ours = {name: value for name, value in CONNECT.items() if name not in url.query}
    engine = create_engine(url, connect_args=ours, **options)
    event.listen(engine, "connect", _configure)
    event.listen(engine, "before_cursor_execute", _without_nul, retval=True)
    return engine


def _configure(connection: psycopg.Connection[Any], _record: object) -> None:
    # Otherwise each number's size would be part of the statement, and hardly any be prepared twice.
    connection.adapters.register_dumper(int, Int8Dumper)
    connection.adapters.register_dumper(int, Int8BinaryDumper)
    connection.prepared_max = STATEMENTS_MAX
    with connection.cursor() as cursor:
        for name, value in SESSION.items():
            cursor.execute("SELECT set_config(%s, %s, false)", (name, str(value)))
    connection.commit()


def _without_nul(
    _connection: object, _cursor: object, statement: str, parameters: Any, *_: object
) -> tuple[str, Any]:
    """Let a statement look for text with NUL in it, which no row can have, instead of failing.

    The journal's rows, which are tuples, are not looked at: what goes in has been checked before.
    """
    if isinstance(parameters, dict):
        odd = {
            name: value.replace("\0", "\N{REPLACEMENT CHARACTER}")
            for name, value in parameters.items()
            if isinstance(value, str) and "\0" in value
        }
        if odd:
            parameters = {**parameters, **odd}
    return statement, parameters
