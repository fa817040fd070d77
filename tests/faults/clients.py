"""Devices and programs that send to a cluster whose nodes come and go, and never send half of it.

Path:   chaos -> `Clients.running` -> threads -> whichever API node answers
Never:  makes something new of what it sends again: the same value ids, the same keys, until it is
        answered with 2xx. So at the end everything was accepted, and must be there once.
"""

import json
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from random import Random
from typing import Any, Final
from urllib.parse import urlsplit

from tests.faults.cluster import HEADERS, Cluster

REQUEST_S_MAX: Final = 4.0  # of a device's patience; a paused node answers nobody
AGAIN_S: Final = (0.05, 0.4)  # before it is sent again
GIVE_UP_S: Final = 120.0
CONFLICT: Final = 409


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """One request that is sent until it is accepted; `items` are what it carries."""

    path: str
    body: bytes
    items: tuple[str, ...]
    headers: dict[str, str] = field(default_factory=dict)
    at_s: float  # of the load's time, not before


@dataclass
class Answers:
    """What clients were told."""

    accepted: set[str] = field(default_factory=set)  # items
    lost: set[str] = field(default_factory=set)  # items of a request that nobody ever accepted
    statuses: Counter[str] = field(default_factory=Counter)
    refusals: list[tuple[int, bytes]] = field(default_factory=list)  # that sending again won't heal
    again_count: int = 0


class Clients:
    """Some threads with one connection each, which share what is to be sent.

    Each lane of `lanes` is sent by one client at a time, in its order.
    """

    def __init__(self, cluster: Cluster, lanes: list[deque[Sending]], rng: Random) -> None:
        self.answers = Answers()
        self._cluster = cluster
        self._lanes = lanes
        self._seeds = [rng.random() for _ in lanes]
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._began_s = 0.0

    @contextmanager
    def running(self) -> Iterator[Answers]:
        """Send meanwhile; at the end of the block wait until everything was accepted."""
        self._began_s = time.monotonic()
        threads = [
            threading.Thread(target=self._send_all, args=(lane, Random(seed)), daemon=True)
            for lane, seed in zip(self._lanes, self._seeds, strict=True)
        ]
        for thread in threads:
            thread.start()
        try:
            yield self.answers
            for thread in threads:
                thread.join()
        finally:
            self._stopping.set()

    @property
    def left_count(self) -> int:
        return sum(len(lane) for lane in self._lanes)

    def _send_all(self, lane: deque[Sending], rng: Random) -> None:
        link = _Link(self._cluster, rng)
        while lane and not self._stopping.is_set():
            wait_s = self._began_s + lane[0].at_s - time.monotonic()
            if wait_s > 0:
                self._stopping.wait(wait_s)
                continue
            self._send(link, lane[0], rng)
            lane.popleft()
        link.close()

    def _send(self, link: "_Link", sending: Sending, rng: Random) -> None:
        deadline = time.monotonic() + GIVE_UP_S
        while not self._stopping.is_set():
            try:
                status, body = link.post(sending)
            except (OSError, HTTPException) as error:
                self._count(type(error).__name__)
            else:
                self._count(str(status))
                if self._is_over(sending, status, body):
                    return
            link.close()  # and take another node, perhaps
            if time.monotonic() > deadline:
                break
            self._stopping.wait(rng.uniform(*AGAIN_S))
            with self._lock:
                self.answers.again_count += 1
        with self._lock:
            self.answers.lost.update(sending.items)

    def _is_over(self, sending: Sending, status: int, body: bytes) -> bool:
        """Take note of an answer; return False if the request must be sent again."""
        if 200 <= status < 300:
            answer = json.loads(body)
            if not answer.get("rejected"):
                with self._lock:
                    self.answers.accepted.update(sending.items)
                return True
        elif status >= 500 or status == CONFLICT:
            # The first of two may be at it still; or it was done, and what it was told is lost.
            if b"answer was lost" not in body:
                return False
            with self._lock:
                self.answers.accepted.update(sending.items)
            return True
        with self._lock:
            self.answers.refusals.append((status, body[:500]))
            self.answers.lost.update(sending.items)
        return True

    def _count(self, status: str) -> None:
        with self._lock:
            self.answers.statuses[status] += 1


class _Link:
    """One connection to one of the API nodes; another one after each failure."""

    def __init__(self, cluster: Cluster, rng: Random) -> None:
        self._cluster = cluster
        self._rng = rng
        self._open: HTTPConnection | None = None

    def post(self, sending: Sending) -> tuple[int, bytes]:
        if self._open is None:
            urls = self._cluster.urls()
            if not urls:
                raise ConnectionRefusedError
            address = urlsplit(self._rng.choice(urls)).netloc
            self._open = HTTPConnection(address, timeout=REQUEST_S_MAX)
        self._open.request("POST", sending.path, sending.body, HEADERS | sending.headers)
        response = self._open.getresponse()
        body = response.read()
        if response.will_close:
            self.close()
        return response.status, body

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None


def as_body(value: Any) -> bytes:
    return json.dumps(value).encode()
