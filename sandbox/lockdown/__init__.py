"""Puts a cell behind its walls before any user byte reaches it.

Path:   sandbox.zygote: `prepare` once -> fork -> V8 started -> `lock_down` -> first isolate
Never:  raises for a wall that is missing: it says so, and `strict` decides what that means.
Order:  each step takes away what an earlier one needed; the filter on system calls comes last.
"""

import sys
from dataclasses import dataclass

from sandbox.lockdown import landlock_unsafe, process_unsafe, rlimits, seccomp_unsafe
from sandbox.lockdown.layer import Layer, missing
from sandbox.lockdown.seccomp_unsafe import CompiledFilter

__all__ = ["Layer", "Prepared", "lock_down", "prepare", "probe"]

LAYER_NAMES = (
    process_unsafe.PROCESS,
    rlimits.NAME,
    process_unsafe.PRIVILEGES,
    landlock_unsafe.NAME,
    seccomp_unsafe.NAME,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What the zygote has ready for its cells; good for any number of forks."""

    seccomp: CompiledFilter | Layer  # a Layer says why there is no filter
    seccomp_memory_files: CompiledFilter | Layer  # the same, for cells that make memory files


def prepare() -> Prepared:
    """Do the slow part once, in the zygote, which starts a subprocess for it (10 ms)."""
    if sys.platform != "linux":
        none = _not_linux(seccomp_unsafe.NAME)
        return Prepared(seccomp=none, seccomp_memory_files=none)
    process_unsafe.probe()  # warms the C library's handle, which every cell then shares
    return Prepared(
        seccomp=seccomp_unsafe.compile_filter(),
        seccomp_memory_files=seccomp_unsafe.compile_filter(memory_files=True),
    )


def lock_down(
    prepared: Prepared,
    socket_fd: int,
    *,
    parent_pid: int,
    memory_files: bool = False,
    hardened: bool = False,  # noqa: ARG001 - see below
) -> tuple[Layer, ...]:
    """Apply every layer to this process, for good. Takes 2 to 3 ms.

    Call it in the forked child, after V8 is initialised and before its first isolate: threads
    that already run would be outside of Landlock. Namespaces, once they come, go before it;
    so does a change of user.

    Args:
        prepared: from the zygote.
        socket_fd: the only descriptor, above 2, that stays open.
        parent_pid: the zygote's; if it is gone by now, this process ends here with SIGKILL.
        memory_files: Wasmtime's: it keeps a module's first memory in a sealed memfd, which every
            instance maps copy-on-write. They have no name, and reach no file system.
        hardened: no memory can become executable any more.

    Returns:
        One `Layer` for each of `LAYER_NAMES`, in that order.
    """
    assert socket_fd > 2, socket_fd  # noqa: PLR2004 - the standard streams become /dev/null
    if sys.platform != "linux":
        return tuple(_not_linux(name) for name in LAYER_NAMES)
    compiled = prepared.seccomp_memory_files if memory_files else prepared.seccomp
    return (
        process_unsafe.cut_loose(keep=(socket_fd,), parent_pid=parent_pid),
        rlimits.cap_resources(memory_files=memory_files),
        process_unsafe.give_up_privileges(),
        landlock_unsafe.deny_all(),
        compiled if isinstance(compiled, Layer) else seccomp_unsafe.load_filter(compiled),
    )


def probe() -> tuple[Layer, ...]:
    """Say what this machine can do, for `cloudcode doctor`; changes nothing in this process."""
    if sys.platform != "linux":
        return tuple(_not_linux(name) for name in LAYER_NAMES)
    process, privileges = process_unsafe.probe()
    return (
        process,
        rlimits.probe(),
        privileges,
        landlock_unsafe.probe(),
        seccomp_unsafe.probe(),
    )


def _not_linux(name: str) -> Layer:
    return missing(name, f"{sys.platform} has no such wall", "run on Linux >= 5.13")
