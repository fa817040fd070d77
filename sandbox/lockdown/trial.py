"""Puts every wall up around a process that does nothing else, and prints which of them stand.

Path:   `cloudcode doctor` -> sandbox.lockdown.probe -> a process of this file -> its only cell
Never:  runs a guest.
"""

import os
import socket
import sys
from typing import Final, NoReturn

import msgspec

from sandbox.lockdown import Birth, Layer, adopt, lock_down, prepare, spawn
from sandbox.lockdown.sight import look_at

HARDENED: Final = "hardened"


def main() -> None:
    prepared = prepare()
    adopt()
    ours, its = socket.socketpair()

    def live(birth: Birth) -> NoReturn:
        layers = lock_down(prepared, its.fileno(), birth=birth, hardened=HARDENED in sys.argv)
        its.sendall(msgspec.json.encode(layers))
        its.shutdown(socket.SHUT_WR)
        its.recv(1)  # until it has been looked at
        os._exit(0)

    try:
        pid = spawn(live)
    except OSError as error:
        raise SystemExit(f"no process can be started: {error.strerror}") from None
    its.close()
    with ours.makefile("rb") as reader:
        told = reader.read()
    unseen = look_at(pid) if told else None
    ours.close()
    _, status = os.wait()
    if not told:
        raise SystemExit(f"the cell ended by itself: {os.waitstatus_to_exitcode(status)}")
    layers = msgspec.json.decode(told, type=list[Layer])
    sys.stdout.buffer.write(msgspec.json.encode([*layers, *([unseen] if unseen else [])]))


if __name__ == "__main__":
    main()
