"""Several engines on one PostgreSQL and one Redis, each a process that a test kills or pauses.

Path:   a test, a benchmark -> `Cluster` -> `Node` -> `cloudcode serve`, `cloudcode worker`
Never:  lets a process outlive the `with` block, whatever was done to it.
"""

import base64
import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self
from urllib.parse import urlsplit

import psutil
import psycopg

from tests.standins.servers import Postgres, Redis

ROOT: Final = Path(__file__).parents[2]
ADMIN_KEY: Final = "cck_cluster-admin-key"
HEADERS: Final = {"authorization": f"Bearer {ADMIN_KEY}", "content-type": "application/json"}
LEASE_S: Final = 3
START_S_MAX: Final = 60.0
STOP_S_MAX: Final = 40.0  # a worker lets its runs end for 20 s
REQUEST_S_MAX: Final = 30.0
PAUSE_S: Final = 0.05  # between two looks at what other processes do
Kind = Literal["serve", "worker"]


class Node:
    """One place in the cluster: a process, and the one that follows it there."""

    def __init__(self, kind: Kind, number: int, folder: Path, settings: dict[str, str]) -> None:
        self.name = f"{kind}-{number}"
        self.kind = kind
        self.starts_count = 0
        self.wanted = True  # whether `Cluster.keep_up` starts it again when it has ended
        self._url = ""
        self._data_dir = folder / self.name
        self._log = folder / f"{self.name}.log"
        self._settings = settings
        self._greeted = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str | None:
        """Return where it listens; None while it does not, as far as is known here."""
        return self._url if self.is_running and self._greeted.is_set() else None

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} was never started"
        return self._process.pid

    def start(self) -> None:
        """Start a process here; `url` says when it listens."""
        assert not self.is_running, f"{self.name} runs already"
        self.wanted = True
        self.starts_count += 1
        self._greeted = threading.Event()
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
        environment |= {f"CLOUDCODE_{name}": text for name, text in self._settings.items()}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "engine", self.kind, "--port", "0",
                 "--data-dir", str(self._data_dir)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
            )  # fmt: skip
        listen = threading.Thread(
            target=self._listen, args=(self._process, self._greeted), daemon=True
        )
        listen.start()

    def _listen(self, process: subprocess.Popen[bytes], greeted: threading.Event) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                if line.startswith(b"listening on "):
                    self._url = line.split()[-1].decode()
                    greeted.set()

    def wait_until_up(self) -> None:
        deadline = time.monotonic() + START_S_MAX
        while not self._greeted.wait(PAUSE_S):
            assert self.is_running, f"{self.name} ended at its start:\n{self.log()[-3000:]}"
            assert time.monotonic() < deadline, f"{self.name} does not start:\n{self.log()[-3000:]}"

    def kill(self) -> None:
        """End it without a warning; its cells end with it."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def pause(self) -> None:
        self._send(signal.SIGSTOP)

    def resume(self) -> None:
        self._send(signal.SIGCONT)

    def terminate(self) -> None:
        """Ask it to end, as an operator would; `wait_until_ended` sees that it does."""
        self.wanted = False
        self._send(signal.SIGTERM)

    def wait_until_ended(self) -> None:
        """Return at once unless it was asked to end."""
        if self.wanted or self._process is None:
            return
        try:
            self._process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} does not stop:\n{self.log()[-3000:]}") from None

    def cells(self) -> list[psutil.Process]:
        """Return the processes that run guests now."""
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.pid).children():
                if "sandbox.zygote_unsafe" in child.cmdline():
                    return child.children()
        return []

    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def metrics(self) -> dict[str, float]:
        """Return what it counts, summed over labels."""
        found: dict[str, float] = {}
        if self.url is None:
            return found
        with contextlib.suppress(OSError, HTTPException):
            _, body = request(self.url, "GET", "/metrics")
            for line in body.decode().splitlines():
                if not line.startswith("#"):
                    name, _, value = line.rpartition(" ")
                    name = name.partition("{")[0]
                    found[name] = found.get(name, 0.0) + float(value)
        return found

    def _send(self, number: signal.Signals) -> None:
        if self.is_running:
            assert self._process is not None
            self._process.send_signal(number)


class Cluster:
    """PostgreSQL, Redis, API nodes and workers. Use it as a context manager."""

    def __init__(
        self,
        *,
        apis_count: int = 2,
        workers_count: int = 3,
        lease_s: float = LEASE_S,
        redis: bool = True,
        **settings: str,
    ) -> None:
        self._stack = contextlib.ExitStack()
        self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory("-cluster")))
        self.postgres = self._stack.enter_context(Postgres())
        self.redis = self._stack.enter_context(Redis())
        url = self.postgres.new_database()
        self.database = url.rpartition("/")[2]
        common = {
            "DATABASE_URL": url,
            "MASTER_KEY": base64.b64encode(secrets.token_bytes(32)).decode(),
            "ADMIN_KEY": ADMIN_KEY,
            "LEASE_SECONDS": str(lease_s),
            "EGRESS_ALLOW": "127.0.0.0/8",
            "WARM_CELLS": "1",
            **({"REDIS_URL": self.redis.url} if redis else {}),
            **{name.upper(): text for name, text in settings.items()},
        }
        self.lease_s = lease_s
        self.apis = [Node("serve", n, self.folder, common) for n in range(1, apis_count + 1)]
        self.workers = [Node("worker", n, self.folder, common) for n in range(1, workers_count + 1)]

    @property
    def nodes(self) -> list[Node]:
        return [*self.apis, *self.workers]

    def __enter__(self) -> Self:
        try:
            for node in self.nodes:
                self._stack.callback(_end, node)
                node.start()
            for node in self.nodes:
                node.wait_until_up()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def urls(self) -> list[str]:
        """Return where an API answers, as a load balancer would know it."""
        return [node.url for node in self.apis if node.url is not None]

    def keep_up(self) -> int:
        """Start what has ended by itself, as systemd would; return how many that were."""
        ended = [node for node in self.nodes if node.wanted and not node.is_running]
        for node in ended:
            node.start()
        return len(ended)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        return self.postgres.execute(query, self.database)

    @contextlib.contextmanager
    def connection(self) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
        """Lend one connection for several queries."""
        with self.postgres._connect(self.database) as connection:
            yield connection

    def ok(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """Ask the first API node; what is not 2xx is a failed assertion."""
        import json

        url = self.urls()[0]
        text = None if body is None else json.dumps(body).encode()
        status, answer = request(url, method, path, text, headers)
        assert 200 <= status < 300, (method, path, status, answer)
        return json.loads(answer) if answer else None


def request(
    url: str,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, bytes]:
    connection = HTTPConnection(urlsplit(url).netloc, timeout=REQUEST_S_MAX)
    try:
        connection.request(method, path, body, HEADERS | (headers or {}))
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def _end(node: Node) -> None:
    """Stop a process at the end, as fast as that goes: nothing of it is needed any more."""
    node.wanted = False
    if node.is_running:
        node.kill()
