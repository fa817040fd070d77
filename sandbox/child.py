"""The cell: one process, one project's code. Moves frames between the socket and the guests.

Path:   zygote forks -> here -> runtimes.<language>.guest; outputs leave from the guest's own thread
Never:  opens anything after the lockdown; outlives the engine, or a guest that went over a limit.

The main thread reads frames and is the watchdog; each guest has a thread of its own. A guest that
passes its CPU or heap ends the whole cell: what a stopped isolate leaves behind is not trusted.
"""

import os
import resource
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final, NoReturn, Protocol

import msgspec

from runtimes.contract import (
    FULL_CODE,
    MIB,
    CellKind,
    FromCell,
    GuestError,
    LoadFailed,
    Runtime,
    Stop,
    ToCell,
    unpacked,
)
from runtimes.javascript import guest as javascript_guest
from runtimes.webassembly import guest as wasm_guest
from sandbox.frames import FrameReader, frame
from sandbox.lockdown import Birth, Prepared, cap_memory, lock_down, open_statm
from sandbox.room_unsafe import can_have

TICK_MS = 5  # the watchdog looks this often while a guest runs
IDLE_MS = 50  # without work for so long, a cell prepares the next isolate
ROOM_BYTES = 24 * MIB  # what a new guest and its program may need before a limit of theirs holds
ROOM_MS = 50  # how often a cell that gets work looks whether it has so much room
_OUTPUT_HEAD = struct.Struct(">QI")
_FAULT_CODE = 70
_STOP_CODE = 86  # exit status of a cell that ended itself; the STOPPED frame says why


class Guest(Protocol):
    """Port: one version that is loaded. Its code runs on threads of its own."""

    busy: bool  # works on a batch
    loading: bool

    def load(self, header: bytes, program: bytes) -> bytes:
        """Load what `build` made; return the JSON of a LOADED frame.

        Raises:
            LoadFailed: the author's program does not load.
        """
        ...

    def post(self, batch: bytes) -> None:
        """Take one batch; exactly one output follows. Never waits."""
        ...

    def watch(self) -> Stop | None:
        """End a run that is over its limits; return why the whole cell has to end, if it has to."""
        ...

    def memory_stop(self) -> Stop: ...

    def crash_stop(self) -> Stop: ...

    def relieve(self) -> None:
        """Give back what memory nothing uses any more. Only called while it is not busy."""
        ...

    def close(self) -> None: ...


class Language(Protocol):
    """Port: a guest language. Adapters: the modules `guest` of `runtimes.*`."""

    def initialise(self, *, hardened: bool) -> None:
        """Start the runtime in this process: once, before the lockdown.

        Hardened: it must never ask for executable memory afterwards.
        """
        ...

    def build(self, header: bytes, body: bytes) -> bytes:
        """Compile what was uploaded.

        Raises:
            LoadFailed: it does not compile.
        """
        ...

    def new_guest(
        self,
        on_output: Callable[[Guest, int, bytes], None],
        on_broken: Callable[[Guest, str], None],
        tick: Callable[[], None],
    ) -> Guest: ...


LANGUAGES: Final[Mapping[Runtime, Language]] = {
    Runtime.JAVASCRIPT: javascript_guest,
    Runtime.WASM: wasm_guest,
}


def run_cell(
    channel: socket.socket, birth: Birth, *, prepared: Prepared, kind: CellKind, memory_mb: int
) -> NoReturn:
    """Be a cell until the engine closes the channel or a guest goes over a limit.

    It may take `memory_mb` on top of the size that it has when it is ready.
    """
    language = LANGUAGES[kind.runtime]
    language.initialise(hardened=kind.hardened)
    statm = open_statm()
    layers = lock_down(
        prepared,
        channel.fileno(),
        birth=birth,
        statm=statm,
        hardened=kind.hardened,
    )
    cell = Cell(channel, language)
    layers = cap_memory(layers, statm, memory_mb * MIB)
    cell.send(FromCell.READY, 0, msgspec.json.encode(layers))
    try:
        cell.serve()
    except MemoryError:
        os._exit(FULL_CODE)
    except Exception as error:  # noqa: BLE001 - the loop of the cell: the engine logs it and replaces us
        cell.send(FromCell.FAULT, 0, repr(error).encode())
        os._exit(_FAULT_CODE)
    os._exit(0)


