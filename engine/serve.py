"""Runs the engine in this process until SIGTERM or SIGINT.

Path:   cli.serve -> here -> wiring -> uvicorn -> api.hot
"""

import asyncio
import gc
import logging
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

import structlog
import uvicorn
import uvloop

from engine.api.app import Operations
from engine.api.hot import Hot
from engine.api.server import protocol_for
from engine.readiness import Readiness
from engine.settings import Settings
from engine.wiring import Kind, Platform, open_platform

GC_ALLOCATIONS: Final = 20_000  # a request makes some 50 objects that the collector counts
SWITCH_S: Final = 0.001  # the writer of the journal must not wait 5 ms for the interpreter lock
GRACE_S: Final = 8  # for open requests after the signal


def run(settings: Settings, kind: Kind = "serve") -> None:
    """Serve or work; returns after an orderly stop."""
    level = getattr(logging, settings.log_level.upper())
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(level),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    uvloop.run(_serve(settings, kind))


async def _serve(settings: Settings, kind: Kind) -> None:
    async with open_platform(settings, kind) as platform:
        app = platform.asgi() if kind == "serve" else platform.operations()
        # What is there now stays: the collector need not walk it again and again under load.
        sys.setswitchinterval(SWITCH_S)
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_ALLOCATIONS, 20, 50)
        config = uvicorn.Config(
            app,
            loop="uvloop",
            http=protocol_for(app) if isinstance(app, Hot) else "httptools",
            lifespan="off",
            ws="none",
            proxy_headers=False,
            access_log=False,
            log_level="warning",
            server_header=False,
            timeout_graceful_shutdown=GRACE_S,
            limit_concurrency=None,
            backlog=2048,
        )
        listener = socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
        server = _Server(config, app, platform.readiness)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started and not serving.done():  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.005)
        if server.started:
            _greet(platform, listener.getsockname()[1])
        await serving


class _Server(uvicorn.Server):
    """Uvicorn that leaves the process alive after the signal: the platform is still to be closed.

    Its own `capture_signals` raises the signal again with the default handler once it has stopped,
    which kills the process before a run, a delivery or the journal has been waited for.
    """

    def __init__(self, config: uvicorn.Config, app: Hot | Operations, readiness: Readiness) -> None:
        super().__init__(config)
        self._app = app
        self._readiness = readiness

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._readiness.draining = True
        if isinstance(self._app, Hot):
            self._app.draining = True
        super().handle_exit(sig, frame)


def _greet(platform: Platform, port: int) -> None:
    settings = platform.settings
    command = "cloudcode"
    if shutil.which(command) is None:  # not installed for everybody: it stands beside our Python
        command = str(Path(sys.executable).with_name(command))
    url = f"http://{settings.host}:{port}"
    lines = [f"listening on {url}"]
    if platform.kind == "worker":
        lines.append("this worker takes tickets; /healthz, /readyz and /metrics are there")
    lines += [
        f"warning: {layer.name} is off: {layer.detail}. Remedy: {layer.remedy}"
        for layer in platform.sandbox.layers
        if not layer.active
    ]
    if platform.new_admin_key is not None:
        lines += [
            f"admin key (shown only now): {platform.new_admin_key}",
            "",
            "what to type next, in another terminal:",
            f"  export CLOUDCODE_URL={url} CLOUDCODE_KEY={platform.new_admin_key}",
            f"  {command} deploy examples/daily_stats.js",
            f"  {command} functions list",
            f'  curl -H "Authorization: Bearer $CLOUDCODE_KEY" {url}/v1/functions',
        ]
    elif platform.kind == "serve":
        lines.append(
            f"what to type next: export CLOUDCODE_KEY=<your key>; {command} functions list"
        )
    print("\n".join(lines), flush=True)  # noqa: T201 - the command's own output
