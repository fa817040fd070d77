"""One run from its cause to its end: what it was asked, what it did, how it ended."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from engine.catalogue import Device, Version
from engine.causality import Above, outside_share, path_below, via
from engine.errors import EngineError
from engine.policies import PLAIN, Queued
from engine.quotas import CAUSAL_BUDGET
from engine.store.journal import Commit
from runtimes.contract import GuestError, LimitHit, Limits, Outcome


class Value(msgspec.Struct, frozen=True, kw_only=True):
    """One value on a device's timeline, checked and ready for the store."""

    key: str
    json: str
    at_ms: int
    geo: str | None = None  # JSON {"lat":..,"long":..}


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteEffect:
    """Values that the run wants written to a device."""

    device: Device
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryEffect:
    """A message that the run wants sent through a connection."""

    id: str  # see engine.intents
    connection: str  # a stored one's name, or `inline:...` for credentials that the script gave
    kind: str
    action: str
    recipient: str | None
    line: str | None  # it goes after those of its line that were wanted before
    payload: str  # JSON
    sealed: bytes | None = field(default=None, repr=False)  # credentials that the script gave
    via: str | None = None  # see Run.via


@dataclass(frozen=True, slots=True, kw_only=True)
class CallEffect:
    """Another function that the run wants to have run."""

    execution_id: str
    version: Version
    handler: str
    payload: bytes  # JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyValueEffect:
    """A key of the project's store that the run wants to have a value, or none."""

    namespace: str
    key: str
    value: str | None  # JSON; None: the key goes
    expires_ms: int | None = None


Effect = WriteEffect | DeliveryEffect | CallEffect | KeyValueEffect


