"""Decides who may run now: limits, order, throttles, debounces, singletons. Pure.

Path:   enqueue -> `queued_for`: a run is queued;  store.flow -> `decide`: it shall be claimed
Never:  touches the store or a clock: what the tables hold is given, what shall change is returned.

A **lane** names the runs that share a limit or an order; a run has one at most. Of a full lane the
rest is parked. Throttle, rate limit and debounce are gates: a run passes them once.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from engine.policies import (
    NONE,
    PLAIN,
    Debounce,
    Flow,
    Policy,
    Queued,
    RateLimit,
    Singleton,
    Throttle,
)

BURST: Final = 32  # runs of one ordered lane that a node takes at a time
KEY_VALUE_CHARS_MAX: Final = 120  # a longer one is told apart by its hash
CLOCK_SET_BACK_MS: Final = 60_000  # a mark from later than this was made by a clock that was wrong
HELD: Final = "held"  # the mode of a singleton that has started: it is the one
_SCOPES: Final = ("event", "payload")  # what the input is called in the author's paths
_MISSING: Final = "null"
OrderKey = tuple[int, str, str]


# -- When a run is queued


def queued_for(
    policy: Policy,
    given: str | bytes,
    project_id: str,
    function_id: str,
    *,
    base: Queued | None = None,
) -> tuple[Queued, str | None]:
    """Return what a run carries through the queue, and its lane.

    Args:
        policy: of the version that shall run.
        given: the run's input, JSON; keys are paths into it.
        project_id: whose run it is.
        function_id: ...
        base: what the caller has decided itself; None: as the version declares.

    The flow of what is returned has the limits' own keys where the version's has paths.
    """
    if policy is NONE:
        return (PLAIN if base is None else base), None
    queued = _retried(policy) if base is None else base
    flow = policy.flow
    if flow is None:
        return queued, None
    found = _Input(given)
    concurrency, singleton, lane = flow.concurrency, flow.singleton, None
    if concurrency is not None:
        of = project_id if concurrency.scope == "project" else function_id
        lane = f"c:{of}{found.at(concurrency.key)}"
    elif singleton is not None:
        lane = f"c:{function_id}{found.at(singleton.key)}"

    def named(kind: str, path: str) -> str:
        return f"{kind}:{function_id}{found.at(path)}"

    throttle, rate, debounce = flow.throttle, flow.rate_limit, flow.debounce
    return msgspec.structs.replace(
        queued,
        flow=Flow(
            concurrency=concurrency,
            singleton=singleton,
            throttle=throttle and msgspec.structs.replace(throttle, key=named("t", throttle.key)),
            rate_limit=rate and msgspec.structs.replace(rate, key=named("r", rate.key)),
            debounce=debounce and msgspec.structs.replace(debounce, key=named("d", debounce.key)),
        ),
    ), lane


def in_order(queued: Queued, trigger_id: str, device_id: str) -> tuple[Queued, str]:
    """Return `queued` as one of its device's runs that come one after another, and that lane.

    A run has one lane: the order is its limit.
    """
    flow = queued.flow
    if flow is not None:
        flow = msgspec.structs.replace(flow, concurrency=None, singleton=None)
    return msgspec.structs.replace(queued, order=True, flow=flow), f"o:{trigger_id}:{device_id}"


def due_at(queued: Queued, now_ms: int, due_ms: int = 0) -> int:
    """Return when a run that is queued now may be claimed: a debounced one waits for its quiet."""
    flow = queued.flow
    if flow is None or flow.debounce is None or queued.admitted:
        return due_ms
    return max(due_ms, now_ms + flow.debounce.period_ms)


def past_gates(queued: Queued) -> Queued:
    """Return `queued` for a run that shall not be asked again: a redriven or replayed one."""
    flow = queued.flow
    if flow is None or queued.admitted:
        return queued
    return msgspec.structs.replace(queued, admitted=True)


def since_key(debounce: Debounce) -> str:
    """Return under which key the first of a burst is remembered; its own holds the newest."""
    return f"e{debounce.key[1:]}"


def _retried(policy: Policy) -> Queued:
    retries = policy.retries
    if retries is None:
        return PLAIN
    return Queued(max_attempts=retries.max_attempts, backoff=retries.backoff, dead_letter=True)


class _Input:
    """One run's input, decoded when the first key asks for it."""

    def __init__(self, given: str | bytes) -> None:
        self._given = given
        self._value: Any = None
        self._decoded = False

    def at(self, path: str) -> str:
        """Return the key's value as text after a colon; nothing for no key."""
        if not path:
            return ""
        if len(path) > 1 and path[0] == path[-1] and path[0] in "'\"":
            return f":{path[1:-1]}"  # a word of the author's, the same for every run
        if not self._decoded:
            self._decoded = True
            try:
                self._value = msgspec.json.decode(self._given)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                self._value = None
        text = _text_at(self._value, path.split("."))
        if len(text) > KEY_VALUE_CHARS_MAX:
            text = hashlib.sha256(text.encode()).hexdigest()
        return f":{text}"


