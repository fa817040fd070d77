"""Reads how long something shall take, as callers write it: seconds, or a text with its unit."""

import math
import re
from typing import Final

from engine.errors import Invalid

YEAR_MS: Final = 365 * 86_400_000
UNITS_MS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_WRITTEN: Final = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)(ms|s|m|h|d)", re.ASCII)


def duration_ms(
    value: float | str, pointer: str, *, least_ms: int = 0, most_ms: int = YEAR_MS
) -> int:
    """Return milliseconds: `1.5` and `"1.5s"` are 1,500; also `"500ms"`, `"5m"`, `"2h"`, `"1d"`.

    Raises:
        Invalid: it is no duration, or out of bounds; points at `pointer`.
    """
    found_ms = _parsed_ms(value)
    if found_ms is None:
        shown = repr(value)[:40]
        raise Invalid(
            f"{shown} is no duration; write seconds as a number, or a text like 30s, 5m, 2h, 1d",
            pointer,
        )
    if not least_ms <= found_ms <= most_ms:
        bounds = f"{duration_text(least_ms)} to {duration_text(most_ms)}"
        raise Invalid(f"must be {bounds}, not {repr(value)[:40]}", pointer)
    return round(found_ms)


def duration_text(ms: int) -> str:
    """Return the shortest text that `duration_ms` reads as this: 90,000 is `90s`, 0 is `0s`."""
    for unit in ("d", "h", "m", "s"):
        if ms % UNITS_MS[unit] == 0 and (ms or unit == "s"):
            return f"{ms // UNITS_MS[unit]}{unit}"
    return f"{ms}ms"


def _parsed_ms(value: object) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        try:
            found_ms = float(value) * 1000
        except OverflowError:
            return None
        return found_ms if math.isfinite(found_ms) else None
    match = _WRITTEN.fullmatch(value) if isinstance(value, str) else None
    return None if match is None else float(match[1]) * UNITS_MS[match[2]]
