"""Changes deliveries by hand: sends them again, cancels, holds and releases them.

Path:   engine.ledger -> journal -> here; the outbox is told once it is committed
Never:  touches what is being sent right now; changes a state as engine.deliveries.NEXT forbids
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, exists, select, update

from engine.deliveries import ENDED, NEXT, WAITING, State
from engine.store.tables import connection_gates, deliveries


class Action(StrEnum):
    """What people may do with a delivery."""

    RESEND = "resend"
    CANCEL = "cancel"
    HOLD = "hold"
    RELEASE = "release"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What an action does: from which states, to which, and which it leaves as they are."""

    before: frozenset[State]
    after: State
    done: frozenset[State]  # to ask for it once more changes nothing
    past: str  # what was done then, for people


CHANGES: Final[Mapping[Action, Change]] = {
    Action.RESEND: Change(
        before=ENDED | {State.RETRYING},
        after=State.QUEUED,
        done=frozenset({State.QUEUED}),
        past="sent again",
    ),
    Action.CANCEL: Change(
        before=WAITING | {State.HELD},
        after=State.CANCELLED,
        done=frozenset({State.CANCELLED}),
        past="cancelled",
    ),
    Action.HOLD: Change(
        before=WAITING, after=State.HELD, done=frozenset({State.HELD}), past="held"
    ),
    Action.RELEASE: Change(
        before=frozenset({State.HELD}), after=State.QUEUED, done=WAITING, past="released"
    ),
}
_IS_DISABLED: Final = exists().where(
    connection_gates.c.project_id == deliveries.c.project_id,
    connection_gates.c.connection == deliveries.c.connection,
    connection_gates.c.disabled.is_not(None),
)
assert all(c.after in NEXT[state] for c in CHANGES.values() for state in c.before)


@dataclass(slots=True, kw_only=True)
class Acted:
    """What an action did, by id."""

    changed: list[str] = field(default_factory=list)
    states: dict[str, State] = field(default_factory=dict)  # as they are now, of all there are
    refused: dict[str, str] = field(default_factory=dict)  # why


def act(
    connection: Connection,
    project_id: str,
    ids: Collection[str],
    action: Action,
    *,
    now_ms: int,
    node_id: str | None = None,
    clear: bool = True,
) -> Acted:
    """Do `action` with those of these deliveries that allow it; what it has done once stays so.

    Args:
        connection: the database's.
        project_id: whose deliveries; others' are as if there were none.
        ids: some hundreds at most.
        action: what to do.
        now_ms: the time.
        node_id: whose outbox is to send what is queued; None: there is only one node.
        clear: what is released is sent whatever the cost guard says.
    """
    change, here = (
        CHANGES[action],
        (deliveries.c.project_id == project_id, deliveries.c.id.in_(ids)),
    )
    able: list[ColumnElement[bool]] = [
        deliveries.c.state.in_([state.value for state in change.before])
    ]
    if action is Action.RELEASE:
        able.append(~_IS_DISABLED)  # else it would be held again at once
    rows = connection.execute(
        update(deliveries)
        .where(*here, *able)
        .values(state=change.after.value, **_values(action, now_ms, node_id, clear=clear))
        .returning(deliveries.c.id)
    )
    changed = {row.id for row in rows}
    acted = Acted(changed=[one for one in ids if one in changed])
    query = select(deliveries.c.id, deliveries.c.connection, deliveries.c.state).where(*here)
    for row in connection.execute(query):
        state = acted.states[row.id] = State(row.state)
        if row.id in changed or state in change.done:
            continue
        if action is Action.RELEASE and state is State.HELD:
            remedy = f"enable it (cloudcode connections enable {row.connection})"
            acted.refused[row.id] = f"the connection is disabled: {remedy}"
        else:
            acted.refused[row.id] = _why(state, change)
    return acted


def _values(action: Action, now_ms: int, node_id: str | None, *, clear: bool) -> dict[str, Any]:
    match action:
        case Action.RESEND:
            return {
                "next_ms": now_ms,
                "node_id": node_id,
                **_anew(now_ms),
                "ended_ms": None,
                "reason": None,
                "message_id": None,
                "provider_status": None,
                "provider_ms": None,
                "provider_final": None,
            }
        case Action.CANCEL:
            return {"ended_ms": now_ms, "reason": "cancelled by hand"}
        case Action.HOLD:
            return {"reason": "held by hand"}
        case Action.RELEASE:
            cleared = {"cleared": True} if clear else {}
            again = {"next_ms": now_ms, "node_id": node_id, "reason": None}
            return again | _anew(now_ms) | cleared


def _anew(now_ms: int) -> dict[str, Any]:
    """Return what lets a schedule begin now: neither age nor attempts before that count."""
    return {"base_attempts": deliveries.c.attempts, "since_ms": now_ms}


def _why(state: State, change: Change) -> str:
    if state is State.SENDING:
        return "it is being sent right now; ask again in a moment"
    why = f"it is {state.value}, and cannot be {change.past}"
    return f"{why}: release it instead" if state is State.HELD else why