def _text_at(value: Any, parts: list[str]) -> str:
    for part in parts[1:] if parts[0] in _SCOPES else parts:
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return _MISSING
    try:
        return msgspec.json.encode(value, order="sorted").decode()
    except (msgspec.MsgspecError, OverflowError, RecursionError):
        return repr(value)  # an integer of more than 64 bits


# -- When it shall be claimed


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A row of the queue that is free and due, and that the caller holds locked."""

    id: str
    project_id: str
    function_id: str
    lane: str | None
    position_ms: int | None
    policy: Queued
    created_ms: int
    due_ms: int
    event_id: str | None
    device_id: str | None
    job_id: str | None
    attempt: int

    @property
    def key(self) -> OrderKey:
        return order_key(self.position_ms, self.event_id, self.id)


def order_key(position_ms: int | None, event_id: str | None, run_id: str) -> OrderKey:
    """Return the place in an ordered lane: a retry has its event's, not one behind its equals."""
    return (position_ms or 0, event_id or "", run_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """What a lane holds besides the candidates."""

    owners: Mapping[str, int] = field(default_factory=dict)  # rows by the node that has them
    blocker: OrderKey | None = None  # ordered: the first row that waits and cannot be had now
    alive: bool = False  # singleton: one waits for its next attempt
    others: tuple[str, ...] = ()  # singleton that cancels: whom

    @property
    def count(self) -> int:
        return sum(self.owners.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A row of flow_marks."""

    newest_id: str | None = None
    since_ms: int | None = None
    free_ms: int | None = None
    touched_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """What becomes of candidates; those of `wait` and `park` are put away already."""

    claim: list[str] = field(default_factory=list)  # in the order in which they are to start
    park: list[str] = field(default_factory=list)
    wait: list[tuple[str, int]] = field(default_factory=list)  # (id, not before)
    skip: list[tuple[str, str, str]] = field(default_factory=list)  # (id, reason, message)
    cancel: list[str] = field(default_factory=list)  # runs that one of `claim` takes the place of


@dataclass(slots=True, kw_only=True)
class Decision:
    """`Admitted`, and what has to be written so that it holds."""

    admitted: Admitted = field(default_factory=Admitted)
    marks: dict[str, Mark | None] = field(default_factory=dict)
    stamps: dict[str, Queued] = field(default_factory=dict)
    sooner: dict[str, int] = field(default_factory=dict)  # rows that are due then at the latest
    claimed: dict[str, int] = field(default_factory=dict)  # by lane
    full: set[str] = field(default_factory=set)  # lanes that can take nobody now


def mark_keys(rows: Iterable[Candidate]) -> set[str]:
    """Return the keys of flow_marks that `decide` has to know."""
    keys = set()
    for row in rows:
        flow = row.policy.flow
        if flow is None or row.policy.admitted or row.attempt > 1:
            continue
        if flow.debounce is not None:
            keys |= {flow.debounce.key, since_key(flow.debounce)}
        if flow.rate_limit is not None:
            keys.add(flow.rate_limit.key)
        if flow.throttle is not None:
            keys.add(flow.throttle.key)
    return keys


def has_gates(policy: Queued) -> bool:
    """Return whether the run has to be asked one by one, also when its lane is full."""
    flow = policy.flow
    if flow is None:
        return bool(policy.expires_ms)
    gates = (flow.throttle, flow.rate_limit, flow.debounce, flow.singleton)
    return bool(policy.expires_ms) or any(gate is not None for gate in gates)


def is_ordered(policy: Queued) -> bool:
    """Return whether a lane is an ordered one: those without a limit are."""
    flow = policy.flow
    return policy.order or flow is None or (flow.concurrency is None and flow.singleton is None)


def lane_limit(policy: Queued) -> int:
    """Return how many of a lane that is not ordered may run."""
    flow = policy.flow
    return 1 if flow is None or flow.concurrency is None else flow.concurrency.limit


def decide(
    rows: Sequence[Candidate],
    lanes: Mapping[str, Lane],
    marks: Mapping[str, Mark],
    node_id: str,
    now_ms: int,
) -> Decision:
    """Say which of the candidates `node_id` may run now, and what becomes of the others.

    Args:
        rows: free and due, in the order in which they would be claimed.
        lanes: of every lane of them.
        marks: of every key in `mark_keys(rows)`, if there is one.
        node_id: who claims.
        now_ms: the time.
    """
    return _Decider(lanes, marks, node_id, now_ms).decide(rows)


class _Decider:
    def __init__(
        self, lanes: Mapping[str, Lane], marks: Mapping[str, Mark], node_id: str, now_ms: int
    ) -> None:
        self._lanes = lanes
        self._marks: dict[str, Mark | None] = {
            key: mark
            for key, mark in marks.items()
            if mark.touched_ms <= now_ms + CLOCK_SET_BACK_MS or mark.newest_id is not None
        }
        self._node_id = node_id
        self._now_ms = now_ms
        self._made = Decision()
        self._chosen: dict[str, Candidate] = {}  # singletons that cancel: by lane, of this claim
        self._older: dict[str, list[str]] = {}  # those of before it that this claim has taken

    def decide(self, rows: Sequence[Candidate]) -> Decision:
        ordered: dict[str, list[Candidate]] = {}
        for row in rows:
            if row.lane is not None and is_ordered(row.policy):
                ordered.setdefault(row.lane, []).append(row)
            else:
                self._free(row)
        for lane, of_lane in ordered.items():
            self._in_order(lane, sorted(of_lane, key=lambda row: row.key))
        return self._made

    def _free(self, row: Candidate) -> None:
        """Decide on a row that has to wait for none before it."""
        if self._is_skipped(row):
            return
        due_ms = self._gated(row)
        if due_ms is None:
            return
        if due_ms > self._now_ms:
            self._made.admitted.wait.append((row.id, due_ms))
        elif row.lane is None:
            self._made.admitted.claim.append(row.id)
        else:
            self._limited(row, row.lane)

    def _limited(self, row: Candidate, name: str) -> None:
        lane, claimed = self._lanes[name], self._made.claimed
        singleton = None if row.policy.flow is None else row.policy.flow.singleton
        if singleton and singleton.mode == "cancel" and _is_new(row, singleton):
            self._take_place(row, name)
        elif singleton and name in self._chosen:
            self._made.admitted.cancel.append(row.id)  # an older one, whose place is taken
            return
        elif lane.count + claimed.get(name, 0) >= lane_limit(row.policy):
            self._park(row, name)
            return
        if singleton and singleton.mode != HELD:
            self._hold(row)
        elif singleton:
            self._older.setdefault(name, []).append(row.id)
        claimed[name] = claimed.get(name, 0) + 1
        self._made.admitted.claim.append(row.id)

    def _take_place(self, row: Candidate, name: str) -> None:
        admitted = self._made.admitted
        for older_id in self._older.pop(name, ()):  # free again, and claimed just now
            admitted.claim.remove(older_id)
            admitted.cancel.append(older_id)
            self._made.claimed[name] -= 1
        before = self._chosen.get(name)
        if before is None:
            admitted.cancel.extend(self._lanes[name].others)
        else:
            admitted.claim.remove(before.id)
            self._made.claimed[name] -= 1
            self._skip(before, "singleton", f"{row.id} came after it, and takes its place")
        self._chosen[name] = row

    def _in_order(self, name: str, rows: list[Candidate]) -> None:
        lane, claimed = self._lanes[name], 0
        is_open = all(owner == self._node_id for owner in lane.owners)
        for row in rows:
            if self._is_skipped(row):
                continue
            due_ms = self._gated(row)
            if due_ms is None:
                continue
            is_open = is_open and claimed < BURST
            is_open = is_open and (lane.blocker is None or row.key < lane.blocker)
            if due_ms > self._now_ms:
                self._made.admitted.wait.append((row.id, due_ms))
                if not is_open:
                    self._park(row, name)
                is_open = False  # the others come after it
            elif is_open:
                claimed += 1
                self._made.admitted.claim.append(row.id)
            else:
                self._park(row, name)
        if claimed:
            self._made.claimed[name] = claimed

    def _is_skipped(self, row: Candidate) -> bool:
        """Skip a row that is too late, out of date, or one too many; say whether it was."""
        flow, expires_ms = row.policy.flow, row.policy.expires_ms
        if expires_ms and self._now_ms > expires_ms:
            late_s = (self._now_ms - expires_ms) / 1000
            self._skip(row, "expired", f"its time to live had ended {late_s:.3f} s before")
            return True
        if flow is None:
            return False
        if flow.debounce is not None and not _is_past(row) and self._is_outdated(row):
            return True
        singleton = flow.singleton
        if not _is_new(row, singleton) or not singleton or singleton.mode != "skip":
            return False
        lane = self._lanes[row.lane or ""]
        if lane.count or lane.alive or self._made.claimed.get(row.lane or ""):
            self._skip(row, "singleton", "another one with the same key is running")
            return True
        return False

    def _is_outdated(self, row: Candidate) -> bool:
        assert row.policy.flow is not None
        debounce = row.policy.flow.debounce
        assert debounce is not None
        first_key = since_key(debounce)
        newest, first = self._marks.get(debounce.key), self._marks.get(first_key)
        if newest is None or newest.newest_id is None or newest.newest_id == row.id:
            if first is not None:
                self._mark(first_key, None)  # the next one begins a burst of its own
            return False
        if debounce.timeout_ms and first is not None and first.since_ms is not None:
            ends_ms = first.since_ms + debounce.timeout_ms
            self._made.sooner[newest.newest_id] = max(self._now_ms, ends_ms)
        self._skip(row, "debounced", f"{newest.newest_id} came after it")
        return True

    def _gated(self, row: Candidate) -> int | None:
        """Return when the row may start; None: never, it has been skipped."""
        flow = row.policy.flow
        if flow is None or _is_past(row):
            return self._now_ms
        due_ms = self._now_ms
        if flow.rate_limit is not None:
            rate = flow.rate_limit
            mark = rate_limited(self._marks.get(rate.key), rate, self._now_ms)
            if mark is None:
                text = f"{rate.limit} in {rate.period_ms / 1000:g} s have been let through"
                self._skip(row, "rate_limited", text)
                return None
            self._mark(rate.key, mark)
        if flow.throttle is not None:
            due_ms, mark = throttled(
                self._marks.get(flow.throttle.key), flow.throttle, self._now_ms
            )
            self._mark(flow.throttle.key, mark)
        if flow.rate_limit or flow.throttle or flow.debounce:
            self._made.stamps[row.id] = past_gates(row.policy)
        return due_ms

    def _hold(self, row: Candidate) -> None:
        policy = self._made.stamps.get(row.id, row.policy)
        assert policy.flow is not None
        assert policy.flow.singleton is not None
        held = msgspec.structs.replace(policy.flow.singleton, mode=HELD)
        flow = msgspec.structs.replace(policy.flow, singleton=held)
        self._made.stamps[row.id] = msgspec.structs.replace(policy, flow=flow)

    def _park(self, row: Candidate, lane: str) -> None:
        self._made.admitted.park.append(row.id)
        self._made.full.add(lane)

    def _skip(self, row: Candidate, reason: str, message: str) -> None:
        self._made.admitted.skip.append((row.id, reason, message))
        self._made.stamps.pop(row.id, None)

    def _mark(self, key: str, mark: Mark | None) -> None:
        self._marks[key] = self._made.marks[key] = mark


def _is_past(row: Candidate) -> bool:
    return row.policy.admitted or row.attempt > 1


def _is_new(row: Candidate, singleton: Singleton | None) -> bool:
    """Return whether the run has not been the one before: a retry is the same run."""
    return singleton is not None and singleton.mode != HELD and row.attempt == 1


# -- Rates: the generic cell rate algorithm
#
# A mark says from when on the key's `count` places are numbered (`since_ms`), and when the place
# after the last one given away begins (`free_ms`, rounded up). Not that time alone: a period that
# its limit does not divide would drift, by up to a millisecond a run.


def throttled(mark: Mark | None, throttle: Throttle, now_ms: int) -> tuple[int, Mark]:
    """Give away the next place; return when it begins, and the new mark."""
    since_ms, count = _places(mark, throttle.limit, throttle.period_ms, now_ms)
    begins_ms = _place_ms(since_ms, count - throttle.burst, throttle.limit, throttle.period_ms)
    return max(begins_ms, now_ms), _given(since_ms, count + 1, throttle, now_ms)


def rate_limited(mark: Mark | None, rate: RateLimit, now_ms: int) -> Mark | None:
    """Give away a place that begins now, and return the new mark; None: there is none."""
    since_ms, count = _places(mark, rate.limit, rate.period_ms, now_ms)
    if _place_ms(since_ms, count - (rate.limit - 1), rate.limit, rate.period_ms) > now_ms:
        return None
    return _given(since_ms, count + 1, rate, now_ms)


def _places(mark: Mark | None, limit: int, period_ms: int, now_ms: int) -> tuple[int, int]:
    if mark is None or mark.since_ms is None or mark.free_ms is None or mark.free_ms <= now_ms:
        return now_ms, 0
    return mark.since_ms, (mark.free_ms - mark.since_ms) * limit // period_ms


def _place_ms(since_ms: int, number: int, limit: int, period_ms: int) -> int:
    return since_ms - (-number * period_ms // limit)  # rounded up


def _given(since_ms: int, count: int, of: Throttle | RateLimit, now_ms: int) -> Mark:
    free_ms = _place_ms(since_ms, count, of.limit, of.period_ms)
    return Mark(since_ms=since_ms, free_ms=free_ms, touched_ms=now_ms)
