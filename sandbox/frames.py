"""The one primitive on the wire between engine and cell: length-prefixed frames.

u32 big-endian length of the rest, one byte kind, u32 isolate, payload. Both sides use this file;
the engine's side trusts nothing that comes out of it but the shape.
"""

import struct
from collections.abc import Iterator
from typing import Final

from runtimes.contract import FRAME_BYTES_MAX

_HEAD: Final = struct.Struct(">IcI")
_BODY_MIN: Final = _HEAD.size - 4  # kind and isolate


class BadFrame(Exception):
    """The other side's: a length that no frame has. Nothing more can be read from it."""

    def __init__(self, length: int) -> None:
        self.length = length
        super().__init__(f"frame of {length} bytes; allowed {_BODY_MIN} to {FRAME_BYTES_MAX}")


def frame(kind: str, isolate: int, payload: bytes = b"") -> bytes:
    """Return one frame; `kind` is one ASCII letter."""
    return _HEAD.pack(_BODY_MIN + len(payload), kind.encode(), isolate) + payload


class FrameReader:
    """Turns a stream's pieces into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[str, int, bytes]]:
        """Yield (kind, isolate, payload) of every frame that is complete.

        Raises:
            BadFrame: the length is out of range.
        """
        buffer = self._buffer
        buffer += data
        at = 0
        while len(buffer) - at >= _HEAD.size:
            length, kind, isolate = _HEAD.unpack_from(buffer, at)
            if not _BODY_MIN <= length <= FRAME_BYTES_MAX:
                raise BadFrame(length)
            end = at + 4 + length
            if end > len(buffer):
                break
            yield kind.decode("latin-1"), isolate, bytes(buffer[at + _HEAD.size : end])
            at = end
        del buffer[:at]
