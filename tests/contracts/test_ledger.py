"""What holds a delivery back, and what is kept of it: on each kind of database, by a manual clock.

How nodes agree about it: test_ledger_nodes.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from engine.connectors import CONNECTORS
from engine.connectors.contract import Outgoing, Refused, Retry, Sent
from engine.deliveries import State
from engine.gates import DISABLED_AFTER_MS, OPEN_MS_MIN, TRIAL_MS, Breaker, Gate
from engine.outbox import INTERRUPTED, Outbox
from engine.store import deliveries as store
from engine.store import gates
from engine.store.delivery_actions import Action
from engine.store.gate_actions import open_again
from engine.store.turns import DAY_MS, HOUR_MS, claim
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

HOOK = (PROJECT, "HOOK")
TO = "+34600000001"


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[World]:
    """On each kind of database."""
    async with opened_world(database_url) as opened:
        yield opened


@pytest.fixture
async def hook(world: World) -> AsyncIterator[Receiver]:
    async with receiver(world.clock) as opened:
        yield opened


async def connect(world: World, hook: Receiver, **settings: Any) -> None:
    await world.connect("HOOK", "webhook", hook.credentials, **{"ordered": True, **settings})


async def queue(world: World, outbox: Outbox, count: int = 1, **more: Any) -> list[str]:
    """Commit deliveries, and let those go that have their turn."""
    ids = await world.queue("HOOK", count, "webhook", **more)
    outbox.notice(ids)
    await outbox.drain()
    return ids


async def gate(world: World) -> Gate:
    return (await world.database.read(gates.read, [HOOK]))[HOOK]


# Order.


async def test_a_recipients_messages_go_in_the_order_of_the_code(
    world: World, hook: Receiver
) -> None:
    """All of one run were made in the same millisecond, and their ids say nothing."""
    await connect(world, hook)
    async with started(world.outbox()) as outbox:
        ids = await queue(world, outbox, 100, to=TO)

    assert ids != sorted(ids)
    assert hook.ids == ids


async def test_order_is_kept_by_a_start_with_a_backlog(world: World, hook: Receiver) -> None:
    """What waits in the table is read by its place, from several runs."""
    await connect(world, hook)
    ids = []
    for _ in range(3):
        ids += await world.queue("HOOK", 40, "webhook", to=TO)
        world.clock.now_ms += 1

    async with started(world.outbox()) as outbox:
        await outbox.drain()

    assert hook.ids == ids


async def test_a_retry_holds_up_its_recipient_and_nobody_else(world: World, hook: Receiver) -> None:
    """The next one to him comes after it; another's does not wait."""
    await connect(world, hook)
    hook.answers = [answer(500)]
    async with started(world.outbox()) as outbox:
        (first,) = await queue(world, outbox, to=TO)
        (second,) = await queue(world, outbox, to=TO)
        (other,) = await queue(world, outbox, to="bob")
        early = list(hook.ids)
        await world.pass_ms(6_000, outbox)

    assert early == [other]
    assert hook.ids == [other, first, second]


@pytest.mark.parametrize("action", [Action.CANCEL, Action.HOLD])
async def test_what_is_cancelled_or_held_lets_the_next_one_go(
    world: World, hook: Receiver, action: Action
) -> None:
    """At once, though its own retry was an hour away; it does not go itself."""
    await connect(world, hook)
    hook.answers = [answer(503, Retry_After="3600")]
    async with started(world.outbox()) as outbox:
        (first,) = await queue(world, outbox, to=TO)
        (second,) = await queue(world, outbox, to=TO)
        await world.act(action, first)
        outbox.notice([first])
        await world.pass_ms(3_600_000, outbox)
        await world.pass_ms(3_600_000, outbox)

    assert hook.ids == [second]
    assert await world.rows("state", first) == ["cancelled" if action is Action.CANCEL else "held"]


