"""The command line against a small HTTP server that answers what a test tells it to."""

import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from rich.console import Console

from engine.cli import app as command_line
from engine.cli import logs, screen
from engine.cli.doctor import Check
from engine.cli.screen import plain
from engine.cli.serve import settings_from
from engine.cli.source import Place, frame, read_source
from engine.settings import Settings
from sandbox.lockdown import Layer
from sandbox.supervisor import LayersMissing
from tests.standins.command_line import Ran, run

BROKEN = "export default {\n\tasync fetch() { return 1 +; }\n};\n"
NOT_FOUND = {"status": 404, "code": "not_found", "detail": "no function 'hello' in this project"}


@dataclass
class Api:
    """Stands for the engine: canned answers by method and path, and what was asked."""

    url: str = ""
    answers: dict[str, list[tuple[int, Any]]] = field(default_factory=dict)
    asked: list[tuple[str, str, dict[str, list[str]], Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def answer(self, route: str, status: int, body: Any) -> None:
        """Answer `route` (`GET /v1/x`) so; the last answer given for a route repeats."""
        self.answers.setdefault(route, []).append((status, body))

    def bodies(self, route: str) -> list[Any]:
        return [body for method, path, _, body in self.asked if f"{method} {path}" == route]


@pytest.fixture
def api() -> Iterator[Api]:
    api = Api()

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            target = urlsplit(self.path)
            size = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(size)) if size else None
            api.asked.append((self.command, target.path, parse_qs(target.query), body))
            api.headers.append(dict(self.headers.items()))
            answers = api.answers.get(f"{self.command} {target.path}", [(500, "no such answer")])
            status, answer = answers.pop(0) if len(answers) > 1 else answers[0]
            is_text = isinstance(answer, str)
            content = (answer if is_text else json.dumps(answer)).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain" if is_text else "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Execution-Id", "exe_1")
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any  # noqa: N815 - its base class's names

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    api.url = f"http://127.0.0.1:{server.server_port}"
    yield api
    server.shutdown()
    server.server_close()
    thread.join()


def cloudcode(*arguments: str, url: str = "", stdin: str | None = None) -> Ran:
    environment = {"CLOUDCODE_URL": url, "CLOUDCODE_KEY": "cck_test", "COLUMNS": "200"}
    return run(arguments, environment, stdin)


@pytest.mark.parametrize("command", command_line.COMMANDS, ids=lambda command: command.place)
def test_each_command_shows_its_examples(command: command_line.Command) -> None:
    """`--help` of every verb ends with lines that can be copied."""
    ran = cloudcode(*command.place.split(), "--help")

    shown = " ".join(ran.out.split())
    assert ran.code == 0
    assert all(" ".join(example.split()) in shown for example in command.examples)
    assert "--json" in ran.out


def test_nothing_given_shows_the_verbs() -> None:
    """Without a verb the verbs are listed."""
    ran = cloudcode()

    assert all(verb in ran.out + ran.err for verb in ("serve", "deploy", "tail", "doctor"))


def test_no_server_says_how_to_start_one() -> None:
    """A refused connection is explained, not traced."""
    ran = cloudcode("functions", "list", url="http://127.0.0.1:9")

    assert ran.code == 1
    assert "cannot reach the engine at http://127.0.0.1:9" in ran.err
    assert "cloudcode serve" in ran.err
    assert ran.out == ""


def test_a_problem_is_printed_with_every_field_and_a_remedy(api: Api) -> None:
    """Detail, each wrong field, the limit, the request id, and what to do."""
    problem = {
        "status": 422,
        "code": "validation_failed",
        "detail": "two fields are wrong",
        "errors": [
            {"pointer": "/name", "message": "is too long"},
            {"pointer": "/product", "message": "does not exist"},
        ],
        "limit": {"name": "name_chars", "value": 128, "used": 200},
        "request_id": "req_1",
        "remedy": "give a shorter name",
    }
    api.answer("POST /v1/devices", 422, problem)

    ran = cloudcode("devices", "add", "roof", "--product", "weather", url=api.url)

    assert ran.code == 1
    assert ran.err.splitlines() == [
        "error: two fields are wrong (422 validation_failed)",
        "  /name: is too long",
        "  /product: does not exist",
        "  limit name_chars is 128, used 200",
        "  request_id: req_1",
        "remedy: give a shorter name",
    ]


def test_a_problem_with_json_is_json_on_stdout(api: Api) -> None:
    """A script reads the whole problem; the exit code says that it is one."""
    api.answer("GET /v1/functions/hello", 404, NOT_FOUND)

    ran = cloudcode("functions", "show", "hello", "--json", url=api.url)

    assert ran.code == 1
    assert json.loads(ran.out)["error"]["code"] == "not_found"


def test_a_missing_key_says_where_to_get_one(api: Api) -> None:
    """401 names the option, the variable and who prints the key."""
    api.answer("GET /v1/functions", 401, {"code": "unauthorized", "detail": "no API key"})

    ran = cloudcode("functions", "list", url=api.url)

    assert "--key or CLOUDCODE_KEY" in ran.err


def test_something_else_at_the_url_is_recognised(api: Api) -> None:
    """A web page with status 200 is not taken for an engine."""
    api.answer("GET /v1/functions", 200, "<html>hello</html>")

    ran = cloudcode("functions", "list", url=api.url)

    assert ran.code == 1
    assert "not a cloudcode engine" in ran.err


def test_a_proxys_error_page_is_shown_in_part(api: Api) -> None:
    """An error that is no problem document still says what was asked and answered."""
    api.answer("GET /v1/functions", 502, "Bad gateway " + "x" * 5000)

    ran = cloudcode("functions", "list", url=api.url)

    assert "GET /v1/functions was answered with 502" in ran.err
    assert len(ran.err) < 1000


@pytest.mark.parametrize("url", ["localhost:8700", "ftp://x", "http://[", "http://x:port"])
def test_an_unusable_url_is_named(url: str) -> None:
    """A slip in the URL is the caller's, and is said without a traceback."""
    ran = cloudcode("functions", "list", url=url)

    assert ran.code == 1
    assert url in ran.err


@pytest.mark.parametrize(
    "place", [("--json", "functions", "list"), ("functions", "list", "--json")], ids=str
)
def test_json_before_or_after_the_verb(api: Api, place: tuple[str, ...]) -> None:
    """`--json` stands anywhere; stdout is then one document with every field."""
    item = {"name": "hello", "live": [{"version": 1, "percent": 100}], "extra": True}
    api.answer("GET /v1/functions", 200, {"items": [item], "next_cursor": None})

    ran = cloudcode(*place, url=api.url)

    assert ran.code == 0
    assert json.loads(ran.out) == {"items": [item]}


def test_the_key_goes_into_the_header(api: Api) -> None:
    """`--key` wins over the environment, before and after the verb."""
    api.answer("GET /v1/limits", 200, {})

    cloudcode("limits", url=api.url)
    cloudcode("--key", "cck_before", "limits", url=api.url)
    cloudcode("limits", "--key", "cck_after", url=api.url)

    sent = [headers["Authorization"] for headers in api.headers]
    assert sent == ["Bearer cck_test", "Bearer cck_before", "Bearer cck_after"]


def test_lists_are_read_page_after_page(api: Api) -> None:
    """`--limit` counts items over all pages."""
    api.answer("GET /v1/products", 200, {"items": [{"id": "prd_2"}], "next_cursor": "c1"})
    api.answer("GET /v1/products", 200, {"items": [{"id": "prd_1"}], "next_cursor": None})

    ran = cloudcode("products", "list", "--json", url=api.url)

    assert [item["id"] for item in json.loads(ran.out)["items"]] == ["prd_2", "prd_1"]
    assert [query.get("cursor") for _, _, query, _ in api.asked] == [None, ["c1"]]


def test_a_name_cannot_leave_its_place_in_the_path(api: Api) -> None:
    """A name with a slash asks for that name, not for another resource."""
    api.answer("GET /v1/functions/..%2Fsecrets", 404, NOT_FOUND)

    ran = cloudcode("functions", "show", "../secrets", url=api.url)

    assert "no function" in ran.err
    assert [path for _, path, _, _ in api.asked] == ["/v1/functions/..%2Fsecrets"]


def test_deploy_makes_a_function(api: Api, tmp_path: Path) -> None:
    """The first deploy creates; only what was given is sent."""
    file = tmp_path / "hello.ts"
    file.write_text("export default {};", encoding="utf-8")
    made = {"name": "hello", "version": 1, "handlers": ["fetch"], "deployed": True}
    api.answer("GET /v1/functions/hello", 404, NOT_FOUND)
    api.answer("POST /v1/functions", 201, made)

    ran = cloudcode("deploy", str(file), "--host", "a.example", "--var", "K=a=b", url=api.url)

    assert ran.out.splitlines() == ["hello version 1 is live", "handlers: fetch"]
    assert api.bodies("POST /v1/functions") == [
        {
            "name": "hello",
            "files": {"hello.ts": "export default {};"},
            "main": "hello.ts",
            "allowed_hosts": ["a.example"],
            "variables": {"K": "a=b"},
        }
    ]


def test_deploy_prints_the_warnings_of_the_upload(api: Api, tmp_path: Path) -> None:
    """On stderr, with their place; a script's output stays what it was."""
    file = tmp_path / "alarm.js"
    file.write_text("function main() {}", encoding="utf-8")
    warning = {"file": "alarm.js", "line": 2, "column": 7, "message": "store it as a connection"}
    made = {"name": "alarm", "version": 1, "handlers": ["main"], "deployed": True}
    api.answer("GET /v1/functions/alarm", 404, NOT_FOUND)
    api.answer("POST /v1/functions", 201, made | {"warnings": [warning]})

    ran = cloudcode("deploy", str(file), url=api.url)

    assert ran.code == 0
    assert ran.out.splitlines() == ["alarm version 1 is live", "handlers: main"]
    assert ran.err.splitlines() == ["warning: alarm.js:2:7: store it as a connection"]


def test_deploy_again_uploads_a_version_and_keeps_the_trigger(api: Api, tmp_path: Path) -> None:
    """The second deploy adds a version; a trigger that is there already is not added again."""
    file = tmp_path / "hello.js"
    file.write_text("export default {};", encoding="utf-8")
    trigger = {"id": "trg_1", "product": "weather", "on": "write", "keys": ["temp"]}
    api.answer("GET /v1/functions/hello", 200, {"live": [{"version": 1, "percent": 100}]})
    made = {"version": 2, "handlers": ["afterStore"], "deployed": True}
    api.answer("POST /v1/functions/hello/versions", 201, made)
    api.answer("GET /v1/products/weather", 200, {"id": "prd_1", "name": "weather"})
    api.answer("GET /v1/triggers", 200, {"items": [trigger], "next_cursor": None})

    ran = cloudcode(
        "deploy", str(file), "--product", "weather", "--key", "temp", "--json", url=api.url
    )

    assert json.loads(ran.out)["trigger"] == trigger
    assert ("deploy", ["true"]) in [item for _, _, query, _ in api.asked for item in query.items()]
    assert not api.bodies("POST /v1/triggers")


def test_deploy_with_a_percentage_shares_with_what_is_live(api: Api, tmp_path: Path) -> None:
    """`--percent 10` leaves 90 % to the version that has most runs now."""
    file = tmp_path / "hello.js"
    file.write_text("export default {};", encoding="utf-8")
    live = [{"version": 3, "percent": 80}, {"version": 4, "percent": 20}]
    api.answer("GET /v1/functions/hello", 200, {"live": live})
    made = {"version": 5, "handlers": ["fetch"], "deployed": False}
    api.answer("POST /v1/functions/hello/versions", 201, made)
    api.answer("POST /v1/functions/hello/deployments", 201, {})

    ran = cloudcode("deploy", str(file), "--percent", "10", url=api.url)

    assert "version 5 is live at 10 %" in ran.out
    (deployment,) = api.bodies("POST /v1/functions/hello/deployments")
    assert deployment["versions"] == [
        {"version": 5, "percent": 10},
        {"version": 3, "percent": 90},
    ]


@pytest.mark.parametrize("nested", [False, True], ids=["top level", "in error"])
def test_a_compile_error_is_shown_in_the_authors_source(
    api: Api, tmp_path: Path, nested: bool
) -> None:
    """File, line and column, then the line itself and a caret under the mistake."""
    file = tmp_path / "hello.js"
    file.write_text(BROKEN, encoding="utf-8")
    line = BROKEN.splitlines()[1]
    place = {"file": "hello.js", "line": 2, "column": line.index(";") + 1}
    problem = {
        "status": 422,
        "code": "compile_error",
        "detail": "SyntaxError: Unexpected token ';'",
    }
    api.answer("GET /v1/functions/hello", 404, NOT_FOUND)
    api.answer("POST /v1/functions", 422, problem | ({"error": place} if nested else place))

    ran = cloudcode("deploy", str(file), url=api.url)

    assert ran.code == 1
    said, shown, caret = ran.err.splitlines()
    assert said == "error: hello.js:2:28: SyntaxError: Unexpected token ';'"
    assert shown.split("|")[1].strip() == line.strip()
    assert caret.index("^") == shown.index(";")


def module(folder: Path, name: str = "alarm.wasm", data: bytes = b"\0asm\x01\0\0\0") -> Path:
    file = folder / name
    file.write_bytes(data)
    return file


def test_deploy_of_a_module_sends_its_bytes_and_options(api: Api, tmp_path: Path) -> None:
    """The ending decides; every option is sent as it was given, nothing else."""
    made = {"name": "alarm", "version": 1, "handlers": ["job", "fetch"], "deployed": True}
    api.answer("GET /v1/functions/alarm", 404, NOT_FOUND)
    api.answer("POST /v1/functions", 201, made)

    ran = cloudcode(
        "deploy", str(module(tmp_path)), "--handler", "job", "--handler", "fetch", "--arg", "-c",
        "--arg", "--help", "--arg", "", "--io", "text", "--export", "handle=a=b", "--reuse",
        "--fuel", "1000", "--memory-mb", "32", url=api.url,
    )  # fmt: skip

    assert ran.out.splitlines() == ["alarm version 1 is live", "handlers: job, fetch"]
    assert api.bodies("POST /v1/functions") == [
        {
            "name": "alarm",
            "wasm": "AGFzbQEAAAA=",
            "handlers": ["job", "fetch"],
            "args": ["-c", "--help", ""],
            "io": "text",
            "exports": {"handle": "a=b"},
            "reuse": True,
            "limits": {"memory_mb": 32, "fuel": 1000},
        }
    ]


def test_deploy_of_a_module_again_sends_only_what_was_given(api: Api, tmp_path: Path) -> None:
    """The options of the latest version then stay; `--no-reuse` is something given."""
    api.answer("GET /v1/functions/alarm", 200, {"live": [{"version": 1, "percent": 100}]})
    made = {"version": 2, "handlers": ["job"], "deployed": True}
    api.answer("POST /v1/functions/alarm/versions", 201, made)

    cloudcode("deploy", str(module(tmp_path)), url=api.url)
    cloudcode("deploy", str(module(tmp_path, "alarm.WASM")), "--no-reuse", url=api.url)

    assert api.bodies("POST /v1/functions/alarm/versions") == [
        {"wasm": "AGFzbQEAAAA="},
        {"wasm": "AGFzbQEAAAA=", "reuse": False},
    ]


def test_a_module_that_is_refused_is_explained(api: Api, tmp_path: Path) -> None:
    """No place in a source, but what is wrong with the module."""
    detail = "ImportError: the module imports what is not here: env.now (nothing -> i64)"
    problem = {
        "status": 422, "code": "compile_error", "detail": detail, "file": "", "line": 0,
        "column": 0, "errors": [{"pointer": "/wasm", "message": detail}],
    }  # fmt: skip
    api.answer("GET /v1/functions/alarm", 404, NOT_FOUND)
    api.answer("POST /v1/functions", 422, problem)

    ran = cloudcode("deploy", str(module(tmp_path)), url=api.url)

    assert ran.code == 1
    assert ran.err.splitlines() == [f"error: {detail} (422 compile_error)", "  at /wasm"]


@pytest.mark.parametrize(
    ("name", "size", "arguments", "said"),
    [
        ("alarm.wat", 8, [], "wat2wasm"),
        ("alarm.wasm", 8, ["--main", "a.js"], "--main"),
        ("alarm.wasm", 8, ["--export", "redact"], "--export 'redact' is not K=V"),
        ("alarm.wasm", 10 * 1024 * 1024 + 1, [], "10485761 bytes; a module may have 10485760"),
        ("alarm.js", 8, ["--arg", "-c"], "--arg is for .wasm modules"),
        ("alarm.js", 8, ["--handler", "job"], "--handler is for .wasm"),
        ("alarm.js", 8, ["--export", "a=b"], "--export is for .wasm"),
        ("alarm.js", 8, ["--io", "text"], "--io is for .wasm"),
        ("alarm.js", 8, ["--no-reuse"], "--reuse is for .wasm"),
        ("alarm.js", 8, ["--fuel", "9"], "--fuel is for .wasm"),
    ],
)
def test_a_slip_with_a_module_is_told_before_a_request(
    tmp_path: Path, name: str, size: int, arguments: list[str], said: str
) -> None:
    """By the option's own name."""
    file = module(tmp_path, name, b" " * size)

    ran = cloudcode("deploy", str(file), *arguments, url="http://127.0.0.1:9")

    assert ran.code == 1
    assert said in ran.err
    assert "cannot reach" not in ran.err


def test_a_module_that_is_not_there_is_named(tmp_path: Path) -> None:
    """Like every other file."""
    ran = cloudcode("deploy", str(tmp_path / "none.wasm"), url="http://127.0.0.1:9")

    assert ran.code == 1
    assert "none.wasm: No such file" in ran.err


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "pipe"])
def test_a_long_compilation_is_announced_at_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], terminal: bool
) -> None:
    """Once, on stderr, and only if it takes long; a script's output stays clean."""
    monkeypatch.setattr(screen, "PROGRESS_S", 0.01)
    shown = screen.Screen(as_json=False)
    shown._err = Console(file=sys.stderr, force_terminal=terminal)
    threads = threading.active_count()

    with shown.progress("compiling alarm.wasm ..."):
        deadline = time.monotonic() + 5
        while threading.active_count() > threads and time.monotonic() < deadline:
            time.sleep(0.005)
    with shown.progress("not so long"):
        pass

    captured = capsys.readouterr()
    assert captured.err.count("compiling alarm.wasm ...") == int(terminal)
    assert "not so long" not in captured.err
    assert captured.out == ""


