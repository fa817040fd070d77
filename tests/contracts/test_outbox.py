"""The outbox on a real database, against the Slack stand-in and a webhook receiver."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from engine.clock import wall_clock
from engine.connectors import CONNECTORS
from engine.deliveries import State
from engine.errors import NotFound
from engine.lanes import LaneLimits
from engine.outbox import INTERRUPTED
from engine.store import vaulted
from engine.store.deliveries import Attempt
from engine.store.delivery_actions import Action
from engine.store.turns import claim
from engine.vault import Vault
from examples.slack_stand_in import SlackStandIn, Trouble
from tests.standins.http_server import Received, answer, http_server
from tests.standins.outbox_world import NOW, PROJECT, World, opened_world, started


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[World]:
    """On each kind of database."""
    async with opened_world(database_url) as opened:
        yield opened


@pytest.fixture
def slack() -> Iterator[SlackStandIn]:
    with SlackStandIn() as stand_in:
        yield stand_in


async def test_a_delivery_arrives_once_and_says_so(world: World, slack: SlackStandIn) -> None:
    """The message, the state, and one attempt in the log."""
    await world.connect("ALERTS", "slack", {"webhook_url": slack.webhook_url})
    async with started(world.outbox()) as outbox:
        (delivery_id,) = await world.queue("ALERTS")
        outbox.notice([delivery_id])
        await outbox.drain()

    delivery, attempts = await world.look(delivery_id)
    assert slack.messages == [{"text": "ALERTS 0"}]
    assert (delivery.state, delivery.attempts) == (State.DELIVERED, 1)
    assert (delivery.ended_ms, delivery.next_attempt_ms) == (NOW, None)
    assert attempts == [
        Attempt(attempt=1, at_ms=NOW, took_ms=0, status=200, error=None, delivered=True)
    ]
    assert outbox.counts.requests == {("slack", "sent"): 1}


async def test_what_was_queued_before_the_start_is_sent(world: World, slack: SlackStandIn) -> None:
    """The table is the truth: nobody needs to have been told."""
    await world.connect("ALERTS", "slack", {"webhook_url": slack.webhook_url})
    await world.queue("ALERTS", 30)

    async with started(world.outbox()) as outbox:
        await outbox.drain()

    assert len(slack.messages) == 30


async def test_a_failing_provider_is_tried_again_later(world: World, slack: SlackStandIn) -> None:
    """Not before its time, and each attempt is in the log."""
    await world.connect("ALERTS", "slack", {"webhook_url": slack.webhook_url})
    slack.then(Trouble(500, "rollup_error"), Trouble(None))
    async with started(world.outbox()) as outbox:
        (delivery_id,) = await world.queue("ALERTS")
        outbox.notice([delivery_id])
        await outbox.drain()
        first, _ = await world.look(delivery_id)
        await world.pass_ms(1_200, outbox)
        await world.pass_ms(6_000, outbox)

    delivery, attempts = await world.look(delivery_id)
    assert first.state is State.RETRYING
    assert "rollup_error" in (first.last_error or "")
    assert NOW + 800 <= (first.next_attempt_ms or 0) <= NOW + 1_200
    assert delivery.state is State.DELIVERED
    assert [attempt.status for attempt in attempts] == [500, None, 200]
    assert len(slack.messages) == 1


async def test_the_timer_wakes_it_for_a_retry(world: World, slack: SlackStandIn) -> None:
    """With a real clock nobody has to call: the retry comes by itself."""
    soon = {"waits_s": [0.05]}
    world.clock.now_ms = wall_clock()  # as old as it was, it would not be tried again
    await world.connect("ALERTS", "slack", {"webhook_url": slack.webhook_url}, retries=soon)
    slack.then(Trouble(500, "rollup_error"))
    async with started(world.outbox(clock=wall_clock)) as outbox:
        outbox.notice(await world.queue("ALERTS"))
        while not slack.messages:
            await asyncio.sleep(0.01)

    assert len(slack.messages) == 1


async def test_eight_attempts_are_the_most(world: World, slack: SlackStandIn) -> None:
    """Then it has failed, and can be sent again by hand."""
    await world.connect("ALERTS", "slack", {"webhook_url": slack.webhook_url})
    slack.then(*[Trouble(500, "rollup_error")] * 8)
    async with started(world.outbox()) as outbox:
        (delivery_id,) = await world.queue("ALERTS")
        outbox.notice([delivery_id])
        await outbox.drain()
        for _ in range(9):
            await world.pass_ms(4_400_000, outbox)
        failed, attempts = await world.look(delivery_id)
        await world.act(Action.RESEND, delivery_id)
        outbox.notice([delivery_id])
        await outbox.drain()

    delivery, _ = await world.look(delivery_id)
    assert (failed.state, failed.attempts, len(attempts)) == (State.FAILED, 8, 8)
    assert failed.reason == "given up after 8 attempts, the most there are"
    assert (delivery.state, delivery.attempts) == (State.DELIVERED, 9)


async def test_a_permanent_error_is_not_tried_again(world: World, slack: SlackStandIn) -> None:
    """Slack's own word stands in the log."""
    await world.connect("ALERTS", "slack", {"webhook_url": slack.webhook_url})
    slack.then(Trouble(410, "channel_is_archived"))
    async with started(world.outbox()) as outbox:
        (delivery_id,) = await world.queue("ALERTS")
        outbox.notice([delivery_id])
        await outbox.drain()

    delivery, _ = await world.look(delivery_id)
    assert delivery.state is State.FAILED
    assert "channel_is_archived" in (delivery.last_error or "")


