"""Holds back versions that harm others, and devices whose events a version cannot bear.

Path:   dispatch -> `holds` -> refused, put off, set aside or tried;  a run's end -> `ended`
Never:  loses a queued run: it waits in the queue, or as a dead letter; refuses without saying until
        when, and how to end it sooner.

The table `breakers` is the truth; what is here of it is read anew after every change, of any node.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Container, Coroutine, Mapping
from dataclasses import replace
from typing import Any, Final, Protocol

import structlog

from engine.breaker_rules import (
    OPEN_MS,
    TELLS_NOTHING,
    WELL,
    Failure,
    Next,
    Opening,
    Scope,
    Windows,
    after_trial,
    fingerprint,
    is_due,
    look_again_ms,
    open_ms,
)
from engine.clock import Clock, iso
from engine.ends import tell_end
from engine.errors import EngineError
from engine.ids import new_id
from engine.run import Run
from engine.store import breakers as store
from engine.store.breakers import HALF_OPEN, OPEN, Breaker
from engine.store.database import Database
from engine.store.journal import Journal
from runtimes.contract import GuestError, Outcome

SOON_MS: Final = 1_000
TRIAL_MS: Final = 30_000  # beyond its own time, for a trial to start and to be told of
SKIP_REASON: Final = "breaker_open"
_log = structlog.get_logger()


class BreakerOpen(EngineError):
    """The function is held back: it took its cells down; says why, until when, and what to do."""

    code = SKIP_REASON

    def __init__(self, run: Run, breaker: Breaker, now_ms: int) -> None:
        version, until_ms = run.version, _next_ms(breaker, now_ms)
        self.retry_after_s = (until_ms - now_ms + 999) // 1000
        self.extra = {
            "breaker": breaker.id,
            "function": version.function,
            "version": version.number,
            "until": iso(until_ms),
            "last_error": breaker.error,
        }
        super().__init__(
            f"{version.function} (version {version.number}) has taken its cell down "
            f"{breaker.failures} times within a minute, the last time as "
            f"{said(breaker.error)}; it is held back until {iso(until_ms)}, then one run "
            "is let through. Deploy another version to end it sooner, or POST "
            f"/v1/breakers/{breaker.id}/close"
        )


class HeldBack(EngineError):
    """What the public is told of it: nothing of the function's inside."""

    code = SKIP_REASON

    def __init__(self, of: BreakerOpen) -> None:
        self.retry_after_s = of.retry_after_s
        super().__init__("the function is held back for a moment; try again later")


class Desk(Protocol):
    """Port: what becomes of runs that were held. Adapter: `dispatch.Dispatcher`, by `wiring`."""

    def submit(self, run: Run) -> None: ...

    def try_alone(self, run: Run) -> None:
        """Run it in a cell where nothing else is, whatever its version is held back for."""
        ...

    def sift(self, version_id: str) -> None:
        """Submit again what waits of this version and has not begun."""
        ...


