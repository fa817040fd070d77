"""Runs a program as a user without rights, also where root's Python lies where only root may go."""

import os
import shlex
import sys
from pathlib import Path

ORDINARY_ID = 54_321  # of no login; not what a cell takes itself for
ROOT = Path(__file__).parents[2]
OTHERS_MAY_ENTER = 0o001


def as_ordinary_user(command: list[str]) -> list[str]:
    """Return a command line that runs `command` as nobody special, as us if not root.

    In a mount namespace of its own, each folder that is closed to others on the way to Python or
    this repository gives way to one that holds the way and nothing else. Execs, so the process
    that is started becomes the command.
    """
    if os.getuid() != 0:
        return command
    steps = ["set -e", "mount -t tmpfs none /mnt"]
    for number, needed in enumerate(sorted({Path(sys.base_prefix), Path(sys.prefix), ROOT})):
        closed = [folder for folder in needed.parents if not _is_open(folder)]
        if closed:
            kept, there = f"/mnt/{number}", shlex.quote(str(needed))
            steps += [f"mkdir {kept}", f"mount --bind {there} {kept}"]
            steps += [f"mount -t tmpfs -o mode=755 none {shlex.quote(str(closed[-1]))}"]
            steps += [f"mkdir -p {there}", f"mount --bind {kept} {there}"]
    user = f"setpriv --reuid={ORDINARY_ID} --regid={ORDINARY_ID} --clear-groups"
    script = "\n".join([*steps, f'exec {user} "$@"'])
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *command]


def _is_open(folder: Path) -> bool:
    return bool(folder.stat().st_mode & OTHERS_MAY_ENTER)
