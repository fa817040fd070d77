"""A process of its own that sends one notification after the other with the library Apprise.

Path:   connectors.apprise_processes -> (lines of JSON on stdin) -> here -> the provider
Never:  connects to an address that the engine may not go to; reads a file that is not Python's,
        writes one, starts a program; follows a redirect; outlives the engine.

Run by its path, so that nothing else of the engine is loaded with it.
"""

import io
import json
import logging
import mimetypes
import os
import queue
import resource
import signal
import socket
import sys
import sysconfig
import threading
import time
import zoneinfo
from collections.abc import Callable, Mapping, Sequence
from ipaddress import ip_address
from typing import Any, Final

import requests
from requests.utils import DEFAULT_CA_BUNDLE_PATH

from engine.addresses import Reach, read_back, refusal
from engine.allowed_hosts import host_allowed

LINE_BYTES_MAX: Final = 2 * 1024 * 1024  # a message of 256 KiB, escaped
BODY_BYTES_MAX: Final = 256 * 1024  # of a provider's answer; more of it is not read
ERROR_CHARS_MAX: Final = 1_000
CHUNK_BYTES: Final = 16 * 1024
LIMITS: Final = {
    "RLIMIT_CORE": 0,  # a dump would hold credentials
    "RLIMIT_FSIZE": 0,
    "RLIMIT_NOFILE": 64,
    "RLIMIT_DATA": 512 * 1024 * 1024,
    "RLIMIT_NPROC": 0,  # the reader of stdin is the last thread; root is not bound by it
}

_TOO_MANY: Final = 429
_TROUBLE: Final = range(500, 600)
_WRITES: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CLOSED: Final = (
    "subprocess.", "os.", "pty.", "ctypes.", "shutil.", "tempfile.", "sqlite3.", "dbm.",
    "socket.bind", "socket.sendto", "socket.sendmsg", "smtplib.", "ftplib.", "imaplib.",
    "poplib.", "nntplib.", "telnetlib.", "urllib.Request", "webbrowser.", "syslog.",
)  # fmt: skip
_PROGRAMS: Final = frozenset({"ctypes", "multiprocessing", "pty", "webbrowser", "cffi"})


class Forbidden(PermissionError):
    """An OSError, as libraries expect from a socket or a file."""


class Wire:
    """What happened to the notification that is being sent."""

    def __init__(self) -> None:
        self.begin(0)

    def begin(self, budget_ms: int) -> None:
        self.ends = time.monotonic() + budget_ms / 1000
        self.requests = 0
        self.status: int | None = None  # of the last request; None: no whole answer
        self.retry_after: str | None = None
        self.trouble = ""
        self.forbidden = ""
        self.connected = False
        self.log: list[str] = []

    def left_s(self) -> float:
        left = self.ends - time.monotonic()
        if left <= 0:
            raise requests.ReadTimeout("the time for this attempt is over")
        return left

    def refuse(self, why: str) -> None:
        self.forbidden = self.forbidden or why
        raise Forbidden(why)


class Log(logging.Handler):
    """Keeps what a plugin says about what went wrong."""

    def __init__(self, wire: Wire) -> None:
        super().__init__(logging.WARNING)
        self._wire = wire

    def emit(self, record: logging.LogRecord) -> None:
        self._wire.log.append(record.getMessage()[:ERROR_CHARS_MAX])


def plug_in(wire: Wire) -> None:
    """Make each session of `requests`, also those of its functions, one that is under control."""

    class Session(requests.Session):
        def __init__(self) -> None:
            super().__init__()
            self.trust_env = False  # no proxies, no .netrc

        def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
            if wire.status is not None and (wire.status == _TOO_MANY or wire.status in _TROUBLE):
                raise requests.ConnectionError("not again in this attempt")
            wire.requests += 1
            wire.status = wire.retry_after = None
            left_s = wire.left_s()
            try:
                options |= {
                    "verify": True,
                    "proxies": {},
                    "allow_redirects": False,
                    "stream": True,
                    "timeout": (left_s, left_s),
                }
                answer = super().send(request, **options)
                read = bytearray()
                for chunk in answer.iter_content(CHUNK_BYTES):
                    read += chunk
                    wire.left_s()
                    if len(read) > BODY_BYTES_MAX:
                        break
                answer.close()
            except requests.RequestException as error:
                wire.trouble = _trouble(error)
                raise
            # The rest of `requests` reads it from here, as if it had been read at once.
            answer._content = bytes(read[:BODY_BYTES_MAX])  # noqa: SLF001 - there is no other way
            wire.status, wire.retry_after = answer.status_code, answer.headers.get("Retry-After")
            return answer

    for module in (requests, requests.sessions):
        module.__dict__["Session"] = Session


