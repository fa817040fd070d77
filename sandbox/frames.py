"""The one primitive on the wire between engine and cell: length-prefixed frames.

u32 big-endian length of the rest, one byte kind, u32 isolate, payload. Both sides use this file;
the engine's side trusts nothing that comes out of it but the shape.
"""

import struct
from collections.abc import Callable, Iterator
from typing import Final

from runtimes.contract import FRAME_BYTES_MAX

_HEAD: Final = struct.Struct(">IcI")
_BODY_MIN: Final = _HEAD.size - 4  # kind and isolate


class BadFrame(Exception):
    """The other side's: a frame that cannot be, or must not be now. Nothing after it is read."""

    def __init__(self, kind: str, isolate: int, length: int, most: int) -> None:
        self.length = length
        what = f"allowed {_BODY_MIN} to {most}" if most >= _BODY_MIN else "nobody waits for it"
        super().__init__(f"frame of {length} bytes; {what} (kind {kind!r}, isolate {isolate})")


def frame(kind: str, isolate: int, payload: bytes = b"") -> bytes:
    """Return one frame; `kind` is one ASCII letter."""
    return _HEAD.pack(_BODY_MIN + len(payload), kind.encode(), isolate) + payload


def any_frame(_kind: str, _isolate: int) -> int:
    """Let every frame have the most that there is."""
    return FRAME_BYTES_MAX - _BODY_MIN


class FrameReader:
    """Turns a stream's pieces into frames; holds one unfinished frame at most."""

    def __init__(self, room_for: Callable[[str, int], int] = any_frame) -> None:
        """`room_for(kind, isolate)` is asked at each head: the most bytes of payload; -1: none."""
        self._buffer = bytearray()
        self._room_for = room_for
        self._is_promised = False  # the head at the start of the buffer has passed already

    def feed(self, data: bytes) -> Iterator[tuple[str, int, bytes]]:
        """Yield (kind, isolate, payload) of every frame that is complete.

        Raises:
            BadFrame: a head says more than there is room for, before any of it is waited for.
        """
        buffer = self._buffer
        buffer += data
        while len(buffer) >= _HEAD.size:
            length, letter, isolate = _HEAD.unpack_from(buffer)
            kind = letter.decode("latin-1")
            if not self._is_promised:
                most = min(FRAME_BYTES_MAX, self._room_for(kind, isolate) + _BODY_MIN)
                if not _BODY_MIN <= length <= most:
                    raise BadFrame(kind, isolate, length, most)
            self._is_promised = 4 + length > len(buffer)
            if self._is_promised:
                break
            yield kind, isolate, self._cut(4 + length)

    def _cut(self, size: int) -> bytes:
        """Take one frame out and return its payload, of which nothing here keeps a copy."""
        payload = bytes(self._buffer[_HEAD.size : size])
        del self._buffer[:size]
        return payload
