"""Puts a cell behind its walls before any user byte reaches it.

Path:   sandbox.zygote: `prepare` once -> `spawn` -> V8 started -> `lock_down` -> first isolate
Never:  raises for a wall that is missing: it says so, and `strict` decides what that means.
Order:  each step takes away what an earlier one needed; the filter on system calls comes last.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Final

import msgspec

from sandbox.lockdown import (
    executable_unsafe,
    identity,
    landlock_unsafe,
    namespaces_unsafe,
    process_unsafe,
    rlimits,
    seccomp_unsafe,
)
from sandbox.lockdown.layer import Layer, missing
from sandbox.lockdown.libc_unsafe import libc
from sandbox.lockdown.namespaces_unsafe import Birth, adopt, spawn
from sandbox.lockdown.rlimits import open_statm
from sandbox.lockdown.seccomp_unsafe import CompiledFilter

__all__ = [
    "FILTER",
    "Birth",
    "Layer",
    "Prepared",
    "adopt",
    "cap_memory",
    "lock_down",
    "open_statm",
    "prepare",
    "probe",
    "spawn",
]

FILTER: Final = seccomp_unsafe.NAME  # the layer that makes a cell hardened
PROBE_S: Final = 30.0  # it takes a fifth of a second
LAYER_NAMES = (
    process_unsafe.PROCESS,
    rlimits.NAME,
    namespaces_unsafe.NAME,
    identity.NAME,
    process_unsafe.PRIVILEGES,
    landlock_unsafe.NAME,
    seccomp_unsafe.NAME,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What the zygote has ready for its cells; good for any number of forks."""

    zygote: int  # a pidfd of it, which says when it ends
    seccomp: CompiledFilter | Layer  # a Layer says why there is no filter
    seccomp_hardened: CompiledFilter | Layer  # the same, for hardened cells


def prepare() -> Prepared:
    """Do the slow part once, in the zygote, which starts a subprocess for it (10 ms)."""
    if sys.platform != "linux":
        none = _not_linux(seccomp_unsafe.NAME)
        return Prepared(zygote=-1, seccomp=none, seccomp_hardened=none)
    libc()  # warms its handle, which every cell then shares
    return Prepared(
        zygote=os.pidfd_open(os.getpid()),
        seccomp=seccomp_unsafe.compile_filter(),
        seccomp_hardened=seccomp_unsafe.compile_filter(hardened=True),
    )


def lock_down(
    prepared: Prepared,
    socket_fd: int,
    *,
    birth: Birth,
    statm: int = -1,
    hardened: bool = False,
) -> tuple[Layer, ...]:
    """Apply every layer to this process, for good. Takes about 5 ms.

    Call it in what `spawn` has forked, after V8 is initialised and before its first isolate:
    threads that already run would be outside of Landlock, and no file can be read afterwards.
    If the zygote is gone by now, this process ends here.

    Args:
        prepared: from the zygote.
        socket_fd: the only descriptor, above 2, that stays open.
        birth: from `spawn`.
        statm: a descriptor that stays open too, for `cap_memory`.
        hardened: no memory can become executable any more, and none that is can be written.

    Returns:
        One `Layer` for each of `LAYER_NAMES`, in that order.
    """
    assert socket_fd > 2, socket_fd  # noqa: PLR2004 - the standard streams become /dev/null
    if sys.platform != "linux":
        return tuple(_not_linux(name) for name in LAYER_NAMES)
    loose = executable_unsafe.seal_executable() if hardened else ""
    compiled = prepared.seccomp_hardened if hardened else prepared.seccomp
    pid = birth.wait()
    process = process_unsafe.cut_loose(
        keep=(socket_fd, statm, prepared.zygote), zygote=prepared.zygote
    )
    rlimits.let_the_engine_go_first()
    threads_count = landlock_unsafe.count_threads()
    namespaces, user = namespaces_unsafe.settle(birth, lambda: identity.become_nobody_else(pid))
    process_unsafe.die_with(prepared.zygote)  # again: a change of user clears it
    os.close(prepared.zygote)
    counted_alone = namespaces_unsafe.counts_threads(birth)
    return (
        process,
        rlimits.cap_resources(counted_alone=counted_alone),
        namespaces,
        user,
        process_unsafe.give_up_privileges(),
        landlock_unsafe.deny_all(threads_count),
        _filter_calls(compiled, loose),
    )


def cap_memory(layers: tuple[Layer, ...], statm: int, more_bytes: int) -> tuple[Layer, ...]:
    """Put the last wall, once the cell is ready for its first guest; return all of them.

    Args:
        layers: from `lock_down`.
        statm: from `open_statm`, before the lockdown.
        more_bytes: that the cell may take on top of what it has now.
    """
    if sys.platform != "linux":
        return layers
    try:
        rlimits.cap_memory(statm, more_bytes)
    except (OSError, ValueError) as error:
        none = missing(rlimits.NAME, f"RLIMIT_DATA: {error}", "give the engine a /proc")
        return tuple(none if layer.name == rlimits.NAME else layer for layer in layers)
    return layers


def probe(*, hardened: bool = False) -> tuple[Layer, ...]:
    """Try every wall in a process of its own; return those of a cell started now by this user."""
    if sys.platform != "linux":
        return tuple(_not_linux(name) for name in LAYER_NAMES)
    command = [sys.executable, "-I", "-m", "sandbox.lockdown.trial", *(["hardened"] * hardened)]
    try:
        done = subprocess.run(  # noqa: S603 - ourselves
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_S, check=True
        )
        return tuple(msgspec.json.decode(done.stdout, type=list[Layer]))
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode("utf-8", "replace").strip().splitlines() or ["killed"]
        why = said[-1]
    except subprocess.TimeoutExpired:
        why = f"more than {PROBE_S:.0f} s"
    remedy = "start `cloudcode serve`, which says more"
    return tuple(missing(name, f"the try failed: {why}", remedy) for name in LAYER_NAMES)


def _filter_calls(compiled: CompiledFilter | Layer, loose: str) -> Layer:
    """Load the filter; `loose`: memory that is writable and executable in spite of all."""
    layer = compiled if isinstance(compiled, Layer) else seccomp_unsafe.load_filter(compiled)
    if layer.active and loose:
        return missing(layer.name, f"writable and executable: {loose}", "allow mprotect()")
    return layer


def _not_linux(name: str) -> Layer:
    return missing(name, f"{sys.platform} has no such wall", "run on Linux >= 5.13")
