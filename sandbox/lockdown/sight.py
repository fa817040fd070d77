"""Says whether the engine sees what its cells take: memory and CPU are counted in their /proc.

Path:   sandbox.supervisor (its first cell), sandbox.lockdown.trial -> here
Never:  is a wall of a cell; without it limits on memory and CPU are blind.
"""

from pathlib import Path
from typing import Final

from sandbox.lockdown.layer import Layer, missing

NAME: Final = "metering"
FILES: Final = ("status", "stat", "statm")


def look_at(pid: int) -> Layer | None:
    """Return why a live cell of ours cannot be measured; None: it can."""
    for name in FILES:
        try:
            Path(f"/proc/{pid}/{name}").read_bytes()
        except OSError as error:
            return missing(
                NAME,
                f"what cells take of memory and CPU is not seen: /proc/PID/{name}: "
                f"{error.strerror}",
                "mount /proc without hidepid for the engine, and no ProtectProc= in its unit",
            )
    return None