def _trouble(error: requests.RequestException) -> str:
    if isinstance(error, requests.exceptions.SSLError):
        return "no TLS connection to the provider"
    if isinstance(error, requests.Timeout) or "Read timed out" in repr(error):
        return "the provider did not answer in time"
    if "NameResolutionError" in repr(error):
        return "the provider's name cannot be resolved"
    if "NewConnectionError" in repr(error):
        return "no connection to the provider"
    return "the provider closed the connection without a whole answer"


class Seal:
    """An audit hook (PEP 578): once it is added, only what a notification needs is possible.

    Apprise has 180 plugins that open their connections themselves, so what any of them does is
    checked where Python does it. A name is looked up by the plugin, and the address it then
    connects to is what is checked: a second answer of the name server changes nothing.
    """

    def __init__(self, wire: Wire, reach: Reach) -> None:
        self._wire = wire
        self._reach = reach
        self._readable = tuple(
            os.path.realpath(path) + os.sep
            for path in {
                *(
                    sysconfig.get_path(name)
                    for name in ("stdlib", "platstdlib", "purelib", "platlib")
                ),
                os.path.dirname(DEFAULT_CA_BUNDLE_PATH),  # noqa: PTH120 - as text: see `_reads`
                *zoneinfo.TZPATH,
            }
        )
        self._checks: Mapping[str, Callable[..., None]] = {
            "socket.getaddrinfo": self._looks_up,
            "socket.connect": self._connects,
            "socket.__new__": self._makes_socket,
            "open": self._opens,
            "os.listdir": self._lists,
            "os.scandir": self._lists,
            "import": self._imports,
        }

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        check = self._checks.get(event)
        if check is not None:
            check(*arguments)
        elif event.startswith(_CLOSED):
            self._wire.refuse(f"{event} is not possible here")

    def _looks_up(self, host: object, port: object, *_: object) -> None:
        name = host.decode("ascii", "replace") if isinstance(host, bytes) else str(host)
        number = int(port) if isinstance(port, int | str) and str(port).isdigit() else 0
        if host_allowed(name, number, self._reach.deny_hosts):
            self._wire.refuse(f"{name} is closed by the operator, with CLOUDCODE_EGRESS_DENY")

    def _connects(self, _socket: object, address: Any) -> None:
        try:
            found = ip_address(address[0].partition("%")[0])
        except (ValueError, TypeError, AttributeError, IndexError):
            self._wire.refuse("only numeric addresses are connected to")  # urllib3 looks names up
            return
        why = refusal(found, self._reach)
        if why is not None:
            self._wire.refuse(why)
        self._wire.connected = True

    def _makes_socket(self, _socket: object, family: int, *_: object) -> None:
        if family not in (socket.AF_INET, socket.AF_INET6, -1):
            self._wire.refuse("only TCP is possible")

    def _opens(self, path: object, _mode: object, flags: object) -> None:
        if isinstance(flags, int) and flags & _WRITES:
            self._wire.refuse("no file can be written")
        if not isinstance(path, int) and not self._reads(path):
            self._wire.refuse("no file of this machine can be read")

    def _lists(self, path: object) -> None:
        if not self._reads(path):  # importlib looks into folders; nobody need hear of it
            raise Forbidden("no folder of this machine can be read")

    def _imports(self, module: str, *_: object) -> None:
        if module.partition(".")[0] in _PROGRAMS:
            self._wire.refuse("no program can be started")

    def _reads(self, path: object) -> bool:
        if isinstance(path, bytes):
            path = os.fsdecode(path)
        # Not Path.resolve: this runs inside of each `open`.
        return isinstance(path, str) and (os.path.realpath(path) + os.sep).startswith(
            self._readable
        )