def test_the_list_of_functions_shows_runtime_and_kind(api: Api) -> None:
    """`wasm command`, `wasm core`, `javascript`; JSON has it as it comes."""
    facts = {"kind": "core", "bytes": 8, "sha256": "00"}
    items = [
        {"name": "one", "live": [], "runtime": "wasm", "wasm": facts},
        {"name": "two", "live": [], "runtime": "javascript", "wasm": None},
        {"name": "of an older engine", "live": [], "runtime": "javascript"},
    ]
    api.answer("GET /v1/functions", 200, {"items": items, "next_cursor": None})

    people = cloudcode("functions", "list", url=api.url)
    script = cloudcode("functions", "list", "--json", url=api.url)

    assert "wasm core" in people.out
    assert people.out.count("javascript") == 2
    assert json.loads(script.out)["items"] == items


def test_a_run_out_of_fuel_is_given_the_right_option(api: Api) -> None:
    """`--cpu-ms` would not help."""
    problem = {
        "status": 502, "code": "cpu_exceeded", "detail": "used up",
        "limit": {"name": "fuel", "value": 9, "used": 9},
    }  # fmt: skip
    api.answer("POST /v1/functions/hello/invoke", 502, problem)

    ran = cloudcode("invoke", "hello", url=api.url)

    assert "cloudcode deploy --fuel" in ran.err


