"""Several nodes on one PostgreSQL hold deliveries back together, as if they were one."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import select

from engine.clock import wall_clock
from engine.gates import FAILURES_MAX, OPEN_MS_MIN, Breaker, Gate, News, Word
from engine.outbox import Outbox
from engine.store import gates, nodes
from engine.store.delivery_actions import Action
from engine.store.journal import Journal
from engine.store.tables import nodes as nodes_table
from engine.store.turns import LOOK_MS, claim
from tests.standins.http_server import answer
from tests.standins.outbox_world import (
    NOW,
    PROJECT,
    Receiver,
    World,
    opened_world,
    receiver,
    started,
)
from tests.standins.servers import Postgres

HOOK = (PROJECT, "HOOK")
TO = "+34600000001"
_BEAT_OF_A = select(nodes_table.c.beat).where(nodes_table.c.id == "a")


@pytest.fixture
async def world(postgres: Postgres) -> AsyncIterator[World]:
    with postgres.database() as url:
        async with opened_world(url) as opened:
            yield opened


@pytest.fixture
async def hook(world: World) -> AsyncIterator[Receiver]:
    async with receiver(world.clock) as opened:
        yield opened


@asynccontextmanager
async def two_nodes(world: World, **more: Any) -> AsyncIterator[tuple[Outbox, Outbox]]:
    async with world.node("a") as a, world.node("b") as b:
        outboxes = world.outbox(a, **more), world.outbox(b, **more)
        async with started(*outboxes):
            yield outboxes


async def connect(world: World, hook: Receiver, **settings: Any) -> None:
    await world.connect("HOOK", "webhook", hook.credentials, **{"ordered": True, **settings})


async def queue(world: World, node_id: str, outbox: Outbox, count: int = 1, **more: Any) -> Any:
    ids = await world.queue("HOOK", count, "webhook", node_id=node_id, **more)
    outbox.notice(ids)
    return ids


async def settle(*outboxes: Outbox) -> None:
    for _ in range(2):  # what one has done may be news for the other
        for outbox in outboxes:
            await outbox.drain()


async def gate(world: World) -> Gate:
    return (await world.database.read(gates.read, [HOOK]))[HOOK]


async def test_a_recipients_messages_keep_their_order_across_nodes(
    world: World, hook: Receiver
) -> None:
    """Runs of one device alternate between two nodes; nothing overtakes."""
    await connect(world, hook)
    expected = []
    async with two_nodes(world) as (a, b):
        for _ in range(5):
            for node_id, outbox in (("a", a), ("b", b)):
                expected += await queue(world, node_id, outbox, 2, to=TO)
                world.clock.now_ms += 1
        for _ in range(200):
            await settle(a, b)
            if len(hook.ids) == len(expected):
                break
            world.clock.now_ms += LOOK_MS

    assert hook.ids == expected


async def test_a_retry_on_one_node_holds_up_the_other(world: World, hook: Receiver) -> None:
    """Its recipient's; and who waits looks again when that one may be over."""
    await connect(world, hook, retries={"waits_s": [10]})
    hook.answers = [answer(500)]
    async with two_nodes(world) as (a, b):
        (first,) = await queue(world, "a", a, to=TO)
        await settle(a)
        (second,) = await queue(world, "b", b, to=TO)
        (other,) = await queue(world, "b", b, to="bob")
        await settle(b)
        early = list(hook.ids)
        for _ in range(30):
            await world.pass_ms(1_000, b, a)

    assert early == [other]
    assert hook.ids == [other, first, second]


async def test_a_rate_holds_for_all_nodes_together(world: World, hook: Receiver) -> None:
    """One every second, whoever makes it."""
    await connect(world, hook, rate={"limit": 1, "period_s": 1}, ordered=False)
    async with two_nodes(world) as (a, b):
        await queue(world, "a", a, 5)
        await queue(world, "b", b, 5)
        for _ in range(130):
            await settle(a, b)
            world.clock.now_ms += 100

    times = [at_ms - NOW for _, at_ms in hook.asked]
    assert len(hook.ids) == 10
    assert min(later - sooner for sooner, later in pairwise(times)) >= 1_000


@pytest.mark.slow
async def test_a_rate_holds_while_both_nodes_ask_at_once(world: World, hook: Receiver) -> None:
    """In real time, with claims that meet each other: places are spaced by the rate, each once."""
    await connect(world, hook, rate={"limit": 50, "period_s": 1}, ordered=False)
    times: list[int] = []

    async def note(_delivery_id: str) -> None:
        times.append(wall_clock())

    hook.on_ask = note
    async with two_nodes(world, clock=wall_clock) as (a, b):
        await queue(world, "a", a, 20)
        await queue(world, "b", b, 20)
        async with asyncio.timeout(15):
            while len(hook.ids) < 40:
                await asyncio.sleep(0.01)

    places = await gate(world)
    assert Counter(hook.ids).most_common(1)[0][1] == 1
    # A busy machine makes some late, and so bunches; on the whole it cannot be faster.
    assert times[-1] - times[0] >= 39 * 20 - 100
    assert places.next_ms >= times[0] - 100 + 40 * 20


