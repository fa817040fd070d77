"""Caps what this process may take from the kernel, and lets the engine go first on the CPU.

Path:   sandbox.lockdown.lock_down -> here
Never:  sets RLIMIT_DATA: the supervisor does, from outside, once it knows the tenant's budget.
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

# Counted by the kernel over ALL processes and threads of the user, not of this cell, and never
# for uid 0 of the first user namespace. So it is only a ceiling for a thread bomb on a machine
# without a pids cgroup, and has to leave room for every other cell of the node.
USER_THREADS_MAX = 8_192

NICENESS = 5  # weight 335 against 1024: a third of the engine's share when all are busy

LIMITS: Final[dict[str, int]] = {
    "RLIMIT_NOFILE": DESCRIPTORS_MAX,
    "RLIMIT_NPROC": USER_THREADS_MAX,
    "RLIMIT_CORE": 0,  # a core dump would hold a tenant's data
    "RLIMIT_FSIZE": 0,
    "RLIMIT_MEMLOCK": 0,
}
# Cells of WebAssembly: one memfd for each loaded module, of its first memory.
MEMORY_FILE_LIMITS: Final[dict[str, int]] = LIMITS | {
    "RLIMIT_NOFILE": DESCRIPTORS_MAX + 256,
    "RLIMIT_FSIZE": 64 * 1024 * 1024,  # Landlock leaves no other file to write to
}


def cap_resources(*, memory_files: bool = False) -> Layer:
    """Lower each limit for good; the hard one is never raised, so it needs no privilege."""
    failed = []
    limits = MEMORY_FILE_LIMITS if memory_files else LIMITS
    for name, wanted in limits.items():
        kind = getattr(resource, name)
        _, hard = resource.getrlimit(kind)
        value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        try:
            resource.setrlimit(kind, (value, value))
        except (OSError, ValueError) as error:
            failed.append(f"{name}: {error}")
    _let_the_engine_go_first()
    if failed:
        return missing(NAME, "; ".join(failed), "allow setrlimit in the container's profile")
    return standing(NAME, ", ".join(f"{name[7:]} {most}" for name, most in limits.items()))


def probe() -> Layer:
    """Tell whether limits exist here; every Linux has them."""
    if sys.platform != "linux":
        return missing(NAME, f"not known on {sys.platform}", "run on Linux")
    return standing(NAME, "supported")


def _let_the_engine_go_first() -> None:
    with suppress(OSError):  # a courtesy, not a wall
        os.nice(NICENESS)
        # With autogroups, nice only counts within one session, and each cell has its own: then
        # the session has to be nice as a whole. See "The autogroup feature" in sched(7). An
        # ordinary user may do this once in 100 ms only; the loser just stays at the default.
        autogroup = os.open("/proc/self/autogroup", os.O_WRONLY)  # not Path: 0.8 ms in a new fork
        try:
            os.write(autogroup, b"%d" % NICENESS)
        finally:
            os.close(autogroup)
