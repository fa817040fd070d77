"""Gives a cell a world of its own: no file, no network, no neighbour, no name, no user but itself.

Path:   zygote -> `spawn` (forks into a new pid namespace) -> sandbox.lockdown.lock_down -> the rest
Never:  maps a second user into a cell's world, or uid 0; joins what exists.
Source: user_namespaces(7), pid_namespaces(7), pivot_root(2) of man-pages 6.9.
"""

import ctypes
import errno
import os
import re
import resource
import select
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final, NoReturn

from sandbox.lockdown.layer import Layer, missing, standing
from sandbox.lockdown.libc_unsafe import checked, libc, prctl
from sandbox.lockdown.rlimits import USER_THREADS_MAX

NAME = "namespaces"
HOST_NAME = b"cell"
INSIDE_ID = 65534  # what a cell takes itself for, whatever it is outside
BIRTH_MS = 5_000  # from the order to the fork in its namespace: it takes one
NO_PROCESS_CODE = 70  # exit status of a process that became no cell

# <linux/sched.h>
CLONE_NEWNS = 0x0002_0000
CLONE_NEWUTS = 0x0400_0000
CLONE_NEWIPC = 0x0800_0000
CLONE_NEWUSER = 0x1000_0000
CLONE_NEWPID = 0x2000_0000
CLONE_NEWNET = 0x4000_0000

# <sys/mount.h>
MS_READ_ONLY, MS_NO_SUID, MS_NO_DEVICES, MS_NO_EXEC = 1, 2, 4, 8
MS_RECURSIVE, MS_PRIVATE = 0x4000, 0x4_0000
MNT_DETACH = 2
PIVOT_ROOT: Final = {"x86_64": 155, "aarch64": 41}  # the C library has no wrapper

PR_SET_DUMPABLE = 4  # <linux/prctl.h>
PR_SET_CHILD_SUBREAPER = 36

# What may forbid a user without privileges its own user namespace: (the sysctl, what it says then).
USER_NAMESPACES_OFF: Final = (
    (b"kernel/apparmor_restrict_unprivileged_userns", b"1"),
    (b"kernel/unprivileged_userns_clone", b"0"),
    (b"user/max_user_namespaces", b"0"),
)
IN_A_CONTAINER: Final = (
    "let the engine's user make namespaces; in a container give a seccomp profile that allows "
    "unshare, mount, umount2, pivot_root and sethostname, and an AppArmor profile that allows mount"
)


@dataclass(slots=True)
class Birth:
    """How a cell came to be; it goes on from here in `lock_down`."""

    gate: int  # a descriptor: the zygote says here that it is the parent, and our pid outside
    privileged: bool  # may make namespaces without a user namespace of its own
    mapped: bool = False  # is in a user namespace of its own already
    failed: dict[str, str] = field(default_factory=dict)  # step -> why

    def wait(self) -> int:
        """Wait until the zygote is our parent; return our pid as it sees it.

        Without a zygote that knows us there is nobody to end us, so the process ends here.
        """
        said = os.read(self.gate, 16)
        os.close(self.gate)
        if not said:
            os._exit(NO_PROCESS_CODE)
        return int(said)


