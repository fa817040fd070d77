"""Names what a compiled module fits: this Wasmtime, this kind of CPU, our settings of the compiler.

Path:   engine.programs -> sandbox.supervisor -> here
Never:  loads Wasmtime: the engine's own process asks.
"""

import hashlib
import platform
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Final

SETTINGS: Final = 1  # raised whenever `wasmtime_unsafe` configures the compiler differently


@cache
def fingerprint(*, hardened: bool = False) -> str:
    """Return e.g. `wasmtime 50.0.1 x86_64 3f9a01c2 settings 1`; hardened: `... pulley64 ...`.

    The interpreter's code is the same on every CPU.
    """
    target = "pulley64" if hardened else f"{platform.machine()} {_cpu()}"
    return f"wasmtime {version('wasmtime')} {target} settings {SETTINGS}"


def _cpu() -> str:
    """Return a short name for the CPU's instruction set: code may use all that it has."""
    try:
        text = Path("/proc/cpuinfo").read_text("ascii", "replace")
    except OSError:
        return "unknown"
    rows = (row.partition(":") for row in text.splitlines())
    flags = next((value for name, _, value in rows if name.strip() in {"flags", "Features"}), "")
    return hashlib.sha256(" ".join(sorted(flags.split())).encode()).hexdigest()[:8]