class Run(msgspec.Struct, kw_only=True, eq=False):
    """The first block never changes; the rest is reset when the run has to start again.

    A struct and not a dataclass: it is made for every request, in a tenth of the time.
    """

    execution_id: str
    version: Version
    handler: str
    cause: str  # write | invoke | http
    limits: Limits
    input: bytes  # JSON
    created_ms: int
    created_ns: int  # monotonic
    root_id: str
    depth: int = 0
    event_id: str | None = None
    device: Device | None = None
    queued: bool = False  # it has a row in run_queue, which its end deletes
    attempt: int = 1  # the first, the second ... of what its row stands for
    job_id: str | None = None
    schedule_id: str | None = None
    lane: str | None = None  # see engine.flow
    position_ms: int | None = None
    priority: int = 1
    origin: str = ""  # empty: its root_id; see engine.intents
    path: str = ""  # functions above it, "a > b"; see engine.causality
    budget: int = CAUSAL_BUDGET  # runs that it may cause, all told
    policy: Queued = PLAIN
    due_ms: int = 0
    owner: str | None = None  # the node whose it is; None of a queued run: not this one's
    retried: bool = False  # it has failed, and its next attempt is in the queue
    stays: bool = False  # it was given back, and has not begun: its row is in the queue still
    skip_reason: str = ""
    trial: str = ""  # the breaker that it was let through for; see engine.breakers
    set_aside_by: str = ""  # the breaker whose dead letter it is or, if it fails, becomes
    cancel_asked: bool = False
    messages: tuple["Run", ...] = ()  # of a batch of the `queue` handler: what it is made of
    on_end: Callable[["Run"], None] | None = None
    # Of a call whose effects are about to be committed: adds to that commit.
    on_commit: Callable[["Run", Commit], None] | None = None

    number: int = 0  # within its isolate
    seed: str = ""
    clock_ms: int = 0  # the guest's clock at its start
    guest_ms: int = 0  # ... and at the last answer
    started_ns: int = 0
    ended_ns: int = 0
    cpu_ns: int = 0  # of the batches it was in, shared evenly among their runs
    own_cpu_ns: int = 0  # of the batches that it had for itself
    peak_bytes: int = 0  # of the cell (JavaScript), or of the instance's memory
    fuel: int = 0  # used; only where limits.fuel meters it
    losses: int = 0  # cells that died under it
    charged_ns: int = -1  # of CPU, when it was let into a cell; see engine.fair_share
    refused: EngineError | None = None  # why a call never began: nothing of it is recorded
    has_killed: bool = False  # it ended by taking its cell down
    cold: bool = False
    calls_count: int = 0
    network_count: int = 0
    sent_count: int = 0  # requests on the wire, redirects included; of lost cells, too
    sent_budget: int = 0  # that they took along
    writes_count: int = 0
    kv_count: int = 0
    effect_bytes: int = 0
    asked_bytes: int = 0  # of the arguments of all its host calls
    held_bytes: int = 0  # of host calls without an answer, and of answers on their way
    timers: list[asyncio.Task[None]] = msgspec.field(default_factory=list)  # end with the run
    effects: list[Effect] = msgspec.field(default_factory=list)
    open_effects: int = 0  # effect calls still being checked; the end waits for them
    awaits_effects: Callable[[], None] | None = None  # ends the run after the last of them
    transcript: list[bytes] = msgspec.field(
        default_factory=list
    )  # JSON [operation, arguments, ok, answer]
    transcript_bytes: int = 0
    log: list[tuple[str, int, str]] = msgspec.field(default_factory=list)
    log_bytes: int = 0
    log_dropped: int = 0
    outcome: Outcome | None = None
    result: bytes = b"null"
    error: GuestError | None = None
    limit: LimitHit | None = None
    unstored: bool = False  # the database refused its effects; nothing of it happened

    @property
    def free_budget(self) -> int:
        """Return how many runs it may cause besides those that it has called."""
        return self.budget - sum(isinstance(effect, CallEffect) for effect in self.effects)

    @property
    def share(self) -> tuple[int, int]:
        """Return how many runs it might cause at its start, and how many of them are used."""
        given = self.budget + self.sent_budget
        return given, given - self.free_budget

    @property
    def project_id(self) -> str:
        return self.version.project_id

    @property
    def spent_ns(self) -> int:
        """Return the CPU time of this attempt: of one that was ended for it at least its limit."""
        if self.outcome is Outcome.CPU_EXCEEDED:
            return max(self.cpu_ns, self.limits.cpu_ms * 1_000_000)
        return self.cpu_ns

    @property
    def wall_ns(self) -> int:
        return self.ended_ns - self.started_ns if self.started_ns else 0

    @property
    def queue_ns(self) -> int:
        return (self.started_ns or self.ended_ns) - self.created_ns

    def via(self) -> str:
        """Return what its next outgoing request says of it; each takes a share of its budget."""
        self.sent_count += 1
        # What an earlier attempt has sent, is sent: only the very first may take the large part.
        number = self.sent_count + (self.attempt > 1)
        share = outside_share(self.free_budget, number)
        self.budget -= share
        self.sent_budget += share
        path = path_below(self.path, self.version.function)
        return via(self.root_id, self.depth, share, path)

    def beneath(self, above: Above) -> None:
        """Have it stand below the run of a function that sent the request for it."""
        self.depth, self.path, self.budget = above.depth + 1, above.path, above.budget - 1

    def stop_timers(self) -> None:
        """Nobody waits for them any more."""
        for task in self.timers:
            task.cancel()
        self.timers = []

    def start_again(self) -> None:
        """Forget everything a lost cell did with it: but for requests nothing has left the engine.

        Those have taken their shares of the budget, and count on.
        """
        self.losses += 1
        self.has_killed = False
        self.started_ns = self.cpu_ns = self.own_cpu_ns = self.fuel = 0
        self.peak_bytes = 0
        self.calls_count = self.network_count = self.writes_count = self.effect_bytes = 0
        self.kv_count = self.held_bytes = self.asked_bytes = 0
        self.stop_timers()
        self.effects = []
        self.open_effects = 0
        self.awaits_effects = None
        self.transcript = []
        self.transcript_bytes = 0
        self.log = []
        self.log_bytes = self.log_dropped = 0
