"""Real PostgreSQL and Redis servers, each on a port of its own, that tests start, stop and restart.

Data stand in a folder below /tmp that goes with the server. A server whose tests were killed is
killed too, by a small watcher. Without its program a test is skipped; in continuous integration,
where `make test` has installed both, it fails.
"""

import contextlib
import itertools
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Self

import psycopg
import pytest
import redis

POSTGRES_PROGRAMS: Final = Path("/usr/lib/postgresql")  # Debian's: <version>/bin
POSTGRES_USER: Final = "postgres"  # in the system, when root runs the tests, and in the server
START_S_MAX: Final = 30
STOP_S_MAX: Final = 30
# Below what the kernel gives to outgoing connections: a client that connects again and again to
# the port of a server that is down could otherwise be given this port itself, and so meet itself.
PORTS: Final = range(20_000, 32_000)
EMPTY: Final = """
DO $$ DECLARE name text; BEGIN
  SET LOCAL session_replication_role = replica;  -- foreign keys are checked by nobody
  FOR name IN SELECT tablename FROM pg_tables
    WHERE schemaname = 'public' AND tablename <> 'alembic_version'
  LOOP EXECUTE format('DELETE FROM %I', name); END LOOP;
END $$
"""
# Lives in a session of its own; ends the server when its standard input does, with this process.
WATCHER: Final = 'read -r _; kill -s "$1" "$2"; rm -rf "$3"'


class _Server:
    """One server process, its folder, and who sees to it that both go."""

    name: str
    end_by: signal.Signals  # ends it at once, without leaving processes behind

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"cloudcode-{self.name}-"))
        self.port = _free_port()
        self.user = POSTGRES_USER if self.name == "postgres" and os.geteuid() == 0 else None
        if self.user is not None:
            account = pwd.getpwnam(self.user)
            os.chown(self.folder, account.pw_uid, account.pw_gid)
        self.process: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start it, with the data of its last life if it keeps any; return when it answers."""
        assert self.process is None, f"{self.name} runs already"
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the tests, which stop it then
                **self._as_user(),
            )
        self._watcher = subprocess.Popen(
            ["/bin/sh", "-c", WATCHER, "sh", self.end_by.name.removeprefix("SIG"),
             str(self.process.pid), str(self.folder)],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + START_S_MAX
        while not self._answers():
            assert self.process.poll() is None, f"{self.name} ended:\n{self.log()}"
            assert time.monotonic() < deadline, f"{self.name} does not answer:\n{self.log()}"
            time.sleep(0.02)  # it is another process, and tells nobody

    def stop(self) -> None:
        """Stop it at once, as a crash would; connections are cut."""
        if self.process is None:
            return
        self.process.send_signal(self.end_by)
        self.process.wait(timeout=STOP_S_MAX)
        self.process = None
        assert self._watcher is not None
        assert self._watcher.stdin is not None
        self._watcher.kill()
        self._watcher.wait()
        self._watcher.stdin.close()

    def restart(self) -> None:
        self.stop()
        self.start()

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def _command(self) -> Sequence[str]:
        raise NotImplementedError

    def _answers(self) -> bool:
        raise NotImplementedError

    def _as_user(self) -> dict[str, Any]:
        if self.user is None:
            return {}
        group = pwd.getpwnam(self.user).pw_gid
        return {"user": self.user, "group": group, "extra_groups": [], "cwd": self.folder}


class Postgres(_Server):
    """PostgreSQL as it would be in use: on disk before it answers, sorted as people write."""

    name = "postgres"
    end_by = signal.SIGQUIT  # "immediate": no checkpoint; the next start recovers from the log

    def __init__(self) -> None:
        self._programs = _postgres_programs()
        super().__init__()
        self._databases = itertools.count(1)
        self._free: list[str] = []  # databases that were lent
        subprocess.run(
            # Not the C locale: whoever relies on the order of bytes is to say so.
            [self._programs / "initdb", "--pgdata", self.folder / "data", "--username",
             POSTGRES_USER, "--auth", "trust", "--encoding", "UTF8", "--locale", "C.UTF-8",
             "--locale-provider", "icu", "--icu-locale", "en-US", "--no-sync"],
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=120,
            **self._as_user(),
        )  # fmt: skip

    @property
    def url(self) -> str:
        """The URL of a database that is always there and that no test may fill."""
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        return f"postgresql+psycopg://{POSTGRES_USER}@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """Make an empty database and return its URL."""
        name = f"test_{next(self._databases)}"
        self.execute(f"CREATE DATABASE {name}")
        return self.url_of(name)

    @contextlib.contextmanager
    def database(self) -> Iterator[str]:
        """Lend a database without rows; it may have our tables already, which saves half a second.

        Whoever is still connected to it at the end of the block is cut off.
        """
        url = self._free.pop() if self._free else self.new_database()
        yield url
        name = url.rpartition("/")[2]
        self.execute(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname='{name}'"
        )
        self.execute(EMPTY, name)
        self._free.append(url)

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run one statement outside any transaction and return its rows."""
        with self._connect(database) as connection:
            found = connection.execute(statement)  # type: ignore[call-overload]  # wants a literal
            return [] if found.description is None else found.fetchall()

    def _connect(self, database: str) -> psycopg.Connection[tuple[Any, ...]]:
        return psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user=POSTGRES_USER,
            dbname=database,
            connect_timeout=START_S_MAX,
            autocommit=True,
        )

    def _command(self) -> Sequence[str]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": self.folder,
            "max_connections": 300,  # several engines at once, each with its pool
            "fsync": "on",
            "synchronous_commit": "on",
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return [str(self._programs / "postgres"), "-D", str(self.folder / "data"), *options]

    def _answers(self) -> bool:
        try:
            self._connect("postgres").close()
        except psycopg.OperationalError:
            return False
        return True


class Redis(_Server):
    """Redis that keeps nothing: what is in it is gone when it stops."""

    name = "redis"
    end_by = signal.SIGKILL

    def __init__(self) -> None:
        self._program = shutil.which("redis-server") or _missing("redis-server")
        super().__init__()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def flush(self) -> None:
        """Lose everything that is in it, while it runs."""
        with self.client() as client:
            client.flushall()

    def pause(self) -> None:
        """Let it hang: connections stay open, new ones are taken, and nothing is answered."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    @contextlib.contextmanager
    def client(self) -> Iterator[redis.Redis]:
        with redis.Redis(port=self.port, socket_timeout=5, socket_connect_timeout=5) as client:
            yield client

    def _command(self) -> Sequence[str]:
        return [self._program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "",
                "--appendonly", "no", "--dir", str(self.folder)]  # fmt: skip

    def _answers(self) -> bool:
        with self.client() as client:
            try:
                return bool(client.ping())
            except redis.ConnectionError:
                return False


def _postgres_programs() -> Path:
    found = sorted(
        POSTGRES_PROGRAMS.glob("*/bin/postgres"), key=lambda path: int(path.parts[-3].split(".")[0])
    )
    on_path = shutil.which("postgres")
    if found:
        return found[-1].parent
    return Path(on_path or _missing("postgres")).parent


def _free_port() -> int:
    # By chance, so that test runs beside each other do not take the same one in turns.
    for port in random.sample(PORTS, k=len(PORTS)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError(f"no port is free in {PORTS}")


def _missing(program: str) -> str:
    text = f"{program} is missing; `make servers` installs it, or says what to install"
    if os.environ.get("CI"):
        pytest.fail(text)
    pytest.skip(text)
