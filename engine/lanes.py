"""Decides whose delivery has its turn: one lane per connection. Pure; the outbox does the doing.

Path:   outbox -> here, for every delivery it hears of and every answer it gets
Never:  reads a clock or a table; holds more than the id and the place of what is not claimed.

A delivery goes: later (a heap, by due time) -> due -> claiming -> ready -> sending -> forgotten;
those to one recipient stand in a line, of which the head goes that way. What is due after
HORIZON_MS, or beyond `known_per_lane` of a lane, stays in the table until it is read in time.
"""

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from typing import Final

from engine.connectors.contract import Answer, Retry
from engine.gates import SKEW_MS_MAX
from engine.store.deliveries import Claimed, Pending, Place
from engine.store.gates import Key
from engine.store.turns import Turns

PAUSE_MS: Final = 1_000  # after a 429 that does not say how long; Slack: one message per second
PAUSE_MS_MAX: Final = 24 * 3_600_000
LOOK_MS: Final = 5_000  # a gate is asked again at least that often: somebody may have opened it
HEAD_LOOK_MS: Final = 1_500  # the same of whom others wait for: people may end it on another node
BEHIND_MAX: Final = 32  # in memory behind the head of a line; the table holds the others
HORIZON_MS: Final = 60_000  # a sweep reads that far ahead, and is made at most every half of it
_NARROW: Final = 1
_TOO_MANY: Final = 429


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneLimits:
    """How much may be on its way at once; half of it is the most that a project gets."""

    sending: int = 32
    sending_per_lane: int = 8  # the most that settings can ask for
    usual_per_lane: int = 4  # until it is known what they ask for
    claimed: int = 128  # claimed ahead included, so that a place never waits for a commit
    known_per_lane: int = 1_000  # ids in memory; the table holds the others

    def __post_init__(self) -> None:
        assert _NARROW < self.usual_per_lane <= self.sending_per_lane, self
        assert self.sending_per_lane <= self.sending // 2, self
        assert self.sending <= self.claimed, self
        assert self.sending_per_lane <= self.known_per_lane, self


@dataclass(slots=True, eq=False)
class _Line:
    """Those to one recipient. The table has the last word of who is the oldest: see store.turns."""

    head: Pending | None = None  # it has its turn, or some that had it before it came
    behind: list[tuple[Place, str]] = field(default_factory=list)  # a heap
    more: bool = False  # the table may hold others


@dataclass(slots=True, eq=False)
class _Share:
    """What some lanes have on their way together."""

    claimed: int = 0
    sending: int = 0


@dataclass(slots=True, eq=False)
class _Project:
    """The lanes of one project."""

    lanes_count: int = 0
    all: _Share = field(default_factory=_Share)
    narrow: _Share = field(default_factory=_Share)
    turns: "deque[_Lane]" = field(default_factory=deque)  # those with something due or ready


@dataclass(slots=True, eq=False)
class _Lane:
    key: Key
    project: _Project
    width: int  # how many may be sent at once
    width_max: int  # as its settings say
    due: deque[str] = field(default_factory=deque)
    claiming: int = 0
    ready: deque[Claimed] = field(default_factory=deque)
    sending: int = 0
    paused_until_ms: int = 0  # nothing is sent
    asks_from_ms: int = 0  # nothing is claimed before
    in_turns: bool = False
    is_narrow: bool = False
    known: int = 0
    lines: dict[str, _Line] = field(default_factory=dict)  # by recipient

    @property
    def claimed(self) -> int:
        return self.claiming + len(self.ready) + self.sending

    def waits_ms(self, now_ms: int) -> list[int]:
        """Return the times that it waits for, if it has something to do then."""
        times = []
        if self.due:
            times.append(max(self.paused_until_ms, self.asks_from_ms))
        if self.ready:
            times.append(max(self.paused_until_ms, self.ready[0].at_ms))
        return [at_ms for at_ms in times if at_ms > now_ms]

    def is_timed(self, now_ms: int) -> bool:
        times = (self.paused_until_ms, self.asks_from_ms, self.ready[0].at_ms if self.ready else 0)
        return max(times) > now_ms


