"""All parts of a cluster are killed, paused and restarted under load; `make chaos` does more."""

# ruff: noqa: T201 - the seed and the counts of what was injected are printed

import time

import pytest

from tests.faults.chaos import Size, run_chaos
from tests.faults.plan import Fault

SIZE = Size(events=1_500, jobs=200, faults=18, seconds=30, settle_s_max=90)


@pytest.mark.slow
def test_chaos_loses_nothing_and_doubles_nothing() -> None:
    """Whatever happens to nodes, cells and servers: what was accepted is there once, and ended."""
    seed = time.time_ns()

    report = run_chaos(seed, SIZE)

    print("\n".join(report.lines()))
    assert not report.broken, "\n".join([*report.broken, *map(_end_of, report.logs.items())])
    assert report.faults.keys() == set(Fault), "each kind of fault was injected"


def _end_of(log: tuple[str, str]) -> str:
    name, text = log
    return f"--- {name}\n{text[-2_000:]}"
