"""How much one root event may cause, and by which way: the guard against loops. Pure.

Path:   events, commit, hostcalls.functions, hostcalls.fetch, api.raw -> here, when one causes more
Never:  counts over all runs of a root: each run has a share of the budget for all that it causes,
        and hands out no more than that. So nothing has to be asked of any other node.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from engine.errors import EngineError, HostCallRefused
from engine.quotas import CALL_DEPTH_MAX, CAUSAL_BUDGET, TRIGGER_DEPTH_MAX

PATH_NAMES_MAX: Final = CALL_DEPTH_MAX + 1
HEADER: Final = "Cloudcode-Via"  # on every request that a function's `fetch` sends
CDN_LOOP: Final = ("CDN-Loop", "cloudcode")  # RFC 8586: says the same to proxies on the way
OUTSIDE_PART: Final = 40  # of what is left, each request but the first takes one part in so many
AT_ONCE_MS: Final = 1_000  # a job that is due later than this begins a chain of its own
_BELOW: Final = " > "
_VIA: Final = re.compile(
    r"exe_[0-9A-Za-z]{1,64};depth=(\d{1,3});budget=(\d{1,6});"
    rf'path="([A-Za-z0-9_-]{{1,64}}(?: > [A-Za-z0-9_-]{{1,64}}){{0,{PATH_NAMES_MAX - 1}}})"'
)
assert TRIGGER_DEPTH_MAX <= CALL_DEPTH_MAX


class CausalBudgetExceeded(HostCallRefused):
    """The guest's: the run's share of what its root event may cause is used up."""

    code = "causal_budget_exceeded"

    def __init__(self, path: str, share: int, used: int) -> None:
        super().__init__(used_up(path, share, used))


class CalledTooDeep(HostCallRefused):
    """The guest's: functions that call functions; names them."""

    def __init__(self, depth: int, path: str) -> None:
        super().__init__(
            f"this run is {depth} calls deep already; the most is {CALL_DEPTH_MAX}: {path}"
        )


class LoopDetected(EngineError):
    """The caller's, a function: its own requests have come back too often; names the way."""

    code = "loop_detected"

    def __init__(self, above: "Above", depth_max: int) -> None:
        why = f"{above.depth} functions deep; the most is {depth_max}"
        if above.depth < depth_max:
            why = "what its root event may cause is used up"
        super().__init__(f"the request comes from a function, by way of {above.path}: {why}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Above:
    """What a request says of the run that sent it. Anyone can write it: it can only take away."""

    depth: int
    budget: int  # for what the request causes, all told
    path: str

    def check(self, depth_max: int) -> None:
        """Refuse a request that may cause nothing any more.

        Raises:
            LoopDetected: it is too deep, or its share of the budget is used up.
        """
        if self.depth >= depth_max or self.budget <= 0:
            raise LoopDetected(self, depth_max)

    def part(self, count: int) -> "Above":
        """Return what each of `count` things gets that one request asks for."""
        return replace(self, budget=self.budget // count)


@dataclass(slots=True, kw_only=True)
class Share:
    """What the runs get that have one cause. `left`: how many more of them may be triggered."""

    depth: int
    path: str
    each: int  # the budget of each of them
    left: int
    budget: int  # of the cause
    used: int  # of it, so far
    stopped: str = ""  # why one was not triggered

    def take(self) -> bool:
        """Say whether one more run may be triggered."""
        if self.left <= 0:
            self.stopped = self.stopped or (
                f"triggers nothing: {used_up(self.path, self.budget, self.used)}"
            )
            return False
        self.left -= 1
        self.used += 1
        return True


def first_share(triggered: int) -> Share:
    """Return what the runs get that a root event triggers: so many of them."""
    return share_of(CAUSAL_BUDGET, depth=0, path="", triggered=triggered)


def share_of(budget: int, *, depth: int, path: str, called: int = 0, triggered: int = 0) -> Share:
    """Return what each of the runs gets that one cause has.

    Args:
        budget: of the cause, for these runs and all that they cause. Never less than `called`.
        depth: of the runs.
        path: the functions above them.
        called: runs that were promised.
        triggered: runs that are wanted besides. Too deep, or beyond the budget, they are not made.
    """
    left = min(triggered, budget - called) if depth <= TRIGGER_DEPTH_MAX else 0
    count = called + left
    each = (budget - count) // count if count else 0
    share = Share(depth=depth, path=path, each=each, left=left, budget=budget, used=called)
    if depth > TRIGGER_DEPTH_MAX:
        share.stopped = (
            f"triggers nothing: {depth} functions deep, at most {TRIGGER_DEPTH_MAX} are: {path}"
        )
    return share


def share_below(above: Above, triggered: int) -> Share:
    """Return what the runs get that a function's request triggers: all of them, or none.

    Raises:
        LoopDetected: as `Above.check`, or they are more than its share.
    """
    above.check(TRIGGER_DEPTH_MAX)
    share = share_of(above.budget, depth=above.depth + 1, path=above.path, triggered=triggered)
    if share.left < triggered:
        raise LoopDetected(above, TRIGGER_DEPTH_MAX)
    return share


def path_below(path: str, function: str) -> str:
    """Return the way to what `function` causes: the last PATH_NAMES_MAX names."""
    names = [*path.split(_BELOW), function] if path else [function]
    return _BELOW.join(names[-PATH_NAMES_MAX:])


def used_up(path: str, share: int, used: int) -> str:
    """Return what an author reads when a run has caused enough."""
    return (
        f"one event may cause {CAUSAL_BUDGET} runs, and this run's share of them is {share}, of "
        f"which {used} are used: {path}"
    )


def together(budgets: Iterable[int]) -> int:
    """Return the budget of a run that stands for several."""
    return min(CAUSAL_BUDGET, sum(budgets))


def outside_share(budget: int, number: int) -> int:
    """Return how much of a run's budget its outgoing request takes, number `number` from 1.

    Whether it will ever come back is not known. The first takes half, so that a chain of single
    requests may be as deep as one of calls; the others take little, so that there may be many.
    """
    if budget <= 0:
        return 0
    if number == 1:
        return budget - budget // 2
    return max(1, budget // OUTSIDE_PART)


def via(root_id: str, depth: int, budget: int, path: str) -> str:
    """Return the value of HEADER."""
    return f'{root_id};depth={depth};budget={budget};path="{path}"'


def read_via(text: str) -> Above | None:
    """Return what a request says of the run above it; None: it says nothing that we have written.

    The root is not among it: a stranger's word must not become part of any run's identity.
    """
    match = _VIA.fullmatch(text)
    if match is None:
        return None
    depth, budget, path = match.groups()
    return Above(depth=int(depth), budget=min(CAUSAL_BUDGET, int(budget)), path=path)
