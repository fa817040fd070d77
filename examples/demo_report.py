"""Holds what the engine says against what the CSV says, and prints both side by side."""

import json
import statistics
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from demo_services import celsius_of
from expected import KEY, Expected, mean
from rich.console import Console
from rich.table import Table

ON_WRITE = ("daily_stats", "alarms")
FORECAST_DAYS = 3  # as in forecast.js
DIFFERENCES_SHOWN = 50


@dataclass(kw_only=True)
class Found:
    """What the engine says, read back through its API."""

    readings: dict[str, float]
    events: list[str]
    rejected: int
    executions: list[dict[str, Any]]
    daily: dict[str, dict[str, float]]
    deliveries: Counter[str]
    received: list[str] | None


@dataclass(kw_only=True)
class Outcome:
    """The table's rows (what, engine, CSV, agrees), latencies, and every difference in words."""

    rows: list[tuple[str, str, str, bool]] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    latencies: dict[str, tuple[float, float]] = field(default_factory=dict)  # p50, p99 in ms
    seconds: dict[str, float] = field(default_factory=dict)
    engine_stderr: str = ""  # only when something differs

    def row(self, what: str, engine_says: object, csv_says: object) -> None:
        self.rows.append((what, str(engine_says), str(csv_says), engine_says == csv_says))
        if engine_says != csv_says:
            self.differences.append(f"{what}: the engine says {engine_says}, the CSV {csv_says}")

    def values(self, what: str, engine_says: dict[str, float], csv_says: dict[str, float]) -> None:
        """Compare value by value; the row shows how many agree."""
        wrong = [
            f"{what} {at}: the engine says {engine_says.get(at)}, the CSV {csv_says.get(at)}"
            for at in sorted(engine_says.keys() | csv_says.keys())
            if engine_says.get(at) != csv_says.get(at)
        ]
        agree = sum(engine_says.get(at) == value for at, value in csv_says.items())
        self.rows.append((f"{what}, equal", str(agree), str(len(csv_says)), not wrong))
        self.differences += wrong

    def document(self) -> dict[str, Any]:
        return {
            "ok": not self.differences,
            "figures": [
                {"what": what, "engine": engine_says, "csv": csv_says, "agrees": agrees}
                for what, engine_says, csv_says, agrees in self.rows
            ],
            "differences": self.differences,
            "latencies_ms": {
                what: {"p50": p50, "p99": p99} for what, (p50, p99) in self.latencies.items()
            },
            "seconds": self.seconds,
        }


def compare(expected: Expected, found: Found, forecast: dict[str, Any], *, events: int) -> Outcome:
    """Hold every figure against the CSV's; `events`: how many writes the CSV was sent in."""
    outcome = Outcome()
    outcome.row("events accepted", len(set(found.events)), events)
    outcome.row("events rejected", found.rejected, 0)
    stored = {reading.datetime: reading.value for reading in expected.readings}
    outcome.values("readings stored", found.readings, stored)
    compare_runs(outcome, found, events)
    for key, days in expected.daily.items():
        outcome.values(f"{key} stored", found.daily[key], days)
    compare_alarms(outcome, expected, found)
    means = list(expected.daily[f"{KEY}_daily_mean"].values())[: -FORECAST_DAYS - 1 : -1]
    fahrenheit = mean(means)
    tomorrow = forecast["tomorrow"]
    outcome.row("HTTP function: tomorrow, °F", tomorrow["fahrenheit"], fahrenheit)
    outcome.row("HTTP function: the same, °C", tomorrow["celsius"], celsius_of(fahrenheit))
    return outcome


def compare_runs(outcome: Outcome, found: Found, events: int) -> None:
    for function in (*ON_WRITE, "forecast"):
        runs = [run for run in found.executions if run["function"] == function]
        statuses = Counter(str(run["status"]) for run in runs)
        wanted = events if function in ON_WRITE else 1
        outcome.row(f"runs of {function}: succeeded", statuses.pop("succeeded", 0), wanted)
        outcome.row(f"runs of {function}: any other way", sum(statuses.values()), 0)
        for run in [run for run in runs if run["status"] != "succeeded"][:5]:
            outcome.differences.append(
                f"  {run['id']} {run['status']}: {json.dumps(run.get('error') or run.get('limit'))}"
            )
        if function in ON_WRITE:
            ran = Counter(run["event_id"] for run in runs)
            outcome.row(f"events that {function} saw once", *once(ran, found.events))
            outcome.latencies[f"{function}, in the queue"] = quantiles(
                [run["queue_ms"] for run in runs]
            )
        outcome.latencies[f"{function}, running"] = quantiles([run["wall_ms"] for run in runs])


def once(ran: Counter[str], events: list[str]) -> tuple[int, int]:
    return sum(ran[event] == 1 for event in events), len(set(events))


def compare_alarms(outcome: Outcome, expected: Expected, found: Found) -> None:
    wanted = Counter(expected.alarms)
    outcome.row("alarms delivered", found.deliveries.pop("delivered", 0), wanted.total())
    outcome.row("alarms in any other state", found.deliveries.total(), 0)
    if found.received is None:
        return
    received = Counter(found.received)
    outcome.row("alarms received", received.total(), wanted.total())
    outcome.row("alarms received, word for word", (wanted & received).total(), wanted.total())
    outcome.differences += [f"  missing: {text}" for text in (wanted - received).elements()]
    outcome.differences += [f"  too many: {text}" for text in (received - wanted).elements()]


def quantiles(sample: list[float]) -> tuple[float, float]:
    """Return the median and the 99th percentile."""
    if len(sample) < 2:
        return (sample[0], sample[0]) if sample else (0.0, 0.0)
    cuts = statistics.quantiles(sample, n=100, method="inclusive")
    return cuts[49], cuts[98]


def show(outcome: Outcome, console: Console) -> None:
    """Print the figures, and every difference in words."""
    table = Table(title="a year of readings through the engine")
    table.add_column("")
    table.add_column("engine", justify="right")
    table.add_column("CSV", justify="right")
    table.add_column("")
    for what, engine_says, csv_says, agrees in outcome.rows:
        mark = "[green]ok[/]" if agrees else "[red]differs[/]"
        table.add_row(what, engine_says, csv_says, mark)
    console.print(table)
    times = Table(title="latency")
    for column in ("", "p50 ms", "p99 ms"):
        times.add_column(column, justify="right" if column else "left")
    for what, (p50, p99) in outcome.latencies.items():
        times.add_row(what, f"{p50:.2f}", f"{p99:.2f}")
    console.print(times)
    console.print(
        "seconds: " + ", ".join(f"{what} {took:.1f}" for what, took in outcome.seconds.items())
    )
    for difference in outcome.differences[:DIFFERENCES_SHOWN]:
        console.print(difference, style="red", markup=False)
    verdict = f"{len(outcome.differences)} differences" if outcome.differences else "all agree"
    console.print(f"engine and CSV: {verdict}", style="bold red" if outcome.differences else "bold")