def adopt() -> None:
    """Make this process, the zygote, the parent of cells whose own parent has ended."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)


def spawn(live: Callable[[Birth], NoReturn]) -> int:
    """Fork a cell that is the first process of a pid namespace; return its pid as seen from here.

    Between us and the cell stands a process that makes the namespace and ends. Not unshare() here
    and setns() back: the way back is closed to an ordinary user.

    Args:
        live: what the cell does, for good.

    Raises:
        OSError: the node is out of processes, memory or files, or does not answer.
    """
    report, its_report = os.pipe()
    its_gate, gate = os.pipe()
    try:
        between = os.fork()
    except OSError:
        for descriptor in (report, its_report, its_gate, gate):
            os.close(descriptor)
        raise
    if between == 0:
        os.close(report)
        os.close(gate)
        _be_between(its_report, its_gate, live)
    os.close(its_report)
    os.close(its_gate)
    answers = select.poll()
    answers.register(report, select.POLLIN)
    said = b"-%d" % errno.ETIMEDOUT
    if answers.poll(BIRTH_MS):
        said = os.read(report, 16) or b"-%d" % errno.ECHILD
    else:  # all other cells wait for it
        os.kill(between, signal.SIGKILL)
    os.close(report)
    os.waitpid(between, 0)
    # Now we are its parent. It waits for that: a parent's death is what ends it, from then on.
    pid = int(said)
    with suppress(BrokenPipeError):  # it has ended
        if pid > 0:
            os.write(gate, said)
    os.close(gate)
    if pid < 0:
        raise OSError(-pid, os.strerror(-pid))
    return pid


def settle(birth: Birth, become: Callable[[], Layer]) -> tuple[Layer, Layer]:
    """Leave every namespace that this process shares with others; return that and `become`'s.

    Call it with nothing left to open: there is no file system afterwards. Needs a /proc, and that
    no thread runs.

    Args:
        birth: from `spawn`.
        become: changes the user, if there is one to change to. With root's powers that has to come
            last but for the user namespace; without them, they come only with that namespace.
    """
    failed = birth.failed
    with _own_proc(failed) as own_proc:
        if birth.privileged:
            _make_world(failed)
        identity = become()
        if not birth.mapped and "user" not in failed:
            with _named("user", failed):
                _make_user(own_proc)
                birth.mapped = True
        if not birth.privileged:
            _make_world(failed)
    if failed:
        return missing(NAME, _told(failed), _remedy(failed)), identity
    detail = "its own user, mount, net, ipc, uts and pid namespace; / is empty"
    return standing(NAME, detail), identity


def counts_threads(birth: Birth) -> bool:
    """Say whether the kernel counts this cell's threads by themselves: since Linux 5.14."""
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return birth.mapped and found is not None and (int(found[1]), int(found[2])) >= (5, 14)


def _be_between(report: int, gate: int, live: Callable[[Birth], NoReturn]) -> NoReturn:
    """Make the pid namespace, fork the cell into it, tell its pid, or -errno, and end."""
    try:
        birth = Birth(gate=gate, privileged=False)
        try:
            _make_pid_namespace(birth)
            pid = os.fork()
        except OSError as error:
            pid = -(error.errno or errno.EIO)
        if pid == 0:
            os.close(report)  # if the process between is gone, the zygote must not wait for us
            live(birth)
        os.write(report, b"%d" % pid)
    finally:
        os._exit(NO_PROCESS_CODE)


def _make_pid_namespace(birth: Birth) -> None:
    # The kernel keeps this number for the user outside of the cell's namespace, where it counts
    # the threads of all cells if they share their user. See rlimits.
    with suppress(OSError, ValueError):  # the layer `rlimits` will say so
        _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
        most = USER_THREADS_MAX if hard == resource.RLIM_INFINITY else min(USER_THREADS_MAX, hard)
        resource.setrlimit(resource.RLIMIT_NPROC, (most, hard))
    try:
        _unshare(CLONE_NEWPID)
    except OSError as error:
        if error.errno != errno.EPERM or os.geteuid() == 0:
            birth.failed["pid"] = str(error.strerror)
            return
    else:
        birth.privileged = True
        return
    with _own_proc(birth.failed) as own_proc:
        if "user" not in birth.failed:
            with _named("user", birth.failed):
                _make_user(own_proc)
                birth.mapped = True
    with _named("pid", birth.failed):
        _unshare(CLONE_NEWPID)


