"""Leaves the cell only the system calls that Python and its runtime make once they have started.

Path:   sandbox.lockdown.prepare -> `compile_filter` (zygote); lock_down -> `load_filter` (cell)
Never:  decides by path or content (a filter sees numbers only): that is Landlock's part.
How:    the list was measured with `strace -f` over everything `test_lockdown.py` runs; what is
        not on it kills the cell. Chrome's renderer policy is the model for the argument rules.
"""

import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sandbox.lockdown.layer import Layer, missing, standing

if TYPE_CHECKING:
    import pyseccomp

NAME = "seccomp"
BINARY_TREE = 2  # 7 comparisons instead of 80 for a call whose arguments are looked at (futex)
ALL_32_BITS = 0xFFFF_FFFF

ALLOWED: Final[tuple[str, ...]] = (
    # The one socket. What needs its arguments looked at stands in `_argument_rules`.
    "read",
    "readv",
    "write",
    "writev",
    "close",
    "shutdown",
    "getpeername",  # repr() of a socket, as in a traceback
    "getsockname",  # socket.socket(fileno=...) asks for the family
    "fstat",
    "lseek",
    "poll",
    "ppoll",
    "select",
    "pselect6",
    # Memory.
    "brk",
    "mremap",  # realloc() of large blocks: a compiler without it needs twice the memory
    "munmap",
    "pkey_alloc",
    "pkey_free",
    # Threads; starting one is in `_argument_rules`.
    "exit",
    "exit_group",
    "getpid",
    "gettid",
    "rseq",
    "restart_syscall",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "sched_getaffinity",
    "sched_getparam",
    "sched_getscheduler",
    "sched_yield",
    "set_robust_list",
    "sigaltstack",
    # Clocks without arguments worth looking at; most never reach the kernel (vDSO).
    "clock_getres",
    "getcpu",
    "gettimeofday",
    "nanosleep",
    "time",
    # Facts about this process or the whole machine.
    "getegid",
    "geteuid",
    "getgid",
    "getppid",
    "getrandom",
    "getrusage",
    "getuid",
    "sysinfo",
)

# What gives memory its rights, which stand in the third argument. A hardened cell may ask for any
# but PROT_EXEC. What could make memory executable in another way is on no list: shmat,
# remap_file_pages, personality (READ_IMPLIES_EXEC), execve, ptrace.
PROTECTING: Final[tuple[str, ...]] = (
    "mmap",
    "mprotect",
    "pkey_mprotect",  # V8 guards its code space with a protection key where the CPU has them
)
PROT_EXEC = 4  # <sys/mman.h>
# RLIMIT_DATA counts private memory only: shared memory without a file, and a mapping that grows
# down, would take the node's. <asm-generic/mman.h>: MAP_TYPE, MAP_GROWSDOWN, MAP_HUGETLB.
MAP_KINDS, MAP_PRIVATE = 0x0F | 0x100 | 0x4_0000, 2

# What the runtime tries and must see fail, each with the errno that its fallback expects.
REFUSED: Final[dict[str, int]] = {
    # Python formats a traceback by opening the source, and imports by listing folders; V8 opens
    # /dev/urandom for each isolate, ICU /etc/localtime, glibc /proc/self/maps and /sys. Not
    # allowed with Landlock as the only guard: a path walk tells which files exist.
    **dict.fromkeys(
        (
            "access",
            "faccessat",
            "faccessat2",
            "getcwd",
            "lstat",
            "newfstatat",
            "open",
            "openat",
            "readlink",
            "readlinkat",
            "stat",
            "statfs",
            "statx",
        ),
        errno.EACCES,
    ),
    "clone3": errno.ENOSYS,  # its flags lie in memory, out of a filter's sight; glibc then clones
    # Wasmtime would keep a module's first memory in one, but no limit counts them once they are
    # mapped and closed. As on a kernel without, it then copies the data into each instance.
    "memfd_create": errno.ENOSYS,
    "membarrier": errno.ENOSYS,  # a probe with a fallback everywhere; not seen on x86-64
    "prctl": errno.EINVAL,  # V8 names its mappings; a kernel without that answers the same
}

