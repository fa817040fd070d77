"""WASI preview 1 without a system below it: no files, no sockets, the run's own clock and chance.

Path:   guest code -> run.GuestRun -> here -> the run's stdin, stdout, log; sleeping is a host call
Never:  asks the kernel anything; believes a pointer or a count.
Source: numbers and layouts are those of WebAssembly/WASI, phase snapshot preview1.
"""

import struct
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from runtimes.webassembly.wasmtime_unsafe import U32, OutOfBounds

SUCCESS: Final = 0
_BADF, _FAULT, _INVAL, _NOSYS, _NOTDIR, _NOTSOCK, _NOTSUP, _SPIPE = 8, 21, 28, 52, 54, 57, 58, 70
STREAMS: Final = 3  # stdin, stdout, stderr
VECTORS_MAX: Final = 1024  # of one read or write, as on Linux
SUBSCRIPTIONS_MAX: Final = 1024
WRITE_BYTES_MAX: Final = 64 * 1024  # of one call; the guest writes the rest with the next
CHUNK_BYTES: Final = 64 * 1024  # of random bytes
_RIGHTS: Final = (1 << 1) | (1 << 3) | (1 << 6) | (1 << 21) | (1 << 27)  # read, write, stat, poll
_CLOCKS: Final = 4
_RESOLUTION_NS: Final = 1_000_000
_ABSOLUTE: Final = 1
_CLOCK, _READ, _WRITE = 0, 1, 2  # kinds of subscription

_PAIR: Final = struct.Struct("<II")
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")
_FDSTAT: Final = struct.Struct("<BxHxxxxQQ")
_FILESTAT: Final = struct.Struct("<QQBxxxxxxxQQQQQ")
_SUBSCRIPTION: Final = struct.Struct("<QBxxxxxxxIxxxxQQHxxxxxx")
_EVENT: Final = struct.Struct("<QHBxxxxxQHxxxxxx")


class Exit(Exception):
    """The guest's: it called proc_exit."""

    def __init__(self, status: int) -> None:
        self.status = status  # of 32 bits
        super().__init__(f"exit status {status - (status >> 31 << 32)}")


class World(Protocol):
    """Port: what a run has to offer to its WASI. Adapter: `run.GuestRun`."""

    stdin: bytes
    stdin_at: int

    @property
    def arguments(self) -> tuple[bytes, ...]: ...

    @property
    def environment(self) -> tuple[bytes, ...]: ...

    def read(self, pointer: int, length: int) -> bytes:
        """Return guest memory; raises OutOfBounds."""
        ...

    def write(self, pointer: int, data: bytes) -> None:
        """Change guest memory; raises OutOfBounds."""
        ...

    def stream(self, descriptor: int, data: bytes) -> None:
        """Take what the guest wrote to stdout (1) or stderr (2)."""
        ...

    def now_ns(self) -> int: ...

    def chance(self, count: int) -> bytes: ...

    def sleep(self, wait_ns: int) -> bool:
        """Wait by a host call; False: it is not possible now."""
        ...


