"""Whose run goes to a cell next: what every project waits in, and how they take turns.

Path:   dispatch.submit -> `admit` -> runner;  dispatch.end -> `left` -> `release` -> runner
Never:  lets a project's number of runs decide how much CPU it gets; changes the order within one.

Deficit round robin (Shreedhar and Varghese, 1995), counted in CPU time: each round gives every
project that waits the same, a run costs what its version's last runs took, and its end corrects it.
Time and room are the caller's; nothing here knows a cell.
"""

from collections import OrderedDict
from collections.abc import Callable, Container, Iterable
from itertools import chain
from typing import Final

from engine.allowances import Effective
from engine.run import Run

RUNS_MAX: Final = 2_048  # in cells of this node at a time: one more waits for its turn
FLOOR: Final = 8  # of one project that get in however full it is: nobody waits for a flood to end
CALLS_IN_A_ROW: Final = 3  # then a queued run of the project has its turn
CALLS_WAITING_MAX: Final = 1_000  # of one project, somebody waiting for each of their answers
QUANTUM_NS: Final = 10_000_000  # of CPU that a project gets in a round
DEBT_NS_MAX: Final = 60_000_000_000  # what is remembered of having used more than was expected
GUESS_NS: Final = 1_000_000  # what the first run of a version costs, until it has ended
LINES_MAX: Final = 10_000  # projects; beyond it those that do nothing are forgotten
VERSIONS_MAX: Final = 1_000  # of one project whose costs are remembered
OVERDUE_EVERY_NS: Final = 100_000_000  # how often all waiting calls are looked at
RECHECK_EVERY_NS: Final = 1_000_000_000  # how often all that is parked is looked at
OUTSIDE: Final = -1  # `Run.charged_ns` of a run that is in no cell
_STRAIGHT: Final = 0  # ... that did not have to wait


class _Line:
    """One project: what of it is in cells, what waits, and what it may still have this round."""

    __slots__ = (
        "calls",
        "calls_in_a_row",
        "cost_ns",
        "deficit_ns",
        "inside_count",
        "left_at_round",
        "project_id",
        "queued",
    )

    def __init__(self, project_id: str) -> None:
        self.project_id = project_id
        self.inside_count = 0
        self.calls: OrderedDict[Run, None] = OrderedDict()  # somebody waits for their answers
        self.queued: OrderedDict[Run, None] = OrderedDict()
        self.calls_in_a_row = 0
        self.deficit_ns = 0
        self.left_at_round = 0
        self.cost_ns: dict[str, int] = {}  # by version's id, of late

    @property
    def empty(self) -> bool:
        return not self.calls and not self.queued

    def learn(self, version_id: str, used_ns: int) -> None:
        if version_id not in self.cost_ns and len(self.cost_ns) >= VERSIONS_MAX:
            self.cost_ns.clear()
        before_ns = self.cost_ns.get(version_id, used_ns)
        self.cost_ns[version_id] = (3 * before_ns + used_ns) // 4

    def pop(self) -> Run:
        """Take out the next: calls first, but a flood of them keeps no queued run waiting."""
        is_call = bool(self.calls) and (not self.queued or self.calls_in_a_row < CALLS_IN_A_ROW)
        self.calls_in_a_row = self.calls_in_a_row + 1 if is_call else 0
        return (self.calls if is_call else self.queued).popitem(last=False)[0]


