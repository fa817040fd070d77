"""Hardened cells: an attacker who runs native code there gets no byte of his own executed as code.

In real cells of the real supervisor, zygote and lockdown, as in `test_breach_native.py`.
"""

import os
import sys
from collections.abc import Iterator

import pytest

from runtimes.contract import CellKind, Runtime
from sandbox.lockdown import probe
from sandbox.lockdown.executable_unsafe import read_mappings
from tests.security.breach.cells import Cells

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the lockdown is Linux only")

KILLED = "SIGSYS"
PAGE = 4096
# A page of the C library that no other thread of the cell runs meanwhile.
LIBRARY = f"ctypes.cast(libc.wordexp, ctypes.c_void_p).value // {PAGE} * {PAGE}"
RETURN = b"\xc3" if os.uname().machine == "x86_64" else b"\xc0\x03\x5f\xd6"  # ret
FRESH = f"call('mmap', 0, {PAGE}, 3, 0x22, -1, 0)"
RUN = f"ctypes.memmove(page, {RETURN!r}, {len(RETURN)})\nanswer = ctypes.CFUNCTYPE(None)(page)()"
CALLBACK = (
    "ctypes.cast(sys.modules['runtimes.javascript.v8_unsafe']._CALLBACKS.function, ctypes.c_void_p)"
)
ATTEMPTS: dict[str, tuple[str, str]] = {
    "a page for everything": (f"call('mmap', 0, {PAGE}, 7, 0x22, -1, 0)", KILLED),
    "a page to run": (f"call('mmap', 0, {PAGE}, 5, 0x22, -1, 0)", KILLED),
    "a page only to run": (f"call('mmap', 0, {PAGE}, 4, 0x22, -1, 0)", KILLED),
    "a page at a place": (f"call('mmap', 1 << 40, {PAGE}, 5, 0x32, -1, 0)", KILLED),
    "with bits that nobody knows": (f"call('mmap', 0, {PAGE}, 1 << 40 | 7, 0x22, -1, 0)", KILLED),
    "written, then made to run": (f"call('mprotect', {FRESH}, {PAGE}, 5)", KILLED),
    "written, then run and written": (f"call('mprotect', {FRESH}, {PAGE}, 7)", KILLED),
    "by a protection key": (f"call('pkey_mprotect', {FRESH}, {PAGE}, 5, -1)", KILLED),
    "the standard stream": (f"call('mmap', 0, {PAGE}, 5, 2, 1, 0)", KILLED),
    "its socket": (f"[call('mmap', 0, {PAGE}, 5, 2, fd, 0) for fd in range(3, 9)]", KILLED),
    "a library's code, to be written": (f"call('mprotect', {LIBRARY}, {PAGE}, 7)", KILLED),
    "a library's code, written and back": (
        (
            f"page = {LIBRARY}\ncall('mprotect', page, {PAGE}, 3)\n"
            f"ctypes.memset(page, 0, 1)\nanswer = call('mprotect', page, {PAGE}, 5)"
        ),
        KILLED,
    ),
    "the page of our own callbacks": (
        f"import sys\nanswer = ctypes.memset({CALLBACK}.value, 0, 1)",
        "SIGSEGV",
    ),
}
# Stopped in every cell: hardened ones stand on it as well.
EVERYWHERE: dict[str, tuple[str, str]] = {
    "a huge page": ("call('mmap', 0, 1 << 21, 7, 0x40022, -1, 0)", KILLED),
    "a page that grows down": (f"call('mmap', 0, {PAGE}, 7, 0x122, -1, 0)", KILLED),
    "a data page, run": (f"page = {FRESH}\n{RUN}", "SIGSEGV"),
    "the heap's end, run": (
        f"page = call('brk', 0)\ncall('brk', page + {PAGE})\n{RUN}",
        "SIGSEGV",
    ),
    "shared memory": (f"call('shmget', 0, {PAGE}, 0o1700)", KILLED),
    "shared memory, attached": ("call('shmat', 0, 0, 0o100000)", KILLED),
    "reading means running": ("call('personality', 0x400000)", KILLED),
    "pages of a file in another order": (
        f"call('remap_file_pages', {LIBRARY}, {PAGE}, 0, 0, 0)",
        KILLED,
    ),
    "a library's code, moved and written": (
        (
            f"page = call('mremap', {LIBRARY}, {PAGE}, {PAGE}, 3, 1 << 40)\nanswer = page\n"
            "ctypes.memset(page, 0, 1)"
        ),
        "SIGSEGV",
    ),
    "a data page moved over code": (
        f"page = call('mremap', {FRESH}, {PAGE}, {PAGE}, 3, {LIBRARY})\n{RUN}",
        "SIGSEGV",
    ),
}


@pytest.fixture(scope="module")
def breached() -> Iterator[Cells]:
    inactive = [layer for layer in probe() if not layer.active]
    if inactive:
        pytest.skip(f"this machine lacks a layer: {inactive}")
    running = Cells()
    yield running
    running.close()


@pytest.mark.parametrize("runtime", Runtime)
def test_no_memory_can_be_made_executable(breached: Cells, runtime: Runtime) -> None:
    """Whatever native code tries in a hardened cell, none of its bytes is ever run."""
    tries = ATTEMPTS | EVERYWHERE
    kind = CellKind(runtime, hardened=True)

    found = breached.attempts([(kind, code) for code, _ in tries.values()])

    told = dict(zip(tries, found, strict=True))
    assert told == {name: expected for name, (_, expected) in tries.items()}


def test_a_standard_cell_may_have_it(breached: Cells) -> None:
    """V8's compiler lives on it: so what fails fails for the hardening, and nothing else."""
    kind = CellKind(Runtime.JAVASCRIPT)
    tries = ATTEMPTS | EVERYWHERE

    found = breached.attempts([(kind, code) for code, _ in tries.values()])

    told = dict(zip(tries, found, strict=True))
    same = {name for name, (_, expected) in tries.items() if told[name] == expected}
    assert same == EVERYWHERE.keys(), told
    assert all(
        isinstance(told[name], int) and told[name] > 0
        for name in ("a page for everything", "a page to run")
    )


def test_a_memory_map_is_read_as_the_kernel_writes_it() -> None:
    """With and without a name, and whatever is in the name."""
    text = (
        "7f00-7f10 rwxp 00000000 00:00 0 \n"
        "7f10-8000 r-xp 00001000 fe:00 42                         /a lib/with spaces.so\n"
    )

    first, second = read_mappings(text)

    assert (first.start, first.end, first.name) == (0x7F00, 0x7F10, "")
    assert first.is_writable_and_executable
    assert (second.rights, second.name) == ("r-xp", "/a lib/with spaces.so")
    assert not second.is_writable_and_executable
