"""The raw route that takes jobs: POST `/v1/jobs`, one or up to 1,000 in a call.

Path:   hot -> here -> intake -> journal -> the answer -> backlog
Never:  answers before the jobs are on disk; lets one bad job of a call spoil the others.
"""

from functools import partial
from typing import Any, Final

import msgspec

from engine.api.access import INVOKE
from engine.api.edge import check_json
from engine.api.invocations import find_function
from engine.api.keyed import claim_key
from engine.api.ports import Ports
from engine.api.problems import problem_of
from engine.api.raw import Request
from engine.catalogue import Version
from engine.causality import AT_ONCE_MS, Above
from engine.clock import iso
from engine.errors import EngineError, Invalid, explained
from engine.handlers import job_handler
from engine.ids import new_id
from engine.intake import Job, JobAsked, KeyMismatch, check_job, take_job
from engine.quotas import BATCH_ITEMS_MAX, CALL_DEPTH_MAX, GATEWAY_BYTES_MAX
from engine.store.job_keys import KeysKnown, KeyUse, claim_keys
from engine.store.journal import Commit

_JOB: Final = msgspec.json.Decoder(JobAsked)
_JOBS: Final = msgspec.json.Decoder(list[JobAsked])
_RAW_JOBS: Final = msgspec.json.Decoder(list[msgspec.Raw])
_encode: Final = msgspec.json.encode
_Answer = tuple[int, bytes, list[tuple[bytes, bytes]]]


class _Batch(msgspec.Struct, forbid_unknown_fields=True):
    jobs: msgspec.Raw


_BATCH: Final = msgspec.json.Decoder(_Batch)


class _Order(msgspec.Struct, frozen=True, kw_only=True):
    """One job of a call that may be made, and what is answered then."""

    version: Version
    handler: str
    job: Job
    job_id: str
    execution_id: str
    answer: bytes  # JSON object
    above: Above | None


class _Replayed(msgspec.Struct, frozen=True):
    """What was answered when the key of a job was used first."""

    answer: bytes


_Result = _Order | _Replayed | EngineError
"""What one job of a call is, or is to become; an EngineError: why it is refused."""


async def create_jobs(ports: Ports, request: Request) -> None:
    """Serve `/v1/jobs`."""
    access = request.access(ports)
    access.require(*INVOKE)
    body = await request.body(GATEWAY_BYTES_MAX, "gateway_bytes")
    if request.key is not None:
        await claim_key(ports, request, body, project_id=access.project_id, scopes=access.scopes)
    asked, several = _read(body)
    if several and not 1 <= len(asked) <= BATCH_ITEMS_MAX:
        raise Invalid(f"has {len(asked)} jobs; 1 to {BATCH_ITEMS_MAX} are allowed", "")
    batch_id = new_id("bat") if several else None
    now_ms = ports.clock()
    above = None if request.above is None else request.above.part(len(asked))
    results: list[_Result] = [
        _ordered(ports, access.project_id, one, now_ms, above) for one in asked
    ]
    while True:
        results = _without_doubles(results)
        answer = _answer(results, batch_id, told=request.key is None)
        orders = [result for result in results if isinstance(result, _Order)]
        if not orders:
            break
        try:
            await _commit(ports, request, access.project_id, orders, batch_id, now_ms, answer)
            break
        except KeysKnown as found:  # each time some of the orders are made before
            results = [_known(result, found) for result in results]
    await request.answer(*answer)


def _ordered(
    ports: Ports, project_id: str, asked: JobAsked | Invalid, now_ms: int, above: Above | None
) -> _Order | EngineError:
    if isinstance(asked, Invalid):
        return asked
    try:
        function = find_function(ports.catalogue, project_id, asked.function)
        job = check_job(asked, now_ms)
        job_id, execution_id = new_id("job"), new_id("exe")
        version = function.choose(execution_id)
        handler = job_handler(version.handlers, job.handler, "/handler")
        if job.due_ms >= now_ms + AT_ONCE_MS:
            above = None  # a job that asks for itself later is how one waits, and no loop
        if above is not None:
            above.check(CALL_DEPTH_MAX)
    except EngineError as error:
        return error
    answer = b'{"id":"%b","status":"queued","execution_id":"%b","run_at":"%b"}' % (
        job_id.encode(), execution_id.encode(), iso(job.due_ms).encode(),
    )  # fmt: skip
    return _Order(
        version=version,
        handler=handler,
        job=job,
        job_id=job_id,
        execution_id=execution_id,
        answer=answer,
        above=above,
    )