def test_deploy_needs_a_product_for_a_value_key(tmp_path: Path) -> None:
    """`--key cck_...` after deploy is a slip that would else go unnoticed."""
    file = tmp_path / "hello.js"
    file.write_text("", encoding="utf-8")

    ran = cloudcode("deploy", str(file), "--key", "cck_1", url="http://127.0.0.1:9")

    assert ran.code == 1
    assert "--product" in ran.err


def test_a_folder_is_read_without_what_does_not_belong(tmp_path: Path) -> None:
    """Scripts at any depth go up; hidden files, type declarations and packages do not."""
    for name in ("main.ts", "lib/a.js", "lib/a.d.ts", ".git/x.js", "node_modules/m/i.js", "a.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1", encoding="utf-8")

    source = read_source(tmp_path)

    assert sorted(source.files) == ["lib/a.js", "main.ts"]
    assert source.main == "main.ts"


def test_a_folder_without_a_main_file_asks_for_one(tmp_path: Path) -> None:
    """Two scripts and no main: the message says how to name it."""
    for name in ("a.js", "b.js"):
        (tmp_path / name).write_text("1", encoding="utf-8")

    unnamed = cloudcode("deploy", str(tmp_path), url="http://127.0.0.1:9")
    wrong = cloudcode("deploy", str(tmp_path), "--main", "c.js", url="http://127.0.0.1:9")

    assert (unnamed.code, wrong.code) == (1, 1)
    assert "--main" in unnamed.err
    assert "no c.js in it; there are: a.js, b.js" in wrong.err


