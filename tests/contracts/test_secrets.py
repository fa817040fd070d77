"""Secrets and connections: who may have them, what needs them, and where they are not seen."""

# ruff: noqa: F811 - a test takes a fixture as a parameter of the name under which it imports it

import base64
from typing import Any

import pytest

from engine.gates import Gate
from engine.store.deliveries import Attempt, attempt_row
from engine.store.gates import write
from engine.store.journal import Commit
from engine.store.tables import delivery_attempts
from tests.contracts.test_api_deliveries import put as put_delivery
from tests.standins.control_plane import (  # noqa: F401 - fixtures
    ECHO,
    Project,
    http,
    platform,
    project,
)
from tests.standins.wasm_toolchains import wat_module

pytestmark = pytest.mark.asyncio(loop_scope="module")

VALUE = "s3cr3t-value-of-some-length"
HOOK = {"kind": "webhook", "credentials": {"url": "https://example.com/in"}}
ENV = "export default { async job(params, env) { return Object.keys(env).sort() } }"
# Logs how a message through HOOK is answered; returns what `env` holds for it.
SEND = r"{\"operation\":\"connection.send\",\"arguments\":{\"connection\":\"HOOK\",\"message\":{}}}"
ENV_WASM = rf"""
(module
  (import "engine" "call" (func $call (param i32 i32) (result i64)))
  (import "engine" "log" (func $log (param i32 i32 i32)))
  (memory (export "memory") 2)
  (data (i32.const 1024) "{SEND}")
  (data (i32.const 2048) "{{\"operation\":\"env\",\"arguments\":{{}}}}")
  (func (export "alloc") (param i32) (result i32) (i32.const 4096))
  (func (export "handle") (param i32 i32) (result i64)
    (call $log (i32.const 1) (i32.const 4096) (i32.wrap_i64
      (call $call (i32.const 1024) (i32.const {len(SEND.replace(chr(92), ""))}))))
    (call $call (i32.const 2048) (i32.const 34))))
"""


async def put(project: Project, name: str = "TOKEN", value: str = VALUE, **fields: Any) -> None:
    await project.develop.ok("PUT", f"/v1/secrets/{name}", {"value": value, **fields})


async def ran(project: Project, name: str, params: Any = None) -> dict[str, Any]:
    """Invoke, and return the answer, the record and the log as one."""
    answer = await project.develop.call("POST", f"/v1/functions/{name}/invoke", params)
    execution = answer.headers["execution-id"]
    whole = await project.develop.ok("GET", f"/v1/executions/{execution}")
    log = await project.develop.ok("GET", f"/v1/executions/{execution}/logs")
    return {"answer": answer, "whole": whole, "log": [line["msg"] for line in log["items"]]}


@pytest.mark.parametrize("runtime", ["javascript", "wasm"])
async def test_a_function_that_is_not_on_the_list_has_nothing(
    project: Project, runtime: str
) -> None:
    """Neither the secret nor the connection; from the next run on, without a new version."""
    made = {"source": ENV}
    if runtime == "wasm":
        made = {"wasm": base64.b64encode(wat_module(ENV_WASM)).decode(), "handlers": ["job"]}
    await put(project)
    await project.develop.ok("PUT", "/v1/connections/HOOK", HOOK)
    body = {"name": "report", "secrets": ["TOKEN"], **made}
    await project.develop.ok("POST", "/v1/functions", body)

    async def sees() -> set[str]:
        found = await ran(project, "report")
        names = found["answer"].text
        if runtime == "wasm" and "there is no connection 'HOOK'" not in found["log"][0]:
            names += "HOOK"
        return {name for name in ("TOKEN", "HOOK") if name in names}

    seen = [await sees()]
    for allowed in (["other"], ["other", "report"], [], None):
        secret = {"value": VALUE, "functions": allowed}
        await project.develop.ok("PUT", "/v1/secrets/TOKEN?force=true", secret)
        await project.develop.ok("PUT", "/v1/connections/HOOK", {**HOOK, "functions": allowed})
        seen.append(await sees())

    both = {"TOKEN", "HOOK"}
    assert seen == [both, set(), both, set(), both]


async def test_a_function_cannot_send_through_a_connection_that_is_not_for_it(
    project: Project,
) -> None:
    """Not even by its name, past the bindings."""
    source = """export default { async job(params, env) {
        try { await env.HOOK.send({}) } catch (error) { return String(error) }
        return "sent" } }"""
    await project.function("sends", source)
    await project.develop.ok("PUT", "/v1/connections/HOOK", {**HOOK, "functions": ["other"]})

    found = await project.develop.ok("POST", "/v1/functions/sends/invoke")

    assert "sent" not in found
    assert await project.operate.items("/v1/deliveries") == []


