"""Takes what providers tell afterwards of a message: that it arrived, or that it came back.

Path:   outbox -> `callback_url` -> the provider -> api.callbacks -> here -> store.callbacks
Never:  writes anything before the provider's signature is verified; touches what was sent through
        another connection; says whether it was the project, the connection or its kind it misses
"""

import asyncio
from typing import Final, Protocol
from urllib.parse import quote

import msgspec

from engine.clock import Clock
from engine.connectors import CONNECTORS
from engine.connectors.contract import Callback, TellsLater
from engine.store.callbacks import find_source, keep_news
from engine.store.database import Database
from engine.store.journal import Journal
from engine.vault import Vault

PATH: Final = "/v1/callbacks"
TOLD_MAX: Final = 500  # deliveries of one transaction


class Listener(Protocol):
    """Port: what taking callbacks needs."""

    @property
    def database(self) -> Database: ...

    @property
    def journal(self) -> Journal: ...

    @property
    def vault(self) -> Vault: ...

    @property
    def clock(self) -> Clock: ...


async def take(listener: Listener, project_id: str, name: str, callback: Callback) -> bool:
    """Verify what a provider says and keep it; return False if it has nobody to speak of.

    Raises:
        CallbackRefused: it is not the provider's; nothing was written.
        SealBroken: the credentials that would verify it do not open.
    """
    found = await listener.database.read(find_source, project_id, name, callback.delivery_id)
    if found is None:
        return False
    connector = CONNECTORS.get(found.kind)
    if not isinstance(connector, TellsLater):
        return False
    opened = listener.vault.open(found.sealed, context=found.context)
    news = await asyncio.to_thread(  # some of them verify with elliptic curves
        connector.callback,
        msgspec.json.decode(opened),
        msgspec.json.decode(found.settings),
        callback,
    )
    for start in range(0, len(news), TOLD_MAX):
        some = news[start : start + TOLD_MAX]
        await listener.journal.run(keep_news, project_id, name, some, listener.clock())
    return True


def callback_url(public_url: str, project_id: str, name: str, delivery_id: str) -> str | None:
    """Return where a provider may tell of a delivery; None: nobody outside can reach the engine."""
    if not public_url:
        return None
    return f"{public_url}{PATH}/{project_id}/{quote(name, safe='')}/{delivery_id}"