@pytest.mark.parametrize("action", [Action.CANCEL, Action.HOLD, Action.RESEND])
async def test_what_people_do_on_another_node_lets_the_next_one_go(
    world: World, hook: Receiver, action: Action
) -> None:
    """Who sends is not told: it looks now and then at whom others wait for."""
    await connect(world, hook, retries={"waits_s": [50]})
    hook.answers = [answer(500)]
    async with two_nodes(world) as (a, b):
        first, second = await queue(world, "a", a, 2, to=TO)
        await settle(a)
        b.notice((await world.act(action, first, node_id="b")).changed)
        for _ in range(5):
            await world.pass_ms(500, b, a)

    resent = [first] if action is Action.RESEND else []
    assert hook.ids == [*resent, second]


async def test_a_node_that_was_paused_sends_nothing_that_another_has(
    world: World, hook: Receiver
) -> None:
    """It had claimed ahead; its lease is over, and it does not know that yet."""
    await connect(world, hook, ordered=False)
    seconds, go = [0.0], asyncio.Event()

    async def hang(_delivery_id: str) -> None:
        if len(hook.asked) <= 4:
            await go.wait()

    hook.on_ask = hang
    async with two_nodes(world, claim_s=7.5, monotonic=lambda: seconds[0]) as (a, b):
        ids = await queue(world, "a", a, 12)
        while len(hook.asked) < 4 or a._lanes._all.claimed < 8:
            await asyncio.sleep(0.005)
        seconds[0] += 20
        beat = await world.database.read(lambda connection: connection.scalar(_BEAT_OF_A))
        await world.journal.run(nodes.take_over, "a", beat)
        waiting, interrupted = await world.journal.run(nodes.adopt_deliveries, "b", 100)
        b.adopted(waiting, interrupted)
        await b.drain()
        for _ in range(10):
            await world.pass_ms(2_000, b)
        go.set()
        await settle(a)

    asked = Counter(delivery_id for delivery_id, _ in hook.asked)
    assert set(asked) == set(ids)
    assert sum(count > 1 for count in asked.values()) == 4  # that were on their way


async def test_a_node_that_was_taken_over_lets_go(world: World, hook: Receiver) -> None:
    """Of what it had claimed, and of what it knows to wait."""
    await connect(world, hook, ordered=False, concurrency=1)
    go = asyncio.Event()

    async def hang(_delivery_id: str) -> None:
        await go.wait()

    hook.on_ask = hang
    async with two_nodes(world) as (a, _):
        await queue(world, "a", a, 5)
        while not hook.asked:
            await asyncio.sleep(0.005)
        beat = await world.database.read(lambda connection: connection.scalar(_BEAT_OF_A))
        await world.journal.run(nodes.take_over, "a", beat)
        a.lost()
        go.set()
        await a.drain()

        assert (a.waiting_count, len(hook.asked)) == (0, 1)


async def test_both_nodes_count_failures_into_one_breaker(world: World, hook: Receiver) -> None:
    """Three here and two there open it for both."""
    await connect(world, hook, ordered=False)
    hook.usual = answer(500)
    async with two_nodes(world) as (a, b):
        for node_id, outbox in [("a", a), ("b", b)] * 3:
            await queue(world, node_id, outbox)
            await settle(outbox)

    assert len(hook.asked) == FAILURES_MAX
    assert (await gate(world)).breaker is Breaker.OPEN
    assert a.counts.opened + b.counts.opened == {"webhook": 1}


async def test_half_open_lets_one_attempt_through_over_all_nodes(
    world: World, hook: Receiver
) -> None:
    """While it is on its way nobody else tries; when it is back, all do."""
    await connect(world, hook, ordered=False)
    go = asyncio.Event()
    async with two_nodes(world) as (a, b):
        hook.answers = [answer(500)] * 5
        for _ in range(5):
            await queue(world, "a", a)
            await settle(a)
        ids = [*await queue(world, "a", a, 3), *await queue(world, "b", b, 3)]
        await settle(a, b)

        async def wait(_delivery_id: str) -> None:
            await go.wait()

        hook.on_ask = wait
        world.clock.now_ms += OPEN_MS_MIN
        drains = [asyncio.create_task(outbox.drain()) for outbox in (a, b)]
        while len(hook.asked) < 6:
            await asyncio.sleep(0.005)
        # Whoever has not got it has asked, and is through.
        await asyncio.wait(drains, return_when=asyncio.FIRST_COMPLETED)
        half_open, asked = await gate(world), len(hook.asked)
        go.set()
        await asyncio.gather(*drains)
        for _ in range(4):
            await world.pass_ms(1_000, a, b)

    assert (half_open.breaker, asked) == (Breaker.HALF_OPEN, 6)
    assert set(ids) <= set(hook.ids)