async def test_a_list_stays_when_the_value_changes(project: Project) -> None:
    """To leave it out is not to open it to all; null is. Lists show it."""

    async def shown() -> Any:
        return (await project.operate.items("/v1/secrets"))[0]["functions"]

    await put(project)
    seen = [await shown()]
    await put(project, functions=["report", "later", "report"])
    seen.append(await shown())
    await put(project, value="another value")
    seen.append(await shown())
    await put(project, functions=None)
    seen.append(await shown())

    assert seen == [None, ["report", "later"], ["report", "later"], None]


@pytest.mark.parametrize(
    ("functions", "pointer"),
    [(["ok", "not ok"], "/functions/1"), (["f"] * 201, "/functions"), ([5], "/functions/0")],
)
async def test_a_list_of_what_are_no_functions_is_refused(
    project: Project, functions: list[Any], pointer: str
) -> None:
    """Names of functions that are yet to be made are taken."""
    body = {"value": VALUE, "functions": functions}
    connection = {**HOOK, "functions": functions}

    refused = await project.develop.refused(422, "PUT", "/v1/secrets/TOKEN", body)
    also = await project.develop.refused(422, "PUT", "/v1/connections/HOOK", connection)

    assert [one["errors"][0]["pointer"] for one in (refused, also)] == [pointer] * 2


async def test_an_upload_names_each_secret_that_is_missing(project: Project) -> None:
    """And those that are there, but not for this function; nothing is stored of it."""
    await put(project, "A")
    await put(project, "OTHERS", functions=["other", "more"])
    wanted = ["A", "B", "OTHERS", "C"]
    body = {"name": "report", "source": ECHO, "secrets": wanted}

    refused = await project.develop.refused(422, "POST", "/v1/functions", body)
    functions = await project.develop.items("/v1/functions")
    for name in ("B", "C"):
        await put(project, name)
    await put(project, "OTHERS", functions=["other", "more", "report"])
    made = await project.develop.ok("POST", "/v1/functions", body)

    errors = {one["pointer"]: one["message"] for one in refused["errors"]}
    assert errors.keys() == {"/secrets/1", "/secrets/2", "/secrets/3"}
    assert "`cloudcode secret put B`" in errors["/secrets/1"]
    remedy = "`cloudcode secret put OTHERS --function other --function more --function report`"
    assert remedy in errors["/secrets/2"]
    assert all(name in refused["detail"] for name in ("B", "C", "OTHERS"))
    assert functions == []
    assert made["version"] == 1


async def test_an_older_version_is_deployed_only_with_its_secrets(project: Project) -> None:
    """By number and by rollback: what it needs is looked at again."""
    await put(project)
    await project.function("report", ECHO, secrets=["TOKEN"])
    path = "/v1/functions/report"
    await project.develop.ok(
        "POST", f"{path}/versions?deploy=true", {"secrets": [], "source": ECHO}
    )
    await project.develop.ok("DELETE", "/v1/secrets/TOKEN")

    older = {"versions": [{"version": 1, "percent": 100}]}
    refused = [
        await project.develop.refused(422, "POST", f"{path}/deployments", older),
        await project.develop.refused(422, "POST", f"{path}/rollback"),
        await project.develop.refused(
            422, "POST", f"{path}/versions", {"source": ECHO, "secrets": ["TOKEN"]}
        ),
    ]
    await put(project)
    done = await project.develop.ok("POST", f"{path}/deployments", older)

    assert [one["errors"][0]["pointer"] for one in refused] == ["/secrets/0"] * 3
    assert done["versions"] == [{"version": 1, "percent": 100}]


async def test_a_secret_that_is_needed_is_not_deleted_by_accident(project: Project) -> None:
    """The answer names the functions; with force it goes. What is live no more needs nothing."""
    await put(project)
    await project.function("report", ECHO, secrets=["TOKEN"])
    await project.function("unlike", ECHO)

    refused = await project.develop.refused(409, "DELETE", "/v1/secrets/TOKEN")
    kept = await project.operate.items("/v1/secrets")
    await project.develop.ok("DELETE", "/v1/secrets/TOKEN?force=true")
    await put(project)
    path = "/v1/functions/report/versions?deploy=true"
    await project.develop.ok("POST", path, {"source": ECHO, "secrets": []})
    await project.develop.ok("DELETE", "/v1/secrets/TOKEN")

    assert "report" in refused["detail"]
    assert "unlike" not in refused["detail"]
    assert "?force=true" in refused["detail"]
    assert "cloudcode secret delete TOKEN --force" in refused["detail"]
    assert [one["name"] for one in kept] == ["TOKEN"]
    assert await project.operate.items("/v1/secrets") == []


