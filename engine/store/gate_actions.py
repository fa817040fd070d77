"""Opens the gate of a connection by hand: what all nodes ask before they send.

Path:   engine.connections -> journal -> here -> store.gates
"""

from dataclasses import replace

from sqlalchemy import Connection

from engine.gates import Gate
from engine.store.gates import lock, read, write


def open_again(connection: Connection, project_id: str, name: str) -> None:
    """Forget that a connection failed: the next delivery is tried at once; its rate stays.

    Run it alone, with `Journal.run_alone`: it waits for the gate, and so must hold nothing else.
    """
    key = (project_id, name)
    lock(connection, [key])
    gate = read(connection, [key])[key]
    if gate != (opened := replace(Gate(), next_ms=gate.next_ms)):
        write(connection, {key: opened})
