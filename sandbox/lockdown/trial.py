"""Puts every wall up around a process that does nothing else, and prints which of them stand.

Path:   `cloudcode doctor` -> sandbox.lockdown.probe -> a process of this file -> its only cell
Never:  runs a guest.
"""

import os
import socket
import sys
from typing import Final, NoReturn

import msgspec

from sandbox.lockdown import Birth, adopt, lock_down, prepare, spawn

HARDENED: Final = "hardened"


def main() -> None:
    prepared = prepare()
    adopt()
    ours, its = socket.socketpair()

    def live(birth: Birth) -> NoReturn:
        layers = lock_down(prepared, its.fileno(), birth=birth, hardened=HARDENED in sys.argv)
        its.sendall(msgspec.json.encode(layers))
        os._exit(0)

    if not spawn(live):
        raise SystemExit("no process can be started")
    its.close()
    with ours.makefile("rb") as reader:
        told = reader.read()
    _, status = os.wait()
    if not told:
        raise SystemExit(f"the cell ended by itself: {os.waitstatus_to_exitcode(status)}")
    sys.stdout.buffer.write(told)


if __name__ == "__main__":
    main()
