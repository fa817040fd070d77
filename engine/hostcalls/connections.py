"""The host call `connection.send`: one delivery per call, buffered until the run succeeds."""

from typing import Any

import msgspec

from engine.connectors import CONNECTORS
from engine.errors import HostCallRefused
from engine.ids import new_id
from engine.run import DeliveryEffect, Run
from engine.runner import LimitReached, spend_bytes
from runtimes.contract import LimitHit, Outcome


class _Send(msgspec.Struct):
    connection: str
    message: dict[str, Any]


def send(run: Run, arguments: bytes, _call: int) -> str:
    """Check the message against its connector and buffer it; the answer is the delivery's id."""
    asked = msgspec.json.decode(arguments, type=_Send)
    kind = run.version.bindings["connections"].get(asked.connection)
    if kind is None:
        raise HostCallRefused(f"there is no connection {asked.connection!r} in this project")
    payload = CONNECTORS[kind].check_payload(asked.message)
    spend_bytes(run, len(arguments))
    count = 1 + sum(isinstance(effect, DeliveryEffect) for effect in run.effects)
    most = run.limits.deliveries
    if count > most:
        hit = LimitHit(name="deliveries", value=most, used=count)
        raise LimitReached(Outcome.EFFECTS_EXCEEDED, hit)
    text = msgspec.json.encode(payload).decode()
    effect = DeliveryEffect(id=new_id("dlv"), connection=asked.connection, kind=kind, payload=text)
    run.effects.append(effect)
    return effect.id
