"""Decides whose delivery has its turn: one lane per connection. Pure; the outbox does the doing.

Path:   outbox -> here, for every delivery it hears of and every answer it gets
Never:  reads a clock or a table; holds more than the id of what is not claimed.

A delivery goes: later (a heap, by due time) -> due -> claiming -> ready -> sending -> forgotten.
What is due after HORIZON_MS, or beyond `known_per_lane` of one lane, stays in the table and
is read in time (`sweep_due`, `lanes_to_refill`): no dead provider's backlog fills the memory.
"""

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Final

from engine.connectors.contract import Answer, Retry
from engine.store.deliveries import Claimed, Key, Pending

PAUSE_MS: Final = 1_000  # after a 429 that does not say how long; Slack: one message per second
PAUSE_MS_MAX: Final = 24 * 3_600_000
HORIZON_MS: Final = 60_000  # a sweep reads that far ahead, and is made at most every half of it
_NARROW: Final = 1
_TOO_MANY: Final = 429


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneLimits:
    """How much may be on its way at once."""

    sending: int = 8
    sending_per_lane: int = 4
    claimed: int = 32  # claimed ahead included, so that a place never waits for a commit
    known_per_lane: int = 1_000  # ids in memory; the table holds the others

    def __post_init__(self) -> None:
        assert _NARROW < self.sending_per_lane <= self.sending <= self.claimed, self
        assert 2 * self.sending_per_lane <= self.known_per_lane, self


@dataclass(slots=True, eq=False)
class _Lane:
    key: Key
    width: int  # how many may be sent at once
    due: deque[str] = field(default_factory=deque)
    claiming: int = 0
    ready: deque[Claimed] = field(default_factory=deque)
    sending: int = 0
    paused_until_ms: int = 0
    in_turns: bool = False
    known: int = 0

    @property
    def claimed(self) -> int:
        return self.claiming + len(self.ready) + self.sending