class Wasi:
    """The functions of one run. Each takes unsigned integers and returns an errno."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._closed: set[int] = set()

    def function(self, name: str) -> Callable[..., int]:
        """Return the function of this name; there is one for each in `abi.SIGNATURES`."""
        return self._guarded(getattr(self, name, None) or self._absent(name))

    def _guarded(self, function: Callable[..., int]) -> Callable[..., int]:
        def call(*arguments: int) -> int:
            try:
                return function(*arguments)
            except OutOfBounds:
                return _FAULT

        return call

    def _absent(self, name: str) -> Callable[..., int]:
        """Return what all functions of a kind answer where there are no files and no sockets."""
        if name.startswith("path_") or name == "fd_readdir":
            return lambda descriptor, *_: self._error(descriptor, _NOTDIR)
        if name.startswith("sock_"):
            return lambda descriptor, *_: self._error(descriptor, _NOTSOCK)
        if name.startswith("fd_prestat"):
            return lambda *_: _BADF
        if name in {"fd_sync", "fd_datasync", "fd_fdstat_set_flags", "fd_fdstat_set_rights"}:
            return lambda descriptor, *_: self._error(descriptor, SUCCESS)
        if name in {"fd_seek", "fd_tell", "fd_pread", "fd_pwrite", "fd_advise"}:
            return lambda descriptor, *_: self._error(descriptor, _SPIPE)
        if name.startswith("fd_"):
            return lambda descriptor, *_: self._error(descriptor, _NOTSUP)
        return lambda *_: _NOSYS  # proc_raise

    def _open(self, descriptor: int) -> bool:
        return descriptor < STREAMS and descriptor not in self._closed

    def _error(self, descriptor: int, errno: int) -> int:
        return errno if self._open(descriptor) else _BADF

    # Arguments and environment.

    def args_sizes_get(self, count_at: int, bytes_at: int) -> int:
        return self._sizes(self._world.arguments, count_at, bytes_at)

    def args_get(self, pointers_at: int, texts_at: int) -> int:
        return self._texts(self._world.arguments, pointers_at, texts_at)

    def environ_sizes_get(self, count_at: int, bytes_at: int) -> int:
        return self._sizes(self._world.environment, count_at, bytes_at)

    def environ_get(self, pointers_at: int, texts_at: int) -> int:
        return self._texts(self._world.environment, pointers_at, texts_at)

    def _sizes(self, texts: tuple[bytes, ...], count_at: int, bytes_at: int) -> int:
        self._world.write(count_at, _U32.pack(len(texts)))
        self._world.write(bytes_at, _U32.pack(sum(len(text) + 1 for text in texts)))
        return SUCCESS

    def _texts(self, texts: tuple[bytes, ...], pointers_at: int, texts_at: int) -> int:
        at = texts_at
        pointers = b""
        for text in texts:
            pointers += _U32.pack(at & U32)
            at += len(text) + 1
        self._world.write(texts_at, b"".join(text + b"\0" for text in texts))
        self._world.write(pointers_at, pointers)
        return SUCCESS

    # Time and chance.

    def clock_res_get(self, clock: int, at: int) -> int:
        if clock >= _CLOCKS:
            return _INVAL
        self._world.write(at, _U64.pack(_RESOLUTION_NS))
        return SUCCESS

    def clock_time_get(self, clock: int, _precision: int, at: int) -> int:
        """All clocks are one: Go's runtime, for instance, does not take 0 for a monotonic time."""
        if clock >= _CLOCKS:
            return _INVAL
        self._world.write(at, _U64.pack(self._world.now_ns()))
        return SUCCESS

    def random_get(self, at: int, length: int) -> int:
        if length:
            self._world.read(at + length - 1, 1)  # all of it is there, before any is written
        for start in range(0, length, CHUNK_BYTES):
            self._world.write(at + start, self._world.chance(min(CHUNK_BYTES, length - start)))
        return SUCCESS

    def sched_yield(self) -> int:
        return SUCCESS

    def poll_oneoff(self, subscriptions_at: int, events_at: int, count: int, count_at: int) -> int:
        if not 1 <= count <= SUBSCRIPTIONS_MAX:
            return _INVAL
        world = self._world
        asked = list(
            _SUBSCRIPTION.iter_unpack(world.read(subscriptions_at, count * _SUBSCRIPTION.size))
        )
        events = [self._ready(*one[:3]) for one in asked if one[1] != _CLOCK]
        if not events:
            waits_ns = [self._wait_ns(timeout, flags) for _, _, _, timeout, _, flags in asked]
            least_ns = min(waits_ns)
            if least_ns > 0 and not world.sleep(least_ns):
                return _NOTSUP
            events = [
                _EVENT.pack(one[0], SUCCESS, _CLOCK, 0, 0)
                for one, wait_ns in zip(asked, waits_ns, strict=True)
                if wait_ns <= least_ns
            ]
        world.write(events_at, b"".join(events))
        world.write(count_at, _U32.pack(len(events)))
        return SUCCESS

    def _wait_ns(self, timeout_ns: int, flags: int) -> int:
        return max(0, timeout_ns - self._world.now_ns()) if flags & _ABSOLUTE else timeout_ns

    def _ready(self, userdata: int, kind: int, descriptor: int) -> bytes:
        """Return the event of a stream: none of ours ever has to be waited for."""
        world = self._world
        left = len(world.stdin) - world.stdin_at if descriptor == 0 else CHUNK_BYTES
        errno = _INVAL if kind not in {_READ, _WRITE} else self._error(descriptor, SUCCESS)
        return _EVENT.pack(userdata, errno, kind, left, 0)

    # Streams.

    def fd_read(self, descriptor: int, vectors_at: int, count: int, read_at: int) -> int:
        if descriptor != 0 or not self._open(descriptor):
            return _BADF
        if count > VECTORS_MAX:
            return _INVAL
        world = self._world
        vectors = _PAIR.iter_unpack(world.read(vectors_at, count * _PAIR.size))
        start = end = world.stdin_at
        for at, length in vectors:
            data = world.stdin[end : end + length]
            if data:
                world.write(at, data)
                end += len(data)
        world.write(read_at, _U32.pack(end - start))
        world.stdin_at = end
        return SUCCESS

    def fd_write(self, descriptor: int, vectors_at: int, count: int, written_at: int) -> int:
        if descriptor == 0 or not self._open(descriptor):
            return _BADF
        if count > VECTORS_MAX:
            return _INVAL
        world = self._world
        parts: list[bytes] = []
        room = WRITE_BYTES_MAX
        for at, length in _PAIR.iter_unpack(world.read(vectors_at, count * _PAIR.size)):
            if length:  # C libraries write their buffer, often empty, and what comes after it
                parts.append(world.read(at, min(length, room)))
                room -= len(parts[-1])
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        if data:
            world.stream(descriptor, data)
        world.write(written_at, _U32.pack(len(data)))
        return SUCCESS

    def fd_close(self, descriptor: int) -> int:
        if not self._open(descriptor):
            return _BADF
        self._closed.add(descriptor)
        return SUCCESS

    def fd_fdstat_get(self, descriptor: int, at: int) -> int:
        """Of no known type: as a terminal, stdout would be written line by line."""
        if not self._open(descriptor):
            return _BADF
        self._world.write(at, _FDSTAT.pack(0, 0, _RIGHTS, 0))
        return SUCCESS

    def fd_filestat_get(self, descriptor: int, at: int) -> int:
        if not self._open(descriptor):
            return _BADF
        self._world.write(at, _FILESTAT.pack(0, descriptor, 0, 1, 0, 0, 0, 0))
        return SUCCESS

    def proc_exit(self, status: int) -> int:
        raise Exit(status)


def environment_of(variables: Mapping[str, str]) -> tuple[bytes, ...]:
    """Return `NAME=text` for each variable; what C cannot hold is cut at its NUL."""
    return tuple(f"{name}={text}".encode().split(b"\0")[0] for name, text in variables.items())
