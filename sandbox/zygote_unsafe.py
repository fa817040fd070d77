"""The zygote: everything loaded, nothing started; forks a cell in milliseconds when asked.

Path:   supervisor starts `python -I -m sandbox.zygote_unsafe FD MB` -> spawn -> child.run_cell
Never:  runs user code, starts a thread or V8 (a fork of either is broken), speaks to a cell.

On its channel (SOCK_SEQPACKET, one message each): in `spawn KIND` with the cell's socket
attached, or `kill PID`; out `{"pid": n}`, or `{"pid": 0, "errno": e}` if no process could be had,
and for each cell that ended `{"pid", "status", "max_rss_kib", "cpu_us"}`.
"""

import ctypes
import gc
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.resources import files
from typing import Final, NoReturn

from runtimes.contract import CellKind
from sandbox.child import run_cell
from sandbox.lockdown import Birth, adopt, prepare, spawn

MESSAGE_BYTES_MAX: Final = 256
LARGE_BLOCK_BYTES: Final = 1024 * 1024
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # <malloc.h>
STACK_BYTES: Final = 1536 * 1024  # V8 lets JavaScript use 984 KiB of it, as in Node


def main() -> None:
    channel = socket.socket(fileno=int(sys.argv[1]))
    channel.setblocking(True)
    cell_memory_mb = int(sys.argv[2])
    # The library's pages are mapped once and shared by every cell; V8 itself starts in the cell.
    ctypes.CDLL(str(files("py_mini_racer") / "libmini_racer.so"))
    _shrink_stacks()
    _give_memory_back()
    prepared = prepare()
    adopt()
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the engine's; it closes the channel
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    gc.collect()
    gc.freeze()  # what is loaded now stays shared: a cell's collector leaves it alone
    channel.send(b"{}")
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    poll.register(wake_read, select.POLLIN)
    cells: set[int] = set()
    with suppress(ConnectionError):  # the engine is gone, and left messages of ours unread
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if wake_read in ready:
                os.read(wake_read, 4096)
                _reap(channel, cells)
            if channel.fileno() in ready:
                message, descriptors, _, _ = socket.recv_fds(channel, MESSAGE_BYTES_MAX, 1)
                if not message:
                    break
                order, _, what = message.decode().partition(" ")
                if order == "spawn":
                    start = partial(
                        run_cell,
                        prepared=prepared,
                        kind=CellKind.read(what),
                        memory_mb=cell_memory_mb,
                    )
                    _spawn(channel, descriptors[0], cells, start)
                elif (pid := int(what)) in cells:
                    os.kill(pid, signal.SIGKILL)
    for pid in cells:
        os.kill(pid, signal.SIGKILL)


def _shrink_stacks() -> None:
    """Give threads made from now on STACK_BYTES instead of 8 MiB, which RLIMIT_DATA would count."""
    libc = ctypes.CDLL(None)
    attributes = ctypes.create_string_buffer(128)  # pthread_attr_t: 56 bytes on x86-64, 64 on arm64
    libc.pthread_attr_init(attributes)
    libc.pthread_attr_setstacksize(attributes, ctypes.c_size_t(STACK_BYTES))
    libc.pthread_setattr_default_np(attributes)


def _give_memory_back() -> None:
    """Have the C library return large blocks at once: RLIMIT_DATA counts what it would keep.

    By itself it keeps up to 64 MiB for each thread, and blocks of up to 32 MiB after the first.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none, and keeps nothing
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)
        mallopt(_M_ARENA_MAX, 2)


def _spawn(
    channel: socket.socket,
    descriptor: int,
    cells: set[int],
    start: Callable[[socket.socket, Birth], NoReturn],
) -> None:
    def live(birth: Birth) -> NoReturn:
        signal.set_wakeup_fd(-1)
        start(socket.socket(fileno=descriptor), birth)

    try:
        born = {"pid": spawn(live)}
        cells.add(born["pid"])
    except OSError as error:  # the node is out of processes or memory: one cell less, not all
        born = {"pid": 0, "errno": error.errno or 0}
    os.close(descriptor)
    channel.send(json.dumps(born).encode())


def _reap(channel: socket.socket, cells: set[int]) -> None:
    while cells:
        pid, status, usage = os.wait4(-1, os.WNOHANG)
        if pid == 0:
            return
        cells.discard(pid)
        cpu_us = round((usage.ru_utime + usage.ru_stime) * 1e6)
        ended = {
            "pid": pid, "status": status, "max_rss_kib": usage.ru_maxrss, "cpu_us": cpu_us,
        }  # fmt: skip
        channel.send(json.dumps(ended).encode())


if __name__ == "__main__":
    main()