class Lanes:
    """All that waits or is on its way.

    Lanes take turns, so a long queue of one connection delays nobody else's. A lane whose provider
    asks for patience, fails or hangs gets narrow: one at a time, and all narrow lanes together
    leave half of the places to the others. Each success widens it again by one.
    """

    def __init__(self, limits: LaneLimits) -> None:
        self._limits = limits
        self._lanes: dict[Key, _Lane] = {}
        self._narrow: dict[Key, _Lane] = {}
        self._more: dict[Key, _Lane] = {}  # the table holds some of theirs that are due
        self._turns: deque[_Lane] = deque()  # lanes with something due or ready
        self._later: list[tuple[int, str]] = []
        self._known: dict[str, tuple[_Lane, int | None]] = {}  # its time in the heap; None: past it
        self._far_ms: int | None = 0  # the first due time beyond the horizon; 0: never swept
        self._claimed = 0
        self.sending_count = 0

    @property
    def known_count(self) -> int:
        return len(self._known)

    @property
    def known(self) -> Collection[str]:
        """Return the ids of all that it has taken in."""
        return self._known.keys()

    def add(self, pending: Pending, now_ms: int) -> None:
        """Take in a waiting delivery. One that is known keeps the earlier of both times."""
        if pending.due_ms > now_ms + HORIZON_MS:
            self.swept(pending.due_ms)
            return
        if pending.id in self._known:
            lane, known_ms = self._known[pending.id]
            if known_ms is None or known_ms <= pending.due_ms:
                return
        else:
            lane = self._lane(pending.key)
            if lane.known >= self._limits.known_per_lane:
                self._more[lane.key] = lane
                return
            lane.known += 1
        self._known[pending.id] = (lane, pending.due_ms)
        heappush(self._later, (pending.due_ms, pending.id))

    def forget(self, delivery_id: str) -> None:
        """Let go of a delivery whose new state is stored; `add` it again if it waits for more."""
        known = self._known.pop(delivery_id, None)
        if known is not None:
            known[0].known -= 1
            self._drop_if_idle(known[0])

    def sweep_due(self, now_ms: int) -> bool:
        """Return whether the table must be read for what comes nearer."""
        return self._far_ms is not None and self._far_ms <= now_ms + HORIZON_MS // 2

    def sweep_begins(self) -> None:
        """Note that the table is being read; `swept` must follow, with 0 when it failed."""
        self._far_ms = None

    def swept(self, far_ms: int | None) -> None:
        """Remember the first due time that is too far away to take in."""
        if far_ms is not None:
            self._far_ms = far_ms if self._far_ms is None else min(self._far_ms, far_ms)

    def lanes_to_refill(self) -> list[Key]:
        """Return the lanes that left deliveries in the table and have room for them now."""
        room = self._limits.known_per_lane // 2
        return [key for key, lane in self._more.items() if lane.known <= room]

    def refilled(self, key: Key, *, more: bool) -> None:
        """Note whether the table holds even more; call it before adding what it gave."""
        if more:
            self._more[key] = self._lane(key)
        else:
            self._more.pop(key, None)

    def wake(self, now_ms: int) -> None:
        """Move what has become due to its lane."""
        while self._later and self._later[0][0] <= now_ms:
            due_ms, delivery_id = heappop(self._later)
            known = self._known.get(delivery_id)
            if known is None or known[1] != due_ms:
                continue  # a newer entry stands for it, or it is gone
            lane = known[0]
            self._known[delivery_id] = (lane, None)
            lane.due.append(delivery_id)
            self._take_turns(lane)

    def to_claim(self, now_ms: int) -> list[tuple[str, Key]]:
        """Return what to claim now, turn by turn; `claimed` or `claim_failed` must follow."""
        asked: list[tuple[str, Key]] = []
        count = -1
        while count != len(asked):
            count = len(asked)
            for lane in self._each_in_turn():
                if lane.due and self._may_claim(lane, now_ms):
                    asked.append((lane.due.popleft(), lane.key))
                    lane.claiming += 1
                    self._claimed += 1
        return asked

    def claimed(self, asked: Sequence[tuple[str, Key]], got: Iterable[Claimed]) -> None:
        """Take over what was claimed; the others of `asked` do not wait any more: forget them."""
        gone = dict(asked)
        for claimed in got:
            lane = self._lanes[gone.pop(claimed.id)]
            lane.claiming -= 1
            lane.ready.append(claimed)
            self._take_turns(lane)
        for delivery_id, key in gone.items():
            lane = self._lanes[key]
            lane.claiming -= 1
            self._claimed -= 1
            self.forget(delivery_id)

    def claim_failed(self, asked: Sequence[tuple[str, Key]]) -> None:
        """Put all of `asked` back to the front of their lanes."""
        for delivery_id, key in reversed(asked):
            lane = self._lanes[key]
            lane.claiming -= 1
            self._claimed -= 1
            lane.due.appendleft(delivery_id)
            self._take_turns(lane)

    def next_to_send(self, now_ms: int) -> Claimed | None:
        """Return the next delivery to send, if one may be sent now; `answered` must follow."""
        if self.sending_count >= self._limits.sending:
            return None
        for lane in self._each_in_turn():
            if lane.ready and self._may_send(lane, now_ms):
                lane.sending += 1
                self.sending_count += 1
                return lane.ready.popleft()
        return None

    def answered(self, key: Key, answer: Answer, now_ms: int) -> list[Claimed]:
        """Free the place and learn from the answer; return what must be handed back unsent."""
        lane = self._lanes[key]
        lane.sending -= 1
        self.sending_count -= 1
        self._claimed -= 1
        if not isinstance(answer, Retry):
            lane.width = min(lane.width + 1, self._limits.sending_per_lane)
            if lane.width == self._limits.sending_per_lane:
                self._narrow.pop(key, None)
            return []
        lane.width = _NARROW
        self._narrow[key] = lane
        if answer.after_ms is None and answer.status != _TOO_MANY:
            return []
        pause_ms = PAUSE_MS if answer.after_ms is None else min(answer.after_ms, PAUSE_MS_MAX)
        lane.paused_until_ms = max(lane.paused_until_ms, now_ms + pause_ms)
        return self._handed_back(lane)

    def hand_back_all(self) -> list[Claimed]:
        """Return everything that is claimed and not on its way: the engine stops."""
        return [claimed for lane in self._lanes.values() for claimed in self._handed_back(lane)]

    def next_wake_ms(self, now_ms: int) -> int | None:
        """Return when there will be something to do without any news from outside."""
        times = [self._later[0][0]] if self._later else []
        if self._far_ms is not None:
            times.append(self._far_ms - HORIZON_MS // 2)
        times += [
            lane.paused_until_ms
            for lane in self._narrow.values()
            if (lane.due or lane.ready) and lane.paused_until_ms > now_ms
        ]
        return min(times, default=None)

    def is_settled(self, now_ms: int) -> bool:
        """Return whether nothing is on its way and nothing could be (what is paused waits)."""
        due = any(lane.due and lane.paused_until_ms <= now_ms for lane in self._turns)
        later = self._later and self._later[0][0] <= now_ms
        return not (self._claimed or due or later or self.sweep_due(now_ms))

    def _lane(self, key: Key) -> _Lane:
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane(key, self._limits.sending_per_lane)
        return lane

    def _take_turns(self, lane: _Lane) -> None:
        if not lane.in_turns:
            lane.in_turns = True
            self._turns.append(lane)

    def _each_in_turn(self) -> Iterator[_Lane]:
        for _ in range(len(self._turns)):
            lane = self._turns.popleft()
            if lane.due or lane.ready:
                self._turns.append(lane)  # before it acts: whoever acts goes to the end
                yield lane
            else:
                lane.in_turns = False
                self._drop_if_idle(lane)

    def _may_claim(self, lane: _Lane, now_ms: int) -> bool:
        if lane.paused_until_ms > now_ms or lane.claimed >= 2 * lane.width:
            return False
        narrow_max = self._limits.claimed // 2
        return self._claimed < self._limits.claimed and (
            lane.key not in self._narrow
            or sum(other.claimed for other in self._narrow.values()) < narrow_max
        )

    def _may_send(self, lane: _Lane, now_ms: int) -> bool:
        if lane.paused_until_ms > now_ms or lane.sending >= lane.width:
            return False
        narrow_max = self._limits.sending // 2
        return (
            lane.key not in self._narrow
            or sum(other.sending for other in self._narrow.values()) < narrow_max
        )

    def _handed_back(self, lane: _Lane) -> list[Claimed]:
        unsent = list(lane.ready)
        lane.ready.clear()
        self._claimed -= len(unsent)
        return unsent

    def _drop_if_idle(self, lane: _Lane) -> None:
        """Forget a lane that knows nothing worth keeping, so lanes do not pile up."""
        if not (lane.known or lane.in_turns or lane.key in self._more or lane.key in self._narrow):
            self._lanes.pop(lane.key, None)