# <linux/sched.h>: exactly what glibc's and musl's pthread_create ask for. CLONE_VM, _FS, _FILES,
# _SIGHAND, _THREAD, _SYSVSEM, _SETTLS, _PARENT_SETTID, _CHILD_CLEARTID.
THREAD_FLAGS = 0x003D_0F00
CLONE_DETACHED = 0x0040_0000  # musl sets it, Linux ignores it

# <linux/futex.h>: wait, wake, requeue, cmp_requeue, wake_op, wait_bitset, wake_bitset. Not the
# priority-inheriting ones: nobody here uses them, and kernel exploits did.
FUTEX_OPERATIONS = (0, 1, 3, 4, 5, 9, 10)
FUTEX_PRIVATE_OR_REALTIME = 0x180

# <linux/socket.h>: dontwait, nosignal, waitall. Not MSG_OOB, which let a Chrome renderer escape
# through an AF_UNIX socket (CVE-2025-38236).
MSG_FLAGS = 0x40 | 0x4000 | 0x100

F_GETFD, F_SETFD, F_GETFL = 1, 2, 3
FIONBIO = 0x5421  # how Python makes a socket (non-)blocking
RLIMIT_DATA = 2  # <asm-generic/resource.h>
# <asm/socket.h>: level, then type, error, protocol, domain. Not SO_PEERPIDFD, which would make a
# handle of the engine, nor SO_PEERCRED.
SOL_SOCKET = 1
SOCKET_OPTIONS = (3, 4, 38, 39)
# <asm-generic/mman-common.h>: how memory is used, given back, left out of huge pages, dumps, forks.
# Not what pages it out, merges it, fills it or poisons it.
ADVICES = (0, 1, 2, 3, 4, 8, 10, 11, 14, 15, 16, 17)
ADVICES_END = 18
SYSTEM_CLOCKS = 0xF  # clock ids 0 to 15; negative ones are CPU clocks, of any process ...
THREAD_CPU_CLOCK = 0x8000_0004  # ... or of a thread, where the kernel shows only our own


@dataclass(frozen=True, slots=True)
class CompiledFilter:
    """A filter that lacks only the cell's own process id."""

    rules: "pyseccomp.SyscallFilter"
    hardened: bool  # it kills whoever asks for executable memory


def compile_filter(*, hardened: bool = False) -> CompiledFilter | Layer:
    """Build the filter, or say why it cannot be: slow (libseccomp is looked up), so in the zygote.

    Args:
        hardened: kill whoever asks for executable memory.
    """
    try:
        import pyseccomp  # looks for libseccomp.so.2 with a subprocess as it is imported
    except ImportError:
        return missing(NAME, "pyseccomp is not installed", "pip install pyseccomp")
    except (RuntimeError, OSError):
        return missing(
            NAME,
            "libseccomp.so.2 is not installed (pyseccomp does not carry it)",
            "apt-get install libseccomp2, or dnf install libseccomp",
        )
    try:
        rules = pyseccomp.SyscallFilter(pyseccomp.KILL_PROCESS)
        rules.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.KILL_PROCESS)
        rules.set_attr(pyseccomp.Attr.CTL_TSYNC, 1)
        rules.set_attr(pyseccomp.Attr.CTL_OPTIMIZE, BINARY_TREE)
        add_policy(rules, hardened=hardened)
    except OSError as error:
        return _missing(error)
    return CompiledFilter(rules, hardened)


def load_filter(compiled: CompiledFilter) -> Layer:
    """Put the filter on every thread of this process, for good."""
    try:
        _allow_signals_to_self(compiled.rules)
        compiled.rules.load()
    except OSError as error:
        return _missing(error)
    return _standing(hardened=compiled.hardened)


def add_policy(rules: "pyseccomp.SyscallFilter", *, hardened: bool = False) -> None:
    """Add every rule but the one on this process's id.

    A name that the architecture lacks (`open` on arm64) is skipped by libseccomp, one that an
    old libseccomp does not know by us: the default kills both.
    """
    from pyseccomp import ALLOW, ERRNO, MASKED_EQ, Arg

    for name in filter(_is_known, ALLOWED):
        rules.add_rule(ALLOW, name)
    not_executable = [Arg(2, MASKED_EQ, PROT_EXEC, 0)] if hardened else []
    for name in filter(_is_known, PROTECTING):
        own = [Arg(3, MASKED_EQ, MAP_KINDS, MAP_PRIVATE)] if name == "mmap" else []
        rules.add_rule(ALLOW, name, *not_executable, *own)
    for name, refusal in REFUSED.items():
        if _is_known(name):
            rules.add_rule(ERRNO(refusal), name)
    for action, name, *arguments in _argument_rules():
        rules.add_rule(action, name, *arguments)