class Cell:
    """The guests of this process and the channel they share."""

    def __init__(self, channel: socket.socket, language: Language) -> None:
        self._channel = channel
        self._language = language
        self._sending = threading.Lock()
        self._guests: dict[int, Guest] = {}
        self._ids: dict[int, int] = {}
        self._spare: Guest | None = None
        self._spare = self._new_guest()  # made before anybody waits: the first load finds it ready
        self._wants_spare = False
        self._room_seen_ns = 0

    def serve(self) -> None:
        reader = FrameReader()
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        watched_ns = 0
        while True:
            busy = any(guest.busy for guest in self._guests.values())
            wait_ms = TICK_MS if busy else IDLE_MS if self._wants_spare else None
            ready = poll.poll(wait_ms)
            if busy and (now_ns := time.monotonic_ns()) - watched_ns > TICK_MS * 1_000_000:
                watched_ns = now_ns  # also while frames for other guests keep coming
                self.watch()
            if ready:
                data = self._channel.recv(1 << 18)
                if not data:
                    return
                for kind, isolate, payload in reader.feed(data):
                    self._take(kind, isolate, payload)
            elif not busy:
                self._wants_spare = False
                if self._has_room():  # the next version to be loaded finds it ready
                    self._spare = self._new_guest()

    def send(self, kind: FromCell, isolate: int, payload: bytes) -> None:
        with self._sending:
            self._channel.sendall(frame(kind, isolate, payload))

    def watch(self) -> None:
        """End the cell when a guest has used up what it may use."""
        for guest in tuple(self._guests.values()):
            if (guest.busy or guest.loading) and (stop := guest.watch()) is not None:
                self._stop(guest, stop)

    def _take(self, kind: str, isolate: int, payload: bytes) -> None:
        if kind == ToCell.BATCH:
            guest = self._guests.get(isolate)
            if guest is not None:
                self._end_if_full()
                guest.post(payload)
        elif kind == ToCell.LOAD:
            self._load(isolate, payload)
        elif kind == ToCell.BUILD:
            self._build(isolate, payload)
        elif kind == ToCell.UNLOAD:
            guest = self._guests.pop(isolate, None)
            if guest is not None:
                guest.close()

    def _load(self, isolate: int, payload: bytes) -> None:
        if not self._has_room():
            self._refuse(isolate, GuestError(name="MemoryError", message="no room in the cell"))
            return
        guest, self._spare = self._spare or self._new_guest(), None
        self._wants_spare = True
        self._guests[isolate] = guest
        self._ids[id(guest)] = isolate
        try:
            answer = guest.load(*unpacked(payload))
        except LoadFailed as failed:
            self._refuse(isolate, failed.error)
            return
        except MemoryError as error:
            self._refuse(isolate, GuestError(name="MemoryError", message=f"no room: {error}"))
            return
        self.send(FromCell.LOADED, isolate, answer)

    def _build(self, isolate: int, payload: bytes) -> None:
        try:
            program = self._language.build(*unpacked(payload))
        except LoadFailed as failed:
            self._refuse(isolate, failed.error)
            return
        self.send(FromCell.BUILT, isolate, program)

    def _refuse(self, isolate: int, error: GuestError) -> None:
        guest = self._guests.pop(isolate, None)
        if guest is not None:
            guest.close()
        self.send(FromCell.REFUSED, isolate, msgspec.json.encode(error))

    def _end_if_full(self) -> None:
        """End the cell if nobody else could be let in: the engine starts the work again in another.

        Heaps have limits of their own; this is for what guests keep beside them between their
        runs, array buffers above all.
        """
        now_ns = time.monotonic_ns()
        if now_ns - self._room_seen_ns < ROOM_MS * 1_000_000:
            return
        self._room_seen_ns = now_ns
        busy = any(guest.busy for guest in self._guests.values())
        if not busy and not self._has_room():  # what works now may give its memory back
            os._exit(FULL_CODE)

    def _has_room(self) -> bool:
        """Say whether one more guest fits in, if need be after the others have tidied up.

        Asked first, because a runtime that finds no memory at its start hangs or ends the cell.
        """
        if can_have(ROOM_BYTES):
            return True
        for guest in self._guests.values():
            if not guest.busy:
                guest.relieve()
        return can_have(ROOM_BYTES)

    def _new_guest(self) -> Guest:
        return self._language.new_guest(self._output, self._broken, self.watch)

    def _output(self, guest: Guest, spent_ns: int, text: bytes) -> None:
        peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self.send(
            FromCell.OUTPUT, self._ids[id(guest)], _OUTPUT_HEAD.pack(spent_ns, peak_kib) + text
        )

    def _broken(self, guest: Guest, kind: str) -> None:
        if kind == "full":  # for the cell's own work: nobody is to blame, so nobody is named
            os._exit(FULL_CODE)
        try:
            if kind not in {"memory", "threw"}:
                self.send(FromCell.FAULT, 0, kind.encode())
            self._stop(guest, guest.memory_stop() if kind == "memory" else guest.crash_stop())
        except MemoryError:
            os._exit(FULL_CODE)

    def _stop(self, guest: Guest, stop: Stop) -> NoReturn:
        isolate = self._ids.get(id(guest), 0)  # 0: it has not been given a version yet
        self.send(FromCell.STOPPED, isolate, msgspec.json.encode(stop))
        os._exit(_STOP_CODE)
