"""One node as RQ sees it: is registered, takes jobs from the queues, and reports on them.

Path:   Redis -> jobs.rq_worker -> here -> `take`
Never:  imports, unpickles or calls what Redis names: a job is a ticket, or it is refused.

RQ's own loop is not used: it ends at the first error, sleeps where nobody can wake it, obeys
commands sent through Redis, and its upkeep calls callbacks that are named there.
"""

import json
import zlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final

import structlog
from redis import Redis
from redis.client import Pipeline
from rq import Queue, SimpleWorker
from rq.exceptions import DequeueTimeout, NoSuchJobError
from rq.executions import Execution
from rq.job import Job, JobStatus
from rq.registry import BaseRegistry
from rq.results import Result
from rq.serializers import JSONSerializer
from rq.worker import WorkerStatus
from rq.worker_registration import clean_worker_registry

from jobs.rq_tickets import HANDLER, PRIORITIES, RESULT_S, TAKE_S_MAX, mark_key, queue_name
from jobs.tickets import Ticket

ALIVE_S: Final = 20  # as RQ reckons: a node blocks for 15 s less, and is gone 60 s later
BLOCK_S: Final = 5  # one BLPOP; then the node tells Redis that it lives
ANSWER_S: Final = 15.0  # RQ's own choice: ten seconds longer than it blocks
assert BLOCK_S == ALIVE_S - 15
assert TAKE_S_MAX + BLOCK_S < ALIVE_S + 60  # nobody seems dead while he takes
UPKEEP_S: Final = 60.0
DATA_BYTES_MAX: Final = 512  # of a ticket's call, unpacked
PROJECT_ID_MAX: Final = 64
FAILED_S: Final = 600  # how long RQ's dashboards show a ticket that failed
FAILED_MAX: Final = 1_000

_log = structlog.get_logger()


class TicketJob(Job):
    """What is read of a job in Redis: the call, and nothing else.

    So there are no callbacks, webhooks, retries, repetitions or dependents, whatever it names.
    """

    def restore(self, raw_data: Mapping[bytes, bytes]) -> None:
        if b"data" not in raw_data:
            raise NoSuchJobError(f"{self.id} has no call")
        self.data = raw_data[b"data"]

    def ticket(self) -> Ticket | None:
        """Return the ticket that this is; None when it is anything else."""
        try:
            unpacking = zlib.decompressobj()
            text = unpacking.decompress(self.data, DATA_BYTES_MAX)
            call = json.loads(text) if unpacking.eof else None
        except (zlib.error, ValueError, RecursionError):
            return None
        match call:
            case [handler, None, [str() as project_id, int() as priority], dict() as options] if (
                handler == HANDLER
                and 0 < len(project_id) <= PROJECT_ID_MAX
                and project_id.isascii()
                and project_id.replace("_", "").replace("-", "").isalnum()
                and type(priority) is int
                and 0 <= priority < len(PRIORITIES)
                and not options
            ):
                return Ticket(project_id, priority)
            case _:
                return None