class FairShare:
    """All runs of a node that wait for room in its cells, and the count of those that have it."""

    def __init__(
        self,
        allowances: Callable[[str], Effective],
        held_back: Container[str],
        *,
        runs_max: int = RUNS_MAX,
        floor: int = FLOOR,
    ) -> None:
        """`allowances` is asked by project id for the concurrency of a project, 0: any.

        `held_back` has the ids of projects whose runs all wait for now.
        """
        self._allowances = allowances
        self._held_back = held_back
        self._runs_max = runs_max
        self._floor = floor
        self._lines: dict[str, _Line] = {}
        # Those with something waiting: whose turn it is first; and, apart, those that may have
        # none, so that they cost the others nothing: held back, or at their own concurrency.
        self._ring: OrderedDict[str, _Line] = OrderedDict()
        self._parked: dict[str, _Line] = {}
        self._rounds = 0
        self._looked_ns = 0
        self._rechecked_ns = 0
        self.inside_count = 0
        self.waiting_count = 0

    def inside(self, project_id: str) -> int:
        """Return how many runs of a project are in cells."""
        line = self._lines.get(project_id)
        return 0 if line is None else line.inside_count

    def waiting(self) -> dict[str, int]:
        """Return how many runs wait, by project."""
        return {line.project_id: len(line.calls) + len(line.queued) for line in self._waiting()}

    def admit(self, run: Run) -> bool:
        """Count the run in if it may go to its cell now; else let it wait in its project's line."""
        project_id = run.version.project_id
        line = self._lines.get(project_id) or self._new_line(project_id)
        if line.empty and self._may_enter(line):
            run.charged_ns = _STRAIGHT
            line.inside_count += 1
            self.inside_count += 1
            return True
        if line.empty:
            self._line_up(line)
        (line.queued if run.queued else line.calls)[run] = None
        self.waiting_count += 1
        return False

    def calls_full(self, project_id: str) -> bool:
        """Say whether so many calls of a project wait that one more would only wait in vain."""
        line = self._lines.get(project_id)
        return line is not None and len(line.calls) >= CALLS_WAITING_MAX

    def left(self, run: Run) -> None:
        """Count out a run that has ended, and charge what it used; does nothing if it waited."""
        charged_ns = run.charged_ns
        if charged_ns == OUTSIDE:
            return
        run.charged_ns = OUTSIDE
        line = self._lines[run.version.project_id]
        line.inside_count -= 1
        self.inside_count -= 1
        if charged_ns or self._ring:  # nobody is owed what nobody has waited for
            used_ns = run.spent_ns
            line.deficit_ns = max(-DEBT_NS_MAX, line.deficit_ns + charged_ns - used_ns)
            if run.started_ns:
                line.learn(run.version.id, used_ns)
        if line.project_id in self._parked and self._is_free(line):
            self._line_up(line)

    def recheck(self) -> None:
        """Let those take part again that nothing of their own holds back any more."""
        for line in [line for line in self._parked.values() if self._is_free(line)]:
            self._line_up(line)

    def forget(self, run: Run) -> bool:
        """Take out a run that waits; return whether it did."""
        line = self._lines.get(run.version.project_id)
        if line is None:
            return False
        runs = line.queued if run.queued else line.calls
        if run not in runs:
            return False
        del runs[run]
        self.waiting_count -= 1
        if line.empty:
            self._stand_aside(line)
        return True

    def take(self, version_id: str) -> list[Run]:
        """Take out, and return, those of a version that wait."""
        runs = [
            run
            for line in self._waiting()
            for run in (*line.calls, *line.queued)
            if run.version.id == version_id
        ]
        for run in runs:
            self.forget(run)
        return runs

    def release(self) -> list[Run]:
        """Count in, and return, those whose turn it is: as many as there is room for."""
        released: list[Run] = []
        for line in tuple(self._ring.values()):  # first those with next to nothing in cells
            while line.inside_count < self._floor and not line.empty and self._may_enter(line):
                released.append(self._enter(line))
            self._takes_part(line)
        while self._ring and self._go_round(released):
            ready = [line for line in self._ring.values() if self._may_enter(line)]
            if not ready:
                break
            # As many rounds as bring somebody a turn, at once.
            rounds = min(max(0, -line.deficit_ns) // QUANTUM_NS + 1 for line in ready)
            self._rounds += rounds
            for line in ready:
                line.deficit_ns += rounds * QUANTUM_NS
        return released

    def _go_round(self, released: list[Run]) -> bool:
        """Let each project use up what it has; return whether all of them had their turn."""
        for _ in range(len(self._ring)):
            line = next(iter(self._ring.values()))
            while line.deficit_ns > 0 and not line.empty and self._may_enter(line):
                released.append(self._enter(line))
            if self._takes_part(line):
                if line.deficit_ns > 0 and self.inside_count >= self._runs_max:
                    return False  # it is the node that has no room; this one's turn is not over
                self._ring.move_to_end(line.project_id)
        return True

    def overdue(self, now_ns: int) -> list[Run]:
        """Take out, and return, calls that have waited for as long as they might have run."""
        if now_ns - self._looked_ns < OVERDUE_EVERY_NS:
            return []
        self._looked_ns = now_ns
        if now_ns - self._rechecked_ns >= RECHECK_EVERY_NS:
            self._rechecked_ns = now_ns
            self.recheck()  # an allowance may have changed
        late = [
            run
            for line in self._waiting()
            for run in line.calls
            if now_ns - run.created_ns > run.limits.wall_ms * 1_000_000
        ]
        for run in late:
            self.forget(run)
        return late

    def clear(self) -> list[Run]:
        """Take out, and return, all that waits."""
        runs = list(chain.from_iterable((*line.calls, *line.queued) for line in self._waiting()))
        for run in runs:
            self.forget(run)
        return runs

    def _may_enter(self, line: _Line) -> bool:
        has_room = self.inside_count < self._runs_max or line.inside_count < self._floor
        return has_room and self._is_free(line)

    def _is_free(self, line: _Line) -> bool:
        """Say whether nothing of its own holds the project back."""
        if line.project_id in self._held_back:
            return False
        most = self._allowances(line.project_id).concurrency
        return line.inside_count < most or not most

    def _enter(self, line: _Line) -> Run:
        run = line.pop()
        self.waiting_count -= 1
        cost_ns = max(1, line.cost_ns.get(run.version.id, GUESS_NS))
        run.charged_ns = cost_ns
        line.deficit_ns -= cost_ns
        line.inside_count += 1
        self.inside_count += 1
        return run

    def _waiting(self) -> Iterable[_Line]:
        return chain(self._ring.values(), self._parked.values())

    def _takes_part(self, line: _Line) -> bool:
        """Say whether the line stays in the ring; if not, it has been taken out."""
        if line.empty or not self._is_free(line):
            self._stand_aside(line)
            return False
        return True

    def _line_up(self, line: _Line) -> None:
        """Something of it waits: it has its turn last."""
        if not self._is_free(line):
            self._parked[line.project_id] = line
            return
        self._parked.pop(line.project_id, None)
        missed_ns = (self._rounds - line.left_at_round) * QUANTUM_NS
        line.deficit_ns = max(line.deficit_ns, min(0, line.deficit_ns + missed_ns))  # debts go by
        self._ring[line.project_id] = line

    def _stand_aside(self, line: _Line) -> None:
        """Nothing of it waits any more, or nothing of it may begin."""
        was_in_ring = self._ring.pop(line.project_id, None) is not None
        if was_in_ring:
            line.left_at_round = self._rounds
        if line.empty:
            self._parked.pop(line.project_id, None)
            line.deficit_ns = min(0, line.deficit_ns)  # savings are none
        else:
            self._parked[line.project_id] = line

    def _new_line(self, project_id: str) -> _Line:
        if len(self._lines) >= LINES_MAX:
            for one in tuple(self._lines.values()):
                if not one.inside_count and one.empty:
                    del self._lines[one.project_id]
        line = self._lines[project_id] = _Line(project_id)
        line.left_at_round = self._rounds
        return line
