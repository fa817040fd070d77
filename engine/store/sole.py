"""Holds a SQLite database for one process: a second one on it would run everything twice."""

import fcntl
import os
from pathlib import Path
from typing import IO

from engine.errors import EngineError


class StoreTaken(EngineError):
    """Another process has this database open."""

    code = "store_taken"

    def __init__(self, path: Path, pid: str) -> None:
        super().__init__(
            f"another engine (process {pid or 'unknown'}) uses {path.parent}; stop it first, or "
            "give this one a --data-dir of its own; several nodes need PostgreSQL"
        )


def hold(path: Path) -> IO[str]:
    """Return the locked file; the lock goes when it is closed, or the process dies.

    Raises:
        StoreTaken: somebody has it.
    """
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        pid = file.read(20).strip()
        file.close()
        raise StoreTaken(path, pid) from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file
