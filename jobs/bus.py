"""Tells the other nodes something at once, if they hear it: that there are changes, what to stop.

Path:   engine.wiring, engine.tails -> `publish` -> here: the port, and a node that is alone
Never:  is relied on: what nobody heard is gone. What must be known stands in the database.
"""

from collections.abc import Callable
from typing import Protocol

Callback = Callable[[bytes], None]


class Bus(Protocol):
    """Port: what one node publishes, callbacks in all others are called with, in its order.

    At most once as a rule, and not at all while the connection is away; a publisher does not hear
    itself. Everything is called on the loop.
    """

    def publish(self, topic: str, data: bytes) -> None:
        """Tell the others soon. Costs microseconds, raises nothing."""
        ...

    def subscribe(self, topic: str, callback: Callback) -> Callable[[], None]:
        """Call `callback` with what others publish from soon on; return what ends that."""
        ...

    async def start(self) -> None: ...

    async def close(self) -> None: ...


class NullBus:
    """Of a node that is alone: there is nobody to tell."""

    def publish(self, topic: str, data: bytes) -> None:
        pass

    def subscribe(self, topic: str, callback: Callback) -> Callable[[], None]:
        return lambda: None

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        pass
