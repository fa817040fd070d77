"""What the demo must find in the engine, computed from the CSV alone: no HTTP, no engine."""

import csv
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

KEY = "temp"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One line of the CSV; its local time is taken as UTC."""

    datetime: str  # 2010-01-01T00:00:00.000Z
    value: float  # degrees Fahrenheit

    @property
    def day(self) -> str:
        return self.datetime[:10]

    def as_value(self) -> dict[str, str | float]:
        """Return it as a device sends it."""
        return {"key": KEY, "value": self.value, "datetime": self.datetime}


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """Every figure that the engine's answers are held against."""

    readings: tuple[Reading, ...]
    daily: dict[str, dict[str, float]]  # key of the result -> day -> value
    alarms: tuple[str, ...]  # one text each


def read_csv(path: Path) -> tuple[Reading, ...]:
    """Read `date,temp` lines such as `2010/01/01 00:00,39.4`, oldest first."""
    with path.open(newline="", encoding="utf-8") as file:
        return tuple(
            Reading(
                datetime=f"{line['date'].replace('/', '-').replace(' ', 'T')}:00.000Z",
                value=float(line["temp"]),
            )
            for line in csv.DictReader(file)
        )


def expect(
    readings: tuple[Reading, ...], *, product: str, heat_at: float, frost_at: float
) -> Expected:
    """Compute what the three functions must have made of these readings."""
    days = defaultdict[str, list[Reading]](list)
    for reading in readings:
        days[reading.day].append(reading)
    closed = sorted(days)[:-1]  # the last day is never over: no reading comes after it
    daily = {
        f"{KEY}_daily_min": {day: min(_values(days[day])) for day in closed},
        f"{KEY}_daily_mean": {day: mean(_values(days[day])) for day in closed},
        f"{KEY}_daily_max": {day: max(_values(days[day])) for day in closed},
    }
    alarms = tuple(
        f"{name} alarm: {first.value:g} °F at {first.datetime} ({product})"
        for day in days.values()
        for name, raised in (
            ("heat", [reading for reading in day if reading.value >= heat_at]),
            ("frost", [reading for reading in day if reading.value <= frost_at]),
        )
        for first in raised[:1]
    )
    return Expected(readings=readings, daily=daily, alarms=alarms)


def mean(values: list[float]) -> float:
    """Return the mean, rounded as `Math.round(mean * 100) / 100` does it in daily_stats.js.

    Not `sum` and `round`: from Python 3.12 on `sum` is more exact than a plain loop, and `round`
    takes ties to the even digit. Four of these days end on a tie, where either would show.
    """
    total = 0.0
    for value in values:
        total += value
    return math.floor(total / len(values) * 100 + 0.5) / 100


def _values(readings: Iterable[Reading]) -> list[float]:
    return [reading.value for reading in readings]
