"""Answers host calls: checks count and shape, finds the capability, keeps the transcript.

Path:   dispatch -> here -> hostcalls.devices, fetch, connections, timers
Never:  trusts an operation's name or arguments; lets a capability's failure out as anything but an
        error that the guest can catch.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from typing import Any, Final

import msgspec
import structlog

from engine.errors import EngineError
from engine.run import Run
from engine.runner import Answer, LimitReached
from runtimes.contract import LimitHit, Outcome

TRANSCRIPT_BYTES_MAX: Final = 64 * 1024  # of one run; longer ones end with a mark
_SHOWN_HEADERS: Final = frozenset({"accept", "content-type", "user-agent", "idempotency-key"})
_NOT_SHOWN: Final = "[not shown]"
_log = structlog.get_logger()
_encode: Final = msgspec.json.encode

Capability = Callable[[Run, bytes, int], Any]
"""(run, arguments as JSON, number of the call) -> answer, or an awaitable of it."""


class Broker:
    """The capabilities of this engine by the name that guests call them."""

    def __init__(self, capabilities: dict[str, Capability]) -> None:
        self._capabilities = capabilities
        self._tasks: set[asyncio.Task[None]] = set()

    def operations(self) -> AbstractSet[str]:
        """Return the names of all that a guest may ask."""
        return self._capabilities.keys()

    def handle(self, run: Run, call: int, operation: str, arguments: bytes, answer: Answer) -> None:
        """Do one call; see `dispatch.Broker`."""
        run.calls_count += 1
        most = run.limits.host_calls
        if run.calls_count > most:
            hit = LimitHit(name="host_calls", value=most, used=run.calls_count)
            raise LimitReached(Outcome.HOST_CALLS_EXCEEDED, hit)
        capability = self._capabilities.get(operation)
        if capability is None:
            known = ", ".join(sorted(self._capabilities))
            message = f"there is no host call {operation[:80]!r}; there are: {known}"
            message = _without_secrets(run, message, _encode(operation))
            answer(False, _error("NotFoundError", message, "not_found"))
            return
        result = None
        with self._answering(run, operation, arguments, answer):
            result = capability(run, arguments, call)
            if not isinstance(result, Coroutine):
                self._answer(run, operation, arguments, answer, result)
        if isinstance(result, Coroutine):
            task = asyncio.ensure_future(self._later(run, operation, arguments, answer, result))
            self._tasks.add(task)
            if operation == "timer":
                run.timers.append(task)  # cancelled with the run, perhaps before it has begun
                task.add_done_callback(lambda _task: result.close())
            task.add_done_callback(self._tasks.discard)

    async def _later(
        self, run: Run, operation: str, arguments: bytes, answer: Answer, result: Awaitable[Any]
    ) -> None:
        losses = run.losses
        with self._answering(run, operation, arguments, answer, later=True):
            value = await result
            if run.losses == losses:  # else its cell is gone, and the transcript begins anew
                self._answer(run, operation, arguments, answer, value)

    @contextmanager
    def _answering(
        self, run: Run, operation: str, arguments: bytes, answer: Answer, *, later: bool = False
    ) -> Iterator[None]:
        """Answer with an error what cannot be done, and what fails by a mistake of ours."""
        losses = run.losses
        try:
            yield
        except (EngineError, msgspec.MsgspecError) as error:
            if run.losses == losses:
                self._refuse(run, operation, arguments, answer, error)
        except Exception as error:  # the loop of host calls: no guest hangs on our mistake
            if isinstance(error, LimitReached) and not later:
                raise  # it ends the run
            _log.exception("host_call_failed", operation=operation, execution_id=run.execution_id)
            answer(False, _error("Error", f"{operation} failed inside the engine", "internal"))

    def _answer(
        self, run: Run, operation: str, arguments: bytes, answer: Answer, value: Any
    ) -> None:
        text = value if isinstance(value, bytes) else _encode(value)
        _note(run, operation, arguments, True, text)
        answer(True, text)

    def _refuse(
        self, run: Run, operation: str, arguments: bytes, answer: Answer, error: Exception
    ) -> None:
        code = error.code if isinstance(error, EngineError) else "invalid_arguments"
        told = _without_secrets(run, f"{operation}: {error}", arguments)
        text = _error("Error", told, code)
        _note(run, operation, arguments, False, text)
        has_ended = run.awaits_effects is not None
        has_room = len(run.log) < run.limits.log_lines and run.log_bytes < run.limits.log_bytes
        if has_ended or (operation == "connection.send" and has_room):
            # The guest has ended already and will not see this, or perhaps does not wait for it:
            # its log says it.
            run.log_bytes += len(told[:500])
            run.log.append(("error" if has_ended else "warn", run.guest_ms, told[:500]))
        answer(False, text)


class _Request(msgspec.Struct):
    url: str
    method: str = "GET"
    headers: list[tuple[str, str]] = []
    body: str | None = None
    body_base64: bool = False
    redirect: str = "follow"


def _shown_fetch(arguments: bytes) -> bytes:
    """Return the arguments of a fetch with nothing in it that opens anything: operators read it."""
    try:
        request = msgspec.json.decode(arguments, type=_Request)
    except msgspec.MsgspecError:
        return b"null"
    request.headers = [
        (name, value if name.lower() in _SHOWN_HEADERS else _NOT_SHOWN)
        for name, value in request.headers
    ]
    return _encode(request)


def _shown_send(arguments: bytes) -> bytes:
    """Return the arguments of a message without the credentials that a script gave."""
    try:
        asked = msgspec.json.decode(arguments, type=dict[str, Any])
    except msgspec.MsgspecError:
        return b"null"
    if "credentials" not in asked:
        return arguments
    return _encode(asked | {"credentials": _NOT_SHOWN})


_WITHOUT_CREDENTIALS: Final = {"fetch": _shown_fetch, "connection.send": _shown_send}


def _note(run: Run, operation: str, arguments: bytes, ok: bool, answer: bytes) -> None:
    if (shown := _WITHOUT_CREDENTIALS.get(operation)) is not None:
        arguments = shown(arguments)
    size = len(arguments) + len(answer)
    if run.transcript_bytes > TRANSCRIPT_BYTES_MAX:
        return
    run.transcript_bytes += size
    if run.transcript_bytes > TRANSCRIPT_BYTES_MAX:
        run.transcript.append(b'["transcript_cut",null,false,null]')
        return
    run.transcript.append(
        b"[%b,%b,%b,%b]" % (_encode(operation), arguments, b"true" if ok else b"false", answer)
    )


def _without_secrets(run: Run, told: str, asked: bytes) -> str:
    """Return why a call is refused; capabilities quote what was asked for, cut off anywhere."""
    redaction = run.version.redaction
    return told if redaction is None else redaction.refusal(told, asked.decode())


def _error(name: str, message: str, code: str) -> bytes:
    return _encode({"name": name, "message": message, "code": code})