async def test_unordered_deliveries_do_not_wait_for_each_other(
    world: World, hook: Receiver
) -> None:
    """The connection's settings say so."""
    await connect(world, hook, ordered=False)
    hook.answers = [answer(500)]
    async with started(world.outbox()) as outbox:
        ids = await queue(world, outbox, 2)

    (failed, _), (arrived, _) = hook.asked  # both at once: whichever came first
    assert {failed, arrived} == set(ids)
    assert hook.ids == [arrived]
    assert await world.rows("state", failed) == ["retrying"]


async def test_a_claim_that_finds_it_cancelled_forgets_it(world: World, hook: Receiver) -> None:
    """Nobody told the outbox: it had the id in memory."""
    await connect(world, hook)
    hook.answers = [answer(500)]
    async with started(world.outbox()) as outbox:
        (first,) = await queue(world, outbox)
        await world.act(Action.CANCEL, first)
        await world.pass_ms(10_000, outbox)
        known = outbox.waiting_count

    assert (hook.ids, known) == ([], 0)


# Rate.


async def test_a_rate_spreads_attempts_evenly(world: World, hook: Receiver) -> None:
    """Five in ten seconds is one every two, from the first on; by retries, too."""
    await connect(world, hook, rate={"limit": 5, "period_s": 10}, retries={"waits_s": [0.05]})
    hook.answers = [answer(500)]
    async with started(world.outbox()) as outbox:
        await queue(world, outbox, 5)
        for _ in range(130):
            await world.pass_ms(100, outbox)

    times = [at_ms - NOW for _, at_ms in hook.asked]
    assert [times[0], len(hook.ids)] == [0, 5]
    assert [at_ms // 100 for at_ms in times] == [0, 20, 40, 60, 80, 100]


async def test_a_rate_outlives_the_process(world: World, hook: Receiver) -> None:
    """The next start does not begin with a free place."""
    await connect(world, hook, rate={"limit": 1, "period_s": 60})
    async with started(world.outbox()) as outbox:
        await queue(world, outbox, 2)
    async with started(world.outbox()) as outbox:
        await world.pass_ms(59_000, outbox)
        early = len(hook.ids)
        await world.pass_ms(1_000, outbox)

    assert (early, len(hook.ids)) == (1, 2)


async def test_a_fast_rate_is_not_slowed_by_commits(world: World, hook: Receiver) -> None:
    """Places are claimed some ahead, and used each at its time: a third of them never before."""
    await connect(world, hook, rate={"limit": 30, "period_s": 1})
    async with started(world.outbox()) as outbox:
        await queue(world, outbox, 30)
        commits = world.journal.commits_count
        for _ in range(100):
            await world.pass_ms(10, outbox)
        claims = world.journal.commits_count - commits

    times = sorted(at_ms - NOW for _, at_ms in hook.asked)
    assert len(times) == 30
    assert all(number * 33 <= at_ms <= number * 34 + 20 for number, at_ms in enumerate(times))
    assert claims < 60


async def test_a_rate_that_is_taken_away_holds_nobody(world: World, hook: Receiver) -> None:
    """Nor does one that was far slower: the next place is never further away than this rate's."""
    await connect(world, hook, rate={"limit": 1, "period_s": 3_600})
    async with started(world.outbox()) as outbox:
        await queue(world, outbox, 3)
        await connect(world, hook, rate={"limit": 1, "period_s": 1})
        for _ in range(7):
            await world.pass_ms(1_000, outbox)

    assert len(hook.ids) == 3


async def test_a_wish_for_patience_outlives_the_process(world: World, hook: Receiver) -> None:
    """All wait, not only the message that was told; and it costs them no attempt."""
    await connect(world, hook)
    hook.answers = [answer(429, Retry_After="60")]
    async with started(world.outbox()) as outbox:
        (first,) = await queue(world, outbox)
    async with started(world.outbox()) as outbox:
        (second,) = await queue(world, outbox)
        early = len(hook.asked)
        await world.pass_ms(60_000, outbox)

    assert (early, sorted(hook.ids)) == (1, sorted([first, second]))
    assert await world.rows("attempts", first, second) == [2, 1]
    assert (await gate(world)).failures == 0


async def test_no_wish_for_patience_lasts_longer_than_a_day(world: World, hook: Receiver) -> None:
    """A provider that says years has made a mistake."""
    await connect(world, hook)
    hook.answers = [answer(429, Retry_After="999999999")]
    async with started(world.outbox()) as outbox:
        await queue(world, outbox)
        closed = await gate(world)
        world.clock.now_ms += DAY_MS + 1
        await outbox.drain()
        (later,) = await queue(world, outbox)

    assert closed.until_ms == NOW + DAY_MS
    assert later in hook.ids


async def test_a_clock_that_is_set_back_stops_no_connection(world: World, hook: Receiver) -> None:
    """Its breaker had opened, by a clock that was a day ahead."""
    await connect(world, hook, ordered=False)
    async with started(world.outbox()) as outbox:
        await failing(world, hook, outbox, 5)
        hook.usual = answer()
        world.clock.now_ms -= DAY_MS
        (later,) = await queue(world, outbox)

    assert later in hook.ids
    assert (await gate(world)).breaker is Breaker.CLOSED


async def test_settings_say_how_many_go_at_once(world: World, hook: Receiver) -> None:
    """Of this connection, on this node."""
    await connect(world, hook, concurrency=2)
    at_once: list[int] = [0, 0]
    go = asyncio.Event()

    async def wait(_delivery_id: str) -> None:
        at_once[0] += 1
        at_once[1] = max(at_once)
        if at_once[0] == 2:
            go.set()
        await go.wait()
        at_once[0] -= 1

    hook.on_ask = wait
    async with started(world.outbox()) as outbox:
        await queue(world, outbox, 20)

    assert (len(hook.ids), at_once[1]) == (20, 2)


# The breaker.


async def failing(world: World, hook: Receiver, outbox: Outbox, count: int) -> list[str]:
    """Let so many deliveries fail, one after the other."""
    hook.answers = [answer(503, b"down")] * count
    return [(await queue(world, outbox))[0] for _ in range(count)]


async def test_five_failures_in_a_row_open_the_breaker(world: World, hook: Receiver) -> None:
    """Nothing is tried for ten seconds, and those that wait lose no attempt."""
    await connect(world, hook)
    async with started(world.outbox()) as outbox:
        await failing(world, hook, outbox, 4)
        before = await gate(world)
        await failing(world, hook, outbox, 1)
        opened = await gate(world)
        (waiting,) = await queue(world, outbox)
        await world.pass_ms(OPEN_MS_MIN - 1, outbox)
        asked = len(hook.asked)
        state = await world.rows("state", waiting)

    assert (before.breaker, before.failures) == (Breaker.CLOSED, 4)
    assert (opened.breaker, opened.until_ms) == (Breaker.OPEN, NOW + OPEN_MS_MIN)
    assert "down" in (opened.last_error or "")
    assert (asked, state) == (5, ["queued"])
    assert await world.rows("attempts", waiting) == [0]
    assert outbox.counts.opened == {"webhook": 1}


async def test_one_attempt_decides_whether_it_closes(world: World, hook: Receiver) -> None:
    """A failure doubles the wait, up to ten minutes; a success lets all go."""
    await connect(world, hook, retries={"waits_s": [5]})
    async with started(world.outbox()) as outbox:
        ids = await failing(world, hook, outbox, 5)
        hook.usual = answer(500)
        waits = []
        for _ in range(8):
            opened = await gate(world)
            waits.append(opened.until_ms - world.clock.now_ms)
            asked = len(hook.asked)
            await world.pass_ms(waits[-1], outbox)
            assert len(hook.asked) == asked + 1
        hook.usual = answer(200)
        await world.pass_ms(600_000, outbox)
        closed = await gate(world)
        await world.pass_ms(600_000, outbox)

    assert [wait // 1000 for wait in waits] == [10, 20, 40, 80, 160, 320, 600, 600]
    assert (closed.breaker, closed.failures) == (Breaker.CLOSED, 0)
    assert set(await world.rows("state", *ids)) <= {"delivered", "failed"}
    assert hook.ids


async def test_a_trial_that_nobody_answers_for_is_made_again(world: World, hook: Receiver) -> None:
    """The process that had it died."""
    await connect(world, hook)
    async with started(world.outbox()) as outbox:
        await failing(world, hook, outbox, 5)
        (trial,) = await queue(world, outbox)
    world.clock.now_ms += OPEN_MS_MIN
    turns = await world.journal.run(claim, [trial], None, world.clock.now_ms, outbox.sending_of)
    async with started(world.outbox()) as outbox:
        await outbox.drain()
        asked = len(hook.asked)
        await world.pass_ms(TRIAL_MS, outbox)
        await world.pass_ms(1_000, outbox)

    assert [one.is_trial for one in turns.claimed] == [True]
    assert asked == 5
    assert len(hook.ids) == 6
    assert (await gate(world)).breaker is Breaker.CLOSED


async def test_a_success_between_failures_keeps_it_closed(world: World, hook: Receiver) -> None:
    """In a row, it says; and so does a refusal: the provider is well, the message is not."""
    await connect(world, hook)
    async with started(world.outbox()) as outbox:
        await failing(world, hook, outbox, 4)
        await queue(world, outbox)
        after_success = (await gate(world)).failures
        await failing(world, hook, outbox, 4)
        hook.answers = [answer(302)]
        await queue(world, outbox)
        after_refusal = (await gate(world)).failures
        await failing(world, hook, outbox, 4)

    assert (after_success, after_refusal) == (0, 0)
    assert (await gate(world)).breaker is Breaker.CLOSED


async def test_a_provider_that_asks_for_patience_does_not_open_it(
    world: World, hook: Receiver
) -> None:
    """429 is an answer."""
    await connect(world, hook)
    hook.answers = [answer(429)] * 10
    async with started(world.outbox()) as outbox:
        for _ in range(10):
            await queue(world, outbox)
            await world.pass_ms(1_000, outbox)

    assert (await gate(world)).breaker is Breaker.CLOSED


async def test_dropped_connections_open_it(world: World, hook: Receiver) -> None:
    """As much as errors do."""
    await connect(world, hook)
    hook.usual = None
    async with started(world.outbox()) as outbox:
        for _ in range(5):
            await queue(world, outbox)

    assert (await gate(world)).breaker is Breaker.OPEN


async def test_five_days_of_failures_disable_a_connection(world: World, hook: Receiver) -> None:
    """What waits is held and says how to go on; enabled, it goes."""
    await connect(world, hook, retries={"max_age_s": 30 * 86_400, "max_attempts": 20})
    hook.usual = answer(500)
    async with started(world.outbox()) as outbox:
        ids = [(await queue(world, outbox))[0] for _ in range(6)]
        await world.pass_ms(DISABLED_AFTER_MS - 1_000, outbox)
        before = await gate(world)
        for _ in range(3):
            await world.pass_ms(600_000, outbox)
        disabled = await gate(world)
        (new,) = await queue(world, outbox)
        states = await world.rows("state", *ids, new)
        reasons = set(await world.rows("reason", *ids, new))
        asked = len(hook.asked)
        await world.journal.run(open_again, PROJECT, "HOOK")
        hook.usual = answer(200)
        await world.act(Action.RELEASE, *ids, new)
        outbox.notice([*ids, new])
        await world.pass_ms(5_000, outbox)

    assert before.disabled is None
    assert "nothing but failures for 5 days" in (disabled.disabled or "")
    assert set(states) == {"held"}
    (reason,) = reasons
    assert reason.startswith("the connection is disabled: nothing but failures for 5 days")
    assert "cloudcode connections enable HOOK" in reason
    assert reason.endswith("POST /v1/connections/HOOK/enable")
    assert len(hook.asked) == asked + 7
    assert len(hook.ids) == 7
    assert outbox.counts.held["disabled"] == 7


async def test_an_answer_can_disable_a_connection(world: World, hook: Receiver) -> None:
    """410 of a webhook: nobody is there any more. It is held, and at once those that wait."""
    await connect(world, hook)
    hook.answers = [answer(500), answer(410, b"Gone")]
    async with started(world.outbox()) as outbox:
        (waiting,) = await queue(world, outbox)
        (refused,) = await queue(world, outbox)
        (new,) = await queue(world, outbox)

    assert await world.rows("state", waiting, refused, new) == ["held"] * 3
    assert await world.rows("attempts", waiting, refused, new) == [1, 1, 0]
    assert len(set(await world.rows("reason", waiting, refused, new))) == 1
    assert (await gate(world)).disabled is not None
    assert outbox.counts.held["disabled"] == 3


async def test_credentials_of_a_script_disable_nothing(world: World, hook: Receiver) -> None:
    """There is no connection that somebody could enable: the next message is tried."""
    hook.answers = [answer(410), answer(200)]
    async with started(world.outbox()) as outbox:
        for _ in range(2):
            ids = await world.queue(
                "inline:webhook:00000000", 1, "webhook", credentials=hook.credentials
            )
            outbox.notice(ids)
            await outbox.drain()

    assert hook.ids == ids


# The cost guard.


async def test_the_guard_holds_what_is_too_much_for_a_recipient(
    world: World, hook: Receiver
) -> None:
    """In a clock hour; the reason says what the limit is and how to go on. Others get theirs."""
    await connect(world, hook, guard={"recipient_per_hour": 20})
    async with started(world.outbox()) as outbox:
        ids = await queue(world, outbox, 22, to=TO)
        (other,) = await queue(world, outbox, to="bob")
        reasons = await world.rows("reason", *ids)
        states = await world.rows("state", *ids)
        world.clock.now_ms += HOUR_MS
        (later,) = await queue(world, outbox, to=TO)

    assert hook.ids == [*ids[:20], other, later]
    assert states == ["delivered"] * 20 + ["held"] * 2
    assert reasons[20] == (
        f"cost guard: 21st message to {TO} in this hour, at most 20; release it, or raise "
        "settings.guard.recipient_per_hour"
    )
    assert outbox.counts.held == {"guard": 2}


async def test_the_guard_holds_what_is_too_much_for_a_day(world: World, hook: Receiver) -> None:
    """Of all recipients together, until midnight (UTC), also after a start."""
    await connect(world, hook, guard={"per_day": 3}, ordered=False)
    async with started(world.outbox()) as outbox:
        await queue(world, outbox, 2)
    async with started(world.outbox()) as outbox:
        ids = await queue(world, outbox, 2)
        reasons = await world.rows("reason", *ids)
        world.clock.now_ms += DAY_MS - NOW % DAY_MS
        await queue(world, outbox, 3)

    assert len(hook.ids) == 6
    (reason,) = (reason for reason in reasons if reason)
    assert reason == (
        "cost guard: 4th message through HOOK on this day (UTC), at most 3; release it, or raise "
        "settings.guard.per_day"
    )


async def test_the_guard_counts_a_delivery_once(world: World, hook: Receiver) -> None:
    """Not each attempt: that is what it was let through for."""
    await connect(world, hook, guard={"recipient_per_hour": 2}, retries={"waits_s": [5]})
    hook.answers = [answer(500)] * 3
    async with started(world.outbox()) as outbox:
        ids = await queue(world, outbox, 2, to=TO)
        for _ in range(4):
            await world.pass_ms(400_000, outbox)

    assert hook.ids == ids
    assert len(hook.asked) == 5


async def test_the_guard_lets_through_what_was_released(world: World, hook: Receiver) -> None:
    """By hand, that one; the next is held again."""
    await connect(world, hook, guard={"recipient_per_hour": 1})
    async with started(world.outbox()) as outbox:
        first, second, third = await queue(world, outbox, 3, to=TO)
        await world.act(Action.RELEASE, second)
        outbox.notice([second])
        await outbox.drain()

    assert hook.ids == [first, second]
    assert await world.rows("state", third) == ["held"]


async def test_a_delivery_that_waits_for_its_rate_is_not_counted(
    world: World, hook: Receiver
) -> None:
    """The guard counts what goes."""
    await connect(world, hook, rate={"limit": 1, "period_s": 10}, guard={"recipient_per_hour": 2})
    async with started(world.outbox()) as outbox:
        await queue(world, outbox, to=TO)
        waiting = await queue(world, outbox, 1, to=TO)
        for _ in range(20):
            await world.pass_ms(500, outbox)

    assert hook.ids[1:] == waiting
    assert await world.states() == {"delivered"}


# Age.


async def test_a_retry_whose_turn_comes_too_late_is_given_up(world: World, hook: Receiver) -> None:
    """It waited for the breaker; a message that was never tried still goes."""
    await connect(world, hook, retries={"max_age_s": 8, "waits_s": [1]})
    async with started(world.outbox()) as outbox:
        ids = await failing(world, hook, outbox, 5)
        (new,) = await queue(world, outbox)
        await world.pass_ms(OPEN_MS_MIN, outbox)
        await world.pass_ms(1_000, outbox)

    assert hook.ids == [new]
    assert await world.rows("state", *ids) == ["failed"] * 5
    assert await world.rows("reason", ids[0]) == [
        "given up: its turn came after 8 s, the age from which a message is not tried again"
    ]


async def test_a_resend_of_an_old_one_has_its_whole_schedule(world: World, hook: Receiver) -> None:
    """Its age counts from its first attempt then."""
    await connect(world, hook, retries={"max_age_s": 60, "waits_s": [5]})
    hook.answers = [answer(302), answer(500), answer(500)]
    async with started(world.outbox()) as outbox:
        (old,) = await queue(world, outbox)
        world.clock.now_ms += DAY_MS
        await world.act(Action.RESEND, old)
        outbox.notice([old])
        await outbox.drain()
        await world.pass_ms(6_000, outbox)
        await world.pass_ms(6_000, outbox)

    assert hook.ids == [old]
    assert await world.rows("attempts", old) == [4]
    assert await world.rows("base_attempts", old) == [1]


async def test_a_released_one_has_its_whole_schedule(world: World, hook: Receiver) -> None:
    """However long it was held, and whatever was tried before."""
    retries = {"max_age_s": 86_400, "max_attempts": 2, "waits_s": [5]}
    await connect(world, hook, retries=retries)
    hook.answers = [answer(500), answer(500)]
    async with started(world.outbox()) as outbox:
        (old,) = await queue(world, outbox)
        await world.act(Action.HOLD, old)
        outbox.notice([old])
        await outbox.drain()
        world.clock.now_ms += 3 * DAY_MS
        await world.act(Action.RELEASE, old)
        outbox.notice([old])
        await outbox.drain()
        after_release = await world.rows("state", old)
        await world.pass_ms(7_000, outbox)

    assert after_release == ["retrying"]
    assert hook.ids == [old]
    assert await world.rows("attempts", old) == [3]


async def test_a_released_one_that_comes_back_unsent_is_queued(
    world: World, hook: Receiver
) -> None:
    """As it was: it was tried before, but its age begins with the release."""
    await connect(world, hook, retries={"max_age_s": 60, "waits_s": [5]})
    (only,) = await world.queue("HOOK", 1, "webhook")
    outbox = world.outbox()
    hook.answers = [answer(500)]
    async with started(outbox):
        await outbox.drain()
        await world.act(Action.HOLD, only)
        world.clock.now_ms += DAY_MS
        await world.act(Action.RELEASE, only)

    turns = await world.journal.run(claim, [only], None, world.clock.now_ms, outbox.sending_of)

    (claimed,) = turns.claimed
    assert (claimed.state, claimed.attempts, claimed.base_attempts) == (State.QUEUED, 1, 1)
    assert claimed.since_ms == world.clock.now_ms


async def test_an_interrupted_attempt_counts(world: World, hook: Receiver) -> None:
    """It was the last one there is."""
    await connect(world, hook, retries={"max_attempts": 1})
    (only,) = await world.queue("HOOK", 1, "webhook")
    outbox = world.outbox()
    await world.journal.run(claim, [only], None, NOW, outbox.sending_of)
    async with started(outbox):
        await outbox.drain()

    delivery, attempts = await world.look(only)
    assert delivery.state is State.FAILED
    assert [one.error for one in attempts] == [INTERRUPTED]
    assert delivery.reason == "given up after 1 attempt, the most there are"


# What is kept.


class Telling(type(CONNECTORS["webhook"])):
    """A connector whose provider answers what the message says."""

    async def send(self, client: Any, outgoing: Outgoing) -> Any:
        secret = outgoing.credentials["secret"]
        match outgoing.message["text"][-1]:
            case "0":
                return Sent(200, "id\n1")
            case "1":
                return Refused(401, f"wrong key {secret}\x1b[31m\nnext")
            case "2":
                return Retry(None, 503, "x" * 1_000)
            case _:
                raise ZeroDivisionError(f"with {secret}")


async def test_no_credential_is_kept_or_logged(
    world: World, hook: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor a control character, nor more of an error than people read; the message's id is."""
    secret = "whsec_" + "c2VjcmV0" * 4
    await world.connect("HOOK", "webhook", {"url": "http://h.example/p", "secret": secret})
    async with started(world.outbox(connectors={"webhook": Telling()})) as outbox:
        ids = await queue(world, outbox, 4)

    errors = [(await world.look(one))[1][0].error for one in ids]
    assert errors == [
        None,
        "wrong key [credential] [31m next",
        "x" * 300,
        "the connector failed: ZeroDivisionError",
    ]
    assert await world.rows("message_id", ids[0]) == ["id 1"]
    assert (await world.look(ids[0]))[1][0].message_id == "id 1"
    assert secret not in "".join(capsys.readouterr())
    assert (await gate(world)).last_error is None or secret not in str(await gate(world))


async def test_a_script_s_own_credentials_are_used_and_kept(world: World, hook: Receiver) -> None:
    """Sealed for that delivery alone; so it can be sent again."""
    hook.answers = [answer(302)]
    async with started(world.outbox()) as outbox:
        name = "inline:webhook:12345678"
        (only,) = await world.queue(name, 1, "webhook", credentials=hook.credentials)
        outbox.notice([only])
        await outbox.drain()
        await world.act(Action.RESEND, only)
        outbox.notice([only])
        await outbox.drain()

    assert hook.ids == [only]
    (sealed,) = await world.rows("sealed", only)
    assert hook.server.url.encode() not in sealed


# What a provider tells later.


async def told(world: World, delivery_id: str, status: str, final: Any = None, **more: Any) -> bool:
    fields = {"error": None, "message_id": None, "now_ms": world.clock.now_ms, **more}
    known: bool = await world.journal.run(store.told, PROJECT, delivery_id, status, final, **fields)
    return known


async def test_a_delivered_message_can_fail_afterwards(world: World, hook: Receiver) -> None:
    """The provider says so; its first last word stays, however late others come."""
    await connect(world, hook)
    async with started(world.outbox()) as outbox:
        (only,) = await queue(world, outbox)
    first = await told(world, only, "sent")
    world.clock.now_ms += 1_000
    final = await told(world, only, "undelivered", "failed", error="30005: unknown number")
    late = [await told(world, only, "sent"), await told(world, only, "delivered", "delivered")]

    delivery, _ = await world.look(only)
    assert (first, final, late) == (True, True, [False, False])
    assert delivery.state is State.FAILED
    assert delivery.reason == "the provider: 30005: unknown number"
    assert (delivery.provider_status, delivery.provider_ms) == ("undelivered", NOW + 1_000)


async def test_a_mail_may_bounce_that_was_delivered(world: World, hook: Receiver) -> None:
    """Another server took it, and sent it back."""
    await connect(world, hook)
    async with started(world.outbox()) as outbox:
        (only,) = await queue(world, outbox)
    await told(world, only, "delivered", "delivered")
    late = await told(world, only, "processed")
    await told(world, only, "bounce", "failed")

    assert late is False
    assert await world.rows("state", only) == ["failed"]


async def test_news_of_nobody_or_of_an_earlier_message_are_none(
    world: World, hook: Receiver
) -> None:
    """Resent by hand, it is another message."""
    await world.connect("HOOK", "webhook", {"url": "http://h.example", "secret": "whsec_"})
    async with started(world.outbox(connectors={"webhook": Telling()})) as outbox:
        (only,) = await queue(world, outbox)
        await world.act(Action.RESEND, only)
        waiting = await told(world, only, "failed", "failed", message_id="id 1")
        other = await told(world, only, "failed", "failed", message_id="SMother")
        outbox.notice([only])
        await outbox.drain()

    assert waiting is False
    assert other is True  # it may be of the attempt that is about to be made
    assert await told(world, "dlv_none", "sent") is False
    assert await told(world, only, "failed", "failed", message_id="SM2") is False
    assert await told(world, only, "sent", now_ms=NOW) is True
    assert await told(world, only, "queued", now_ms=NOW - 1) is False
    assert await world.rows("state", only) == ["delivered"]


async def test_a_callback_may_come_before_the_answer(world: World, hook: Receiver) -> None:
    """Faster than our commit: the last word counts, and any word if the answer is lost then."""
    await connect(world, hook, ordered=False)
    hook.answers = [answer(200), answer(200), None]
    words = iter([("delivered", "delivered"), ("undelivered", "failed"), ("queued", None)])

    async def tell(delivery_id: str) -> None:
        status, final = next(words)
        assert await told(world, delivery_id, status, final, message_id="SM1")

    hook.on_ask = tell
    async with started(world.outbox()) as outbox:
        ids = [(await queue(world, outbox))[0] for _ in range(3)]
        await world.pass_ms(600_000, outbox)

    assert len(hook.asked) == 3
    assert await world.rows("state", *ids) == ["delivered", "failed", "delivered"]
    assert await world.rows("provider_status", *ids) == ["delivered", "undelivered", "queued"]
    assert await world.rows("message_id", *ids) == ["SM1"] * 3
    assert await world.rows("next_ms", *ids) == [0] * 3
    assert None not in await world.rows("ended_ms", *ids)


async def test_news_leave_the_reason_why_it_is_held(world: World, hook: Receiver) -> None:
    """It says how to go on, and releases are found by it."""
    await connect(world, hook, guard={"per_day": 1})
    async with started(world.outbox()) as outbox:
        _, held = await queue(world, outbox, 2)
    await told(world, held, "failed", "failed", error="x")

    (reason,) = await world.rows("reason", held)
    assert reason.startswith("cost guard: 2nd message")


async def test_a_callback_saves_a_lost_answer_from_a_second_attempt(
    world: World, hook: Receiver
) -> None:
    """The provider has it: its answer was lost, or we died before it was noted."""
    await connect(world, hook)
    hook.usual = None
    async with started(world.outbox()) as outbox:
        (dropped,) = await queue(world, outbox)
        await told(world, dropped, "queued", message_id="SM1")
        outbox.notice([dropped])
        (killed,) = await world.queue("HOOK", 1, "webhook")
        await world.journal.run(claim, [killed], None, NOW, outbox.sending_of)
        await told(world, killed, "sent", message_id="SM2")
    async with started(world.outbox()) as outbox:
        for _ in range(5):
            await world.pass_ms(600_000, outbox)

    assert len(hook.asked) == 1
    assert await world.rows("state", dropped, killed) == ["delivered", "delivered"]
    assert await world.rows("message_id", dropped, killed) == ["SM1", "SM2"]
    (noted,) = (await world.look(killed))[1]
    assert (noted.delivered, noted.error, noted.message_id) == (True, None, "SM2")


async def test_what_is_being_sent_cannot_be_called_back(world: World, hook: Receiver) -> None:
    """It says so, and the delivery goes on."""
    await connect(world, hook)
    refused: list[str] = []

    async def call_back(delivery_id: str) -> None:
        for action in (Action.CANCEL, Action.HOLD):
            refused.extend((await world.act(action, delivery_id)).refused.values())

    hook.on_ask = call_back
    async with started(world.outbox()) as outbox:
        (only,) = await queue(world, outbox)

    assert refused == ["it is being sent right now; ask again in a moment"] * 2
    assert await world.rows("state", only) == ["delivered"]
