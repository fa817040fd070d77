"""How much of what a project keeps: by rows, bytes and age, as its owner or the settings say.

Path:   api.retention -> here -> journal; retention, retention_usage -> `keeps`
Never:  turns what somebody left out into "delete it": a limit that is not named is none.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from engine.errors import Invalid
from engine.settings import Settings
from engine.store.retention import Rule

DAY_MS: Final = 86_400_000
HOUR_MS: Final = 3_600_000
AGE_MS_MIN: Final = HOUR_MS  # less would be a typing error that takes everything
AGE_DAYS_MAX: Final = 36_500


class Kind(StrEnum):
    """What grows with every run and every write, and so has to end somewhere."""

    EXECUTIONS = "executions"
    LOGS = "logs"  # of executions, which stay
    EVENTS = "events"  # and with them the input of the runs that they caused
    VALUES = "values"
    JOBS = "jobs"  # that have ended
    DEAD_LETTERS = "dead_letters"
    DELIVERIES = "deliveries"  # that have ended
    SCHEDULE_FIRES = "schedule_fires"


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """What is kept of one kind: the newest rows that fit. None: no such limit."""

    rows: int | None = None
    bytes: int | None = None
    age_ms: int | None = None
    own: bool = False  # the project has said so, not the settings

    @property
    def is_by_size(self) -> bool:
        return self.rows is not None or self.bytes is not None


def defaults(settings: Settings) -> dict[Kind, Keep]:
    """Return what is kept of a project that has said nothing."""
    days = {
        Kind.EXECUTIONS: settings.retention_executions_days,
        Kind.LOGS: settings.retention_logs_days,
        Kind.EVENTS: settings.retention_executions_days,
        Kind.VALUES: settings.retention_values_days,
        Kind.JOBS: settings.retention_jobs_days,
        Kind.DEAD_LETTERS: settings.retention_dead_letters_days,
        Kind.DELIVERIES: settings.retention_deliveries_days,
        Kind.SCHEDULE_FIRES: settings.retention_schedule_fires_days,
    }
    return {kind: Keep(age_ms=count * DAY_MS or None) for kind, count in days.items()}


def keeps(given: Mapping[Kind, Keep], rules: Mapping[str, Rule]) -> dict[Kind, Keep]:
    """Return what is kept of a project: what it has said, over what is given.

    Events follow executions unless the project says more of them: they hold the runs' input.
    """
    found = dict(given)
    for kind in Kind:
        rule = rules.get(kind.value)
        if rule is None:
            continue
        age_ms = given[kind].age_ms if rule.age_ms_max is None else rule.age_ms_max or None
        found[kind] = Keep(rows=rule.rows_max, bytes=rule.bytes_max, age_ms=age_ms, own=True)
    of_events = rules.get(Kind.EVENTS.value)
    if of_events is None or of_events.age_ms_max is None:
        own, rows, size = found[Kind.EVENTS].own, found[Kind.EVENTS].rows, found[Kind.EVENTS].bytes
        age_ms = found[Kind.EXECUTIONS].age_ms
        found[Kind.EVENTS] = Keep(rows=rows, bytes=size, age_ms=age_ms, own=own)
    return found


def check_rule(kind: Kind, *, rows: int | None, size: int | None, age_days: float | None) -> Rule:
    """Return the rule that a caller wants.

    Args:
        kind: of what.
        rows: the newest so many; None: however many.
        size: the newest of so many bytes; None: however many.
        age_days: not older; 0: for ever; None: as the settings say.

    Raises:
        Invalid: points at the field.
    """
    at = f"/{kind.value}"
    if kind is Kind.SCHEDULE_FIRES and (rows is not None or size is not None):
        field = "rows" if rows is not None else "bytes"
        raise Invalid("schedule_fires are kept by age alone: give age_days", f"{at}/{field}")
    for field, value in (("rows", rows), ("bytes", size)):
        if value is not None and not 1 <= value < 1 << 62:
            raise Invalid(f"must be 1 or more, not {value}; leave it out for no limit",
                          f"{at}/{field}")  # fmt: skip
    if age_days is None:
        return Rule(rows_max=rows, bytes_max=size)
    age_ms = round(age_days * DAY_MS) if 0 <= age_days <= AGE_DAYS_MAX else -1
    if age_ms != 0 and age_ms < AGE_MS_MIN:
        raise Invalid(
            f"must be 0 (for ever), or 1/24 (an hour) to {AGE_DAYS_MAX}, not {age_days}",
            f"{at}/age_days",
        )
    return Rule(rows_max=rows, bytes_max=size, age_ms_max=age_ms)