def _argument_rules() -> "list[tuple[int, str, *tuple[pyseccomp.Arg, ...]]]":
    from pyseccomp import ALLOW, EQ, ERRNO, GE, MASKED_EQ, NE, Arg

    def only_bits(argument: int, allowed: int) -> Arg:
        return Arg(argument, MASKED_EQ, ALL_32_BITS & ~allowed, 0)

    return [
        (ALLOW, "clone", Arg(0, MASKED_EQ, ALL_32_BITS & ~CLONE_DETACHED, THREAD_FLAGS)),
        # Addresses are null: the socket is connected. recvmsg and sendmsg, which carry
        # descriptors, are not on any list.
        (ALLOW, "recvfrom", only_bits(3, MSG_FLAGS), Arg(4, EQ, 0)),
        (ALLOW, "sendto", only_bits(3, MSG_FLAGS), Arg(4, EQ, 0)),
        (ALLOW, "ioctl", Arg(1, EQ, FIONBIO)),
        (ERRNO(errno.ENOTTY), "ioctl", Arg(1, NE, FIONBIO)),  # open() asks: is it a terminal?
        *((ALLOW, "fcntl", Arg(1, EQ, command)) for command in (F_GETFD, F_SETFD, F_GETFL)),
        *(
            (ALLOW, "getsockopt", Arg(1, EQ, SOL_SOCKET), Arg(2, EQ, option))
            for option in SOCKET_OPTIONS
        ),
        # What is refused, an older kernel would refuse in the same way.
        *(
            (ALLOW if advice in ADVICES else ERRNO(errno.EINVAL), "madvise", Arg(2, EQ, advice))
            for advice in range(ADVICES_END)
        ),
        (ERRNO(errno.EINVAL), "madvise", Arg(2, GE, ADVICES_END)),
        (ALLOW, "prlimit64", Arg(0, EQ, 0), Arg(2, EQ, 0)),  # only to read, only our own
        # How the cell sets its own when it is ready; without privileges it can only be lowered.
        (ALLOW, "prlimit64", Arg(0, EQ, 0), Arg(1, EQ, RLIMIT_DATA)),
        (ALLOW, "clock_nanosleep", only_bits(0, SYSTEM_CLOCKS)),
        (ALLOW, "clock_gettime", only_bits(0, SYSTEM_CLOCKS)),
        (ALLOW, "clock_gettime", Arg(0, MASKED_EQ, THREAD_CPU_CLOCK, THREAD_CPU_CLOCK)),
        *(
            (ALLOW, "futex", Arg(1, MASKED_EQ, ALL_32_BITS & ~FUTEX_PRIVATE_OR_REALTIME, operation))
            for operation in FUTEX_OPERATIONS
        ),
    ]


def _allow_signals_to_self(rules: "pyseccomp.SyscallFilter") -> None:
    """Let abort() name its cause: SIGABRT is ours to explain, SIGSYS would look like an attack."""
    from pyseccomp import ALLOW, EQ, Arg

    rules.add_rule(ALLOW, "tgkill", Arg(0, EQ, os.getpid()))


def _is_known(name: str) -> bool:
    from pyseccomp import Arch, resolve_syscall

    unknown = -1  # __NR_SCMP_ERROR
    return bool(resolve_syscall(Arch.NATIVE, name) != unknown)


def _standing(*, hardened: bool = False) -> Layer:
    detail = "kills on any call that Python and the runtime do not need once started"
    return standing(NAME, f"{detail}, and on executable memory" if hardened else detail)


def _missing(error: OSError) -> Layer:
    return missing(
        NAME,
        f"the filter was refused: {error.strerror}",
        "use Linux >= 4.14 with seccomp filters, and a container profile that allows seccomp()",
    )
