"""Requests that may be sent again: the header `Idempotency-Key`, from the claim to the answer.

Path:   api.edge, api.keyed -> `claim` -> the request's own commits carry `stamp` -> `settle`
Never:  carries a request out twice: that it was is committed with what it changed, in one
        transaction, and only in the name of the node that holds the key.

`Journal.commit` asks `journal.ADDITION`, which holds the `stamp` of the request that commits.
"""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import Enum
from functools import partial
from typing import Any, Final

import msgspec
import structlog
from sqlalchemy import Connection

from engine.clock import Clock
from engine.errors import EngineError, Invalid
from engine.store import idempotency as store
from engine.store.idempotency import KeyUse
from engine.store.journal import ADDITION, Change, Commit, Journal
from engine.vault import SealBroken, Vault, answer_context

KEPT_MS: Final = 24 * 3_600_000
KEY_CHARS_MAX: Final = 255
RETRY_S: Final = 1.0  # after the database refused to let a key go
ERRORS_FROM: Final = 400
OF_ONE_TRANSMISSION: Final = frozenset({b"content-length", b"x-request-id", b"date", b"connection"})
_log = structlog.get_logger()


class KeyMismatch(EngineError):
    """The caller's: the key was sent before, with another request."""

    code = "idempotency_mismatch"

    def __init__(self, key: str) -> None:
        super().__init__(
            f"Idempotency-Key {key!r} was used within the last 24 hours for another method, path "
            "or body; take a new key for a new request"
        )


class KeyBusy(EngineError):
    """The caller's: the first request with the key is still being carried out."""

    code = "idempotency_busy"
    retry_after_s = 1

    def __init__(self, key: str) -> None:
        super().__init__(
            f"the request with Idempotency-Key {key!r} is still being carried out; send it again "
            "in a moment"
        )


class AnswerLost(EngineError):
    """Nobody's: a process died after the work was stored and before its answer was."""

    code = "idempotency_answer_lost"

    def __init__(self, key: str) -> None:
        super().__init__(
            f"the request with Idempotency-Key {key!r} was carried out and its answer was lost; "
            "nothing was done now. GET what it was to make to see it"
        )


Headers = Iterable[tuple[bytes, bytes]]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What is given again to a request that is sent again."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]  # names in lower case
    body: bytes
    scopes: frozenset[str]  # of the API key that asked first


class State(Enum):
    RUNNING = "running"
    APPLIED = "applied"  # its changes are on disk
    ANSWERED = "answered"  # ... and its answer, or that it has none
    ENDED = "ended"  # nothing may be added any more


class Idempotency:
    """The keys that requests to this node are sent with."""

    def __init__(self, journal: Journal, vault: Vault, clock: Clock) -> None:
        self._journal = journal
        self._vault = vault
        self._clock = clock
        self._open: Counter[tuple[str, str]] = Counter()  # claims that have not ended

    async def claim(
        self, key: str, request: str, *, project_id: str, scopes: frozenset[str], of: str = ""
    ) -> "Claim | Answer":
        """Take the key for a request, or return what was answered the first time.

        Args:
            key: as the header has it, checked.
            request: `fingerprint` of all that makes it the same request.
            project_id: keys are the project's ...
            scopes: what the caller may do; kept with the answer.
            of: ... or this device's of it.

        Raises:
            KeyMismatch: it was another request that had the key.
            KeyBusy: the first one has not ended.
            AnswerLost: the first one was carried out, nobody knows what it was answered.
        """
        name = f"{of} {key}" if of else key  # no key has a space
        use = KeyUse(
            project_id=project_id,
            key=name,
            request=request,
            node_id=self._journal.node_id or "",
        )
        place = (project_id, name)
        busy = self._open[place] > 0
        self._open[place] += 1
        claimed = False
        try:
            now_ms = self._clock()
            found = await self._journal.run(store.claim, use, now_ms, now_ms - KEPT_MS, busy=busy)
            claimed = found is None
        finally:
            if not claimed:
                self._close(place)
        if found is None:
            return Claim(use, scopes, self._journal, self._seal, partial(self._close, place))
        if found.request != request:
            raise KeyMismatch(key)
        if found.answer is None:
            raise KeyBusy(key) if found.worked_on else AnswerLost(key)
        try:
            return self._opened(use, found.answer)
        except SealBroken as error:
            raise AnswerLost(key) from error

    def _seal(self, use: KeyUse, answer: Answer) -> bytes:
        plain = msgspec.msgpack.encode(answer)  # not JSON: the body is bytes, up to a megabyte
        return self._vault.seal(plain, context=answer_context(use.project_id, use.key))

    def _opened(self, use: KeyUse, sealed: bytes) -> Answer:
        plain = self._vault.open(sealed, context=answer_context(use.project_id, use.key))
        return msgspec.msgpack.decode(plain, type=Answer)

    def _close(self, place: tuple[str, str]) -> None:
        self._open[place] -= 1
        if not self._open[place]:
            del self._open[place]