async def test_a_secret_is_not_taken_from_a_live_function_by_accident(project: Project) -> None:
    """A list without it is refused as a deletion is; one with it, or none, is not."""
    await put(project)
    await project.function("report", ECHO, secrets=["TOKEN"])
    path, body = "/v1/secrets/TOKEN", {"value": VALUE}

    refused = await project.develop.refused(409, "PUT", path, body | {"functions": ["other"]})
    await project.develop.ok("PUT", path, body | {"functions": ["report"]})
    await project.develop.ok("PUT", path, body)
    kept = await project.operate.items("/v1/secrets")
    await project.develop.ok("PUT", f"{path}?force=true", body | {"functions": ["other"]})
    await project.develop.ok("PUT", path, body | {"functions": []})

    assert "report" in refused["detail"]
    assert "force=true" in refused["detail"]
    assert kept[0]["functions"] == ["report"]


async def test_what_a_provider_says_has_the_name_instead_of_the_value(project: Project) -> None:
    """Whom a delivery is for, and whatever came back: beside the payload, where it is hidden."""
    await put(project)
    await project.function("report", ECHO, secrets=["TOKEN"])
    hook = {"kind": "webhook", "credentials": {"url": "https://example.com/"}}
    await project.develop.ok("PUT", "/v1/connections/HOOK", hook)
    said = f"HTTP 400: no {VALUE}"
    fields = {"recipient": VALUE, "reason": said, "provider_status": said, "attempts": 1}
    delivery_id = await put_delivery(project, message_id=said, **fields)
    attempt = Attempt(attempt=1, at_ms=1, took_ms=1, status=400, error=said, delivered=False)
    commit = Commit()
    commit.insert(delivery_attempts, attempt_row(delivery_id, attempt))
    await project.platform.journal.commit(commit)
    gate = Gate(last_error=said, disabled=said)
    await project.platform.journal.run_alone(write, {(project.id, "HOOK"): gate})

    paths = ("/v1/deliveries", f"/v1/deliveries/{delivery_id}", "/v1/connections/HOOK")
    shown = [await project.operate.ok("GET", path) for path in (*paths, "/v1/connections")]

    assert shown[1]["recipient"] == "[secret TOKEN]"
    assert shown[1]["attempts_log"][0]["error"] == "HTTP 400: no [secret TOKEN]"
    assert VALUE not in str(shown)
    assert all("[secret TOKEN]" in str(one) for one in shown)


async def test_what_a_run_says_has_the_name_instead_of_the_value(project: Project) -> None:
    """Result, log and transcript: as it is, in JSON, in base64, in a URL."""
    value = 'p"w\\1/ü <&'
    source = """export default { async job(params, env) {
        console.log('is ' + env.TOKEN); console.log({token: env.TOKEN});
        console.log(btoa(unescape(encodeURIComponent('u:' + env.TOKEN))));
        console.log('?key=' + encodeURIComponent(env.TOKEN));
        await env.KV.put('k', [env.TOKEN]); const back = await env.KV.get('k');
        return { [env.TOKEN]: JSON.stringify(back), same: back[0] === env.TOKEN } } }"""
    await put(project, value=value)
    await project.function("says", source, secrets=["TOKEN"])

    found = await ran(project, "says")
    kept = await project.develop.ok("GET", "/v1/kv/default/k")

    assert found["answer"].json() == {"[secret TOKEN]": '["[secret TOKEN]"]', "same": True}
    assert found["whole"]["result"] == found["answer"].json()
    assert all("[secret TOKEN]" in line for line in found["log"])
    assert found["log"][0] == "is [secret TOKEN]"
    assert "[secret TOKEN]" in str(found["whole"]["transcript"])
    shown = str(found["whole"]) + str(found["log"]) + found["answer"].text
    assert value not in shown
    assert base64.b64encode(f"u:{value}".encode()).decode() not in shown
    assert kept == [value]  # what it writes is the author's


async def test_an_error_has_the_name_instead_of_the_value(project: Project) -> None:
    """Message and stack, in the answer and in the record."""
    source = """export default { async job(params, env) {
        throw new Error('refused: ' + env.TOKEN) } }"""
    await put(project)
    await project.function("throws", source, secrets=["TOKEN"])

    found = await ran(project, "throws")

    assert found["answer"].json()["error"]["message"] == "refused: [secret TOKEN]"
    assert found["whole"]["error"]["message"] == "refused: [secret TOKEN]"
    assert VALUE not in found["answer"].text + str(found["whole"])


