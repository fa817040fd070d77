"""What the rules of the control plane are handed: store, time, and whom to tell of changes."""

from typing import Protocol

from engine.clock import Clock
from engine.store.database import Database
from engine.store.journal import Journal


class Catalogue(Protocol):
    """Port: the hot path's view of the database, in memory.

    Each call comes right after the change was committed, and returns once the hot path sees it.
    Calling one too often costs a read and is harmless.
    """

    async def reload(self) -> None: ...

    async def function_changed(self, function_id: str) -> None: ...

    async def triggers_changed(self, product_id: str) -> None: ...

    async def device_changed(self, device_id: str) -> None: ...

    async def keys_changed(self) -> None: ...

    async def projects_changed(self) -> None: ...

    async def connections_changed(self, project_id: str) -> None: ...


class Control(Protocol):
    """Port: what each rule of the control plane needs. Adapter: `engine.wiring.Platform`."""

    @property
    def database(self) -> Database: ...

    @property
    def journal(self) -> Journal: ...

    @property
    def clock(self) -> Clock: ...

    @property
    def catalogue(self) -> Catalogue: ...
