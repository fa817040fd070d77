"""Leaves no page of this process both writable and executable: the start of a hardened cell.

Path:   sandbox.lockdown.lock_down -> here, before seccomp refuses all new executable memory
Never:  makes anything executable; unmaps a page.
"""

import ctypes
from dataclasses import dataclass
from pathlib import Path

from sandbox.lockdown.libc_unsafe import libc

PROT_READ, PROT_EXEC = 1, 4  # <sys/mman.h>


@dataclass(frozen=True, slots=True)
class Mapping:
    """One line of /proc/self/maps."""

    start: int
    end: int
    rights: str  # as `r-xp`
    name: str  # a path, a name in brackets, or empty

    @property
    def is_writable_and_executable(self) -> bool:
        return "w" in self.rights and "x" in self.rights


def read_mappings(maps: str) -> list[Mapping]:
    """Return the mappings of a process from the text of its /proc/PID/maps."""
    found = []
    for line in maps.splitlines():
        region, rights, _offset, _device, _inode, *name = line.split(maxsplit=5)
        start, _, end = region.partition("-")
        found.append(Mapping(int(start, 16), int(end, 16), rights, name[0] if name else ""))
    return found


def seal_executable() -> str:
    """Make every page that is writable and executable read-only; return "", or what is left.

    Python's ctypes keeps the machine code of its callbacks in such a page. From here on no
    callback may be made or freed in this process: ours are made when their modules are imported.
    """
    try:
        mappings = read_mappings(Path("/proc/self/maps").read_text("utf-8", "surrogateescape"))
    except OSError as error:
        return f"/proc/self/maps cannot be read: {error.strerror}"
    left = [one for one in mappings if one.is_writable_and_executable and not _seal(one)]
    return ", ".join(f"{one.start:x}-{one.end:x} {one.name}".rstrip() for one in left)


def _seal(one: Mapping) -> bool:
    size = ctypes.c_size_t(one.end - one.start)
    done: int = libc().mprotect(ctypes.c_void_p(one.start), size, PROT_READ | PROT_EXEC)
    return done == 0
