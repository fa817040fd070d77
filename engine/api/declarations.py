"""The parts of an upload that say how a version's queued runs are tried, limited and gathered."""

from typing import Annotated, Any

from pydantic import AliasChoices, Field

from engine.api.shapes import Body

Duration = Annotated[
    int | float | str, Field(description="Seconds as a number, or a text: 30s, 5m, 2h, 1d.")
]
Key = Annotated[
    str | None,
    Field(
        description="Path into the input, like payload.customer.id: each of its values has a "
        "limit of its own. A word in quotes is the same for every run."
    ),
]


class BackoffSaid(Body):
    kind: str = Field("exponential", description="exponential (with full jitter) or fixed")
    base_seconds: float = Field(1.0, description="The wait, or the longest first one.")
    cap_seconds: float | None = Field(None, description="The longest wait; default: an hour.")


class RetriesSaid(Body):
    """What fails is tried again, and becomes a dead letter in the end."""

    max_attempts: int | None = Field(None, description="The first included; default 3.")
    backoff: BackoffSaid | None = None


class ConcurrencySaid(Body):
    limit: int = Field(description="Runs beside each other; what is too many waits.")
    key: Key = None
    scope: str | None = Field(None, description="function, or project: all its functions share it.")


class ThrottleSaid(Body):
    limit: int = Field(description="Runs that begin each period, evenly spread; others wait.")
    period: Duration
    burst: int | None = Field(None, description="So many more may begin at once.")
    key: Key = None


class RateLimitSaid(Body):
    limit: int = Field(description="Runs of each period; what is too many is skipped.")
    period: Duration
    key: Key = None


class DebounceSaid(Body):
    period: Duration = Field(description="Only the last run of a burst, so long after it.")
    timeout: Duration | None = Field(None, description="At the latest so long after the first.")
    key: Key = None


class SingletonSaid(Body):
    mode: str | None = Field(
        None, description="skip: while one runs others are skipped; cancel: the new one takes over."
    )
    key: Key = None


class FlowSaid(Body):
    """Limits of queued runs; a call that is waited for has none of them."""

    concurrency: ConcurrencySaid | None = None
    throttle: ThrottleSaid | None = None
    rate_limit: RateLimitSaid | None = Field(
        None, validation_alias=AliasChoices("rate_limit", "rateLimit")
    )
    debounce: DebounceSaid | None = None
    singleton: SingletonSaid | None = None


class QueueSaid(Body):
    """How the handler `queue` gets its messages."""

    max_batch_size: int | None = Field(None, description="Default 10.")
    max_batch_timeout: Duration | None = Field(
        None, description="How long the first message waits for others; default 1 s."
    )
    max_retries: int | None = Field(None, description="After the first attempt; see retries.")
    retry_delay: Duration | None = Field(None, description="Before each of them; see retries.")
    max_concurrency: int | None = Field(
        None, description="Batches at work on one node; default: as many as come."
    )


def said(part: Body | None) -> dict[str, Any] | None:
    """Return what the caller wrote, without what it left out."""
    return None if part is None else part.model_dump(exclude_none=True)
