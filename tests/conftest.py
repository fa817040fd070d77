"""What every folder shares: an engine as its users meet it, a process that speaks HTTP."""

import contextlib
import os
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest

from engine.egress import Egress
from engine.store.database import Database
from sandbox.lockdown import probe
from tests.standins.servers import Postgres, Redis

ADMIN_KEY = "cck_tests-admin-key"
# Of runs that have not ended; asked one after the other: one may go back to be queued meanwhile.
OPEN_STATUSES = ("queued", "running", "queued")
# Trusts nobody, for clients that speak HTTP alone: reading who is usually trusted takes long.
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


class Engine:
    """One `cloudcode serve` process on a data directory, and a client of it."""

    command: ClassVar[tuple[str, ...]] = (sys.executable, "-P", "-m", "engine")

    def __init__(self, data_dir: Path, **settings: str) -> None:
        self.data_dir = data_dir
        self._settings = settings
        self._stderr = (data_dir.parent / f"{data_dir.name}.stderr").open("ab")
        self.process: subprocess.Popen[bytes]
        self.url = ""
        self.client = httpx.Client(timeout=30, verify=NO_TLS)

    def start(self) -> "Engine":
        environment = {
            "PATH": os.environ["PATH"],
            "CLOUDCODE_ADMIN_KEY": ADMIN_KEY,
            "CLOUDCODE_EGRESS_ALLOW": "127.0.0.0/8",
        }
        environment |= {f"CLOUDCODE_{name.upper()}": text for name, text in self._settings.items()}
        arguments = ["serve", "--port", "0", "--data-dir", str(self.data_dir)]
        self.process = subprocess.Popen(
            [*self.command, *arguments],
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=environment,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode()
        assert line.startswith("listening on "), (line, self.stderr())
        self.url = line.split()[-1]
        self.client.close()
        self.client = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {ADMIN_KEY}"},
            timeout=60,
            verify=NO_TLS,
        )
        return self

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {ADMIN_KEY}"}

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()

    def stop(self) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(timeout=30)
        self.process.stdout.close()
        self._stderr.close()

    def stderr(self) -> str:
        return Path(self._stderr.name).read_text()

    # What an ordinary client does, with less to type.

    def ok(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        response = self.client.request(method, path, json=body, **options)
        assert response.is_success, (response.status_code, response.text)
        return response.json() if response.content else None

    def deploy(self, name: str, source: str, **fields: Any) -> dict[str, Any]:
        return self.ok("POST", "/v1/functions", {"name": name, "source": source, **fields})

    def invoke(self, name: str, params: Any = None) -> httpx.Response:
        return self.client.post(f"/v1/functions/{name}/invoke", json=params)

    def device(self, product: str, name: str = "one") -> dict[str, Any]:
        if self.client.get(f"/v1/products/{product}").status_code == 404:
            self.ok("POST", "/v1/products", {"name": product})
        return self.ok("POST", "/v1/devices", {"product": product, "name": name})

    def executions(self, **filters: Any) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = []
        cursor = None
        while True:
            query = {"limit": 200, **filters} | ({"cursor": cursor} if cursor else {})
            page = self.ok("GET", "/v1/executions", params=query)
            items += page["items"]
            cursor = page["next_cursor"]
            if cursor is None:
                return items

    def until(self, question: Callable[[], Any], seconds: float = 20) -> Any:
        """Return the first true answer; the engine is another process, so it has to be asked."""
        deadline = time.monotonic() + seconds
        while not (answer := question()):
            assert time.monotonic() < deadline, (
                f"not so within {seconds} s; {self.stderr()[-2000:]}"
            )
            time.sleep(0.02)
        return answer

    def settled(self) -> None:
        """Wait until no run is queued or running."""
        self.until(lambda: not any(self.executions(status=one, limit=1) for one in OPEN_STATUSES))


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """One engine for all tests that only add to it; names keep them apart."""
    running = Engine(tmp_path_factory.mktemp("engine") / "data").start()
    yield running
    running.stop()


@pytest.fixture
def own_engine(tmp_path: Path) -> Iterator[Callable[..., Engine]]:
    """Makes engines that one test has for itself: to kill, or with settings of its own."""
    with contextlib.ExitStack() as stack:

        def make(**settings: str) -> Engine:
            running = Engine(tmp_path / "data", **settings).start()
            stack.callback(running.stop)
            return running

        yield make


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One server for all tests; each takes a `new_database()` of it. Who stops it has its own."""
    with Postgres() as running:
        yield running


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Redis]:
    """One server for all tests; who flushes, pauses or stops it has its own."""
    with Redis() as running:
        yield running


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def database_kind(request: pytest.FixtureRequest) -> str:
    """Who asks for this, or for one of the two below, is run on each kind of database."""
    return request.param


@pytest.fixture(scope="session")
def sqlite_with_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file without rows, to be copied: that saves half a second."""
    path = tmp_path_factory.mktemp("tables") / "engine.db"
    made = Database(f"sqlite:///{path}")
    made.migrate()
    made.close()
    return path


@pytest.fixture
def database_url(
    database_kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[str]:
    """A database without rows for one test; `migrate` it before use, although it may have been."""
    if database_kind == "sqlite":
        path = tmp_path / "engine.db"
        shutil.copyfile(request.getfixturevalue("sqlite_with_tables"), path)
        yield f"sqlite:///{path}"
    else:
        server: Postgres = request.getfixturevalue("postgres")
        with server.database() as url:
            yield url


@pytest.fixture(scope="module")
def database_settings(
    database_kind: str, request: pytest.FixtureRequest
) -> Iterator[dict[str, str]]:
    """Settings of an engine with a database of its own: in its data directory, or on a server."""
    if database_kind == "sqlite":
        yield {}
    else:
        server: Postgres = request.getfixturevalue("postgres")
        with server.database() as url:
            yield {"database_url": url}


@pytest.fixture(scope="session")
def tls() -> ssl.SSLContext:
    """Made once: it takes a tenth of a second."""
    return ssl.create_default_context()


@pytest.fixture
async def egress(tls: ssl.SSLContext) -> AsyncIterator[Egress]:
    """What connectors send through; it may go to stand-ins on this machine."""
    opened = Egress([ip_network("127.0.0.0/8")], tls=tls)
    yield opened
    await opened.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name every wall that this machine lacks: the tests that need it were skipped."""
    missing = [layer for layer in probe() if not layer.active]
    if missing:
        terminalreporter.section("layers of the lockdown that this machine lacks")
    for layer in missing:
        terminalreporter.line(f"{layer.name}: {layer.detail}. Remedy: {layer.remedy}")
