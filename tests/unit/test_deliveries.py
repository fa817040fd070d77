"""What becomes of a delivery after an attempt."""

from random import Random
from typing import Any

from engine.connectors.contract import Answer, Guard, Habits, Rate, Refused, Retry, Sent
from engine.deliveries import ENDED, NEXT, State, Verdict, decide, sending_of

NOW = 1_700_000_000_000
HOUR_MS = 3_600_000
FAILED = Retry(None, 500, "x")


def verdict(
    attempt: int,
    answer: Answer = FAILED,
    *,
    seed: int = 1,
    age_ms: int = 0,
    base_attempts: int = 0,
    **settings: Any,
) -> Verdict:
    return decide(
        attempt,
        answer,
        NOW,
        Random(seed),
        sending_of(Habits(), settings),
        created_ms=NOW - age_ms,
        base_attempts=base_attempts,
    )


def test_a_sent_one_has_ended() -> None:
    """With its time."""
    sent = verdict(1, Sent(200))

    assert (sent.state, sent.next_ms, sent.ended_ms) == (State.DELIVERED, 0, NOW)


def test_a_refused_one_is_not_tried_again() -> None:
    """At the first attempt already."""
    assert verdict(1, Refused(400, "x")).state is State.FAILED


def test_waits_are_the_habits_with_a_fifth_to_both_sides() -> None:
    """So that what failed together does not come back together."""
    waits_s = Habits().waits_s
    found = [
        [(verdict(attempt, seed=seed).next_ms - NOW) / 1000 for seed in range(200)]
        for attempt in range(1, len(waits_s) + 1)
    ]

    for wait_s, made in zip(waits_s, found, strict=True):
        assert wait_s * 0.8 <= min(made) < wait_s * 0.83
        assert wait_s * 1.17 < max(made) <= wait_s * 1.2


def test_settings_say_the_waits() -> None:
    """The last one again and again."""
    retries = {"waits_s": [10, 20], "max_attempts": 5}

    waits_ms = [verdict(attempt, retries=retries).next_ms - NOW for attempt in (1, 2, 3, 4)]

    assert [round(ms / 1000, -1) for ms in waits_ms] == [10, 20, 20, 20]
    assert verdict(5, retries=retries).state is State.FAILED


def test_the_last_attempt_fails_and_says_so() -> None:
    """The eighth by habit, or as the settings say."""
    assert verdict(7).state is State.RETRYING
    assert verdict(8).reason == "given up after 8 attempts, the most there are"
    assert verdict(3, retries={"max_attempts": 4}).state is State.RETRYING
    assert verdict(4, retries={"max_attempts": 4}).state is State.FAILED
    assert verdict(1, retries={"max_attempts": 1}).reason == (
        "given up after 1 attempt, the most there are"
    )


def test_a_resend_begins_anew() -> None:
    """With the first wait and as many attempts, though their numbers go on."""
    first = verdict(9, base_attempts=8)

    assert first.state is State.RETRYING
    assert first.next_ms <= NOW + 1_200
    assert verdict(15, base_attempts=8).state is State.RETRYING
    assert verdict(16, base_attempts=8).state is State.FAILED


def test_what_would_come_too_late_fails_and_says_so() -> None:
    """A message is tried again for a day by habit, or as the settings say."""
    late = verdict(7, age_ms=23 * HOUR_MS + 3_000_000)
    soon = verdict(1, age_ms=23 * HOUR_MS + 3_000_000)
    own = verdict(2, age_ms=58_000, retries={"max_age_s": 60})

    assert (late.state, late.ended_ms, soon.state) == (State.FAILED, NOW, State.RETRYING)
    assert late.reason == (
        "given up: the next attempt would come after 24 h, "
        "the age from which a message is not tried again"
    )
    assert "after 60 s" in (own.reason or "")


def test_the_providers_wish_is_honoured_within_a_day() -> None:
    """Retry-After is the least wait; a longer one than a message lives ends it."""
    soon = verdict(1, Retry(30_000, 429, "x"))
    short = verdict(1, Retry(10, 429, "x"))
    far = verdict(1, Retry(10**12, 429, "x"), retries={"max_age_s": 3 * 86_400})

    assert soon.next_ms == NOW + 30_000
    assert short.next_ms >= NOW + 800
    assert far.next_ms == NOW + 24 * HOUR_MS
    assert verdict(1, Retry(2 * 24 * HOUR_MS, 429, "x"), age_ms=1).state is State.FAILED


def test_settings_stand_over_habits() -> None:
    """What is left out is as the kind is used to; null takes a habit away."""
    habits = Habits(rate=Rate(30), guard=Guard(per_day=10), concurrency=2, ordered=False)

    usual = sending_of(habits, {"base_url": "http://x", "channel": "C1"})
    own = sending_of(
        habits,
        {
            "rate": {"limit": 5, "period_s": 60},
            "guard": {"recipient_per_hour": 3},
            "concurrency": 8,
            "ordered": True,
        },
    )
    none = sending_of(habits, {"rate": None, "guard": None})

    assert (usual.rate, usual.guard, usual.concurrency) == (habits.rate, habits.guard, 2)
    assert (usual.ordered, usual.max_attempts, usual.max_age_s) == (False, 8, 86_400)
    assert (own.rate, own.guard) == (Rate(5, 60), Guard(recipient_per_hour=3))
    assert (own.concurrency, own.ordered) == (8, True)
    assert (none.rate, none.guard) == (None, None)


def test_an_end_is_left_by_hand_or_by_the_providers_word() -> None:
    """An ended delivery is queued again, or turns out to have ended otherwise."""
    assert all(State.QUEUED in NEXT[state] for state in ENDED)
    assert NEXT[State.DELIVERED] - {State.QUEUED} == {State.FAILED}
    assert NEXT[State.FAILED] - {State.QUEUED} == {State.DELIVERED}
    assert NEXT[State.CANCELLED] == {State.QUEUED}


def test_what_is_on_its_way_cannot_be_called_back() -> None:
    """Nobody knows whether it has arrived. (Held it is by an answer alone, never by hand.)"""
    assert State.CANCELLED not in NEXT[State.SENDING]
