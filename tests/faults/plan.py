"""What is to be done to a cluster and when: made of a seed, so that a run can be had again. Pure.

Path:   chaos -> `make_plan` -> `chaos.Injector`
Never:  does two things at once to one process: each fault has its target for itself until its end.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import Final


class Fault(StrEnum):
    WORKER_KILLED = "kill -9 of a worker"
    API_KILLED = "kill -9 of an API node"
    CELL_KILLED = "kill -9 of a cell"
    WORKER_PAUSED = "SIGSTOP of a worker past its lease"
    API_PAUSED = "SIGSTOP of an API node past its lease"
    REDIS_FLUSHED = "FLUSHALL"
    REDIS_RESTARTED = "Redis killed and started empty"
    POSTGRES_CRASHED = "PostgreSQL killed (immediate) and recovered"
    POSTGRES_RESTARTED = "PostgreSQL restarted (fast)"
    WORKER_STOPPED = "SIGTERM of a worker"


WEIGHTS: Final[Mapping[Fault, int]] = {
    Fault.WORKER_KILLED: 4,
    Fault.API_KILLED: 2,
    Fault.CELL_KILLED: 8,
    Fault.WORKER_PAUSED: 3,
    Fault.API_PAUSED: 1,
    Fault.REDIS_FLUSHED: 3,
    Fault.REDIS_RESTARTED: 2,
    Fault.POSTGRES_CRASHED: 2,
    Fault.POSTGRES_RESTARTED: 1,
    Fault.WORKER_STOPPED: 1,
}
assert WEIGHTS.keys() == set(Fault)
LASTS_S: Final[Mapping[Fault, tuple[float, float]]] = {  # how long the target is away
    Fault.WORKER_KILLED: (0.2, 6.0),
    Fault.API_KILLED: (0.2, 4.0),
    Fault.REDIS_RESTARTED: (0.1, 3.0),
    Fault.POSTGRES_CRASHED: (0.1, 3.0),
    Fault.POSTGRES_RESTARTED: (0.1, 1.5),
    Fault.WORKER_STOPPED: (0.2, 2.0),
}
PAUSE_LEASES: Final = (1.5, 2.5)
OF_A_WORKER: Final = frozenset({Fault.WORKER_KILLED, Fault.WORKER_PAUSED, Fault.WORKER_STOPPED})
OF_AN_API: Final = frozenset({Fault.API_KILLED, Fault.API_PAUSED})
OF_REDIS: Final = frozenset({Fault.REDIS_FLUSHED, Fault.REDIS_RESTARTED})
STARTS_S: Final = 3.0  # a process that starts anew is left alone for so long


@dataclass(frozen=True, slots=True, order=True, kw_only=True)
class Step:
    """One fault: from when to when, and what it befalls."""

    at_s: float
    until_s: float
    fault: Fault
    target: str  # a node's name; redis, postgres; cells: empty, who lives is chosen then


def make_plan(
    rng: Random,
    *,
    seconds: float,
    count: int,
    workers: Sequence[str],
    apis: Sequence[str],
    lease_s: float,
) -> list[Step]:
    """Return about `count` faults spread over the time, each kind at least once.

    Args:
        rng: the only source of chance.
        seconds: when the last one begins, at the latest.
        count: how many.
        workers: names of nodes.
        apis: one of them is always left alone.
        lease_s: pauses are longer.
    """
    kinds = list(Fault)
    kinds += rng.choices(
        kinds, weights=[WEIGHTS[kind] for kind in kinds], k=max(0, count - len(kinds))
    )
    rng.shuffle(kinds)
    gap_s = seconds / len(kinds)
    free_s: Counter[str] = Counter()  # by target: busy until then
    steps = []
    for number, fault in enumerate(kinds):
        at_s = gap_s * (number + rng.random())
        target, at_s = _target(fault, at_s, rng, free_s, workers, apis)
        if fault in {Fault.WORKER_PAUSED, Fault.API_PAUSED}:
            lasts_s = lease_s * rng.uniform(*PAUSE_LEASES)
        else:
            lasts_s = rng.uniform(*LASTS_S.get(fault, (0.0, 0.0)))
        until_s = at_s + lasts_s
        steps.append(Step(at_s=at_s, until_s=until_s, fault=fault, target=target))
        free_s["api" if fault in OF_AN_API else target] = until_s + STARTS_S
    return sorted(steps)


def _target(
    fault: Fault,
    at_s: float,
    rng: Random,
    free_s: Counter[str],
    workers: Sequence[str],
    apis: Sequence[str],
) -> tuple[str, float]:
    """Return whom it befalls and when: not before the target has got over the last one."""
    if fault in OF_AN_API:
        return rng.choice(apis), max(at_s, free_s["api"])
    if fault in OF_A_WORKER:
        target = min(workers, key=lambda name: (max(at_s, free_s[name]), rng.random()))
    elif fault is Fault.CELL_KILLED:
        return "", at_s
    else:
        target = "redis" if fault in OF_REDIS else "postgres"
    return target, max(at_s, free_s[target])