async def test_the_answer_of_a_fetch_handler_has_the_name_instead(project: Project) -> None:
    """Its body as text or bytes, and its headers; it stays the answer that it was."""
    source = """export default { async fetch(request, env) {
        const body = new URL(request.url).pathname.endsWith('bytes')
          ? new Uint8Array([255, ...new TextEncoder().encode(env.TOKEN)]) : `{"t":"${env.TOKEN}"}`;
        return new Response(body, { status: 201, headers: { 'x-token': env.TOKEN } }) } }"""
    await put(project)
    await project.function("page", source, secrets=["TOKEN"])
    http = project.develop.http

    text = await http.get(f"/f/{project.id}/page/text")
    data = await http.get(f"/f/{project.id}/page/bytes")

    assert (text.status_code, text.json()) == (201, {"t": "[secret TOKEN]"})
    assert text.headers["x-token"] == "[secret TOKEN]"
    assert data.content == b"\xff[secret TOKEN]"


async def test_what_came_from_another_function_is_hidden_where_it_is_shown(
    project: Project,
) -> None:
    """The input of a run that a call caused: the function has it, and people see the name."""
    caller = """export default { async job(params, env) {
        await env.FN.call('called', { token: env.TOKEN }) } }"""
    called = "export default { async job(params) { return params.token.length } }"
    await put(project)
    await project.function("called", called)
    await project.function("calls", caller, secrets=["TOKEN"])

    found = await ran(project, "calls")
    (effect,) = found["whole"]["effects"]
    path = f"/v1/executions/{effect['execution_id']}"
    while (whole := await project.develop.ok("GET", path))["status"] in {"queued", "running"}:
        pass

    assert whole["result"] == len(VALUE)
    assert whole["input"] == {"token": "[secret TOKEN]"}


async def test_a_log_line_that_is_cut_shows_no_piece_of_a_value(project: Project) -> None:
    """The limit of the log falls into the middle of it."""
    source = f"""export default {{ async job(params, env) {{
        console.log('x'.repeat(params - {len(VALUE)} + 10) + env.TOKEN) }} }}"""
    await put(project)
    await project.function("cuts", source, secrets=["TOKEN"])
    room = (await project.develop.ok("GET", "/v1/limits"))["run"]["log_bytes"]

    found = await ran(project, "cuts", room)

    (line,) = found["log"]
    assert line.endswith("x[secret TOKEN]… [line cut: log limit]")
    assert VALUE[:4] not in line


async def test_a_new_value_is_hidden_from_the_next_run_on(project: Project) -> None:
    """The old one is no secret any more; short ones are not hidden at all."""
    source = "export default { async job(params, env) { return [params, env.TOKEN].join(' ') } }"
    await put(project)
    await project.function("says", source, secrets=["TOKEN"])

    seen = [(await ran(project, "says", VALUE))["answer"].json()]
    await put(project, value="the-new-value")
    seen.append((await ran(project, "says", VALUE))["answer"].json())
    await put(project, value="short")
    seen.append((await ran(project, "says", "x"))["answer"].json())

    mark = "[secret TOKEN]"
    assert seen == [f"{mark} {mark}", f"{VALUE} {mark}", "x short"]


async def test_a_refused_host_call_shows_no_piece_of_a_value(project: Project) -> None:
    """What a capability quotes of its arguments is cut off, and more text follows."""
    source = """export default { async job(params, env) {
        const told = []
        for (const ask of [
          () => env.FN.call('x'.repeat(70) + env.TOKEN),
          () => env.KV.put('\\n' + 'x'.repeat(70) + env.TOKEN, 1),
        ]) try { await ask() } catch (error) { told.push(error.message) }
        console.log(told.join())
        throw new Error(told.join()) } }"""
    await put(project)
    await project.function("asks", source, secrets=["TOKEN"])

    found = await ran(project, "asks")

    assert VALUE[:4] not in found["answer"].text + str(found["whole"]) + str(found["log"])
    assert found["log"][0].count("[secret TOKEN]") == 2


async def test_a_module_cannot_escape_a_value_into_the_transcript(project: Project) -> None:
    """Arguments are kept as the module wrote them, and decoded where they are read."""
    escaped = "".join(f"\\\\u{ord(char):04x}" for char in VALUE)
    asked = rf"{{\"operation\":\"kv.get\",\"arguments\":{{\"key\":\"{escaped}\"}}}}"
    sends = len(SEND.replace(chr(92), ""))
    wat = ENV_WASM.replace(SEND, asked)
    wat = wat.replace(
        f"(i32.const {sends})",
        f"(i32.const {len(asked) - asked.count(chr(92) + chr(34)) - len(VALUE)})",
    )
    module = base64.b64encode(wat_module(wat)).decode()
    await put(project)
    body = {"name": "escapes", "secrets": ["TOKEN"], "wasm": module, "handlers": ["job"]}
    await project.develop.ok("POST", "/v1/functions", body)

    found = await ran(project, "escapes")

    assert found["whole"]["transcript"][0][:3] == ["kv.get", {"key": "[secret TOKEN]"}, True]
    assert VALUE not in str(found["whole"])
