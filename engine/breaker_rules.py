"""Decides when a version, or one device of it, is held back for what it did, and how long. Pure.

Path:   breakers -> `Windows.failed`: what opens now;  a trial's end -> `after_trial`
Never:  reads a clock or a table; holds anybody back for ever: after each wait comes a trial.
"""

import re
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from runtimes.contract import Outcome

HARM_MAX: Final = 5  # failures that cost others something: of a device in a row, of a version a
FAILURES_MAX: Final = 20  # minute; ordinary failures of a device, in a row and with the same error
WINDOW_MS: Final = 60_000  # in which a version's kills are counted
BUCKET_MS: Final = 10_000
STREAK_MS: Final = 600_000  # a device that has not failed for so long starts anew
OPEN_MS: Final = 30_000
OPEN_MS_MAX: Final = 15 * 60_000
AHEAD_MS_MAX: Final = OPEN_MS_MAX + 15 * 60_000  # beyond it an end was set by a clock gone wrong
LOOK_MS: Final = 10_000  # how often it is asked whether a trial is over that takes long
VERSIONS_MAX: Final = 1_000  # with recent failures, in memory; the oldest is forgotten first
PROJECT_VERSIONS_MAX: Final = 100  # ... of one project, so that none makes others' be forgotten
DEVICES_MAX: Final = 1_000  # with recent failures, of each version
STREAKS_MAX: Final = 20_000  # ... of all versions together
WELL_DEVICES: Final = 2  # two are enough to know of any device whether another one does well
BLURRED_CHARS: Final = 300

HARMFUL: Final = frozenset(
    {Outcome.CPU_EXCEEDED, Outcome.MEMORY_EXCEEDED, Outcome.TIMED_OUT, Outcome.CRASHED}
)
WELL: Final = frozenset({Outcome.SUCCEEDED, Outcome.REJECTED})
TELLS_NOTHING: Final = frozenset({Outcome.CANCELLED, Outcome.SKIPPED})
_WITH_A_DIGIT: Final = re.compile(r"\w*\d\w*")


class Scope(StrEnum):
    """What a breaker holds back."""

    FUNCTION = "function"  # a version of it, whoever asks
    DEVICE = "device"  # what one device's events would have that version run


class Next(StrEnum):
    """What a trial's end makes of its breaker."""

    CLOSE = "close"
    OPEN = "open"  # again, and for longer
    TRY = "try"  # nothing is known yet: the next run is a trial, too


def open_ms(openings: int) -> int:
    """Return how long a breaker stays open that has opened so often in a row, from 1."""
    assert openings >= 1
    return min(OPEN_MS_MAX, OPEN_MS << min(openings - 1, 10))


def is_due(until_ms: int, now_ms: int) -> bool:
    """Say whether a run may be let through: also when the clock was set back since `until_ms`."""
    return until_ms <= now_ms or until_ms > now_ms + AHEAD_MS_MAX


def look_again_ms(until_ms: int, now_ms: int) -> int:
    """Return when to look next, until `until_ms`, at a trial that is under way.

    Counted back from its end, so that whoever ends it sooner knows who is about to look.
    """
    left_ms = max(1, until_ms - now_ms)
    return now_ms + left_ms - (left_ms - 1) // LOOK_MS * LOOK_MS


def after_trial(scope: Scope, outcome: Outcome, *, has_killed: bool) -> Next:
    """Say what follows: a function is closed by all that harms nobody, a device by success."""
    if outcome in TELLS_NOTHING:
        return Next.TRY
    failed = has_killed if scope is Scope.FUNCTION else outcome not in WELL
    return Next.OPEN if failed else Next.CLOSE


def fingerprint(outcome: Outcome, name: str, message: str) -> str:
    """Return what two failures share that are the same: numbers and ids do not matter.

    All harm is one: an endless loop ends by its CPU limit today, and by its time tomorrow.
    """
    if outcome in HARMFUL:
        return "harm"
    return f"{outcome} {name} {_WITH_A_DIGIT.sub('#', message[:BLURRED_CHARS])}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One run that failed; `device_id` is empty unless a device's event caused it."""

    project_id: str
    version_id: str
    device_id: str
    outcome: Outcome
    fingerprint: str
    has_killed: bool  # it took its cell down


@dataclass(frozen=True, slots=True)
class Opening:
    """What is held back from now on, and after how many failures."""

    scope: Scope
    failures: int


@dataclass(slots=True)
class _Streak:
    failure: int  # the hash of its fingerprint: there may be many, and a text is long
    count: int
    last_ms: int


@dataclass(slots=True)
class _Window:
    """What a version did of late."""

    project_id: str
    failed_ms: int = 0  # the last time
    streaks: "OrderedDict[str, _Streak]" = field(default_factory=OrderedDict)  # by device
    well: dict[str, int] = field(default_factory=dict)  # when it last succeeded, by device
    kills: "deque[tuple[int, str]]" = field(default_factory=lambda: deque(maxlen=4 * HARM_MAX))
    runs: "deque[list[int]]" = field(default_factory=deque)  # [bucket, runs] of the last minute

    def count(self, now_ms: int) -> None:
        bucket = now_ms // BUCKET_MS
        if self.runs and self.runs[-1][0] == bucket:
            self.runs[-1][1] += 1
        else:
            self.runs.append([bucket, 1])
        while self.runs[0][0] <= bucket - WINDOW_MS // BUCKET_MS:
            self.runs.popleft()

    @property
    def runs_count(self) -> int:
        return sum(count for _, count in self.runs)

    def is_its_own(self, device_id: str, now_ms: int, *, has_killed: bool) -> bool:
        """Say whether it is this device that fails: another does well, or none else kills.

        Who is alone and harms nobody is not set aside: it may be the code, or what that calls.
        """
        if any(
            other != device_id and now_ms - at_ms <= STREAK_MS for other, at_ms in self.well.items()
        ):
            return True
        if not has_killed:
            return False
        failing = {one for one, streak in self.streaks.items() if self._is_recent(streak, now_ms)}
        return failing == {device_id} and all(killer == device_id for _, killer in self.kills)

    @staticmethod
    def _is_recent(streak: _Streak, now_ms: int) -> bool:
        return now_ms - streak.last_ms <= STREAK_MS


