"""Says what an event has caused, and why what it has not caused did not run. Pure.

Path:   api.events -> store.explain (facts) -> `explain` -> the caller
Never:  guesses: what no record tells is said to be unknown.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import msgspec

from engine.clock import iso
from engine.events import write_handler
from engine.quotas import TRIGGER_DEPTH_MAX
from engine.store.deployments import Deployment
from engine.store.explain import Attempt, Binding, Code, Facts, Waiting
from engine.store.tables import PARKED
from engine.usage import Exceeded

OVER_QUOTA: Final = "over_quota"


class Verdict(StrEnum):
    """What became of one function for one event."""

    RAN = "ran"
    RUNNING = "running"
    QUEUED = "queued"  # it will run as soon as there is room
    WAITING = "waiting"  # it will run later: see the reason
    QUARANTINED = "quarantined"  # it waits, and its version has just taken a cell down
    SKIPPED = "skipped"  # a limit that the version declares: see the reason
    CANCELLED = "cancelled"
    DEAD_LETTERED = "dead_lettered"  # every attempt failed
    SET_ASIDE = "set_aside"  # its device is held back; it waits among the dead letters
    FILTERED = "filtered"  # the event has none of the trigger's keys
    NO_HANDLER = "no_handler"
    NOT_BOUND_THEN = "not_bound_then"  # the trigger is younger than the event
    NOT_BOUND = "not_bound"  # it could take device writes, and no trigger makes it
    TOO_DEEP = "too_deep"  # a function wrote the event, at the end of too long a chain
    OVER_BUDGET = "over_budget"  # ... or of too many runs that one event has caused
    UNKNOWN = "unknown"  # it should have run, and there is no record of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One function and one event."""

    function: str
    trigger_id: str | None
    verdict: Verdict
    detail: str
    reason: str | None = None  # a word for programs
    wanted_keys: tuple[str, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    waiting: Waiting | None = None
    version: int | None = None
    version_why: str | None = None
    due_ms: int | None = None
    dead_letter_id: str | None = None
    quarantined_until_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    summary: str
    keys: tuple[str, ...]  # of the event's values
    items: tuple[Item, ...]
    written_by: str | None = None  # the run that wrote it, where that was looked for


@dataclass(slots=True)
class _Chain:
    """One run of a function, with its attempts, and the one to come."""

    attempts: list[Attempt] = field(default_factory=list)
    waiting: Waiting | None = None


class _Value(msgspec.Struct):
    key: str


class _Payload(msgspec.Struct):
    values: list[_Value]


_WAITS: Final = {
    "retry": "attempt {attempt} follows at {due}",
    "debounced": "it waits until no more events come for a while; due at {due}",
    "throttled": "its version's throttle has no room before {due}",
    "lateness": "its trigger waits for events of earlier times until {due}",
    "later": "it is due at {due}",
    "order": "an earlier run of the device has not ended",
    "limit": "as many as its version allows beside each other are running",
    "breaker_open": "its version has taken its cells down, and is held back until {due}",
}


def explain(
    facts: Facts,
    *,
    now_ms: int,
    running: Collection[str],
    quarantined: Mapping[str, int],
    held_back: Mapping[str, int],
    exceeded: Exceeded | None = None,
) -> Explanation:
    """Return one item for each trigger of the product, and each function that could have one.

    Args:
        facts: what is stored.
        now_ms: the time.
        running: ids of runs that this node has in a cell.
        quarantined: versions (ids) that have killed a cell of this node: until when, ms.
        held_back: versions (ids) whose breaker is open: until when, ms.
        exceeded: the CPU budget that the project has used up.
    """
    payload = msgspec.json.decode(facts.event.payload, type=_Payload)
    keys = tuple(dict.fromkeys(value.key for value in payload.values))
    explainer = _Explainer(facts, keys, now_ms, running, quarantined, held_back, exceeded)
    items = explainer.items()
    return Explanation(
        summary=_summary(facts, items),
        keys=keys,
        items=items,
        written_by=None if facts.writer is None else facts.writer.execution_id,
    )


class _Explainer:
    def __init__(
        self,
        facts: Facts,
        keys: tuple[str, ...],
        now_ms: int,
        running: Collection[str],
        quarantined: Mapping[str, int],
        held_back: Mapping[str, int],
        exceeded: Exceeded | None,
    ) -> None:
        self._facts = facts
        self._keys = keys
        self._now_ms = now_ms
        self._running = running
        self._quarantined = quarantined
        self._held_back = held_back
        self._exceeded = exceeded
        self._chains = _chains(facts)

    def items(self) -> tuple[Item, ...]:
        found = [self._of_trigger(trigger) for trigger in self._facts.triggers]
        bound = {trigger.function_id for trigger in self._facts.triggers}
        # What is left ran by a trigger that has been deleted since.
        for function_id, chains in self._chains.items():
            found += [self._of_chain(function_id, None, chain) for chain in chains]
        found += [
            _not_bound(code, self._facts.product)
            for code in self._facts.functions.values()
            if code.id not in bound and code.id not in self._chains and self._can_write(code)
        ]
        return tuple(found)

    def _of_trigger(self, trigger: Binding) -> Item:
        wanted = trigger.keys
        matches = not wanted or not set(wanted).isdisjoint(self._keys)
        later = trigger.created_ms > self._facts.event.received_ms
        chains = self._chains.get(trigger.function_id)
        if matches and chains and not later:
            return self._of_chain(trigger.function_id, trigger, chains.pop(0))

        def item(verdict: Verdict, detail: str) -> Item:
            return Item(
                function=trigger.function,
                trigger_id=trigger.id,
                verdict=verdict,
                detail=detail,
                wanted_keys=wanted,
            )

        if later:
            made = iso(trigger.created_ms)
            return item(Verdict.NOT_BOUND_THEN, f"the trigger was made after the event, at {made}")
        if not matches:
            return item(
                Verdict.FILTERED,
                f"the trigger wants one of the keys {', '.join(wanted)}; the event has "
                f"{', '.join(self._keys)}",
            )
        return self._not_run(trigger, item)

    def _not_run(self, trigger: Binding, item: Callable[[Verdict, str], Item]) -> Item:
        """Say why a trigger that was there and matched has no run."""
        code = self._facts.functions.get(trigger.function_id)
        live = None if code is None else _live_at(code, self._facts.event.received_ms)
        if code is not None and live is not None:
            without = [
                share.version
                for share in live.versions
                if write_handler(code.handlers.get(share.version, ())) is None
            ]
            if without:
                return item(
                    Verdict.NO_HANDLER,
                    f"version {without[0]}, live then, has neither of the handlers trigger and "
                    f"afterStore: it has {', '.join(code.handlers.get(without[0], ()))}",
                )
        writer = self._facts.writer
        if writer is not None and writer.depth + 1 > TRIGGER_DEPTH_MAX:
            way = f"; it {writer.stopped}" if writer.stopped else ""
            return item(
                Verdict.TOO_DEEP,
                f"{writer.execution_id} wrote the event {writer.depth + 1} functions deep; events "
                f"of at most {TRIGGER_DEPTH_MAX} trigger anything{way}",
            )
        if writer is not None and writer.stopped:
            return item(
                Verdict.OVER_BUDGET, f"{writer.execution_id} wrote the event, and {writer.stopped}"
            )
        return item(
            Verdict.UNKNOWN,
            "it should have run, and there is no record of it: the record was deleted by the "
            "retention, or the function had no live version then",
        )

    def _of_chain(self, function_id: str, trigger: Binding | None, chain: _Chain) -> Item:
        code = self._facts.functions.get(function_id)
        name = chain.attempts[-1].function if chain.attempts else function_id
        name = trigger.function if trigger else code.name if code else name
        told = self._waits(code, chain) if chain.waiting else self._ended(chain)
        version, why = _version(code, chain.attempts)
        return Item(
            function=name,
            trigger_id=None if trigger is None else trigger.id,
            verdict=told.verdict,
            detail=told.detail if trigger else f"{told.detail}; its trigger was deleted since",
            reason=told.reason,
            wanted_keys=() if trigger is None else trigger.keys,
            attempts=tuple(chain.attempts),
            waiting=chain.waiting,
            version=version,
            version_why=why,
            due_ms=told.due_ms,
            dead_letter_id=told.dead_letter_id,
            quarantined_until_ms=told.until_ms,
        )

    def _waits(self, code: Code | None, chain: _Chain) -> "_Told":
        waiting = chain.waiting
        assert waiting is not None
        if waiting.id in self._running:
            return _Told(Verdict.RUNNING, f"attempt {waiting.attempt} is running: {waiting.id}")
        held = _until(code, self._quarantined)
        reason = _reason(waiting, self._now_ms)
        if reason in {None, "later"} and (back_ms := _until(code, self._held_back)) is not None:
            detail = _WAITS["breaker_open"].format(due=iso(back_ms))
            return _Told(
                Verdict.WAITING, detail, reason="breaker_open", due_ms=back_ms, until_ms=held
            )
        if reason is not None:
            due = iso(waiting.due_ms)
            detail = _WAITS[reason].format(attempt=waiting.attempt, due=due)
            later = waiting.due_ms > self._now_ms
            due_ms = waiting.due_ms if later else None
            return _Told(Verdict.WAITING, detail, reason=reason, due_ms=due_ms, until_ms=held)
        if self._exceeded is not None:
            return _over_quota(self._exceeded)
        if held is not None:
            detail = (
                f"its version has taken a cell down, and runs in one of its own until {iso(held)}"
            )
            return _Told(Verdict.QUARANTINED, detail, until_ms=held)
        if waiting.node_id is None:
            return _Told(Verdict.QUEUED, "it waits for a node to claim it", reason="unclaimed")
        return _Told(Verdict.QUEUED, f"{waiting.node_id} has it", reason="claimed")

    def _ended(self, chain: _Chain) -> "_Told":
        last = chain.attempts[-1]
        error = last.error or {}
        message = str(error.get("message", ""))
        letter = next(
            (
                letter.id
                for letter in self._facts.letters
                if letter.execution_id in {one.id for one in chain.attempts}
            ),
            None,
        )
        if letter is not None and error.get("reason") == "breaker_open":
            return _Told(Verdict.SET_ASIDE, message, reason="breaker_open", dead_letter_id=letter)
        if letter is not None:
            detail = f"all {last.attempt} attempts failed, the last as {last.status}: {message}"
            return _Told(Verdict.DEAD_LETTERED, detail, dead_letter_id=letter)
        if last.status == "skipped":
            reason = str(error.get("reason") or "skipped")
            return _Told(Verdict.SKIPPED, f"{reason}: {message}", reason=reason)
        if last.status == "cancelled":
            return _Told(Verdict.CANCELLED, message or "it was cancelled")
        tried = f" at attempt {last.attempt}" if last.attempt > 1 else ""
        detail = f"{last.id} {last.status}{tried}" + (f": {message}" if message else "")
        return _Told(Verdict.RAN, detail, reason=last.status)

    @staticmethod
    def _can_write(code: Code) -> bool:
        if not code.deployments:
            return False
        live = code.deployments[0].versions
        return any(write_handler(code.handlers.get(one.version, ())) for one in live)


@dataclass(frozen=True, slots=True)
class _Told:
    """What an item says of a run."""

    verdict: Verdict
    detail: str
    reason: str | None = None
    due_ms: int | None = None
    dead_letter_id: str | None = None
    until_ms: int | None = None


def _over_quota(spent: Exceeded) -> _Told:
    detail = (
        f"the project is over its quota: {spent.name} is {spent.value:g}, used {spent.used:.3g}; "
        f"it goes on at {iso(spent.until_ms)}"
    )
    return _Told(Verdict.WAITING, detail, reason=OVER_QUOTA, due_ms=spent.until_ms)


def _until(code: Code | None, held: Mapping[str, int]) -> int | None:
    """Return until when a live version of it is among those that are held."""
    if code is None or not code.deployments:
        return None
    ids = (code.version_ids.get(share.version, "") for share in code.deployments[0].versions)
    return next((held[one] for one in ids if one in held), None)


def _chains(facts: Facts) -> dict[str, list[_Chain]]:
    """Return the runs by function, in the order in which they were made: that of their triggers."""
    found: dict[str, list[_Chain]] = {}
    for attempt in facts.attempts:
        if attempt.attempt <= 1:
            found.setdefault(attempt.function_id, []).append(_Chain(attempts=[attempt]))
    for attempt in facts.attempts:
        if attempt.attempt > 1:
            chains = found.setdefault(attempt.function_id, [])
            _chain_of(chains, attempt.root_id).attempts.append(attempt)
    for waiting in facts.waiting:
        chains = found.setdefault(waiting.function_id, [])
        if waiting.attempt > 1:
            _chain_of(chains, waiting.root_id).waiting = waiting
        else:
            chains.append(_Chain(waiting=waiting))
    for chains in found.values():
        chains.sort(key=_first_id)
    return found


def _chain_of(chains: list[_Chain], root_id: str) -> _Chain:
    """Return the run that this is a later attempt of."""
    for chain in chains:
        if chain.attempts and chain.attempts[0].id == root_id:
            return chain
    open_ones = [chain for chain in chains if chain.waiting is None]
    if not open_ones:
        chains.append(_Chain())
        return chains[-1]
    return open_ones[0]  # of those that a function caused, all have its root


def _first_id(chain: _Chain) -> str:
    if chain.attempts:
        return chain.attempts[0].id
    assert chain.waiting is not None
    return chain.waiting.id


def _reason(waiting: Waiting, now_ms: int) -> str | None:
    """Return why it may not run yet; None: it may."""
    if waiting.node_id == PARKED:
        return "order" if waiting.policy.order else "limit"
    if waiting.node_id is not None or waiting.due_ms <= now_ms:
        return None
    if waiting.attempt > 1:
        return "retry"
    flow = waiting.policy.flow
    if flow is not None and flow.debounce is not None:
        return "debounced"
    if flow is not None and flow.throttle is not None:
        return "throttled"
    return "lateness" if waiting.policy.order else "later"


def _live_at(code: Code, at_ms: int) -> Deployment | None:
    return next((one for one in code.deployments if one.created_ms <= at_ms), None)


def _version(code: Code | None, attempts: Sequence[Attempt]) -> tuple[int | None, str | None]:
    """Return which version ran last, and by which deployment."""
    number = attempts[-1].version if attempts else 0
    if not number:
        return None, None  # it ended before one was chosen
    started_ms = attempts[-1].started_ms
    for deployment in () if code is None else code.deployments:
        share = next((one for one in deployment.versions if one.version == number), None)
        if share is None or deployment.created_ms > started_ms:
            continue
        if len(deployment.versions) == 1:
            return number, f"{deployment.id} made it live for all runs"
        return number, (
            f"{deployment.id} gives it {share.percent} % of the runs; the run's id decides, so "
            "that every attempt takes the same one"
        )
    return number, "its deployment is not known any more"


def _not_bound(code: Code, product: str | None) -> Item:
    handler = next(
        found
        for share in code.deployments[0].versions
        if (found := write_handler(code.handlers.get(share.version, ())))
    )
    detail = f"it has the handler {handler}, and no trigger binds it to the product"
    if product is not None:
        detail += f" {product!r}: POST /v1/triggers makes one"
    return Item(function=code.name, trigger_id=None, verdict=Verdict.NOT_BOUND, detail=detail)


def _summary(facts: Facts, items: Sequence[Item]) -> str:
    if facts.device is None and not items:
        return "The device was deleted, and no run for the event is on record."
    concerned = [one for one in items if one.verdict is not Verdict.NOT_BOUND]
    if not concerned:
        return (
            f"Nothing ran: no trigger is bound to the product {facts.product!r}. Bind a function "
            'with POST /v1/triggers {"function": ..., "product": ...} or `cloudcode trigger add`.'
        )
    parts = []
    for verdict in Verdict:
        names = [_named(one) for one in concerned if one.verdict is verdict]
        if names:
            parts.append(f"{_PHRASES[verdict]}: {', '.join(names)}")
    ran = any(one.verdict in _HAS_RUN for one in concerned)
    return ("" if ran else "Nothing ran. ") + "; ".join(parts) + "."


def _named(item: Item) -> str:
    return f"{item.function} ({item.reason})" if item.reason else item.function


_HAS_RUN: Final = frozenset({Verdict.RAN, Verdict.DEAD_LETTERED, Verdict.RUNNING})
_PHRASES: Final[Mapping[Verdict, str]] = {
    Verdict.RAN: "Ran",
    Verdict.RUNNING: "Running",
    Verdict.QUEUED: "Queued",
    Verdict.WAITING: "Waiting",
    Verdict.QUARANTINED: "Waiting in quarantine",
    Verdict.SKIPPED: "Skipped",
    Verdict.CANCELLED: "Cancelled",
    Verdict.DEAD_LETTERED: "Failed at every attempt",
    Verdict.SET_ASIDE: "Set aside",
    Verdict.FILTERED: "Filtered out by its keys",
    Verdict.NO_HANDLER: "Without a handler for device writes",
    Verdict.NOT_BOUND_THEN: "Bound only later",
    Verdict.NOT_BOUND: "Not bound",
    Verdict.TOO_DEEP: "Too deep in a chain of functions",
    Verdict.OVER_BUDGET: "Its root event has caused enough",
    Verdict.UNKNOWN: "Without a record",
}
assert _PHRASES.keys() == set(Verdict)