def _without_doubles(results: list[_Result]) -> list[_Result]:
    """Let the first job of a call with a key stand for the others with it."""
    first: dict[str, _Order] = {}
    kept: list[_Result] = []
    for result in results:
        if isinstance(result, _Order) and (key := result.job.key) is not None:
            known = first.setdefault(key, result)
            if known is not result:
                use = KeyUse(key=key, request=known.job.digest, answer=known.answer)
                kept.append(_again(result, use))
                continue
        kept.append(result)
    return kept


def _known(result: _Result, found: KeysKnown) -> _Result:
    use = found.known.get(result.job.key or "") if isinstance(result, _Order) else None
    return result if use is None or not isinstance(result, _Order) else _again(result, use)


def _again(order: _Order, use: KeyUse) -> _Result:
    if use.request != order.job.digest:
        return KeyMismatch(use.key)
    return _Replayed(use.answer)


async def _commit(
    ports: Ports,
    request: Request,
    project_id: str,
    orders: list[_Order],
    batch_id: str | None,
    now_ms: int,
    answer: _Answer,
) -> None:
    """Store all of these jobs, or none.

    Raises:
        KeysKnown: the keys of some have made their jobs before.
        QuotaExceeded: the project may have no more of them now.
    """
    ports.dispatcher.admission.usage.check(project_id)
    await ports.queue_room.need(project_id, len(orders))
    commit = Commit()
    runs = [
        take_job(
            commit,
            order.version,
            order.handler,
            order.job,
            job_id=order.job_id,
            execution_id=order.execution_id,
            batch_id=batch_id,
            owner=ports.backlog.owner,
            now_ms=now_ms,
            above=order.above,
        )
        for order in orders
    ]
    uses = [
        KeyUse(key=order.job.key, request=order.job.digest, answer=order.answer)
        for order in orders
        if order.job.key is not None
    ]
    if uses:
        commit.change = partial(claim_keys, project_id=project_id, uses=uses, now_ms=now_ms)
    request.answer_with(commit, *answer)
    await ports.journal.commit(commit)
    ports.backlog.submit(runs)


def _answer(results: list[_Result], batch_id: str | None, *, told: bool) -> _Answer:
    """Return status, body and headers.

    `told`: whether a header says that the job was made before; an answer that is kept for a key of
    the whole request has none, for it gets one when it is given again.

    Raises:
        EngineError: a single job is refused.
    """
    if batch_id is not None:
        rejected_count = sum(isinstance(result, EngineError) for result in results)
        head = {
            "batch": batch_id,
            "accepted": len(results) - rejected_count,
            "rejected": rejected_count,
            "items": [_item(result) for result in results],
        }
        return 200, _encode(head), []
    (result,) = results
    if isinstance(result, EngineError):
        raise result
    job_id = msgspec.json.decode(result.answer)["id"]
    headers = [(b"location", f"/v1/jobs/{job_id}".encode())]
    if told and isinstance(result, _Replayed):
        headers.append((b"idempotent-replayed", b"true"))
    return 201, result.answer, headers


def _item(result: _Result) -> dict[str, Any]:
    if isinstance(result, EngineError):
        problem = problem_of(result, instance="", request_id="")
        refused = {"status": problem["status"], "code": result.code, "detail": str(result)}
        return refused | ({"errors": problem["errors"]} if "errors" in problem else {})
    job = msgspec.json.decode(result.answer)
    made = {"status": 201} | {name: job[name] for name in ("id", "execution_id", "run_at")}
    return made | ({"replayed": True} if isinstance(result, _Replayed) else {})


def _read(body: bytes) -> tuple[list[JobAsked | Invalid], bool]:
    """Return the jobs, and whether they came as a list; one that is none of it as its error.

    Raises:
        Invalid: a single one is none; names the field.
        MalformedJson: it is not JSON.
    """
    try:
        if body.lstrip()[:1] == b"[":
            return _read_list(body), True
        return [_JOB.decode(body)], False
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        check_json(body)
        wrong = error  # unless it is {jobs: [...]}
    try:
        return _read_list(_BATCH.decode(body).jobs), True
    except msgspec.MsgspecError:
        pass
    if isinstance(wrong, msgspec.ValidationError):
        raise Invalid(*explained(wrong))
    raise Invalid("the body must be a job, a list of jobs, or {jobs: [...]}", "")


def _read_list(body: bytes | msgspec.Raw) -> list[JobAsked | Invalid]:
    try:
        return list(_JOBS.decode(body))
    except msgspec.ValidationError:
        pass
    items: list[JobAsked | Invalid] = []
    for item in _RAW_JOBS.decode(body):
        try:
            items.append(_JOB.decode(item))
        except msgspec.ValidationError as error:
            items.append(Invalid(*explained(error)))
    return items
