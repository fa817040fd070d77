"""Connects to Redis, and knows since when it has not answered.

Path:   rq_tickets, rq_worker, bus -> here -> Redis
Never:  lets the text of an error into a log: it can hold the URL's password.
"""

from collections.abc import Callable
from typing import Any, Final

import structlog
from redis import AuthenticationError, Redis
from redis import ConnectionError as RedisConnectionError
from redis import TimeoutError as RedisTimeoutError
from redis.backoff import NoBackoff
from redis.retry import Retry

CONNECT_S: Final = 2.0
_log = structlog.get_logger()


class BadRedisUrl(ValueError):
    """The setting is no URL of a Redis server."""

    def __init__(self) -> None:
        super().__init__(
            "the URL of Redis cannot be read; it looks like redis://user:password@host:6379/0 "
            "(rediss:// with TLS), and / : @ ? # in a password are written %2F %3A %40 %3F %23"
        )


def connect(redis_url: str, *, answer_s: float) -> Redis:
    """Return a client for one thread; it connects when it is used, and tries each command once.

    Args:
        redis_url: `redis://`, `rediss://` or `unix://`.
        answer_s: how long a command may take. What blocks in Redis must do so for less.

    Raises:
        BadRedisUrl: it cannot be read.
    """
    options = _options(redis_url, answer_s)
    try:
        return Redis.from_url(redis_url, retry=Retry(NoBackoff(), 0), **options)
    except ValueError:
        raise BadRedisUrl from None  # the original says which part of a password was no port


def _options(redis_url: str, answer_s: float) -> dict[str, Any]:
    options: dict[str, Any] = {"socket_timeout": answer_s}
    if not redis_url.startswith("unix:"):
        options |= {"socket_connect_timeout": CONNECT_S, "socket_keepalive": True}
    return options


class Outage:
    """Whether Redis answers one of its users; logs when it begins not to, and when it does again.

    Written by one thread, read by any.
    """

    def __init__(self, who: str, clock: Callable[[], float]) -> None:
        self._who = who
        self._clock = clock  # seconds, monotonic
        self._since: tuple[float, str] | None = None
        self._failures_count = 0

    def failed(self, error: BaseException) -> int:
        """Note a failure; return how many of this outage came before it."""
        does = "does not answer" if _is_silence(error) else "refuses"
        name = type(error).__name__
        if self._since is None:
            _log.warning("redis_lost", who=self._who, error=name)
        began = self._clock() if self._since is None else self._since[0]
        self._since = (began, f"Redis {does}: {name}")
        self._failures_count += 1
        return self._failures_count - 1

    def answered(self) -> None:
        if self._since is not None:
            _log.info("redis_back", who=self._who, after_s=round(self._clock() - self._since[0], 1))
        self._since = None
        self._failures_count = 0

    def text(self) -> str | None:
        """Return what an operator should read, or None."""
        if (since := self._since) is None:
            return None
        began, what = since
        seconds = round(self._clock() - began)
        return f"{what} (since {seconds} s); runs still happen, found by polling"


def _is_silence(error: BaseException) -> bool:
    silent = RedisConnectionError | RedisTimeoutError | OSError
    return isinstance(error, silent) and not isinstance(error, AuthenticationError)