@pytest.mark.slow
async def test_retry_after_stops_the_whole_connection(world: World, slack: SlackStandIn) -> None:
    """A limit is the webhook's, not the message's: the others wait without losing an attempt."""
    await world.connect("ALERTS", "slack", {"webhook_url": slack.webhook_url})
    slack.then(*[Trouble(429, "rate_limited", {"Retry-After": "30"})] * 4)
    async with started(world.outbox()) as outbox:
        ids = await world.queue("ALERTS", 40)
        outbox.notice(ids)
        await outbox.drain()
        early = list(slack.messages)
        states = await world.states()
        world.clock.now_ms += 29_000
        await outbox.drain()
        still = list(slack.messages)
        world.clock.now_ms += 2_000
        await outbox.drain()

    attempts = [(await world.look(delivery_id))[0].attempts for delivery_id in ids]
    assert early == still == []
    assert states == {State.QUEUED, State.RETRYING}
    assert len(slack.messages) == 40
    assert sorted(attempts) == [1] * 36 + [2] * 4


async def test_no_more_than_four_at_once_per_connection(world: World, slack: SlackStandIn) -> None:
    """However many wait."""
    await world.connect("ALERTS", "slack", {"webhook_url": slack.webhook_url})
    slack.then(*[Trouble(200, delay_s=0.5)] * 4, *[Trouble(200, delay_s=0.005)] * 36)
    async with started(world.outbox()) as outbox:
        outbox.notice(await world.queue("ALERTS", 40))
        await outbox.drain()

    assert len(slack.messages) == 40
    assert slack.at_once_max == 4


@pytest.mark.slow
async def test_a_hanging_provider_delays_no_other(world: World, slack: SlackStandIn) -> None:
    """Its four places are taken; the others go on."""
    release = asyncio.Event()

    async def hang(received: Received) -> bytes:
        await release.wait()
        return answer(200)

    async with http_server(hang) as server:
        await world.connect("STUCK", "webhook", {"url": server.url})
        await world.connect("ALERTS", "slack", {"webhook_url": slack.webhook_url})
        async with started(world.outbox()) as outbox:
            outbox.notice(await world.queue("STUCK", 50, kind="webhook"))
            outbox.notice(await world.queue("ALERTS", 50))
            while len(slack.messages) < 50:
                await asyncio.sleep(0.005)
            stuck = len(server.received)
            release.set()
            await outbox.drain()

        assert stuck <= 4
        assert len(server.received) == 50


async def test_a_deleted_connection_fails_its_deliveries(world: World, slack: SlackStandIn) -> None:
    """The error says how to go on; stored again, a resend arrives."""
    async with started(world.outbox()) as outbox:
        (delivery_id,) = await world.queue("GONE")
        outbox.notice([delivery_id])
        await outbox.drain()
        failed, _ = await world.look(delivery_id)
        await world.connect("GONE", "slack", {"webhook_url": slack.webhook_url})
        await world.act(Action.RESEND, delivery_id)
        outbox.notice([delivery_id])
        await outbox.drain()

    assert failed.state is State.FAILED
    assert failed.last_error == (
        "the connection 'GONE' does not exist any more; PUT /v1/connections/GONE and resend"
    )
    assert len(slack.messages) == 1


async def test_a_connection_of_another_kind_is_not_used(world: World) -> None:
    """A message for Slack does not go to a webhook that took its name."""
    await world.connect("ALERTS", "webhook", {"url": "http://127.0.0.1:8/"})
    async with started(world.outbox()) as outbox:
        (delivery_id,) = await world.queue("ALERTS")
        outbox.notice([delivery_id])
        await outbox.drain()

    delivery, _ = await world.look(delivery_id)
    assert delivery.state is State.FAILED
    assert "now a connection to webhook" in (delivery.last_error or "")
    assert "PUT /v1/connections/ALERTS as one to slack again" in (delivery.last_error or "")


async def test_credentials_of_another_key_fail_with_the_remedy(world: World) -> None:
    """A restored database without its master key says what is missing."""
    await world.connect("ALERTS", "slack", {"webhook_url": "http://127.0.0.1:8/"})
    world.vault = Vault(bytes(range(32)))
    async with started(world.outbox()) as outbox:
        (delivery_id,) = await world.queue("ALERTS")
        outbox.notice([delivery_id])
        await outbox.drain()

    delivery, _ = await world.look(delivery_id)
    assert delivery.state is State.FAILED
    assert "master.key" in (delivery.last_error or "")


