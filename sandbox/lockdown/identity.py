"""Makes a cell a user that is nobody else: not root, in no group, with files of its own: none.

Path:   sandbox.lockdown.lock_down -> namespaces_unsafe.settle -> here
Never:  gives two live cells of one pid namespace one user, where it may choose.
"""

import os
from typing import Final

from sandbox.lockdown.layer import Layer, missing, standing

NAME = "identity"

# A cell's own user is this plus its pid, which is below 2**22: so no two live cells share one,
# those of two engines neither. In two containers of one machine that share its users, they may.
# Above what useradd, systemd, containers and directories give away ("Users, Groups, UIDs and GIDs
# on systemd systems", systemd.io), below 2**31, which is -1 to some.
FIRST_UID: Final = 2_100_000_000
NOBODY: Final = 65534  # in a container that has no more than 65,536 users


def become_nobody_else(pid: int) -> Layer:
    """Change to a user of our own; an ordinary user can change to none, and stays what it is.

    Args:
        pid: ours, as all other cells see it.
    """
    if os.geteuid() != 0:
        return standing(NAME, "the user who runs the engine, which is not root")
    reason = ""
    for number in (FIRST_UID + pid, NOBODY):
        try:
            os.setgroups([])
            os.setresgid(number, number, number)
            os.setresuid(number, number, number)
        except OSError as error:  # EINVAL: the container has no such user
            reason = f"stays root: {error.strerror}"
        else:
            own = "its own" if number != NOBODY else "shared by all cells"
            return standing(NAME, f"user and group {number}, {own}; in no other group")
    return missing(
        NAME,
        reason,
        "run the engine as an ordinary user, or let root have CAP_SETUID and CAP_SETGID",
    )
