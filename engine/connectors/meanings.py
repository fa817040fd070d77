"""What a provider's error code means for a delivery: the rows of a connector's table of errors.

Path:   engine.connectors.twilio, slack -> here, once, when their tables are made
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Meaning:
    """What an error means for the delivery, and what a person can do about it."""

    then: Literal["retry", "refused", "disables"]
    remedy: str
    after_s: int | None = None  # where the provider says no Retry-After


def retry(remedy: str, after_s: int | None = None) -> Meaning:
    return Meaning("retry", remedy, after_s)


def refused(remedy: str) -> Meaning:
    return Meaning("refused", remedy)


def disables(remedy: str) -> Meaning:
    return Meaning("disables", remedy)
