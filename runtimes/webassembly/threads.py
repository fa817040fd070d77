"""The threads that runs are served on: of the whole cell, made when needed, a few kept.

Path:   guest -> `Threads.start` -> the guest's work, on a thread of its own
Never:  runs two works at once on a thread; keeps more than KEPT_MAX that have nothing to do.
"""

import threading
import time
from collections.abc import Callable
from typing import Final

KEPT_MAX: Final = 8  # each has 1.5 MiB of stack, which the cell's memory limit counts


class Worker:
    """One thread and what it does next."""

    __slots__ = ("_threads", "clock", "resting", "wake", "work")

    def __init__(self, threads: "Threads", work: "Work") -> None:
        self._threads = threads
        self.clock = 0  # of the thread's CPU
        self.work: Work | None = work
        self.resting = False
        self.wake = threading.Lock()
        self.wake.acquire()

    def rest(self) -> None:
        """Be free for the next work as soon as this one returns: said before others are told."""
        self.resting = self._threads.keep(self)

    def run(self) -> None:
        self.clock = time.pthread_getcpuclockid(threading.get_ident())
        while self.work is not None:
            work, self.work, self.resting = self.work, None, False
            work(self)
            if not self.resting:
                return
            self.wake.acquire()


Work = Callable[[Worker], None]


class Threads:
    """The threads of one process. Nothing is started before the first work."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: list[Worker] = []

    def start(self, work: Work) -> None:
        """Have `work` done by a thread that has nothing to do, or by a new one."""
        with self._lock:
            worker = self._kept.pop() if self._kept else None
        if worker is not None:
            worker.work = work
            worker.wake.release()
            return
        worker = Worker(self, work)
        threading.Thread(target=worker.run, daemon=True).start()

    def keep(self, worker: Worker) -> bool:
        with self._lock:
            if len(self._kept) >= KEPT_MAX:
                return False
            self._kept.append(worker)
            return True
