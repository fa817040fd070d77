"""Calls the kernel through the C library, and turns its errno into `OSError`.

Path:   sandbox.lockdown.{process,namespaces,landlock}_unsafe -> here
Never:  decides anything; every number and flag comes from the caller.
"""

import ctypes
import os
from functools import cache


@cache
def libc() -> ctypes.CDLL:
    """Return the C library that is already loaded; costs a `dlopen`, so the zygote warms it."""
    library = ctypes.CDLL(None, use_errno=True)
    library.syscall.restype = ctypes.c_long
    return library


def syscall(number: int, *arguments: int | None) -> int:
    """Make a raw system call for what the C library has no wrapper for.

    Every argument is widened to a register: ctypes would pass a bare `int` as 32 bits and
    leave the upper half undefined. `None` is the null pointer.

    Raises:
        OSError: the kernel said no.
    """
    returned: int = libc().syscall(ctypes.c_long(number), *_registers(arguments))
    return checked(returned)


def prctl(option: int, *arguments: int) -> int:
    """Change or read a property of this process; unused arguments are zero, as some demand.

    Raises:
        OSError: the kernel said no.
    """
    padded = (*arguments, 0, 0, 0, 0)[:4]
    returned: int = libc().prctl(ctypes.c_int(option), *_registers(padded))
    return checked(returned)


def _registers(arguments: tuple[int | None, ...]) -> list[ctypes.c_ulong]:
    return [ctypes.c_ulong(argument or 0) for argument in arguments]


def checked(returned: int) -> int:
    """Return what a call of the C library returned.

    Raises:
        OSError: it was -1; says what errno says.
    """
    if returned == -1:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return returned