@dataclass(slots=True, eq=False)
class _Known:
    lane: _Lane
    pending: Pending
    due_ms: int | None = None  # its time in the heap; None: past it, or in a line
    looks: int = 0  # times that somebody of another node went before


class Lanes:
    """All that waits or is on its way.

    Projects take turns, and in each its lanes do, so a long queue of one connection delays nobody
    else's. A lane whose provider asks for patience, fails or hangs gets narrow: one at a time, and
    all narrow lanes together leave half of the places to the others: half of their project's, and
    half of all. Each success widens it again by one.
    """

    def __init__(self, limits: LaneLimits) -> None:
        self._limits = limits
        self._lanes: dict[Key, _Lane] = {}
        self._projects: dict[str, _Project] = {}
        self._more: dict[Key, _Lane] = {}  # the table holds some of theirs that are due
        self._timed: dict[Key, _Lane] = {}  # those that wait for a time, and maybe others
        self._turns: dict[_Project, None] = {}  # those with a lane that has something due or ready
        self._ready: dict[str, tuple[float, _Lane, Claimed]] = {}  # since when, the oldest first
        self._later: list[tuple[int, str]] = []
        self._known: dict[str, _Known] = {}
        self._to_read: set[tuple[Key, str]] = set()  # lines of which the table holds more
        self._far_ms: int | None = 0  # the first due time beyond the horizon; 0: never swept
        self._woken_ms = 0
        self._all, self._narrow = _Share(), _Share()

    @property
    def sending_count(self) -> int:
        return self._all.sending

    @property
    def known_count(self) -> int:
        return len(self._known)

    @property
    def known(self) -> Collection[str]:
        """Return the ids of all that it has taken in."""
        return self._known.keys()

    def add(self, pending: Pending, now_ms: int, *, more: bool = False) -> None:
        """Take in a waiting delivery. One that is known keeps the earlier of both times.

        Args:
            pending: the delivery.
            now_ms: the time.
            more: the table may hold others to its recipient, which nobody has told of.
        """
        known = self._known.get(pending.id)
        if known is not None:
            if known.due_ms is not None and pending.due_ms < known.due_ms:
                self._schedule(known, pending.due_ms)
            known.pending, known.looks = pending, 0
            return
        lane = self._lane(pending.key)
        line = None if pending.recipient is None else lane.lines.get(pending.recipient)
        if line is not None:
            line.more |= more
        if lane.known < self._limits.known_per_lane:
            self._put(lane, pending, now_ms, more=more)
        elif line is None:
            self._more[lane.key] = lane
        else:
            line.more = True

    def forget(self, delivery_id: str) -> None:
        """Let go of a delivery that waits no more: the next one to its recipient has its turn."""
        known = self._known.pop(delivery_id, None)
        if known is None:
            return
        lane, recipient = known.lane, known.pending.recipient
        lane.known -= 1
        if recipient is not None:
            self._go_on(lane, recipient, delivery_id)
        self._drop_if_idle(lane)

    def gone(self, delivery_id: str) -> None:
        """Let go of one that was ended or held by hand, unless it is being claimed: see there."""
        known = self._known.get(delivery_id)
        if known is not None and known.due_ms is not None:
            self.forget(delivery_id)

    def heads(self) -> list[Pending]:
        """Return those that wait for their time while others wait for them."""
        lines = (line for lane in self._lanes.values() for line in lane.lines.values())
        return [
            line.head
            for line in lines
            if line.head is not None
            and (line.behind or line.more)
            and self._known[line.head.id].due_ms is not None
        ]

    def not_there(self, head: Pending) -> None:
        """Let go of one of `heads` that this node has no more, unless it had its turn since."""
        known = self._known.get(head.id)
        if known is not None and known.pending is head:
            self.gone(head.id)

    def lost(self) -> list[Claimed]:
        """Let go of all that waits, another node has it; return what must be handed back unsent."""
        while waiting := [one for one, known in self._known.items() if known.due_ms is not None]:
            for delivery_id in waiting:
                self.forget(delivery_id)
        return self.hand_back_all()

    def again(self, pending: Pending, now_ms: int) -> None:
        """Take back a delivery that was claimed, for its next attempt."""
        known = self._known.get(pending.id)
        if known is None:
            self.add(pending, now_ms)
        elif pending.due_ms > now_ms + HORIZON_MS:
            self.forget(pending.id)
            self.swept(pending.due_ms)
        else:
            known.pending, known.looks = pending, 0
            self._enter(known)

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

    def lines_to_read(self) -> list[tuple[Key, str]]:
        """Return the lines whose oldest the table must tell; `line_read` must follow for each."""
        return sorted(self._to_read)

    def read_line(self, key: Key, recipient: str) -> None:
        """Ask for a line to be read: somebody in it has ended, whom this does not know."""
        self._to_read.add((key, recipient))

    def line_read(
        self, key: Key, recipient: str, oldest: Sequence[Pending], now_ms: int, *, more: bool
    ) -> None:
        """Take in the oldest of a line, in their order; `more`: there are others behind."""
        self._to_read.discard((key, recipient))
        lane = self._lane(key)
        line = lane.lines.setdefault(recipient, _Line())
        line.more = more
        for pending in oldest:
            if pending.id not in self._known:
                self._put(lane, pending, now_ms, more=more, is_asked=True)
        if line.head is None:  # what is far away comes by a sweep
            del lane.lines[recipient]
        self._drop_if_idle(lane)

    def wake(self, now_ms: int) -> None:
        """Move what has become due to its lane."""
        if now_ms < self._woken_ms - SKEW_MS_MAX:
            self._set_back()
        self._woken_ms = now_ms
        while self._later and self._later[0][0] <= now_ms:
            due_ms, delivery_id = heappop(self._later)
            known = self._known.get(delivery_id)
            if known is None or known.due_ms != due_ms:
                continue  # a newer entry stands for it, or it is gone
            known.due_ms = None
            known.lane.due.append(delivery_id)
            self._take_turns(known.lane)

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
                    self._count(lane, claimed=1)
        return asked

    def claimed(
        self, asked: Sequence[tuple[str, Key]], turns: Turns, now_ms: int, at_s: float = 0
    ) -> None:
        """Take over what was claimed; those of `asked` that are not named wait no more.

        Args:
            asked: what `to_claim` returned.
            turns: what became of them.
            now_ms: the time.
            at_s: when the claim began, by a clock that is never set; see `claimed_before`.
        """
        for key, sending in turns.sending.items():
            self._set_width(self._lane(key), sending.concurrency)
        gone = dict(asked)
        for claimed in turns.claimed:
            lane = self._lanes[gone.pop(claimed.id)]
            lane.claiming -= 1
            lane.ready.append(claimed)
            self._ready[claimed.id] = (at_s, lane, claimed)
            self._take_turns(lane)
            if claimed.at_ms > now_ms:
                self._timed[lane.key] = lane
        for delivery_id, at_ms in turns.later.items():
            lane = self._lanes[gone.pop(delivery_id)]
            self._not_claimed(lane)
            self._look_later(self._known[delivery_id], at_ms, now_ms)
        self.claim_failed([one for one in asked if one[0] in turns.back])
        for delivery_id, key in gone.items():
            if delivery_id not in turns.back:
                self._not_claimed(self._lanes[key])
                self.forget(delivery_id)
        for key, until_ms in turns.paused.items():
            self.ask_from(key, until_ms, now_ms)

    def claim_failed(self, asked: Sequence[tuple[str, Key]]) -> None:
        """Put all of `asked` back to the front of their lanes."""
        for delivery_id, key in reversed(asked):
            lane = self._lanes[key]
            self._not_claimed(lane)
            lane.due.appendleft(delivery_id)
            self._take_turns(lane)

    def ask_from(self, key: Key, at_ms: int, now_ms: int) -> None:
        """Claim nothing of a lane before that time, or LOOK_MS from now; what is claimed goes."""
        lane = self._lanes.get(key)
        if lane is not None:
            lane.asks_from_ms = min(at_ms, now_ms + LOOK_MS)
            self._timed[key] = lane

    def next_to_send(self, now_ms: int) -> Claimed | None:
        """Return the next delivery to send, if one may be sent now; `answered` must follow."""
        if self.sending_count >= self._limits.sending:
            return None
        for lane in self._each_in_turn():
            if lane.ready and self._may_send(lane, now_ms):
                lane.sending += 1
                self._count(lane, sending=1)
                claimed = lane.ready.popleft()
                del self._ready[claimed.id]
                return claimed
        return None

    def answered(self, key: Key, answer: Answer, now_ms: int) -> list[Claimed]:
        """Learn from an answer; return what must be handed back unsent. `written` must follow.

        Its place stays taken until then: so when the process dies, no more attempts are in doubt
        than may be made at once.
        """
        lane = self._lanes[key]
        if not isinstance(answer, Retry):
            lane.width = min(lane.width + 1, lane.width_max)
            if lane.width == lane.width_max:
                self._set_narrow(lane, is_narrow=False)
            return []
        lane.width = _NARROW
        self._set_narrow(lane, is_narrow=True)
        if answer.after_ms is None and answer.status != _TOO_MANY:
            return []
        pause_ms = PAUSE_MS if answer.after_ms is None else min(answer.after_ms, PAUSE_MS_MAX)
        lane.paused_until_ms = max(lane.paused_until_ms, now_ms + pause_ms)
        self._timed[key] = lane
        return self._handed_back(lane)

    def written(self, key: Key) -> None:
        """Free the place of an attempt: what came of it is stored. Before `again` and `forget`."""
        lane = self._lanes[key]
        lane.sending -= 1
        self._count(lane, claimed=-1, sending=-1)

    def hand_back(self, key: Key) -> list[Claimed]:
        """Return what is claimed in a lane and not on its way: its breaker has opened."""
        lane = self._lanes.get(key)
        return [] if lane is None else self._handed_back(lane)

    def claimed_before(self, at_s: float) -> list[Claimed]:
        """Return what was claimed before that and waits for a place: it may be another node's."""
        unsent = []
        while self._ready and (oldest := next(iter(self._ready.values())))[0] < at_s:
            _, lane, claimed = oldest
            lane.ready.remove(claimed)
            self._unsent(lane, claimed)
            unsent.append(claimed)
        return unsent

    def hand_back_all(self) -> list[Claimed]:
        """Return everything that is claimed and not on its way: the engine stops."""
        return [claimed for lane in self._lanes.values() for claimed in self._handed_back(lane)]

    def next_wake_ms(self, now_ms: int) -> int | None:
        """Return when there will be something to do without any news from outside."""
        times = [self._later[0][0]] if self._later else []
        if self._far_ms is not None:
            times.append(self._far_ms - HORIZON_MS // 2)
        for key, lane in list(self._timed.items()):
            times += lane.waits_ms(now_ms)
            if not lane.is_timed(now_ms):
                del self._timed[key]
        return min(times, default=None)

    def is_settled(self, now_ms: int) -> bool:
        """Return whether nothing is on its way and nothing could be (what is paused waits)."""
        turns = [lane for project in self._turns for lane in project.turns]
        resting = sum(
            len(lane.ready) for lane in turns if lane.ready and lane.ready[0].at_ms > now_ms
        )
        due = any(lane.due and self._may_claim(lane, now_ms) for lane in turns)
        later = self._later and self._later[0][0] <= now_ms
        reads = self.sweep_due(now_ms) or self._to_read
        return not (self._all.claimed > resting or due or later or reads)

    def _lane(self, key: Key) -> _Lane:
        lane = self._lanes.get(key)
        if lane is None:
            usual = self._limits.usual_per_lane
            project = self._projects.setdefault(key[0], _Project())
            project.lanes_count += 1
            lane = self._lanes[key] = _Lane(key, project, usual, usual)
        return lane

    def _count(self, lane: _Lane, *, claimed: int = 0, sending: int = 0) -> None:
        narrow = (self._narrow, lane.project.narrow) if lane.is_narrow else ()
        for share in (self._all, lane.project.all, *narrow):
            share.claimed += claimed
            share.sending += sending

    def _set_narrow(self, lane: _Lane, *, is_narrow: bool) -> None:
        if lane.is_narrow != is_narrow:
            lane.is_narrow = is_narrow
            sign = 1 if is_narrow else -1
            for share in (self._narrow, lane.project.narrow):
                share.claimed += sign * lane.claimed
                share.sending += sign * lane.sending

    def _not_claimed(self, lane: _Lane) -> None:
        lane.claiming -= 1
        self._count(lane, claimed=-1)

    def _unsent(self, lane: _Lane, claimed: Claimed) -> None:
        del self._ready[claimed.id]
        self._count(lane, claimed=-1)

    def _set_back(self) -> None:
        """Forget until when lanes wait: the clock was set back, so that might be never."""
        for lane in self._lanes.values():
            lane.paused_until_ms = lane.asks_from_ms = 0
            lane.ready = deque(replace(claimed, at_ms=0) for claimed in lane.ready)
            for claimed in lane.ready:
                self._ready[claimed.id] = (self._ready[claimed.id][0], lane, claimed)

    def _set_width(self, lane: _Lane, width: int) -> None:
        lane.width_max = min(width, self._limits.sending_per_lane)
        if not lane.is_narrow:
            lane.width = lane.width_max

    def _put(
        self, lane: _Lane, pending: Pending, now_ms: int, *, more: bool, is_asked: bool = False
    ) -> None:
        """Take in one that is not known, unless it is far away or its line is long enough."""
        line = None if pending.recipient is None else lane.lines.get(pending.recipient)
        is_behind = line is not None and _is_before(line.head, pending)
        if line is not None and is_behind and not is_asked and len(line.behind) >= BEHIND_MAX:
            line.more = True
            return
        if pending.due_ms > now_ms + HORIZON_MS and not is_behind:
            self.swept(pending.due_ms)
            self._drop_if_idle(lane)
            return
        if line is None and pending.recipient is not None:
            lane.lines[pending.recipient] = _Line(more=more)
        known = self._known[pending.id] = _Known(lane, pending)
        lane.known += 1
        self._enter(known)

    def _enter(self, known: _Known) -> None:
        """Let one have its turn at its time, or behind the head of its line."""
        pending = known.pending
        line = None if pending.recipient is None else known.lane.lines.get(pending.recipient)
        if line is None:
            self._schedule(known, pending.due_ms)
        elif _is_before(line.head, pending):
            known.due_ms = None
            heappush(line.behind, (pending.place, pending.id))
        else:
            other, line.head = line.head, pending
            self._schedule(known, pending.due_ms)
            if other is not None and other.id != pending.id:
                waiting = self._known[other.id]
                if waiting.due_ms is not None:  # else it asks, and is told who goes before
                    waiting.due_ms = None
                    heappush(line.behind, (other.place, other.id))

    def _schedule(self, known: _Known, due_ms: int) -> None:
        known.due_ms = due_ms
        heappush(self._later, (due_ms, known.pending.id))

    def _look_later(self, known: _Known, at_ms: int, now_ms: int) -> None:
        """Ask again for one before whom the table has somebody."""
        recipient = known.pending.recipient
        line = None if recipient is None else known.lane.lines.get(recipient)
        if line is not None and line.head is not None and line.head.id != known.pending.id:
            self._enter(known)  # somebody older came meanwhile
            return
        wait_ms = max(at_ms - now_ms, min((at_ms - now_ms) << min(known.looks, 4), LOOK_MS))
        known.looks += 1
        self._schedule(known, now_ms + min(wait_ms, HEAD_LOOK_MS))
        if recipient is not None:  # it may be one of this node's
            self._to_read.add((known.lane.key, recipient))

    def _go_on(self, lane: _Lane, recipient: str, gone_id: str) -> None:
        """Let the next in a line have its turn, once one of it has ended."""
        line = lane.lines.get(recipient)
        if line is None:  # its head was far away; others may wait for this one
            self._to_read.add((lane.key, recipient))
            return
        if line.head is not None and line.head.id != gone_id:
            head = self._known[line.head.id]
            if head.looks and head.due_ms is not None:  # it waits for this one
                head.looks = 0
                self._schedule(head, head.pending.due_ms)
            return
        line.head = None
        while line.behind and line.head is None:
            known = self._known.get(heappop(line.behind)[1])
            if known is not None:
                line.head = known.pending
                self._schedule(known, known.pending.due_ms)
        if line.head is None and line.more:
            self._to_read.add((lane.key, recipient))
        elif line.head is None:
            del lane.lines[recipient]

    def _take_turns(self, lane: _Lane) -> None:
        if not lane.in_turns:
            lane.in_turns = True
            self._turns.setdefault(lane.project)
            lane.project.turns.append(lane)

    def _each_in_turn(self) -> Iterator[_Lane]:
        """Yield a lane of each project, then another of each that has more, until all had it."""
        round_ = deque((project, len(project.turns)) for project in self._turns)
        while round_:
            project, left = round_.popleft()
            del self._turns[project]
            lane = project.turns.popleft()
            has_turn = bool(lane.due or lane.ready)
            if has_turn:
                project.turns.append(lane)  # before it acts: whoever acts goes to the end
            else:
                lane.in_turns = False
            if project.turns:
                self._turns[project] = None
            if left > 1:
                round_.append((project, left - 1))
            if has_turn:
                yield lane
            else:
                self._drop_if_idle(lane)

    def _may_claim(self, lane: _Lane, now_ms: int) -> bool:
        if max(lane.paused_until_ms, lane.asks_from_ms) > now_ms:
            return False
        if lane.claimed >= 2 * lane.width:
            return False
        most, project = self._limits.claimed, lane.project
        if self._all.claimed >= most or project.all.claimed >= most // 2:
            return False
        return not lane.is_narrow or (
            self._narrow.claimed < most // 2 and project.narrow.claimed < most // 4
        )

    def _may_send(self, lane: _Lane, now_ms: int) -> bool:
        if lane.paused_until_ms > now_ms or lane.sending >= lane.width:
            return False
        if lane.ready[0].at_ms > now_ms:
            return False
        most, project = self._limits.sending, lane.project
        if project.all.sending >= most // 2:
            return False
        return not lane.is_narrow or (
            self._narrow.sending < most // 2 and project.narrow.sending < most // 4
        )

    def _handed_back(self, lane: _Lane) -> list[Claimed]:
        unsent = list(lane.ready)
        lane.ready.clear()
        for claimed in unsent:
            self._unsent(lane, claimed)
        return unsent

    def _drop_if_idle(self, lane: _Lane) -> None:
        """Forget a lane with nothing to do, so lanes do not pile up: its gate knows of failures."""
        is_of_use = lane.known or lane.lines or lane.in_turns or lane.claimed
        if is_of_use or lane.key in self._more or self._lanes.get(lane.key) is not lane:
            return
        del self._lanes[lane.key]
        self._timed.pop(lane.key, None)
        lane.project.lanes_count -= 1
        if not lane.project.lanes_count:
            del self._projects[lane.key[0]]


def _is_before(head: Pending | None, pending: Pending) -> bool:
    return head is not None and head.place < pending.place