class RqNode(SimpleWorker):
    """An RQ worker that hands tickets to `take`, for one life of a node. Used by one thread."""

    def __init__(
        self,
        connection: Redis,
        node_id: str,
        take: Callable[[Ticket], None],
        *,
        prefix: str,
        clock: Callable[[], float],
    ) -> None:
        """Name this connection in Redis, which it must therefore reach; nobody sees a node yet."""
        super().__init__(
            [queue_name(prefix, priority) for priority in range(len(PRIORITIES))],
            name=node_id,
            connection=connection,
            job_class=TicketJob,
            serializer=JSONSerializer,
            worker_ttl=ALIVE_S,
        )
        self._take = take
        self._prefix = prefix
        self._clock = clock
        self._beat_due_s = 0.0
        self._upkeep_due_s = 0.0
        self.client_id = 0  # of the connection that blocks; another thread unblocks it

    def turn(self) -> None:
        """Wait up to BLOCK_S for a job, and take it if one comes.

        Raises:
            RedisError: the connection, or Redis; the next node is to begin anew.
        """
        self._keep_up()
        try:
            found = self.queue_class.dequeue_any(
                self.queues,
                BLOCK_S,
                connection=self.connection,
                job_class=self.job_class,
                serializer=self.serializer,
            )
        except DequeueTimeout:
            return
        except ValueError as error:  # an entry that is no job's id
            _log.warning("job_refused", node=self.name, error=type(error).__name__)
            return
        if found is not None:
            self.execute_job(*found)

    def register_birth(self) -> None:
        """Appear among RQ's workers. A node's id is its own, so who is there by it was this one."""
        self.connection.delete(self.key)
        super().register_birth()  # type: ignore[no-untyped-call]  # RQ gives it no types
        with self.connection.pipeline() as pipeline:
            pipeline.sadd(Queue.redis_queues_keys, *self.queue_keys())
            self.set_state(WorkerStatus.IDLE, pipeline=pipeline)
            pipeline.execute()

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Take a ticket, or refuse what is none; RQ's own would import and call it."""
        assert isinstance(job, TicketJob), job
        job.origin = queue.name  # where it really came from
        began = datetime.now(UTC)
        ticket = job.ticket()
        if ticket is None:
            _log.warning("job_refused", node=self.name, job_id=job.id, queue=queue.name)
            with self.connection.pipeline() as pipeline:
                self._failed(job, queue, "refused: this is no ticket", pipeline)
                pipeline.execute()
            return
        with self.connection.pipeline() as pipeline:
            pipeline.delete(mark_key(self._prefix, ticket))  # before it is taken: see `Tickets`
            execution = Execution.create(job, TAKE_S_MAX, pipeline)
            self.set_state(WorkerStatus.BUSY, pipeline=pipeline)
            pipeline.execute()
        failure = self._hand_over(ticket)
        with self.connection.pipeline() as pipeline:
            execution.delete(job=job, pipeline=pipeline)
            if failure is None:
                self._finished(job, queue, pipeline)
            else:
                self._failed(job, queue, failure, pipeline)
            self.increment_total_working_time(datetime.now(UTC) - began, pipeline)
            self.set_state(WorkerStatus.IDLE, pipeline=pipeline)
            self.heartbeat(pipeline=pipeline)  # last: after a flush all this made a key anew
            pipeline.execute()

    def _hand_over(self, ticket: Ticket) -> str | None:
        """Let it be taken; return what went wrong, without a word of its text, or None."""
        try:
            self._take(ticket)
        except Exception as error:  # noqa: BLE001 - one ticket is lost, others are to come
            _log.exception("ticket_not_taken", node=self.name, project_id=ticket.project_id)
            return type(error).__name__
        return None

    def _finished(self, job: Job, queue: Queue, pipeline: Pipeline) -> None:
        job.set_status(JobStatus.FINISHED, pipeline=pipeline)
        pipeline.expire(job.key, RESULT_S)
        queue.finished_job_registry.add(job, RESULT_S, pipeline)
        self.increment_successful_job_count(pipeline)

    def _failed(self, job: Job, queue: Queue, why: str, pipeline: Pipeline) -> None:
        # Not by RQ's registry: it would write the job anew, without what has not been read.
        job.set_status(JobStatus.FAILED, pipeline=pipeline)
        pipeline.expire(job.key, FAILED_S)
        Result.create_failure(job, FAILED_S, why, pipeline=pipeline)
        registry = queue.failed_job_registry
        BaseRegistry.add(registry, job, FAILED_S, pipeline)
        pipeline.zremrangebyrank(registry.key, 0, -FAILED_MAX - 1)
        self.increment_failed_job_count(pipeline)

    def _keep_up(self) -> None:
        """Tell Redis that this node lives; appear again if Redis has forgotten it."""
        now_s = self._clock()
        if now_s >= self._beat_due_s:
            with self.connection.pipeline(transaction=False) as pipeline:
                pipeline.hexists(self.key, "birth")
                pipeline.sismember(self.redis_workers_keys, self.key)
                self.heartbeat(pipeline=pipeline)
                pipeline.client_id()
                is_known, is_listed, *_, self.client_id = pipeline.execute()
            if not (is_known and is_listed):
                self.register_birth()
            self._beat_due_s = now_s + BLOCK_S
        if now_s >= self._upkeep_due_s:
            self._forget_the_past()
            self._upkeep_due_s = now_s + UPKEEP_S

    def _forget_the_past(self) -> None:
        """Remove what has expired from RQ's lists: nothing in it is looked at, as RQ would."""
        past = datetime.now(UTC).timestamp()
        for queue in self.queues:
            clean_worker_registry(queue)
            with self.connection.pipeline(transaction=False) as pipeline:
                for registry in (
                    queue.started_job_registry,
                    queue.finished_job_registry,
                    queue.failed_job_registry,
                ):
                    pipeline.zremrangebyscore(registry.key, 0, past)
                pipeline.execute()
