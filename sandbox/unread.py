"""Bounds what the engine holds for cells that do not read: for each of them, and for all together.

Path:   supervisor.Cell.send -> here
Never:  ends a cell: it says which one has to go.
"""

from typing import Final, Generic, Protocol, TypeVar

from runtimes.contract import MIB

BEHIND_BYTES: Final = MIB  # a cell that has more to read is watched: one that reads has less
CELL_BYTES_MAX: Final = 512 * MIB  # 150 batches and some programs
NODE_BYTES_MAX: Final = 1024 * MIB  # of all cells


class Reader(Protocol):
    """Port: a cell that is written to."""

    @property
    def unread_bytes(self) -> int:
        """Return what waits in the engine to be written; 0 when the cell is about to go."""
        ...


One = TypeVar("One", bound=Reader)


class Unread(Generic[One]):
    """What all cells of a node have not read."""

    def __init__(self) -> None:
        self._behind: set[One] = set()

    def sent(self, reader: One) -> One | None:
        """Take that it was written to; return the cell that has to go, if one has: the fullest."""
        self._behind.add(reader)
        sizes = {one: one.unread_bytes for one in self._behind}
        self._behind = {one for one, size in sizes.items() if size > BEHIND_BYTES}
        fullest = max(sizes, key=sizes.__getitem__)
        if sizes[fullest] > CELL_BYTES_MAX or sum(sizes.values()) > NODE_BYTES_MAX:
            return fullest
        return None

    def forget(self, reader: One) -> None:
        self._behind.discard(reader)