async def test_the_cost_guard_counts_for_all_nodes_together(world: World, hook: Receiver) -> None:
    """Twenty messages in all, not twenty each."""
    await connect(world, hook, guard={"recipient_per_hour": 20, "per_day": 1_000})
    async with two_nodes(world) as (a, b):
        to = [TO] * 15
        await queue(world, "a", a, 15, to=to)
        await queue(world, "b", b, 15, to=to)
        for _ in range(150):
            await settle(a, b)
            if await world.states() == {"delivered", "held"}:
                break
            world.clock.now_ms += LOOK_MS

    assert len(hook.ids) == 20
    assert a.counts.held["guard"] + b.counts.held["guard"] == 10


async def test_what_another_node_disables_is_held_here_too(world: World, hook: Receiver) -> None:
    """Whatever waits, on whichever node."""
    await connect(world, hook, ordered=False)
    hook.answers = [answer(500), answer(410)]
    async with two_nodes(world) as (a, b):
        waiting = await queue(world, "a", a)
        await settle(a)
        await queue(world, "b", b)
        await settle(b)
        await world.pass_ms(10_000, a)
        known = a.waiting_count

    assert await world.rows("state", *waiting) == ["held"]
    assert (known, len(hook.asked)) == (0, 2)


async def test_a_gate_that_somebody_holds_delays_nobody_else(world: World, hook: Receiver) -> None:
    """A claim waits for no lock: it asks again soon, and others go meanwhile."""
    await connect(world, hook, rate={"limit": 1, "period_s": 1}, ordered=False)
    await world.connect("OTHER", "webhook", hook.credentials)
    async with two_nodes(world) as (a, _):
        with world.database.engine.connect() as holder:
            gates.lock(holder, [HOOK])
            (held_up,) = await queue(world, "a", a)
            (other,) = await world.queue("OTHER", 1, "webhook", node_id="a")
            a.notice([other])
            await a.drain()
            meanwhile = list(hook.ids)
            holder.rollback()
        await world.pass_ms(100, a)

    assert meanwhile == [other]
    assert hook.ids == [other, held_up]


async def test_a_row_that_somebody_holds_is_asked_for_again(world: World, hook: Receiver) -> None:
    """Another transaction is at it: it is neither waited for nor forgotten."""
    await connect(world, hook, ordered=False)
    async with two_nodes(world) as (a, _):
        (only,) = await world.queue("HOOK", 1, "webhook", node_id="a")
        with world.database.engine.connect() as holder:
            holder.exec_driver_sql("SELECT id FROM deliveries FOR UPDATE")
            a.notice([only])
            await a.drain()
            meanwhile = list(hook.ids)
            holder.rollback()
        await world.pass_ms(100, a)

    assert (meanwhile, hook.ids) == ([], [only])


async def test_news_of_many_gates_meet_without_a_loss_or_a_deadlock(world: World) -> None:
    """Two nodes tell of the same connections, in their own orders, at the same time."""
    keys = [(PROJECT, f"C{number}") for number in range(50)]
    failed = [News(word=Word.FAILED, error="x")]

    async def tell(journal: Journal, order: list[tuple[str, str]]) -> None:
        for at in range(0, len(order), 10):
            for _ in range(2):
                await journal.run_alone(gates.note, dict.fromkeys(order[at : at + 10], failed), NOW)

    async with world.node("a") as a, world.node("b") as b, asyncio.timeout(20):
        await asyncio.gather(tell(a, keys), tell(b, [*keys[9::-1], *keys[10:]]))

    found = await world.database.read(gates.read, keys)
    assert {one.failures for one in found.values()} == {4}


async def test_no_place_of_a_rate_is_given_out_twice(world: World, hook: Receiver) -> None:
    """Two nodes claim from it at the same time, as fast as they can."""
    await connect(world, hook, rate={"limit": 1_000, "period_s": 1}, ordered=False)
    policy = world.outbox().sending_of
    ids = {
        node_id: await world.queue("HOOK", 60, "webhook", node_id=node_id) for node_id in ("a", "b")
    }

    def claim_all(node_id: str) -> list[int]:
        places = []
        for delivery_id in ids[node_id]:
            with world.database.engine.begin() as connection:
                turns = claim(connection, [delivery_id], node_id, NOW, policy)
                places += [one.at_ms for one in turns.claimed]
        return places

    async with asyncio.timeout(20):
        found = await asyncio.gather(*(asyncio.to_thread(claim_all, one) for one in ("a", "b")))

    places = sorted(found[0] + found[1])
    assert len(places) > 20
    assert places == list(range(NOW, NOW + len(places)))