class Windows:
    """What versions did of late on this node; only those that have failed have a window."""

    def __init__(self) -> None:
        self._windows: OrderedDict[str, _Window] = OrderedDict()  # the last to have failed is last

    def __contains__(self, version_id: str) -> bool:
        return version_id in self._windows

    def forget(self, version_id: str) -> None:
        """Start anew: its code, its secrets or an operator's mind have changed."""
        self._windows.pop(version_id, None)

    def succeeded(self, version_id: str, device_id: str, now_ms: int) -> None:
        """Count a run that did well; a device's streak of failures ends with it."""
        window = self._windows.get(version_id)
        if window is None:
            return
        if now_ms - window.failed_ms > STREAK_MS:
            del self._windows[version_id]
            return
        window.count(now_ms)
        if not device_id:
            return
        window.streaks.pop(device_id, None)
        window.well.pop(device_id, None)
        window.well[device_id] = now_ms
        if len(window.well) > WELL_DEVICES:
            del window.well[next(iter(window.well))]

    def failed(self, failure: Failure, now_ms: int) -> Opening | None:
        """Count a failure; return what it opens, if it was the last that was missing."""
        window = self._windows.get(failure.version_id)
        if window is None:
            self._make_room(failure.project_id, now_ms)
            window = self._windows[failure.version_id] = _Window(failure.project_id)
        self._windows.move_to_end(failure.version_id)
        window.failed_ms = now_ms
        window.count(now_ms)
        window.well.pop(failure.device_id, None)
        if failure.has_killed:
            window.kills.append((now_ms, failure.device_id))
        while window.kills and now_ms - window.kills[0][0] > WINDOW_MS:
            window.kills.popleft()
        if failure.device_id:
            if failure.device_id not in window.streaks:
                self._forget_streaks(window, now_ms)
            if opening := _of_device(window, failure, now_ms):
                return opening
        if failure.has_killed:
            return _of_version(window)
        return None

    def _make_room(self, project_id: str, now_ms: int) -> None:
        """Let one more version of a project fail: what has gone by is forgotten, then what must."""
        while self._windows:
            oldest_id, oldest = next(iter(self._windows.items()))
            if now_ms - oldest.failed_ms <= STREAK_MS:
                break
            del self._windows[oldest_id]
        of_project = [of for of, one in self._windows.items() if one.project_id == project_id]
        if len(of_project) >= PROJECT_VERSIONS_MAX:
            self._forget_oldest(of_project)
        elif len(self._windows) >= VERSIONS_MAX:
            self._forget_oldest(list(self._windows))

    def _forget_oldest(self, version_ids: list[str]) -> None:
        """Forget the oldest, one that has killed nothing if there is any."""
        harmless = (of for of in version_ids if not self._windows[of].kills)
        del self._windows[next(harmless, version_ids[0])]

    def _forget_streaks(self, window: _Window, now_ms: int) -> None:
        """Make room for one more device: of the window, and of all of them."""
        streaks = window.streaks
        while streaks and now_ms - next(iter(streaks.values())).last_ms > STREAK_MS:
            streaks.popitem(last=False)
        if len(streaks) >= DEVICES_MAX:
            streaks.popitem(last=False)
        if sum(len(one.streaks) for one in self._windows.values()) < STREAKS_MAX:
            return
        most = max(self._windows.values(), key=lambda one: len(one.streaks)).streaks
        for _ in range((len(most) + 1) // 2):  # so that it is long until the next time
            most.popitem(last=False)


def _of_device(window: _Window, failure: Failure, now_ms: int) -> Opening | None:
    device_id, kind = failure.device_id, hash(failure.fingerprint)
    streak = window.streaks.get(device_id)
    if streak is None or streak.failure != kind or now_ms - streak.last_ms > STREAK_MS:
        streak = window.streaks[device_id] = _Streak(kind, 0, now_ms)
    window.streaks.move_to_end(device_id)
    streak.count += 1
    streak.last_ms = now_ms
    most = HARM_MAX if failure.outcome in HARMFUL else FAILURES_MAX
    if streak.count < most:
        return None
    if not window.is_its_own(device_id, now_ms, has_killed=failure.has_killed):
        return None
    del window.streaks[device_id]
    others = [kill for kill in window.kills if kill[1] != device_id]
    window.kills.clear()
    window.kills.extend(others)  # the device is blamed for its own, the version is not
    return Opening(Scope.DEVICE, streak.count)


def _of_version(window: _Window) -> Opening | None:
    kills = len(window.kills)
    if kills < HARM_MAX or 2 * kills < window.runs_count:
        return None
    window.kills.clear()
    return Opening(Scope.FUNCTION, kills)
