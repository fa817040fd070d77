"""Denies this process the whole file system, TCP, abstract sockets and foreign signals.

Path:   sandbox.lockdown.lock_down -> here
Never:  grants anything: the ruleset handles every right and holds no rule.
Source: Documentation/userspace-api/landlock.rst and <linux/landlock.h> of Linux 6.18 (ABI 7).
"""

import ctypes
import errno
import os
import threading
from pathlib import Path
from typing import Final

from sandbox.lockdown.layer import Layer, missing, standing
from sandbox.lockdown.libc_unsafe import syscall

NAME = "landlock"

# The same numbers on every architecture.
CREATE_RULESET = 444
RESTRICT_SELF = 446
CREATE_RULESET_VERSION = 1  # a flag: return the ABI instead of making a ruleset

ABI_WITH_TCP = 4
ABI_WITH_SCOPES = 6
NET_BIND_AND_CONNECT_TCP = 0b11
SCOPE_ABSTRACT_UNIX_AND_SIGNAL = 0b11

WHY_AND_REMEDY: Final = {
    errno.ENOSYS: ("this kernel is built without Landlock", "use Linux >= 5.13 with Landlock"),
    errno.EOPNOTSUPP: (
        "Landlock is switched off at boot",
        "add `landlock` to the kernel parameter `lsm=` and restart",
    ),
    errno.EPERM: (
        "the container's profile blocks Landlock",
        "allow the landlock_* calls in the container's seccomp profile",
    ),
}


class _RulesetAttributes(ctypes.Structure):
    _fields_ = (
        ("handled_access_fs", ctypes.c_uint64),
        ("handled_access_net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


def deny_all(threads_count: int) -> Layer:
    """Restrict this thread and all it starts; needs no_new_privs, and that no thread runs yet.

    Args:
        threads_count: of this process, see `count_threads`.
    """
    try:
        abi = _abi()
        _restrict(abi)
    except OSError as error:
        return _missing(error)
    if threads_count > 1:
        return missing(
            NAME,
            f"binds 1 of {threads_count} threads: the others ran before it",
            "lock the cell down before its first isolate or thread",
        )
    return standing(NAME, _detail(abi))


def count_threads() -> int:
    """Count the threads of this process; call it while there is a /proc."""
    try:
        return Path("/proc/self/task").stat().st_nlink - 2  # one link for each thread's folder
    except OSError:  # no /proc: only the threads that Python knows can be counted
        return threading.active_count()


def _abi() -> int:
    return syscall(CREATE_RULESET, None, 0, CREATE_RULESET_VERSION)


def _restrict(abi: int) -> None:
    attributes = _RulesetAttributes(
        handled_access_fs=_every_fs_right(abi),
        handled_access_net=NET_BIND_AND_CONNECT_TCP if abi >= ABI_WITH_TCP else 0,
        scoped=SCOPE_ABSTRACT_UNIX_AND_SIGNAL if abi >= ABI_WITH_SCOPES else 0,
    )
    # An older kernel refuses fields it does not know, unless they are zero: then it ignores them.
    size = ctypes.sizeof(attributes)
    ruleset_fd = syscall(CREATE_RULESET, ctypes.addressof(attributes), size, 0)
    try:
        syscall(RESTRICT_SELF, ruleset_fd, 0)
    finally:
        os.close(ruleset_fd)


def _every_fs_right(abi: int) -> int:
    """Return the mask of all file system rights that `abi` knows; newer ones are not ours yet."""
    rights_count = 13  # ABI 1: execute ... make_sym
    rights_count += abi >= 2  # noqa: PLR2004 - refer: link or rename across directories
    rights_count += abi >= 3  # noqa: PLR2004 - truncate
    rights_count += abi >= 5  # noqa: PLR2004 - ioctl on devices
    return (1 << rights_count) - 1


def _detail(abi: int) -> str:
    denied = ["file system"]
    if abi >= ABI_WITH_TCP:
        denied.append("TCP")
    if abi >= ABI_WITH_SCOPES:
        denied.append("abstract sockets and signals to others")
    return f"ABI {abi} denies: {', '.join(denied)}"


def _missing(error: OSError) -> Layer:
    fallback = (str(error.strerror), "use Linux >= 5.13 with Landlock")
    return missing(NAME, *WHY_AND_REMEDY.get(error.errno or 0, fallback))
