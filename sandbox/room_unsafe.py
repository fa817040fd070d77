"""Asks the kernel whether a cell may have more memory, before a runtime has to find out.

Path:   child -> here, in the cell
Never:  keeps what it asked for.
"""

import mmap


def can_have(size_bytes: int) -> bool:
    """Say whether so much private memory could be had now, under this process's limits."""
    try:
        mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError:
        return False
    return True
