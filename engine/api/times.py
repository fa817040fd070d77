"""Reads the times that callers write: RFC 3339, in any offset."""

from datetime import UTC, datetime

from engine.errors import Invalid


def parse_time(text: str, pointer: str) -> int:
    """Return milliseconds since the epoch. Without an offset the time is UTC.

    Raises:
        Invalid: it is no time, or one beyond the calendar.
    """
    if "T" in text:
        text = text.replace(" ", "+")  # a + that a query string has turned into a space
    try:
        at = datetime.fromisoformat(text)
        if at.tzinfo is None:
            at = at.replace(tzinfo=UTC)
        return int(at.timestamp() * 1000 + 0.5)
    except (ValueError, OverflowError) as error:
        raise Invalid(
            f"{text[:40]!r} is no time; write it as 2010-10-29T00:00:00Z", pointer
        ) from error