def test_a_place_outside_the_source_has_no_frame() -> None:
    """A line that the file does not have is no reason to fail."""
    assert frame(Place("a.js", 9, 1), {"a.js": "1"}) == []
    assert frame(Place("b.js", 1, 1), {"a.js": "1"}) == []


def test_invoke_prints_the_result_and_its_timing(api: Api) -> None:
    """The result is on stdout alone, so that it can be piped."""
    api.answer("POST /v1/functions/hello/invoke", 200, {"answer": 42})

    ran = cloudcode("invoke", "hello", '{"a": 1}', url=api.url)

    assert json.loads(ran.out) == {"answer": 42}
    assert "exe_1" in ran.err
    assert api.bodies("POST /v1/functions/hello/invoke") == [{"a": 1}]


def test_invoke_takes_its_params_from_stdin(api: Api) -> None:
    """`-` reads stdin."""
    api.answer("POST /v1/functions/hello/invoke", 200, None)

    cloudcode("invoke", "hello", "-", url=api.url, stdin="[1, 2]")

    assert api.bodies("POST /v1/functions/hello/invoke") == [[1, 2]]


def test_a_function_error_is_shown_with_its_stack(api: Api) -> None:
    """What the guest threw, where, and in which execution."""
    problem = {
        "status": 502,
        "code": "function_error",
        "detail": "Error: boom",
        "execution_id": "exe_9",
        "error": {"name": "Error", "message": "boom", "stack": "Error: boom\n  at main.js:3:7"},
    }
    api.answer("POST /v1/functions/hello/invoke", 502, problem)

    ran = cloudcode("invoke", "hello", url=api.url)

    assert ran.code == 1
    assert "at main.js:3:7" in ran.err
    assert "exe_9" in ran.err


