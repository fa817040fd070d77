"""The test-only zygote: the real one, but that its cells can be told to run native code.

Path:   supervisor starts `python -I zygote.py [--ordinary-user] [--without-walls] FD MB`
Never:  part of the product: nothing there can name another command for the zygote.
"""

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).parents[3]))

from sandbox import child, zygote_unsafe
from tests.security.breach.attacker import Attacker

NOBODY = 65534
CAP_DAC_READ_SEARCH = 2
PR_SET_DUMPABLE, PR_SET_KEEPCAPS = 4, 8


def become_an_ordinary_user() -> None:
    """Give root up, but for reading: the tests may lie where only root can go."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    only_reading = (ctypes.c_uint32 * 6)(1 << CAP_DAC_READ_SEARCH, 1 << CAP_DAC_READ_SEARCH)
    assert libc.capset(header, only_reading) == 0
    libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # as it is for who never was root


def fork_plainly(live: Callable[[None], NoReturn]) -> int:
    """Fork a cell as `spawn` does, but into no namespace of its own."""
    pid = os.fork()
    if pid == 0:
        live(None)
    return pid


def main() -> None:
    *options, descriptor, cell_memory_mb = sys.argv[1:]
    child.LANGUAGES = {name: Attacker(real) for name, real in child.LANGUAGES.items()}
    if "--without-walls" in options:
        child.lock_down = lambda *_arguments, **_options: ()
        zygote_unsafe.spawn = fork_plainly
    if "--ordinary-user" in options:
        become_an_ordinary_user()
    sys.argv[1:] = [descriptor, cell_memory_mb]
    zygote_unsafe.main()


if __name__ == "__main__":
    main()