class Breakers:
    """All breakers that are not closed, and what versions did of late on this node."""

    def __init__(
        self,
        database: Database,
        journal: Journal,
        desk: Desk,
        *,
        clock: Clock,
        settle: Callable[[Run], None],
        put_off: Callable[[Run, int], None],
        wake: Callable[[str, int, int], None],
        tell: Callable[[str, str], None],
        exceeded: Container[str],
    ) -> None:
        """`settle` takes runs that end without having run; `put_off(run, due_ms)` gives one back.

        `wake` is told (project, priority, due) of free rows, `tell` (function's id, text) what
        whoever watches the function shall read. `exceeded` has the projects that have used up
        their CPU: nothing of theirs is tried.
        """
        self._database = database
        self._journal = journal
        self._desk = desk
        self._clock = clock
        self._settle = settle
        self._put_off = put_off
        self._wake = wake
        self._tell = tell
        self._exceeded = exceeded
        self._windows = Windows()
        self._held: dict[str, dict[str, Breaker]] = {}  # by version, by device
        self._trying: set[str] = set()  # breakers whose trial this node has, or asks for
        self._reading = asyncio.Lock()  # a slow old answer must not overwrite a newer one
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self.opened: Counter[str] = Counter()  # by scope

    async def load(self, project_id: str | None = None) -> None:
        """Read the breakers of a project, or of all; what waits for a new one is held now."""
        async with self._reading:
            rows = await self._database.read(store.all_breakers, project_id)
            before = {
                one.id: one
                for held in self._held.values()
                for one in held.values()
                if project_id in {None, one.project_id}
            }
            held = {
                version_id: known
                for version_id, known in self._held.items()
                if project_id not in {None, next(iter(known.values())).project_id}
            }
            for row in rows:
                held.setdefault(row.version_id, {})[row.device_id] = row
            self._held = held
        for version_id in {row.version_id for row in rows if row.id not in before}:
            self._desk.sift(version_id)
        there = {row.id for row in rows}
        for gone in before.values():
            if gone.id not in there and not gone.device_id:
                # This node may have put runs off to its end after another one had closed it.
                woken = await self._journal.run(store.wake_waiting, gone, self._clock())
                for project, priority, due_ms in woken:
                    self._wake(project, priority, due_ms)

    async def changed(self, project_id: str) -> None:
        """Learn what another node, or a deployment, has changed."""
        await self.load(project_id or None)

    def replaced(self, version_id: str) -> None:
        """Forget what a version did that is live no more, or has new secrets."""
        self._windows.forget(version_id)
        held = self._held.get(version_id)
        if held:
            self._spawn(self._load_again(next(iter(held.values())).project_id))

    def held_back(self) -> dict[str, int]:
        """Return the versions (ids) that are held back as a whole: until when, ms."""
        return {
            version_id: held[""].until_ms for version_id, held in self._held.items() if "" in held
        }

    def counts(self) -> Mapping[str, int]:
        """Return how many there are by state."""
        found = Counter(one.state for held in self._held.values() for one in held.values())
        return {state: found[state] for state in (OPEN, HALF_OPEN)}

    async def close_by_hand(self, project_id: str, breaker_id: str) -> bool:
        """Close a breaker of the project; False: there was none."""
        return await self._close(project_id, breaker_id, "closed by hand")

    async def close(self) -> None:
        """Stop: runs that are held end as cancelled, and their rows are free for another node."""
        self._closing = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # What comes.

    def holds(self, run: Run) -> bool:
        """Say whether the run must not begin now; then it is dealt with, here or later."""
        held = self._held.get(run.version.id)
        if held is None:
            return False
        now_ms = self._clock()
        breaker = _breaker_of(run, held, now_ms)
        if breaker is None:
            return False
        may_try = not self._closing and run.project_id not in self._exceeded
        if may_try and is_due(breaker.until_ms, now_ms) and breaker.id not in self._trying:
            self._trying.add(breaker.id)
            self._spawn(self._try(breaker, run))
        else:
            self._hold(run, breaker)
        return True

    def _hold(self, run: Run, breaker: Breaker) -> None:
        now_ms = self._clock()
        if not run.queued:
            run.outcome = Outcome.SKIPPED
            run.refused = BreakerOpen(run, breaker, now_ms)
            tell_end(run)
        elif breaker.device_id or run.schedule_id is not None:
            self._end(run, breaker, now_ms)
        else:
            is_trial_off = is_due(breaker.until_ms, now_ms) and run.project_id in self._exceeded
            self._put_off(run, now_ms + OPEN_MS if is_trial_off else _next_ms(breaker, now_ms))

    def _end(self, run: Run, breaker: Breaker, now_ms: int) -> None:
        run.outcome = Outcome.SKIPPED
        run.skip_reason = SKIP_REASON
        run.clock_ms = now_ms
        run.ended_ns = time.monotonic_ns()
        run.set_aside_by = _letters_of(run, breaker)
        whose = run.version.function
        if breaker.device_id:
            whose = f"{whose} for the device {breaker.device_id}"
        message = (
            f"{whose} is held back since {iso(breaker.opened_ms)}, after {breaker.failures} "
            f"failures, the last as {said(breaker.error)}; deploy a version that can bear it"
            f"{', and redrive' if run.set_aside_by else ''}, or POST "
            f"/v1/breakers/{breaker.id}/close"
        )
        run.error = GuestError(name="BreakerOpen", message=message)
        self._settle(run)

    async def _try(self, breaker: Breaker, run: Run) -> None:
        """Let the run through as the trial, if no other node has it."""
        now_ms = self._clock()
        until_ms = now_ms + run.limits.wall_ms + TRIAL_MS
        claimed = False
        try:
            claimed = await self._journal.run(store.begin_trial, breaker, now_ms, until_ms)
            await self.load(breaker.project_id)
        except Exception as error:  # noqa: BLE001 - of the store, or ours: the run must not be lost
            _log.warning("breaker_not_tried", breaker=breaker.id, error=str(error))
            self._trying.discard(breaker.id)
            self._hold(run, breaker)
            return
        except asyncio.CancelledError:
            run.outcome = Outcome.CANCELLED  # the process stops; a row is free in the store
            tell_end(run)
            raise
        if claimed:
            run.trial = breaker.id
            run.set_aside_by = _letters_of(run, breaker)
            self._desk.try_alone(run)
        else:
            self._trying.discard(breaker.id)
            self._desk.submit(run)

    # What ends.

    def ended(self, run: Run) -> None:
        """Learn from the end of a run; called once its error is fit to be shown."""
        outcome, version_id = run.outcome, run.version.id
        assert outcome is not None
        if run.trial:
            self._trial_ended(run)
            return
        if outcome in TELLS_NOTHING or run.unstored:
            return
        if outcome in WELL:
            if version_id in self._windows:
                self._windows.succeeded(version_id, _device_of(run), _monotonic_ms())
            return
        failure = Failure(
            project_id=run.project_id,
            version_id=version_id,
            device_id=_device_of(run),
            outcome=outcome,
            fingerprint=fingerprint(outcome, *_error_of(run)),
            has_killed=run.has_killed,
        )
        opening = self._windows.failed(failure, _monotonic_ms())
        if opening is not None and run.version.live:
            self._spawn(self._open(run, opening))

    async def _open(self, run: Run, opening: Opening) -> None:
        now_ms, version = self._clock(), run.version
        breaker = Breaker(
            id=new_id("brk"),
            project_id=version.project_id,
            function_id=version.function_id,
            version_id=version.id,
            device_id=_device_of(run) if opening.scope is Scope.DEVICE else "",
            state=OPEN,
            error=_shown(run),
            failures=opening.failures,
            openings=1,
            opened_ms=now_ms,
            until_ms=now_ms + open_ms(1),
        )
        # Before anybody can read that it is open; if it cannot be stored, its trial finds no row.
        self._held.setdefault(version.id, {}).setdefault(breaker.device_id, breaker)
        if await self._journal.run(store.open_breaker, breaker):
            self.opened[opening.scope.value] += 1
            self._say("breaker_opened", f"after {opening.failures} failures", breaker)
        await self.load(version.project_id)
        self._desk.sift(version.id)

    def _trial_ended(self, run: Run) -> None:
        breaker = self._known(run.trial)
        self._trying.discard(run.trial)
        if breaker is not None:  # else it was closed meanwhile
            self._spawn(self._after_trial(run, breaker))

    async def _after_trial(self, run: Run, breaker: Breaker) -> None:
        assert run.outcome is not None
        scope = Scope.DEVICE if breaker.device_id else Scope.FUNCTION
        match after_trial(scope, run.outcome, has_killed=run.has_killed):
            case Next.CLOSE:
                await self._close(breaker.project_id, breaker.id, f"{run.execution_id} went well")
            case Next.OPEN:
                changed = replace(breaker, openings=breaker.openings + 1, error=_shown(run))
                until_ms = self._clock() + open_ms(changed.openings)
                if await self._journal.run(store.open_again, changed, until_ms):
                    self._say("breaker_opened", "its trial failed, too", changed)
            case Next.TRY:
                await self._journal.run(store.open_again, breaker, self._clock())
        await self.load(breaker.project_id)

    async def _close(self, project_id: str, breaker_id: str, why: str) -> bool:
        known = self._known(breaker_id)
        if known is not None and known.project_id != project_id:
            return False  # another project's: to this one there is none
        if known is not None:  # before anybody can read that it is closed
            self._held[known.version_id].pop(known.device_id)
            if not self._held[known.version_id]:
                del self._held[known.version_id]
        closed, woken = await self._journal.run(
            store.close_breaker, project_id, breaker_id, self._clock()
        )
        await self.load(project_id)
        for row in woken:
            self._wake(*row)
        if known is not None:
            self._windows.forget(known.version_id)
            if closed:
                self._say("breaker_closed", why, known)
        return closed

    # How.

    def _known(self, breaker_id: str) -> Breaker | None:
        every = (one for held in self._held.values() for one in held.values())
        return next((one for one in every if one.id == breaker_id), None)

    def _say(self, event: str, why: str, breaker: Breaker) -> None:
        """Tell operators by the log, and whoever watches the function."""
        _log.warning(
            event,
            breaker=breaker.id,
            project_id=breaker.project_id,
            function_id=breaker.function_id,
            version_id=breaker.version_id,
            device_id=breaker.device_id or None,
            last=said(breaker.error),
            why=why,
        )
        whose = f" for the device {breaker.device_id}" if breaker.device_id else ""
        self._tell(breaker.function_id, f"{event} {breaker.id}{whose}: {why}")

    async def _load_again(self, project_id: str) -> None:
        await self.load(project_id)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        if self._closing:
            work.close()
            return
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("breaker_not_changed", error=str(error))  # the next failure, or trial, will


