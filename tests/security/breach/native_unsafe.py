"""What native code in a breached cell has at hand: raw system calls, and the modules it needs.

Imported by the zygote, for a cell can open no file any more. An attempt is one expression, or
lines that end in `answer = ...`; what it is worth goes to the test as JSON.
"""

import contextlib
import ctypes
import errno
import mmap
import os
import platform
import resource
import select
import signal
import socket
import struct
import threading
import time
import traceback
from collections.abc import Mapping
from typing import Any

from pyseccomp import Arch, resolve_syscall

MIB = 1024 * 1024
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long
LATER_THAN_LIBSECCOMP = {"statmount": 457, "listmount": 458, "mseal": 462}
AT_FDCWD = -100
MODULES = (
    contextlib, ctypes, errno, mmap, os, platform, resource, select, signal, socket, struct,
    threading, time, traceback,
)  # fmt: skip


def call(name: str, *arguments: Any) -> int | str:
    """Make a raw system call; return its result, or the name of its errno."""
    number = LATER_THAN_LIBSECCOMP.get(name) or resolve_syscall(Arch.NATIVE, name)
    assert number >= 0, name
    ctypes.set_errno(0)
    returned = LIBC.syscall(
        ctypes.c_long(number),
        *(
            ctypes.c_ulong(one & 0xFFFF_FFFF_FFFF_FFFF) if isinstance(one, int) else one
            for one in arguments
        ),
    )
    return errno.errorcode[ctypes.get_errno()] if returned == -1 else returned


def run_machine_code(code: bytes) -> int:
    """Run bytes as a function; it needs a page that is executable."""
    page = call("mmap", 0, 4096, 7, 0x22, -1, 0)
    assert isinstance(page, int), page
    ctypes.memmove(page, code, len(code))
    return int(ctypes.CFUNCTYPE(ctypes.c_long)(page)())


def fill(address: int, size: int, step: int = 4096) -> None:
    """Write to every page, so that the kernel has to find memory for it."""
    for at in range(address, address + size, step):
        ctypes.c_byte.from_address(at).value = 1


def look(address: int, size: int, step: int) -> None:
    """Read a byte of every step, so that the kernel has to map something there."""
    for at in range(address, address + size, step):
        ctypes.c_byte.from_address(at).value  # noqa: B018 - the look is the point


def words(**more: Any) -> dict[str, Any]:
    """Return the names that an attempt may use."""
    found: dict[str, Any] = {module.__name__: module for module in MODULES}
    return found | {
        "call": call, "run_machine_code": run_machine_code, "fill": fill, "look": look,
        "libc": LIBC, "MIB": MIB, "AT_FDCWD": AT_FDCWD, "buffer": ctypes.create_string_buffer,
        **more,
    }  # fmt: skip


def worth(code: str, names: Mapping[str, Any]) -> Any:
    """Return what an attempt comes to: its value, or `raised NAME`."""
    scope = dict(names)
    try:
        if "\n" not in code:
            return eval(code, scope)
        exec(code, scope)
    except Exception as error:  # noqa: BLE001 - whatever it raises is the finding
        return f"raised {type(error).__name__}"
    return scope["answer"]
