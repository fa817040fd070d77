"""A run is a step: the same version, input, seed, clock and answers give the same run again."""

# ruff: noqa: F811 - a test takes a fixture as a parameter of the name under which it imports it

import asyncio
import json
from typing import Any

import msgspec

from engine.builder import Builder
from engine.programs import Recipe
from runtimes.contract import Runtime, ToCell, packed
from sandbox.supervisor import Sandbox
from tests.standins.cell_listener import Listener, sandbox  # noqa: F401 - a fixture

SOURCE = """
export default {
  async job(event, env, ctx) {
    const seen = [Date.now(), new Date().toISOString(), Math.random(), crypto.randomUUID()];
    console.log("before", Math.random());
    const [first] = await env.DEVICES.values("d", "k");
    seen.push(Date.now(), first.value, ...crypto.getRandomValues(new Uint8Array(4)));
    await new Promise((resolve) => setTimeout(resolve, 50));
    console.log("after", Date.now(), performance.now());
    return { seen, event, id: ctx.executionId };
  },
};
"""
LIMITS = [200, 1_000_000, 256, 65_536]
CLOCKS = (1_288_310_400_000, 1_288_310_400_250, 1_288_310_400_300)


async def built_source(sandbox: Sandbox) -> bytes:
    """Return SOURCE compiled."""
    recipe = Recipe(
        runtime=Runtime.JAVASCRIPT, project_id="prj_recorded", name="recorded", main="main.js",
        body=json.dumps({"main.js": SOURCE}).encode(), memory_mb=64,
    )  # fmt: skip
    return (await Builder(sandbox, lambda: CLOCKS[0], cell_memory_mb=256).build(recipe)).program


async def run_once(sandbox: Sandbox, program: bytes, seed: str) -> list[bytes]:
    """Run SOURCE in a fresh cell with recorded answers; return every output, byte for byte."""
    cell = await sandbox.acquire()
    listener = Listener(cell)
    bindings = {"variables": {}, "secrets": {}, "connections": {}}
    header = {"bindings": bindings, "memory_mb": 64, "now_ms": CLOCKS[0]}
    context = ["exe_recorded", 1, 1, 0, "exe_recorded", 0]
    value = [{"key": "k", "value": 7, "datetime": "2010-10-29T00:00:00.000Z"}]
    outputs = []

    cell.send(ToCell.LOAD, 1, packed(msgspec.json.encode(header), program))
    await listener.heard.get()
    for message in (
        [0, 1, "job", CLOCKS[0], seed, *LIMITS, context, {"n": 1}],
        [1, 1, 1, CLOCKS[1], True, value],
        [1, 1, 2, CLOCKS[2], True, None],
    ):
        cell.send(ToCell.BATCH, 1, json.dumps([message]).encode())
        outputs.append(await asyncio.wait_for(listener.heard.get(), 5))
    cell.kill()
    return outputs


async def test_the_same_run_twice_is_the_same_run(sandbox: Sandbox) -> None:
    """Two processes, one record: every log line, host call and result is equal to the byte."""
    program = await built_source(sandbox)

    first = await run_once(sandbox, program, "00112233445566ff")
    second = await run_once(sandbox, program, "00112233445566ff")

    assert first == second
    done: Any = json.loads(first[-1])[-1]
    assert done[2] == "ok"
    assert done[3]["seen"][0] == CLOCKS[0]
    assert done[3]["seen"][4] == CLOCKS[1]


async def test_another_seed_is_another_run(sandbox: Sandbox) -> None:
    """Chance is the seed's, and nothing else's."""
    program = await built_source(sandbox)

    first = await run_once(sandbox, program, "00112233445566ff")
    second = await run_once(sandbox, program, "0011223344556600")

    assert first != second
