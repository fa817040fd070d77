"""What a function leaves behind: for its own next runs, for its project's others, for nobody else.

State between runs of one version is a cache by design (README "What differs from a browser or
Node"), so what a function does to its own isolate it does to itself.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.security.test_hostile_functions import Tenant

# All that a script can leave in its world, each marked so that it would be known again.
LITTERS = """
export default function () {
  globalThis.mark = "mine";
  Object.prototype.mark = "mine";
  Array.prototype.push = () => "mine";
  JSON.stringify = JSON.parse = () => "mine";
  Date.now = Math.random = () => "mine";
  Promise.prototype.then = () => "mine";
  globalThis[Symbol.for("mark")] = "mine";
  console.log = () => {};
  setTimeout = fetch = undefined;
  return "left";
}
"""
LOOKS = """
export default async function () {
  const found = [];
  if (globalThis.mark !== undefined || {}.mark !== undefined) found.push("mark");
  if (globalThis[Symbol.for("mark")] !== undefined) found.push("symbol");
  const { then } = Promise.prototype;
  for (const patched of [[].push, JSON.stringify, Date.now, Math.random, then, console.log]) {
    const text = String(patched);
    if (text.includes("mine") || text === "() => {}") found.push(text);
  }
  if (typeof Date.now() !== "number" || typeof fetch !== "function") found.push("globals");
  await new Promise((done) => setTimeout(done, 1));
  return found;
}
"""
COUNTS = "let n = 0; export default () => ++n"


@pytest.fixture(scope="module")
def project(engine: Any) -> Iterator[Tenant]:
    tenant = Tenant(engine, "persistence")
    yield tenant
    tenant.client.close()


def answer_of(tenant: Tenant, name: str, params: Any = None) -> Any:
    answer = tenant.invoke(name, params)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_nothing_of_one_function_is_in_another(project: Tenant) -> None:
    """Two functions of a project share a process, and nothing that a script can see."""
    project.deploy("looks", LOOKS)
    project.deploy("litters", LITTERS)
    project.deploy("counts", COUNTS)
    before = answer_of(project, "looks")
    count = answer_of(project, "counts")

    left = answer_of(project, "litters")

    assert left == "left"
    assert (before, answer_of(project, "looks")) == ([], [])
    assert answer_of(project, "counts") == count + 1  # all of that was in one process
    project.deploy("looks_later", LOOKS)  # an isolate that is made afterwards
    assert answer_of(project, "looks_later") == []


def test_nothing_of_one_project_is_in_another(project: Tenant, engine: Any) -> None:
    """Functions of two projects that are called the same share no module and no global."""
    other = Tenant(engine, "persistence-other")
    keeps = "globalThis.kept ??= []; export default (p) => { kept.push(p); return kept; }"
    project.deploy("keeps", keeps)
    other.deploy("keeps", keeps)

    ours = [answer_of(project, "keeps", "ours") for _ in range(2)]

    assert ours[-1] == ["ours", "ours"]
    assert answer_of(other, "keeps", "theirs") == ["theirs"]
    other.client.close()


def test_nothing_of_one_version_is_in_the_next(project: Tenant) -> None:
    """A new version begins with a world as new as the first one's."""
    project.deploy("renewed", LITTERS)
    answer_of(project, "renewed")

    made = project.client.post("/v1/functions/renewed/versions?deploy=true", json={"source": LOOKS})

    assert made.status_code == 201, made.text
    assert answer_of(project, "renewed") == []


def test_what_a_run_patches_it_patches_for_its_own_function(project: Tenant) -> None:
    """By design: the next run of the same version meets it. Records and logs stay the engine's."""
    project.deploy(
        "patches",
        "let n = 0;"
        "export default function () {"
        "  Math.random = () => 7; JSON.stringify = () => '\"forged\"'; n++;"
        "  console.log(`run ${n}`); return { n, random: Math.random() };"
        "}",
    )

    answers = [project.invoke("patches") for _ in range(2)]

    assert [answer.json() for answer in answers] == [{"n": 1, "random": 7}, {"n": 2, "random": 7}]
    for number, answer in enumerate(answers, 1):
        run = f"/v1/executions/{answer.headers['execution-id']}"
        assert project.client.get(run).json()["status"] == "succeeded"
        lines = project.client.get(f"{run}/logs").json()["items"]
        assert [line["msg"] for line in lines] == [f"run {number}"]


def test_runs_in_one_isolate_keep_their_env_apart(project: Tenant) -> None:
    """The `env` that another run has left behind asks in that one's name, or not at all."""
    project.deploy(
        "borrows",
        "let first;"
        "export default async function (p, env, ctx) {"
        "  if (p === 'lend') { first = { env, ctx }; return env.KV.put('of', 'the first'); }"
        "  try { await first.env.KV.put('of', 'the second'); } catch {}"
        "  return [ctx.executionId !== first.ctx.executionId, await env.KV.get('of')];"
        "}",
    )
    lent = project.invoke("borrows", "lend")

    borrowed = answer_of(project, "borrows", "borrow")

    assert lent.status_code == 200
    assert borrowed[0] is True
    record = project.client.get(f"/v1/executions/{lent.headers['execution-id']}").json()
    assert len(record["effects"]) == 1


def test_a_heap_that_leaks_ends_the_guilty_function_alone(project: Tenant) -> None:
    """Two megabytes a run: some run is stopped, and both it and the function beside it go on."""
    leaks = "const kept = []; export default () => { kept.push(new Array(250000).fill(1.5)); }"
    project.deploy("leaks", leaks, limits={"cpu_ms": 1_000})
    project.deploy("by_the_leak", "export default (p) => p + 1")

    ends = []
    for run in range(50):
        project.invoke("leaks")
        ends.append(project.execution("leaks")["status"])
        assert answer_of(project, "by_the_leak", run) == run + 1

    assert "memory_exceeded" in ends
    assert set(ends) == {"memory_exceeded", "succeeded"}
    assert ends[-1] == "succeeded" or "succeeded" in ends[ends.index("memory_exceeded") :]


def test_array_buffers_that_leak_fill_the_cell_and_leave_with_it(project: Tenant) -> None:
    """They are in no heap, so only the cell ends: whoever is in it starts again in a new one."""
    hoards = "const kept = []; export default (n) => { kept.push(new Uint8Array(n)); }"
    project.deploy("hoards", hoards)
    project.deploy("by_the_hoard", "export default (p) => p + 1")

    statuses = []
    for run in range(60):
        statuses.append(project.invoke("hoards", 20_000_000).status_code)
        assert answer_of(project, "by_the_hoard", run) == run + 1
    project.deploy("after_the_hoard", "export default (p) => p + 1")

    assert answer_of(project, "after_the_hoard", 1) == 2
    assert statuses.count(200) > 50


def test_a_killer_costs_its_neighbours_in_the_project_one_start(project: Tenant) -> None:
    """Runs that shared the cell with one that had to be stopped end as if it had not been there."""
    project.deploy("kills", "export default () => { for (;;); }", limits={"cpu_ms": 50})
    waits = "export default (p) => new Promise((done) => setTimeout(() => done(p), 100))"
    project.deploy("waits", waits)

    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(project.invoke, "waits", number) for number in range(6)]
        killed = pool.submit(project.invoke, "kills")

    assert killed.result().status_code == 502
    assert [answer.result().json() for answer in waiting] == list(range(6))
