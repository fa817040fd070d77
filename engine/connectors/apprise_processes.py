"""The few processes in which Apprise runs: started when needed, replaced when they hang.

Path:   connectors.apprise -> Egress.companion -> here -> connectors.apprise_child
Never:  gives one process two messages at once; trusts the size of what it says.
"""

import asyncio
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from engine.addresses import Reach, written
from engine.connectors.apprise_services import SCHEMAS

PROCESSES_MAX: Final = 4  # 60 MB each, while messages go out
IDLE_S: Final = 60.0
START_S_MAX: Final = 20.0  # 0.7 s on an idle machine
END_S_MAX: Final = 5.0  # a killed process is gone at once
MESSAGES_MAX: Final = 500  # then it is replaced: a leak of a plugin's stays small
ANSWER_BYTES_MAX: Final = 64 * 1024

_CHILD: Final = Path(__file__).with_name("apprise_child.py")


class NoAnswer(Exception):
    """The process hung, died or could not be had. `sent`: the provider may have the message."""

    def __init__(self, detail: str, *, sent: bool) -> None:
        self.sent = sent
        super().__init__(detail)


class AppriseProcesses:
    """A companion of one Egress: what it allows, they may connect to."""

    def __init__(self, reach: Reach) -> None:
        self._reach = reach
        self._places = asyncio.Semaphore(PROCESSES_MAX)
        self._idle: list[_Child] = []  # the one that was used last is the last
        self._living: set[_Child] = set()
        self._ends: set[asyncio.Task[None]] = set()

    @property
    def pids(self) -> list[int]:
        return sorted(child.process.pid for child in self._living)

    async def ask(self, question: dict[str, Any], *, timeout_ms: int) -> dict[str, Any]:
        """Put one question to one process.

        Args:
            question: as `apprise_child` takes it.
            timeout_ms: for the answer, and the same again for a free process; a new one's start
                is not counted, for nothing is on its way then.

        Raises:
            NoAnswer: there is none. The process has been ended, if there was one.
        """
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await self._places.acquire()
        except TimeoutError:
            raise NoAnswer("all processes for Apprise are busy", sent=False) from None
        try:
            child = self._take() or await self._start()
            return await self._answered(child, question, timeout_ms)
        finally:
            self._places.release()

    async def close(self) -> None:
        """End all of them; whoever still waits for an answer gets NoAnswer."""
        for child in list(self._living):
            await self._end(child)
        if self._ends:
            await asyncio.wait(self._ends)

    def _take(self) -> "_Child | None":
        while self._idle:
            child = self._idle.pop()
            if child.timer is not None:
                child.timer.cancel()
            if child.process.returncode is None:
                return child
            self._living.discard(child)
        return None

    async def _start(self) -> "_Child":
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", "-B", "-X", "utf8", str(_CHILD),
                stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env={}, cwd="/",
                start_new_session=True, limit=ANSWER_BYTES_MAX,
            )  # fmt: skip
        except OSError as error:
            raise NoAnswer("no process for Apprise could be started", sent=False) from error
        child = _Child(process)
        self._living.add(child)
        setup = {"schemas": sorted(SCHEMAS), "reach": written(self._reach)}
        try:
            await self._answered(child, setup, int(START_S_MAX * 1000), sent=False)
        except NoAnswer:
            raise NoAnswer("no process for Apprise could be started", sent=False) from None
        return child

    async def _answered(
        self, child: "_Child", question: dict[str, Any], timeout_ms: int, *, sent: bool = True
    ) -> dict[str, Any]:
        is_well = False
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                answer = await child.ask(question)
            is_well = True
        except TimeoutError:
            raise NoAnswer(f"no answer within {timeout_ms} ms", sent=sent) from None
        except (OSError, EOFError, ValueError) as error:
            # Died, or said too much for one line, or something that is not JSON.
            raise NoAnswer("the process for Apprise broke", sent=sent) from error
        finally:
            if not is_well or child.messages >= MESSAGES_MAX:
                await self._end(child)
            elif sent:
                self._park(child)
        return answer

    def _park(self, child: "_Child") -> None:
        self._idle.append(child)
        child.timer = asyncio.get_running_loop().call_later(IDLE_S, self._retire, child)

    def _retire(self, child: "_Child") -> None:
        self._idle.remove(child)
        end = asyncio.get_running_loop().create_task(self._end(child))
        self._ends.add(end)
        end.add_done_callback(self._ends.discard)

    async def _end(self, child: "_Child") -> None:
        if child in self._idle:
            self._idle.remove(child)
        if child.timer is not None:
            child.timer.cancel()
        await child.end()
        self._living.discard(child)


class _Child:
    def __init__(self, process: Process) -> None:
        self.process = process
        self.timer: asyncio.TimerHandle | None = None
        self.messages = 0

    async def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None, stdin
        assert stdout is not None, stdout
        self.messages += 1
        stdin.write(msgspec.json.encode(question) + b"\n")
        await stdin.drain()
        line = await stdout.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        return msgspec.json.decode(line, type=dict[str, Any])

    async def end(self) -> None:
        """Kill it, and wait until nothing is left of it."""
        with suppress(ProcessLookupError):
            self.process.kill()
        assert self.process.stdin is not None, self.process
        self.process.stdin.close()
        async with asyncio.timeout(END_S_MAX):
            await self.process.wait()