def said(error: Mapping[str, Any]) -> str:
    """Return an error of a breaker in a few words, with the numbers of the limit that it hit."""
    limit = error.get("limit")
    if limit:
        return f"{error['status']} ({limit['name']} {limit['value']}, used {limit['used']})"
    if error.get("name"):
        return f"{error['status']} ({error['name']}: {error['message']})"
    return str(error["status"])


def _next_ms(breaker: Breaker, now_ms: int) -> int:
    """Return when a run that is held now has its next chance."""
    if is_due(breaker.until_ms, now_ms):
        return now_ms + SOON_MS  # its trial is just being claimed
    if breaker.state == HALF_OPEN:
        return look_again_ms(breaker.until_ms, now_ms)
    return breaker.until_ms


def _breaker_of(run: Run, held: Mapping[str, Breaker], now_ms: int) -> Breaker | None:
    """Return what holds the run: its device's, but no trial of that while the version is held."""
    device_id = _device_of(run)
    own = held.get(device_id) if device_id else None
    whole = held.get("")
    if own is None or (whole is not None and is_due(own.until_ms, now_ms)):
        return whole
    return own


def _monotonic_ms() -> int:
    """Return the time for windows: a clock that is set must not open a breaker, or close one."""
    return time.monotonic_ns() // 1_000_000


def _device_of(run: Run) -> str:
    """Return whose event caused the run; calls have a caller that is told, and are nobody's."""
    return run.device.id if run.queued and run.device is not None else ""


def _letters_of(run: Run, breaker: Breaker) -> str:
    """Return the breaker if what does not run becomes a dead letter: not what a clock repeats."""
    return breaker.id if breaker.device_id and run.schedule_id is None else ""


def _error_of(run: Run) -> tuple[str, str]:
    return ("", "") if run.error is None else (run.error.name, run.error.message)


def _shown(run: Run) -> dict[str, Any]:
    assert run.outcome is not None
    name, message = _error_of(run)
    shown: dict[str, Any] = {"status": run.outcome.value, "name": name, "message": message[:500]}
    if run.limit is not None:
        hit = run.limit
        shown["limit"] = {"name": hit.name, "value": hit.value, "used": hit.used}
    return shown | {"execution_id": run.execution_id}