async def test_what_a_crash_left_in_sending_is_taken_up(world: World, slack: SlackStandIn) -> None:
    """At least once, in this one window, and the log says that it may have arrived."""
    await world.connect("ALERTS", "slack", {"webhook_url": slack.webhook_url})
    ids = await world.queue("ALERTS", 3)
    outbox = world.outbox()
    await world.journal.run(claim, ids[:1], None, NOW, outbox.sending_of)

    async with started(outbox):
        await world.pass_ms(1_200, outbox)

    delivery, attempts = await world.look(ids[0])
    assert outbox.counts.recovered == 1
    assert delivery.state is State.DELIVERED
    assert [attempt.error for attempt in attempts] == [INTERRUPTED, None]
    assert len(slack.messages) == 3


@pytest.mark.slow
async def test_a_stop_loses_nothing(world: World, slack: SlackStandIn) -> None:
    """What was on its way ends, what was not is queued still, and the next start sends it."""
    await world.connect("ALERTS", "slack", {"webhook_url": slack.webhook_url})
    slack.then(*[Trouble(200, delay_s=0.02)] * 60)
    async with started(world.outbox()) as outbox:
        outbox.notice(await world.queue("ALERTS", 60))
        while not slack.messages:
            await asyncio.sleep(0.002)

    between = await world.states()
    async with started(world.outbox()) as outbox:
        await outbox.drain()

    assert between == {State.QUEUED, State.DELIVERED}
    texts = sorted(message["text"] for message in slack.messages)
    assert texts == sorted(f"ALERTS {position}" for position in range(60))


async def test_a_bug_in_a_connector_stops_no_other(world: World, slack: SlackStandIn) -> None:
    """Its delivery is tried again; the others arrive."""

    class Broken(type(CONNECTORS["webhook"])):
        async def send(self, *_: Any, **__: Any) -> Any:
            raise ZeroDivisionError

    await world.connect("BROKEN", "webhook", {"url": "http://127.0.0.1:8/"})
    await world.connect("ALERTS", "slack", {"webhook_url": slack.webhook_url})
    async with started(world.outbox(connectors={**CONNECTORS, "webhook": Broken()})) as outbox:
        (broken_id,) = await world.queue("BROKEN", kind="webhook")
        outbox.notice([broken_id, *await world.queue("ALERTS", 5)])
        await outbox.drain()

    delivery, _ = await world.look(broken_id)
    assert delivery.state is State.RETRYING
    assert delivery.last_error == "the connector failed: ZeroDivisionError"
    assert len(slack.messages) == 5


@pytest.mark.slow
async def test_a_backlog_larger_than_the_memory_is_sent(world: World, slack: SlackStandIn) -> None:
    """What did not fit is read from the table in time, once."""
    await world.connect("ALERTS", "slack", {"webhook_url": slack.webhook_url})
    async with started(world.outbox(limits=LaneLimits(known_per_lane=10))) as outbox:
        for _ in range(5):
            outbox.notice(await world.queue("ALERTS", 20))
        await outbox.drain()

    assert len(slack.messages) == 100
    assert await world.states() == {State.DELIVERED}


async def test_a_retry_far_away_is_found_again(world: World, slack: SlackStandIn) -> None:
    """Also after a new start, hours before it is due."""
    await world.connect("ALERTS", "slack", {"webhook_url": slack.webhook_url})
    slack.then(Trouble(429, "rate_limited", {"Retry-After": "7200"}))
    async with started(world.outbox()) as outbox:
        (delivery_id,) = await world.queue("ALERTS")
        outbox.notice([delivery_id])
        await outbox.drain()
    async with started(world.outbox()) as outbox:
        await outbox.drain()
        waiting = list(slack.messages)
        world.clock.now_ms += 7_200_000
        await outbox.drain()

    assert waiting == []
    assert len(slack.messages) == 1


async def test_secrets_and_connections_are_kept_sealed(world: World) -> None:
    """Put twice is replace; each project has its own; delete says when there is nothing."""
    run, read = world.journal.run, world.database.read
    await world.connect("B", "slack", {"webhook_url": "https://h/1"})
    await world.connect("B", "slack", {"webhook_url": "https://h/2"})
    for value in (b"one", b"two"):
        await run(vaulted.put_secret, project_id=PROJECT, name="A", sealed=value, now_ms=NOW)

    stored = await read(vaulted.get_connection, PROJECT, "B")
    names = await read(vaulted.list_secrets, PROJECT, limit=50)
    values = await read(vaulted.get_secrets, PROJECT, ["A", "MISSING"])

    assert b"https" not in stored.sealed
    assert "sealed" not in repr(stored)
    assert [name.name for name in names] == ["A"]
    assert {name: value.sealed for name, value in values.items()} == {"A": b"two"}
    assert [one.name for one in await read(vaulted.list_connections, PROJECT, limit=5)] == ["B"]
    await run(vaulted.delete_secret, PROJECT, "A")
    await run(vaulted.delete_connection, PROJECT, "B")
    with pytest.raises(NotFound):
        await run(vaulted.delete_secret, PROJECT, "A")
    with pytest.raises(NotFound):
        await read(vaulted.get_connection, PROJECT, "B")