def test_wrong_params_are_refused_before_a_request(api: Api) -> None:
    """A shell's quoting mistake is explained."""
    ran = cloudcode("invoke", "hello", "{a: 1}", url=api.url)

    assert ran.code == 1
    assert "not JSON" in ran.err
    assert not api.asked


def test_logs_of_an_execution(api: Api) -> None:
    """A line each: time, level, text."""
    line = {"seq": 0, "ts": "2010-01-01T00:00:00.000Z", "level": "error", "msg": "no"}
    api.answer("GET /v1/executions/exe_1/logs", 200, {"items": [line], "next_cursor": None})

    ran = cloudcode("logs", "exe_1", url=api.url)

    assert ran.out == "2010-01-01T00:00:00.000Z  error  no\n"


def test_logs_of_nothing_or_of_two_things_is_a_mistake(api: Api) -> None:
    """Exactly one of EXECUTION and --function."""
    assert cloudcode("logs", url=api.url).code == 1
    assert cloudcode("logs", "exe_1", "--function", "hello", url=api.url).code == 1


def test_tail_comes_back_after_a_break(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that the server ends is opened again, after a pause."""
    pauses: list[int] = []
    monkeypatch.setattr(logs, "_pause", pauses.append)
    first = {"execution_id": "exe_1", "ts": "t1", "level": "log", "msg": "one"}
    second = {"id": "exe_1", "function": "hello", "status": "succeeded"}
    api.answer(
        "GET /v1/functions/hello/tail", 200, f": hi\n\nevent: log\ndata: {json.dumps(first)}\n\n"
    )
    api.answer(
        "GET /v1/functions/hello/tail", 200, f"event: report\ndata: {json.dumps(second)}\n\n"
    )

    ran = cloudcode("tail", "hello", "--count", "2", "--json", url=api.url)

    assert ran.code == 0
    assert [json.loads(line)["event"] for line in ran.out.splitlines()] == ["log", "report"]
    assert pauses == [1]


def test_tail_of_nothing_ends_at_once(api: Api) -> None:
    """An unknown function or a server that was never there is not waited for."""
    api.answer("GET /v1/functions/hello/tail", 404, NOT_FOUND)

    assert cloudcode("tail", "hello", url=api.url).code == 1
    assert cloudcode("tail", "hello", url="http://127.0.0.1:9").code == 1


def test_a_guests_text_cannot_move_the_cursor(api: Api) -> None:
    """Escape sequences in a log line are shown, not obeyed; letters of any script stay."""
    line = {"ts": "t", "level": "log", "msg": "\x1b[2Jünï\x07 \u202ecod[bold]e"}
    api.answer("GET /v1/executions/exe_1/logs", 200, {"items": [line], "next_cursor": None})

    ran = cloudcode("logs", "exe_1", url=api.url)

    assert "\x1b" not in ran.out
    assert r"\x1b[2Jünï\x07 \u202ecod[bold]e" in ran.out
    assert plain("a\tb\n") == "a\tb\n"


def test_values_are_written_as_json_or_text(api: Api) -> None:
    """`71.5` is a number, `open` a string, `=` may stand in a value."""
    api.answer("POST /v1/devices/dev_1/values", 201, {"event_id": "evt_1"})

    cloudcode("devices", "write", "dev_1", "temp=71.5", "door=open", "q=a=b", url=api.url)

    (body,) = api.bodies("POST /v1/devices/dev_1/values")
    assert [item["value"] for item in body["values"]] == [71.5, "open", "a=b"]


def test_a_value_is_kept_as_json_or_text(api: Api) -> None:
    """`75` is a number, null is null, `open` a string; a key may have slashes."""
    api.answer("PUT /v1/kv/config/a%2Fb", 204, None)
    given = {"75": 75, "null": None, '{"ü": [1]}': {"ü": [1]}, "open": "open", "": ""}

    options = ["--namespace", "config", "--ttl-seconds", "60"]
    ran = [cloudcode("kv", "put", "a/b", text, *options, url=api.url) for text in given]

    assert [one.code for one in ran] == [0] * len(given)
    assert api.bodies("PUT /v1/kv/config/a%2Fb") == list(given.values())
    assert api.asked[0][2] == {"ttl_seconds": ["60"]}


def test_a_value_is_printed_as_json(api: Api) -> None:
    """What is not there ends with an error."""
    api.answer("GET /v1/kv/default/limits", 200, {"hot": 75})
    api.answer("GET /v1/kv/default/none", 404, NOT_FOUND)

    found, none = (cloudcode("kv", "get", key, url=api.url) for key in ("limits", "none"))

    assert (found.code, json.loads(found.out)) == (0, {"hot": 75})
    assert (none.code, none.out) == (1, "")


def test_keys_are_listed_and_deleted(api: Api) -> None:
    """Page by page."""
    entry = {"key": "a", "expires_at": None, "updated_at": "2010-10-29T00:00:00.000Z"}
    api.answer("GET /v1/kv/default", 200, {"items": [entry], "next_cursor": "a"})
    api.answer("GET /v1/kv/default", 200, {"items": [entry | {"key": "b"}], "next_cursor": None})
    api.answer("DELETE /v1/kv/default/a", 204, None)

    listed = cloudcode("kv", "list", "--prefix", "x", "--json", url=api.url)
    gone = cloudcode("kv", "delete", "a", url=api.url)

    assert [one["key"] for one in json.loads(listed.out)["items"]] == ["a", "b"]
    assert [query.get("cursor") for _, _, query, _ in api.asked[:2]] == [None, ["a"]]
    assert api.asked[0][2]["prefix"] == ["x"]
    assert gone.code == 0


def test_a_secret_comes_from_stdin_and_is_not_printed(api: Api) -> None:
    """It need not stand on the command line, where others can read it."""
    api.answer("PUT /v1/secrets/TOKEN", 204, None)

    ran = cloudcode("secret", "put", "TOKEN", url=api.url, stdin="s3cret\n")

    assert api.bodies("PUT /v1/secrets/TOKEN") == [{"value": "s3cret"}]
    assert "s3cret" not in ran.out + ran.err


def test_serve_takes_every_setting() -> None:
    """Each field of Settings is an option, described by the field's own words."""
    shown = cloudcode("serve", "--help").out

    flags = set(re.findall(r"--[a-z0-9-]+", shown))
    assert {f"--{name.replace('_', '-')}" for name in Settings.model_fields} <= flags


def test_options_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is given on the command line is in force; the rest comes from CLOUDCODE_*."""
    monkeypatch.setenv("CLOUDCODE_PORT", "1111")
    monkeypatch.setenv("CLOUDCODE_WARM_CELLS", "3")

    settings = settings_from({"port": "2222", "host": None})

    assert (settings.port, settings.warm_cells, settings.host) == (2222, 3, "127.0.0.1")


def test_wrong_settings_are_named_by_their_option() -> None:
    """Every wrong one, in one message, without a traceback."""
    ran = cloudcode("serve", "--port", "99999", "--log-level", "loud")

    assert ran.code == 1
    assert "--port:" in ran.err
    assert "--log-level:" in ran.err


def doctor(*arguments: str, data_dir: Path) -> dict[str, Any]:
    ran = cloudcode("doctor", "--json", "--port", "0", "--data-dir", str(data_dir), *arguments)
    found: dict[str, Any] = json.loads(ran.out)
    assert found["ok"] == (ran.code == 0)
    return found


def check(found: dict[str, Any], name: str) -> dict[str, Any]:
    return next(item for item in found["checks"] if item["name"] == name)


@pytest.mark.slow  # the libraries that it looks at take 0.3 s to load
def test_doctor_names_every_layer_and_changes_nothing(tmp_path: Path) -> None:
    """Each layer of the lockdown is there with its detail; no file is left behind."""
    found = doctor(data_dir=tmp_path / "data")

    names = [item["name"] for item in found["checks"]]
    layers = ("process", "rlimits", "namespaces", "identity", "privileges", "landlock", "seccomp")
    assert names[-8:] == [*(f"lockdown: {layer}" for layer in layers), "isolation: hardened"]
    assert found["versions"]["cloudcode-engine"] != "missing"
    assert list(tmp_path.iterdir()) == []


def test_doctor_finds_a_key_file_that_others_may_read(tmp_path: Path) -> None:
    """A master key with mode 0644 fails, and chmod is the remedy."""
    (tmp_path / "master.key").write_bytes(b"")
    (tmp_path / "master.key").chmod(0o644)

    found = doctor(data_dir=tmp_path)

    assert not found["ok"]
    assert "chmod 600" in check(found, "master key")["remedy"]


def test_doctor_says_what_functions_may_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is opened and closed; whoever opens this machine is told, and may."""
    monkeypatch.setenv("CLOUDCODE_EGRESS_ALLOW", "127.0.0.0/8")
    monkeypatch.setenv("CLOUDCODE_EGRESS_DENY", "db.example")

    found = doctor(data_dir=tmp_path)

    egress = next(check for check in found["checks"] if check["name"] == "egress")
    assert "opened: 127.0.0.0/8; closed: db.example" in egress["detail"]
    assert not egress["ok"]
    assert "CLOUDCODE_EGRESS_ALLOW" in egress["remedy"]
    assert not egress["required"]
    told = cloudcode("doctor", "--port", "0", "--data-dir", str(tmp_path))
    assert "open     egress" in told.out


def test_an_engine_without_all_layers_names_them_where_they_are_required(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line each, with what helps; no traceback."""

    def refused(*_: object) -> None:
        raise LayersMissing(
            [Layer(name=name, active=False, detail="none", remedy="add") for name in ("a", "b")]
        )

    monkeypatch.setattr("engine.serve.run", refused)

    ran = cloudcode("serve", "--isolation-required", "strict", "--data-dir", str(tmp_path))

    assert ran.code == 1
    assert "\n  a: none. Remedy: add\n  b: none. Remedy: add\n" in ran.err
    assert "`cloudcode doctor` tries each" in ran.err


def test_a_wrong_variable_is_named_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the variable that it is: `doctor` has no such option; without words of the library."""
    monkeypatch.setenv("CLOUDCODE_PUBLIC_URL", "nowhere")
    monkeypatch.setenv("CLOUDCODE_PROJECT_CPU_SECONDS_PER_MINUTE", "inf")

    ran = cloudcode("doctor", "--data-dir", str(tmp_path))

    assert ran.code == 1
    assert "CLOUDCODE_PUBLIC_URL: must be an absolute http" in ran.err
    assert "CLOUDCODE_PROJECT_CPU_SECONDS_PER_MINUTE: " in ran.err
    assert "1000000000" in ran.err
    assert "Value error" not in ran.err


def test_doctor_finds_a_data_directory_that_cannot_be_made(tmp_path: Path) -> None:
    """The engine would not start there."""
    (tmp_path / "file").touch()

    found = doctor(data_dir=tmp_path / "file" / "data")

    assert not check(found, "data directory")["ok"]


def test_doctor_fails_on_a_missing_layer_only_when_strict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """best_effort names it; strict makes it a failure."""
    missing = Check(name="seccomp", ok=False, detail="none", remedy="install it")
    monkeypatch.setattr(
        "engine.cli.doctor._layers",
        lambda *, required: [Check(name=missing.name, ok=False, detail="", required=required)],
    )

    relaxed = doctor(data_dir=tmp_path)
    strict = doctor("--strict", data_dir=tmp_path)

    assert (relaxed["ok"], strict["ok"]) == (True, False)
