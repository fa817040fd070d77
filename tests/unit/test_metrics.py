"""Counters of functions: what they remember, and for how long."""

from types import SimpleNamespace
from typing import Any

from engine.metrics import NAMES_MAX, Metrics
from runtimes.contract import Outcome

TOTAL = "cloudcode_executions_total"
COLD = "cloudcode_coldstarts_total"


def ended(metrics: Metrics, name: str) -> None:
    """Count a run of the function; nothing else of a run is looked at."""
    run: Any = SimpleNamespace(
        outcome=Outcome.SUCCEEDED, version=SimpleNamespace(function=name), cause="http", cold=True,
        started_ns=0, ended_ns=0, cpu_ns=0, queue_ns=0, peak_bytes=0, losses=0,
    )  # fmt: skip
    metrics.run_ended(run)


def names(metrics: Metrics, metric: str) -> set[str]:
    return {key[0] for key in metrics.snapshot()[metric]}


def test_a_function_that_is_deleted_is_forgotten() -> None:
    """Also when a last run of it ends later; the others are counted on."""
    metrics, known = Metrics(), {"kept", "gone"}
    metrics.known = lambda: known
    ended(metrics, "kept")
    ended(metrics, "gone")
    assert names(metrics, TOTAL) == {"kept", "gone"}

    known.remove("gone")
    ended(metrics, "gone")

    assert names(metrics, TOTAL) == names(metrics, COLD) == {"kept"}


def test_beyond_so_many_names_functions_are_counted_together() -> None:
    """Nobody can let the page grow without end; no run is missing from the sum."""
    metrics = Metrics()

    for number in range(NAMES_MAX + 100):
        ended(metrics, f"f{number}")

    found = metrics.snapshot()[TOTAL]
    assert len(found) == NAMES_MAX + 1
    assert found["other", "http", "succeeded"] == 100
