"""Gives deliveries their turn: marks as being sent what may be sent now, in one transaction.

Path:   outbox -> journal -> here -> engine.gates, store.gates
Never:  waits for anybody: a claim shares its transaction with other changes, and so holds what
        somebody may wait for. What another node is at is asked for again.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Row, bindparam, select, update

from engine.connectors.contract import Guard
from engine.deliveries import NEXT, WAITING, Sending, State, is_too_old, too_old
from engine.gates import Breaker, Passed, admit
from engine.store import gates
from engine.store.deliveries import (
    ASKING,
    Claimed,
    SendingOf,
    is_of,
    key_of,
    place_of,
    settings_of,
    turn_of,
)
from engine.store.gates import Count, Key
from engine.store.tables import deliveries

LOOK_MS: Final = 500  # after which a delivery behind another node's asks again
LOOK_MS_MAX: Final = 30_000  # ... behind one that waits for its next attempt
LOCKED_MS: Final = 50  # ... whose row, or whose gate, another node is at
HOUR_MS: Final = 3_600_000
DAY_MS: Final = 86_400_000
_WAITING: Final = sorted(WAITING)
_rows = deliveries.c


class _Guarded(NamedTuple):
    """What counts a message, the most there may be, and how people read it."""

    counted: Count
    most: int
    told: str
    setting: str


@dataclass(slots=True, kw_only=True)
class Turns:
    """What became of those that asked; of the others nothing: they do not wait any more."""

    claimed: list[Claimed] = field(default_factory=list)
    later: dict[str, int] = field(default_factory=dict)  # until when somebody goes before
    paused: dict[Key, int] = field(default_factory=dict)  # connections, until when
    back: set[str] = field(default_factory=set)  # they wait for their connection
    sending: dict[Key, Sending] = field(default_factory=dict)  # of all that were asked about
    held: Counter[str] = field(default_factory=Counter)  # by why: guard | disabled
    given_up: int = 0


def claim(
    connection: Connection,
    ids: Sequence[str],
    node_id: str | None,
    now_ms: int,
    sending_of: SendingOf,
) -> Turns:
    """Mark those of `ids` as being sent that have their turn, and say what of the others.

    Nobody is waited for: rows and gates that another node is at are asked for again.
    """
    assert all(State.SENDING in NEXT[state] for state in WAITING)
    query = _CLAIMING.where(_rows.id.in_(ids), _rows.state.in_(_WAITING), is_of(node_id))
    query = query.with_for_update(skip_locked=True, of=deliveries)
    rows = sorted(connection.execute(query), key=turn_of)
    turns = Turns()
    if len(rows) < len(ids) and connection.dialect.name != "sqlite":
        missing = set(ids).difference(row.id for row in rows)
        turns.later = _locked(connection, missing, node_id, now_ms)
    if rows:
        _Claim(connection, rows, now_ms, sending_of, turns).decide()
    return turns


def count_one(
    connection: Connection, key: Key, recipient: str | None, guard: Guard | None, now_ms: int
) -> str | None:
    """Count a message that is no delivery; return why it may not be sent, if the guard is against.

    Run it alone, with `Journal.run_alone`: it waits for the gate, and so must hold nothing else.
    """
    gates.lock(connection, [key])
    guarded = _guarded(key, recipient, guard, now_ms)
    counts = gates.counts(connection, [one.counted for one in guarded])
    if (over := _over(guarded, counts, "raise")) is None:
        gates.put_counts(connection, {count: number + 1 for count, number in counts.items()})
    return over


class _Claim:
    """One claim: what it has read, and what it will write."""

    def __init__(
        self,
        connection: Connection,
        rows: Sequence[Row[Any]],
        now_ms: int,
        sending_of: SendingOf,
        turns: Turns,
    ) -> None:
        self.connection, self.rows, self.now_ms, self.turns = connection, rows, now_ms, turns
        self.stored, self.gates = gates.with_connections(connection, map(key_of, rows))
        for row in rows:
            key = key_of(row)
            if key not in turns.sending:
                turns.sending[key] = sending_of(row.kind, settings_of(self.stored.get(key)))
        self.changed: set[Key] = set()
        self.counts: dict[Count, int] = {}
        self.counted: set[Count] = set()
        self.passed: dict[str, Passed] = {}
        self.cleared: list[str] = []
        self.held: list[dict[str, str]] = []
        self.given_up: list[dict[str, str]] = []

    def decide(self) -> None:
        self._read_gates()
        for row in self.rows:
            self._decide_one(row)
        self._write()

    def _read_gates(self) -> None:
        changing = {
            key
            for key, sending in self.turns.sending.items()
            if sending.rate is not None
            or sending.guard is not None
            or self.gates[key].breaker is not Breaker.CLOSED
        }
        if not changing:
            return
        got = gates.try_lock(self.connection, changing)
        if self.connection.dialect.name != "sqlite":  # another node has changed it meanwhile
            self.gates |= gates.read(self.connection, got)
        for key in changing - got:
            self.turns.paused[key] = self.now_ms + LOCKED_MS
        wanted = {
            count
            for row in self.rows
            if key_of(row) in got and not row.cleared
            for count, *_ in self._guards(row)
        }
        self.counts = gates.counts(self.connection, wanted)

    def _decide_one(self, row: Row[Any]) -> None:
        key, turns = key_of(row), self.turns
        gate, sending = self.gates[key], turns.sending[key]
        if gate.disabled is not None:
            self._hold(row, "disabled", gates.disabled_reason(row.connection, gate.disabled))
        elif row.goes_before_ms is not None and sending.ordered:
            wait_ms = min(row.goes_before_ms - self.now_ms, LOOK_MS_MAX)
            turns.later[row.id] = self.now_ms + max(wait_ms, LOOK_MS)
        elif (
            row.attempts > row.base_attempts
            and row.state == State.RETRYING
            and is_too_old(self.now_ms, row.since_ms, sending)
        ):
            self.given_up.append({"of": row.id, "reason": too_old(sending)})
        elif key in turns.paused:
            turns.back.add(row.id)
        elif (reason := self._over(row)) is not None:
            self._hold(row, "guard", reason)
        else:
            gate, answer = admit(gate, sending.rate, self.now_ms)
            if isinstance(answer, int):
                turns.paused[key] = answer
                turns.back.add(row.id)
                return
            if gate is not self.gates[key]:
                self.gates[key] = gate
                self.changed.add(key)
            self.passed[row.id] = answer
            self._count(row)

    def _guards(self, row: Row[Any]) -> list[_Guarded]:
        key = key_of(row)
        return _guarded(key, row.recipient, self.turns.sending[key].guard, self.now_ms)

    def _over(self, row: Row[Any]) -> str | None:
        """Return why the cost guard holds it."""
        if row.cleared:
            return None
        return _over(self._guards(row), self.counts, "release it, or raise")

    def _count(self, row: Row[Any]) -> None:
        if row.cleared:
            return
        for count, *_ in self._guards(row):
            self.counts[count] += 1
            self.counted.add(count)
            self.cleared.append(row.id)

    def _hold(self, row: Row[Any], why: str, reason: str) -> None:
        assert State.HELD in NEXT[State(row.state)]
        self.held.append({"of": row.id, "reason": reason})
        self.turns.held[why] += 1

    def _write(self) -> None:
        connection = self.connection
        if self.passed:
            self._claim()
        if self.cleared:
            clear = update(deliveries).where(_rows.id.in_(self.cleared)).values(cleared=True)
            connection.execute(clear)
        if self.held:
            connection.execute(_HOLD, self.held)
        if self.given_up:
            connection.execute(_GIVE_UP.values(ended_ms=self.now_ms), self.given_up)
            self.turns.given_up = len(self.given_up)
        gates.write(connection, {key: self.gates[key] for key in self.changed})
        gates.put_counts(connection, {count: self.counts[count] for count in self.counted})

    def _claim(self) -> None:
        change = update(deliveries).where(_rows.id.in_(list(self.passed))).values(_SENDING)
        self.connection.execute(change)  # of rows that it has
        for row in self.rows:
            if row.id not in self.passed:
                continue
            key, passed = key_of(row), self.passed[row.id]
            self.turns.claimed.append(
                Claimed(
                    id=row.id,
                    key=key,
                    kind=row.kind,
                    action=row.action,
                    payload=row.payload,
                    sealed=row.sealed,
                    via=row.via,
                    attempts=row.attempts,
                    base_attempts=row.base_attempts,
                    since_ms=row.since_ms,
                    state=State(row.state),
                    due_ms=row.next_ms,
                    recipient=row.line,
                    place=place_of(row),
                    connection=self.stored.get(key),
                    sending=self.turns.sending[key],
                    at_ms=passed.at_ms,
                    is_trial=passed.is_trial,
                    is_troubled=self.gates[key].is_troubled,
                )
            )


def _guarded(key: Key, recipient: str | None, guard: Guard | None, now_ms: int) -> list[_Guarded]:
    found: list[_Guarded] = []
    if guard is None:
        return found
    if (most := guard.recipient_per_hour) is not None and recipient is not None:
        count = Count(*key, f"to:{recipient}", now_ms - now_ms % HOUR_MS)
        told = f"to {recipient} in this hour, at most {most}"
        found.append(_Guarded(count, most, told, "settings.guard.recipient_per_hour"))
    if (most := guard.per_day) is not None:
        count = Count(*key, "", now_ms - now_ms % DAY_MS)
        told = f"through {key[1]} on this day (UTC), at most {most}"
        found.append(_Guarded(count, most, told, "settings.guard.per_day"))
    return found


def _over(guarded: list[_Guarded], counts: Mapping[Count, int], remedy: str) -> str | None:
    for count, most, told, setting in guarded:
        if counts[count] >= most:
            return f"cost guard: {_ordinal(counts[count] + 1)} message {told}; {remedy} {setting}"
    return None


def _locked(
    connection: Connection, ids: Collection[str], node_id: str | None, now_ms: int
) -> dict[str, int]:
    """Return when to ask again for those that wait still: another transaction is at them."""
    waits = (_rows.id.in_(sorted(ids)), _rows.state.in_(_WAITING), is_of(node_id))
    found = connection.execute(select(_rows.id).where(*waits)).scalars()
    return dict.fromkeys(found, now_ms + LOCKED_MS)


_SENDING: Final = {
    "state": State.SENDING.value,
    "reason": None,  # and whatever the provider said of an earlier attempt
    "message_id": None,
    "provider_status": None,
    "provider_ms": None,
    "provider_final": None,
}
_CLAIMING: Final = ASKING.add_columns(_rows.action, _rows.payload, _rows.sealed, _rows.via)
_ONE: Final = update(deliveries).where(_rows.id == bindparam("of"))  # the claim has its row
_HOLD: Final = _ONE.values(state=State.HELD.value, reason=bindparam("reason"))
_GIVE_UP: Final = _ONE.values(state=State.FAILED.value, next_ms=0, reason=bindparam("reason"))


def _ordinal(number: int) -> str:
    last = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10)
    return f"{number}{last or 'th'}"
