"""Caps what this process may take from the kernel, and lets the engine go first on the CPU.

Path:   sandbox.lockdown.lock_down -> here
Never:  raises a limit, and so needs no privilege.
"""

import os
import sys
from contextlib import suppress
from typing import Final

from sandbox.lockdown.layer import Layer, missing, standing

if sys.platform != "win32":
    import resource

NAME = "rlimits"

# The three standard streams, the socket, and room for poll(), which counts its entries.
# A socket with a higher number keeps working; only new descriptors are refused.
DESCRIPTORS_MAX = 8

# Threads. The kernel counts them for each user of each user namespace, and for that user outside as
# well. So a cell with a user namespace of its own has its own number: one for each isolate (150),
# or for each run of a module. All cells of the node share the higher number, which is the only one
# where they are not counted alone, also before Linux 5.14; root has none. It leaves room for bombs
# in 85 cells, so that those of one project keep no other's cells from starting.
CELL_THREADS_MAX = 384
USER_THREADS_MAX = 32_768

OOM_SCORE = 1_000  # the kernel takes a cell before the engine, its database, or anybody else
NICENESS = 5  # weight 335 against 1024: a third of the engine's share when all are busy

# V8 reserves 1.5 TB and uses little of it. What is only looked at costs page tables, which no limit
# counts: 4 KiB for each 2 MiB. So 4 GiB of them are to be had here, and not 256 GiB.
ADDRESSES_BYTES_MAX = 2 << 40

LIMITS: Final[dict[str, int]] = {
    "RLIMIT_NOFILE": DESCRIPTORS_MAX,
    "RLIMIT_NPROC": CELL_THREADS_MAX,
    "RLIMIT_CORE": 0,  # a core dump would hold a tenant's data
    "RLIMIT_FSIZE": 0,
    "RLIMIT_MEMLOCK": 0,
    "RLIMIT_STACK": 8 * 1024 * 1024,  # of the main thread, which RLIMIT_DATA does not count
    "RLIMIT_AS": ADDRESSES_BYTES_MAX,
}


def cap_resources(*, counted_alone: bool) -> Layer:
    """Lower each limit for good; the hard one is never raised, so it needs no privilege.

    Args:
        counted_alone: the kernel counts the threads of this cell by themselves.
    """
    failed = []
    limits = LIMITS if counted_alone else LIMITS | {"RLIMIT_NPROC": USER_THREADS_MAX}
    for name, wanted in limits.items():
        kind = getattr(resource, name)
        try:
            _, hard = resource.getrlimit(kind)
            value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(kind, (value, value))
        except (OSError, ValueError) as error:
            failed.append(f"{name}: {error}")
    if failed:
        return missing(NAME, "; ".join(failed), "allow setrlimit in the container's profile")
    return standing(NAME, ", ".join(f"{name[7:]} {most}" for name, most in limits.items()))


def open_statm() -> int:
    """Open what tells the size of this process, while there is a /proc; -1: there is none."""
    try:
        return os.open("/proc/self/statm", os.O_RDONLY)
    except OSError:
        return -1


def cap_memory(statm: int, more_bytes: int) -> None:
    """Let this process grow by so much from what it is now, and no more.

    By itself, not from outside: root of a container may not set the limits of another user.

    Args:
        statm: from `open_statm`; closed here.
        more_bytes: of memory that is its own to write.

    Raises:
        OSError, ValueError: it may grow without limit.
    """
    data_pages = int(os.read(statm, 256).split()[5])  # see "statm" in proc_pid_statm(5)
    os.close(statm)
    most = data_pages * resource.getpagesize() + more_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def let_the_engine_go_first() -> None:
    """Be nice, and the first to end when memory is short; needs a /proc."""
    with suppress(OSError):  # courtesies, not walls
        _write("/proc/self/oom_score_adj", OOM_SCORE)
    with suppress(OSError):
        os.nice(NICENESS)
        # With autogroups, nice only counts within one session, and each cell has its own: then
        # the session has to be nice as a whole. See "The autogroup feature" in sched(7). An
        # ordinary user may do this once in 100 ms only; the loser just stays at the default.
        _write("/proc/self/autogroup", NICENESS)


def _write(name: str, number: int) -> None:
    descriptor = os.open(name, os.O_WRONLY)  # not Path: 0.8 ms in a new fork
    try:
        os.write(descriptor, b"%d" % number)
    finally:
        os.close(descriptor)
