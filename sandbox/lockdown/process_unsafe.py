"""Cuts the new process off from what fork gave it, then takes its privileges away.

Path:   sandbox.lockdown.lock_down -> here
Never:  touches `socket_fd`; changes user or group, which clears the parent-death signal: whoever
        does it calls `die_with` again.
"""

import ctypes
import os
import select
import signal
from collections.abc import Callable, Collection

from sandbox.lockdown.layer import Layer, missing, standing
from sandbox.lockdown.libc_unsafe import libc, prctl, syscall

# <linux/prctl.h>
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NO_NEW_PRIVS = 38

CLOSE_RANGE = 436  # the same number on every architecture; since Linux 5.9
LAST_DESCRIPTOR = 2**32 - 1
CAPABILITY_VERSION_3 = 0x20080522  # <linux/capability.h>

FIRST_PID = 1  # of a pid namespace
ORPHAN_CODE = 70  # exit status of a cell that has no zygote

PROCESS = "process"
PRIVILEGES = "privileges"
REMEDY = "run on Linux >= 5.9, outside of a container profile that blocks these calls"


def cut_loose(*, keep: Collection[int], zygote: int) -> Layer:
    """Drop what fork inherited: descriptors, environment, signals, session; die with the zygote.

    Args:
        keep: descriptors that stay open. 0, 1 and 2 are pointed at /dev/null and stay too.
        zygote: a pidfd of it, one of those to keep.
    """
    return _run_all(
        PROCESS,
        "dies with its parent; own session, no environment, no inherited descriptor or signal",
        {
            "parent-death signal": lambda: die_with(zygote),
            "signals": _default_signals,
            "standard streams": _silence_standard_streams,
            "descriptors": lambda: _close_all_but(keep),
            "environment": _empty_environment,
            "session": _new_session,
        },
    )


def die_with(zygote: int) -> None:
    """Have the kernel end this process, a child of the zygote, when the zygote ends.

    Args:
        zygote: a pidfd of it: a pid namespace hides its number from us.
    """
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    poll = select.poll()
    poll.register(zygote, select.POLLIN)
    if poll.poll(0):
        # It ended before the signal was armed, which will never come. No signal to ourselves: the
        # first process of a pid namespace is deaf to its own.
        os._exit(ORPHAN_CODE)


def give_up_privileges() -> Layer:
    """Drop every capability and the ways to new ones; hide the memory from peers of this user."""
    return _run_all(
        PRIVILEGES,
        "no capabilities, none to be gained; not to be dumped or traced by its own user",
        {
            "capabilities": _drop_capabilities,
            "no_new_privs": lambda: prctl(PR_SET_NO_NEW_PRIVS, 1),
            "dumpable": lambda: prctl(PR_SET_DUMPABLE, 0),
        },
    )


def _run_all(name: str, done: str, steps: dict[str, Callable[[], object]]) -> Layer:
    failed = []
    for step, run in steps.items():
        try:
            run()
        except OSError as error:  # one step that fails must not keep the others from running
            failed.append(f"{step}: {error.strerror}")
    return missing(name, "; ".join(failed), REMEDY) if failed else standing(name, done)


def _default_signals() -> None:
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    if os.getpid() == FIRST_PID:
        # The first process of a pid namespace is deaf to signals of its own without a handler, so
        # abort() would go on until it ends as SIGSEGV, which means an attack. This makes it
        # _exit(SIGABRT); `Death` in sandbox.supervisor knows that status. A handler in C, because
        # one in Python runs later, if at all.
        libc().signal(signal.SIGABRT, libc()["_exit"])


def _silence_standard_streams() -> None:
    null = os.open("/dev/null", os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    if null > 2:  # noqa: PLR2004 - the last standard stream
        os.close(null)


def _close_all_but(keep: Collection[int]) -> None:
    first = 3
    for kept in sorted(descriptor for descriptor in set(keep) if descriptor >= first):
        _close_range(first, kept - 1)
        first = kept + 1
    _close_range(first, LAST_DESCRIPTOR)


def _close_range(first: int, last: int) -> None:
    # Not os.closerange: without close_range it would call close() two thousand million times.
    if first <= last:
        syscall(CLOSE_RANGE, first, last, 0)


def _empty_environment() -> None:
    os.environ.clear()
    libc().clearenv()  # what C code put there after Python had made its copy


def _new_session() -> None:
    if os.getsid(0) != os.getpid():  # a session leader may not call setsid, and need not
        os.setsid()


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapabilityData(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def _drop_capabilities() -> None:
    # Root loses them too. The bounding set may stay: only execve could bring any of it back,
    # and no_new_privs forbids that.
    header = _CapabilityHeader(CAPABILITY_VERSION_3, 0)
    nothing = (_CapabilityData * 2)()
    if libc().capset(ctypes.byref(header), ctypes.byref(nothing)) == -1:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