class Sender:
    """Apprise, with everything switched off that is not one message to one target."""

    def __init__(self, wire: Wire, schemas: Sequence[str]) -> None:
        # Here, not above: `plug_in` has to come before what keeps `requests.Session` for itself.
        from apprise import Apprise, AppriseAsset
        from apprise.plugins import N_MGR

        plugins: Any = N_MGR  # it and its plugins have no types
        plugins.load_modules()
        self._wire = wire
        self._schemas = frozenset(schemas)
        self._apprise = Apprise
        self._asset = AppriseAsset(async_mode=False, service_timeout=0, storage_mode="memory")
        log = logging.getLogger("apprise")
        log.setLevel(logging.WARNING)
        log.propagate = False
        log.addHandler(Log(wire))

    def look(self, url: str) -> dict[str, Any]:
        """Return `service`, its name, or `refused`, why the URL is not sent to."""
        service, told = self._opened(url)
        return told if service is None else {"service": str(service.service_name)}

    def send(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Send one notification; return what became of it."""
        service, told = self._opened(asked["url"])
        if service is None:
            return told
        wire = self._wire
        notifier = self._apprise(asset=self._asset)
        notifier.add(service)
        taken = notifier.notify(
            asked["body"],
            title=asked["title"],
            notify_type=asked["type"],
            body_format=asked["format"],
        )
        return {
            "service": str(service.service_name),
            "taken": bool(taken),
            "requests": wire.requests,
            "status": wire.status,
            "retry_after": wire.retry_after,
            "forbidden": "" if wire.connected else wire.forbidden,
            "trouble": "" if wire.status else wire.trouble,
            "log": (wire.log or [""])[-1],
        }

    def _opened(self, url: str) -> tuple[Any, dict[str, Any]]:
        service: Any = self._apprise.instantiate(url, asset=self._asset)
        if service is None:
            return None, {"refused": (self._wire.log or ["Apprise cannot read this URL"])[-1]}
        if not self._schemas & service.schemas():
            return None, {"refused": f"{service.service_name} is not one of the services here"}
        # Whatever the URL said: see `apprise._OFF` for why.
        service.verify_certificate = True
        service.redirects = service.optional = False
        service.retry = 0
        service.throttle = lambda *_, **__: None  # it would sleep between a log-in and a message
        if len(service) != 1:
            return None, {
                "refused": f"the URL has {len(service)} targets: when one of them fails, another "
                "attempt would send to the others again; make one connection for each"
            }
        if str(getattr(service.overflow_mode, "value", service.overflow_mode)) == "split":
            return None, {"refused": "overflow=split would make several messages of one"}
        return service, {}


def main() -> None:
    """Answer each line of stdin with one on stdout, until stdin ends."""
    for number in (signal.SIGINT, signal.SIGTERM):  # meant for the engine, which ends us in time
        signal.signal(number, signal.SIG_IGN)
    questions: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    stdin = sys.stdin.buffer
    with open(os.dup(1), "wb", buffering=0) as answers:  # noqa: PTH123 - a descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a plugin prints is no answer
        setup = json.loads(stdin.readline(LINE_BYTES_MAX))
        wire = Wire()
        plug_in(wire)
        sender = Sender(wire, setup["schemas"])
        mimetypes.init()  # reads /etc/mime.types, once
        threading.Thread(target=_read, args=(stdin, questions), daemon=True).start()
        _limit()
        sys.addaudithook(Seal(wire, read_back(setup["reach"])))
        _say(answers, {"ready": True})
        while True:
            asked = json.loads(questions.get())
            wire.begin(asked["budget_ms"])
            told = sender.send(asked) if "body" in asked else sender.look(asked["url"])
            _say(answers, told)


def _read(stdin: io.BufferedReader, questions: "queue.SimpleQueue[bytes]") -> None:
    """Take questions, and see at once that the engine is gone: even while one is being answered."""
    while line := stdin.readline(LINE_BYTES_MAX):
        questions.put(line)
    os._exit(0)


def _say(answers: io.FileIO, told: dict[str, Any]) -> None:
    cut = {
        name: value[:ERROR_CHARS_MAX] if isinstance(value, str) else value
        for name, value in told.items()
    }
    answers.write(json.dumps(cut).encode() + b"\n")


def _limit() -> None:
    for name, wanted in LIMITS.items():
        kind = getattr(resource, name)
        _, hard = resource.getrlimit(kind)
        value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(kind, (value, value))


if __name__ == "__main__":
    main()