class Claim:
    """One request that holds a key."""

    __slots__ = ("_closed", "_journal", "_seal", "_state", "_task", "scopes", "use")

    def __init__(
        self,
        use: KeyUse,
        scopes: frozenset[str],
        journal: Journal,
        seal: Callable[[KeyUse, Answer], bytes],
        closed: Callable[[], None],
    ) -> None:
        self._journal = journal
        self._seal = seal
        self._closed = closed
        self._state = State.RUNNING
        self._task: asyncio.Task[Any] | None = None
        self.use = use
        self.scopes = scopes

    @contextmanager
    def stamping(self) -> Iterator[None]:
        """Let the first commit that this task makes inside the block say that the work is done."""
        self._task = asyncio.current_task()
        token = ADDITION.set(self.stamp)
        try:
            yield
        finally:
            ADDITION.reset(token)

    def stamp(self, commit: Commit) -> None:
        """Make the key `applied` with this commit, if it is the first one that changes anything.

        What the request has started may outlive it and has inherited its context: a cell's reader,
        a timer. Their commits are not the request's, so only those of its own task count.
        """
        if self._state is State.RUNNING and asyncio.current_task() is self._task:
            self._add(commit, partial(_applied, self.use), State.APPLIED)

    def answer_with(self, commit: Commit, status: int, headers: Headers, body: bytes) -> None:
        """Store the answer in the transaction of what is answered: it is known before."""
        assert self._state is State.RUNNING, self._state
        self._add(commit, self._answered(status, headers, body), State.ANSWERED)

    async def settle(
        self, status: int, headers: Headers, body: bytes, *, work_done: bool = False
    ) -> None:
        """End the claim; what was done is on disk, and its answer is about to be sent.

        A refusal leaves the key free: nothing was begun. `work_done`: it is no refusal but how the
        work ended. If the database takes nothing now, the answer is sent all the same.
        """
        if self._state in {State.ANSWERED, State.ENDED}:
            self.end()
            return
        kept = status < ERRORS_FROM or work_done
        change = self._answered(status, headers, body) if kept else self._freed()
        try:
            await self._journal.run(change)
        except EngineError as error:
            _log.warning("key_not_settled", key=self.use.key, error=str(error))
        else:
            self._state = State.ANSWERED
        self.end()

    def end(self) -> None:
        """Let the key go if it was not settled: free if nothing was changed, else for good."""
        if self._state is State.ENDED:
            return
        settled, self._state = self._state is State.ANSWERED, State.ENDED
        if settled:
            self._closed()
        else:
            self._let_go()

    def _let_go(self) -> None:
        def done(_result: object, error: BaseException | None) -> None:
            if error is None:
                self._closed()
            else:  # until it is done, other nodes believe that this one still works on it
                asyncio.get_running_loop().call_later(RETRY_S, self._let_go)

        self._journal.submit(Commit(change=self._freed(), done=done))

    def _freed(self) -> Change:
        return partial(store.let_go, use=self.use)

    def _answered(self, status: int, headers: Headers, body: bytes) -> Change:
        kept = tuple((name, text) for name, text in headers if name not in OF_ONE_TRANSMISSION)
        answer = Answer(status=status, headers=kept, body=body, scopes=self.scopes)
        return partial(_answered, self.use, status, self._seal(self.use, answer))

    def _add(self, commit: Commit, mark: Change, state: State) -> None:
        inner = commit.change
        if inner is None and not any(
            getattr(commit, name) for name in commit.__struct_fields__ if name not in _NOT_ROWS
        ):
            return  # a barrier

        def both(connection: Connection) -> Any:
            mark(connection)
            return None if inner is None else inner(connection)

        def stored() -> None:
            self._state = state

        commit.change = both
        commit.stored.append(stored)


_NOT_ROWS: Final = frozenset({"alone", "change", "stored", "done"})


def check_key(key: str) -> str:
    """Return the key.

    Raises:
        Invalid: it is not 1 to 255 visible ASCII characters.
    """
    visible = key.isascii() and key.isprintable() and " " not in key
    if not 1 <= len(key) <= KEY_CHARS_MAX or not visible:
        raise Invalid(
            f"the header Idempotency-Key must be 1 to {KEY_CHARS_MAX} visible ASCII characters"
        )
    return key


def fingerprint(method: str, path: str, query: bytes, body: bytes) -> str:
    """Return what two requests have in common only if they are the same one."""
    head = f"{method} {path}\n{len(query)}\n".encode("utf-8", "surrogateescape")
    digest = hashlib.sha256(head)
    digest.update(query)
    digest.update(body)
    return digest.hexdigest()


def _applied(use: KeyUse, connection: Connection) -> None:
    if not store.mark_applied(connection, use):
        raise KeyBusy(use.key.rpartition(" ")[2])


def _answered(use: KeyUse, status: int, sealed: bytes, connection: Connection) -> None:
    if not store.put_answer(connection, use, status, sealed):
        raise KeyBusy(use.key.rpartition(" ")[2])