def _make_world(failed: dict[str, str]) -> None:
    with _named("net", failed):
        _unshare(CLONE_NEWNET)  # with a loopback that is down, and nothing else
    with _named("ipc", failed):
        _unshare(CLONE_NEWIPC)
    with _named("uts", failed):
        _unshare(CLONE_NEWUTS)
        checked(libc().sethostname(HOST_NAME, ctypes.c_size_t(len(HOST_NAME))))
        checked(libc().setdomainname(HOST_NAME, ctypes.c_size_t(len(HOST_NAME))))
    with _named("mount", failed):
        _unshare(CLONE_NEWNS)
        _empty_root()


def _empty_root() -> None:
    """Put an empty directory that nobody can write in the place of every mount there is."""
    _mount(None, b"/", None, MS_RECURSIVE | MS_PRIVATE, None)  # or the node would see what follows
    flags = MS_READ_ONLY | MS_NO_SUID | MS_NO_DEVICES | MS_NO_EXEC
    _mount(b"none", b"/proc", b"tmpfs", flags, b"size=4k,nr_inodes=2,mode=555")
    os.chdir("/proc")
    # The old root comes to lie over the new one, in the same place, and is taken away from there:
    # see "pivot_root(".", ".")" in pivot_root(2).
    number = PIVOT_ROOT.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    checked(libc().syscall(ctypes.c_long(number), b".", b"."))
    checked(libc().umount2(b".", MNT_DETACH))
    os.chdir("/")


def _make_user(own_proc: int) -> None:
    """Enter a user namespace that knows this user alone, under another number."""
    uid, gid = os.getuid(), os.getgid()
    prctl(PR_SET_DUMPABLE, 1)  # until `privileges`: a change of user takes /proc/self from us
    _unshare(CLONE_NEWUSER)
    _write(own_proc, "setgroups", "deny")  # the kernel asks for it before gid_map
    _write(own_proc, "uid_map", f"{INSIDE_ID} {uid} 1")
    _write(own_proc, "gid_map", f"{INSIDE_ID} {gid} 1")


@contextmanager
def _own_proc(failed: dict[str, str]) -> Iterator[int]:
    """Open /proc/self, which stays within reach after the root is gone."""
    try:
        descriptor = os.open("/proc/self", os.O_PATH | os.O_DIRECTORY)
    except OSError as error:
        failed["user"] = f"/proc: {error.strerror}"
        yield -1
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _write(directory: int, name: str, text: str) -> None:
    descriptor = os.open(name, os.O_WRONLY, dir_fd=directory)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


@contextmanager
def _named(step: str, failed: dict[str, str]) -> Iterator[None]:
    """Note why a step failed: it must not keep the others from standing."""
    try:
        yield
    except OSError as error:
        failed.setdefault(step, str(error.strerror))


def _told(failed: dict[str, str]) -> str:
    every = ("user", "mount", "net", "ipc", "uts", "pid")
    stands = ", ".join(step for step in every if step not in failed)
    reasons = "; ".join(f"{step}: {why}" for step, why in failed.items())
    return f"{reasons} (stands: {stands or 'none'})"


def _remedy(failed: dict[str, str]) -> str:
    if os.strerror(errno.ENOSPC) in failed.values():
        return "raise the sysctls user.max_*_namespaces"
    for name, off in USER_NAMESPACES_OFF:
        if _sysctl(name) == off:
            return f"the sysctl {name.replace(b'/', b'.').decode()} forbids it: change it"
    return IN_A_CONTAINER


def _sysctl(name: bytes) -> bytes:
    # Not Path: another user than the one that has loaded Python may not load what it needs.
    try:
        descriptor = os.open(b"/proc/sys/" + name, os.O_RDONLY)
    except OSError:
        return b""
    try:
        return os.read(descriptor, 64).strip()
    finally:
        os.close(descriptor)


def _unshare(flag: int) -> None:
    checked(libc().unshare(flag))


def _mount(
    source: bytes | None, target: bytes, kind: bytes | None, flags: int, options: bytes | None
) -> None:
    checked(libc().mount(source, target, kind, ctypes.c_ulong(flags), options))
