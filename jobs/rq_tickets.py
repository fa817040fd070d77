"""Tickets as jobs of RQ: a thread puts them into Redis, one at a time for a project's priority.

Path:   engine.backlog -> here -> Redis -> jobs.rq_worker
Never:  waits for Redis on the loop; grows in Redis while nobody takes tickets.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from random import Random
from typing import Final

import structlog
from redis import Redis, RedisError
from rq import Queue
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer

from jobs.backoff import backoff_ms
from jobs.redis_link import Outage, connect
from jobs.tickets import Ticket

HANDLER: Final = "jobs.rq_worker.drain"
PRIORITIES: Final = ("high", "default", "low")  # by number; workers take in this order

MARK_MS: Final = 5_000  # how long a ticket that was lost between queue and worker stops others
QUEUED_S: Final = 60  # a ticket that nobody has taken for so long is nothing but a list entry
QUEUED_MAX: Final = 10_000  # entries of one queue; the oldest go, and are issued again
RESULT_S: Final = 10  # how long RQ's dashboards show a finished ticket
TAKE_S_MAX: Final = 60  # how long one ticket may occupy a worker

GATHER_S: Final = 0.002  # the least time between two batches
BATCH_MAX: Final = 500
WAITING_MAX: Final = 10_000  # while Redis is away; what is more is found by polling
PING_S: Final = 5.0  # how often an idle thread asks whether Redis is there
ANSWER_S: Final = 2.0
RETRY_BASE_MS, RETRY_MAX_MS = 100, 2_000
CLOSE_S: Final = 3.0
assert CLOSE_S > ANSWER_S

# In one script, because a mark without its job would stop this ticket until the mark ends: a
# connection can break between two commands. KEYS: mark, queues, queue, job. ARGV: job id, MARK_MS,
# QUEUED_S, QUEUED_MAX, then the job's fields and values.
_ENQUEUE: Final = """
if not redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 0 end
redis.call('SADD', KEYS[2], KEYS[3])
redis.call('HSET', KEYS[4], unpack(ARGV, 5))
redis.call('EXPIRE', KEYS[4], ARGV[3])
redis.call('RPUSH', KEYS[3], ARGV[1])
redis.call('LTRIM', KEYS[3], -ARGV[4], -1)
return 1
"""

_log = structlog.get_logger()


def queue_name(prefix: str, priority: int) -> str:
    """Return the name of the RQ queue for a priority."""
    return f"{prefix}-{PRIORITIES[priority]}"


def mark_key(prefix: str, ticket: Ticket) -> str:
    """Return the key that is there from a ticket's way into the queue until it is taken."""
    return f"{prefix}:ticket:{ticket.project_id}:{ticket.priority}"


class RqTickets:
    """Keeps the promises of `Tickets` by Redis and RQ; `TicketWorker` is the other end."""

    def __init__(
        self,
        redis_url: str,
        *,
        prefix: str = "cloudcode",
        clock: Callable[[], float] = time.monotonic,
        rng: Random | None = None,
    ) -> None:
        """Connect to nothing yet.

        Args:
            redis_url: see `redis_link.connect`.
            prefix: of every queue and key of ours; installations that share a Redis differ in it.
            clock: seconds, monotonic; only for what `trouble` says.
            rng: spreads attempts to connect.

        Raises:
            BadRedisUrl: the URL cannot be read.
        """
        self._redis: Redis = connect(redis_url, answer_s=ANSWER_S)
        self._prefix = prefix
        self._rng = rng or Random()  # noqa: S311 - spreads retries, guards nothing
        self._outage = Outage("tickets", clock)
        self._queues = [
            Queue(queue_name(prefix, priority), connection=self._redis, serializer=JSONSerializer)
            for priority in range(len(PRIORITIES))
        ]
        # Keys are tuples, not tickets: hashed and compared in C, so that each step on the dict is
        # one step to the other thread too.
        self._waiting: dict[tuple[str, int], None] = {}
        self._wakes: SimpleQueue[None] = SimpleQueue()  # a third of what an Event costs the loop
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tickets", daemon=True)

    def issue(self, ticket: Ticket) -> None:
        key = (ticket.project_id, ticket.priority)
        if key in self._waiting or len(self._waiting) >= WAITING_MAX:
            return  # the first: it has not been handed over, so it will be after this call
        self._waiting[key] = None
        if self._wakes.empty():
            self._wakes.put(None)

    async def start(self) -> None:
        self._thread.start()

    async def close(self) -> None:
        self._closing.set()
        self._wakes.put(None)
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, CLOSE_S)

    def trouble(self) -> str | None:
        return self._outage.text()

    # Everything below runs in the thread.

    def _run(self) -> None:
        while not self._closing.is_set():
            with suppress(Empty):  # first: what is issued from now on wakes again
                self._wakes.get(timeout=0 if self._waiting else PING_S)
            batch = tuple(self._waiting)[:BATCH_MAX]
            for key in batch:
                del self._waiting[key]  # before it is sent: what is issued from now on comes again
            try:
                self._send(batch)
            except (RedisError, OSError) as error:
                failures_count = self._outage.failed(error)
                self._waiting.update(dict.fromkeys(batch))
                wait_ms = backoff_ms(
                    failures_count, rng=self._rng, base_ms=RETRY_BASE_MS, cap_ms=RETRY_MAX_MS
                )
                self._closing.wait(wait_ms / 1_000)
                continue
            except Exception:  # noqa: BLE001 - the batch is lost, the thread is not
                _log.exception("tickets_not_issued", count=len(batch))
            self._outage.answered()
            self._closing.wait(GATHER_S)
        self._redis.close()

    def _send(self, batch: Sequence[tuple[str, int]]) -> None:
        if not batch:
            self._redis.ping()
            return
        with self._redis.pipeline(transaction=False) as pipeline:
            for project_id, priority in batch:
                ticket = Ticket(project_id, priority)
                queue = self._queues[priority]
                job = self._job(ticket, queue)
                # RQ reads a field that is missing like one that is empty.
                fields = [part for pair in job.to_dict().items() if pair[1] != "" for part in pair]
                keys = [mark_key(self._prefix, ticket), queue.redis_queues_keys, queue.key, job.key]
                limits = [MARK_MS, QUEUED_S, QUEUED_MAX]
                pipeline.eval(_ENQUEUE, len(keys), *keys, job.id, *limits, *fields)
            pipeline.execute()

    def _job(self, ticket: Ticket, queue: Queue) -> Job:
        job = Job.create(
            HANDLER,
            args=[ticket.project_id, ticket.priority],
            connection=self._redis,
            origin=queue.name,
            status=JobStatus.QUEUED,
            description=f"{ticket.project_id} has {PRIORITIES[ticket.priority]} work",
            timeout=TAKE_S_MAX,
            ttl=QUEUED_S,
            result_ttl=RESULT_S,
            serializer=JSONSerializer,
        )
        job.enqueued_at = job.created_at
        return job
