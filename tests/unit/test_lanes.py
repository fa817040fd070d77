"""Whose delivery has its turn."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from random import Random

import pytest

from engine.connectors.contract import Answer, Habits, Retry, Sent
from engine.deliveries import Sending, sending_of
from engine.lanes import BEHIND_MAX, HORIZON_MS, LOOK_MS, LaneLimits, Lanes
from engine.store.deliveries import Claimed, Pending
from engine.store.gates import Key
from engine.store.turns import Turns

A, B, C = ("prj", "A"), ("prj", "B"), ("prj", "C")
NOW = 1_000_000
USUAL = sending_of(Habits(), {})


def lanes_with(limits: LaneLimits | None = None, **counts: int) -> Lanes:
    lanes = Lanes(limits or LaneLimits())
    lanes.sweep_begins()
    for name, count in counts.items():
        for number in range(count):
            lanes.add(Pending(id=f"{name}{number:03}", key=("prj", name), due_ms=NOW), NOW)
    lanes.wake(NOW)
    return lanes


def claim(lanes: Lanes, now_ms: int = NOW, **turns: object) -> list[str]:
    """Claim as a database would that lets all have their turn, but for what `turns` says."""
    asked = lanes.to_claim(now_ms)
    told = Turns(**turns)
    told.claimed = [
        a_claimed(delivery_id, key)
        for delivery_id, key in asked
        if delivery_id not in told.later and delivery_id not in told.back
    ]
    lanes.claimed(asked, told, now_ms)
    return [claimed.id for claimed in told.claimed]


def a_claimed(delivery_id: str, key: Key, *, at_ms: int = 0) -> Claimed:
    return Claimed(
        id=delivery_id,
        key=key,
        kind="slack",
        action="send",
        payload="{}",
        attempts=0,
        due_ms=NOW,
        connection=None,
        sending=USUAL,
        at_ms=at_ms,
    )


def of_width(width: int) -> Sending:
    return sending_of(Habits(concurrency=width), {})


def a_letter(number: int, to: str = "ann", due_ms: int = NOW) -> Pending:
    return Pending(
        id=f"L{number:04}", key=A, due_ms=due_ms, recipient=to, place=(NOW, "exe", number)
    )


def lanes_with_letters(*letters: Pending) -> Lanes:
    lanes = lanes_with()
    for letter in letters:
        lanes.add(letter, NOW)
    lanes.wake(NOW)
    return lanes


def answered(lanes: Lanes, key: Key, answer: Answer, now_ms: int) -> list[Claimed]:
    """An attempt is over, and what came of it is stored."""
    unsent = lanes.answered(key, answer, now_ms)
    lanes.written(key)
    return unsent


def end(lanes: Lanes, *ids: str, now_ms: int = NOW) -> None:
    """Send what is claimed, and let these be over."""
    for claimed in send_all(lanes, now_ms):
        answered(lanes, claimed.key, Sent(200), now_ms)
    for delivery_id in ids:
        lanes.forget(delivery_id)
    lanes.wake(now_ms)


def send_all(lanes: Lanes, now_ms: int = NOW) -> list[Claimed]:
    sent = []
    while (claimed := lanes.next_to_send(now_ms)) is not None:
        sent.append(claimed)
    return sent


def test_lanes_take_turns() -> None:
    """A long queue of one connection does not delay another's."""
    lanes = lanes_with(A=100, B=2)

    claim(lanes)
    sent = [claimed.id for claimed in send_all(lanes)]

    assert sorted(sent) == ["A000", "A001", "A002", "A003", "B000", "B001"]


def test_at_most_sixteen_at_once_and_four_per_connection() -> None:
    """However much waits."""
    lanes = lanes_with(A=50, B=50, C=50, D=50, E=50)

    claim(lanes)
    sent = send_all(lanes)

    assert len(sent) == 16
    assert max(sum(claimed.key == key for claimed in sent) for key in (A, B, C)) <= 4


def test_a_provider_that_asks_for_patience_gets_it() -> None:
    """Until then nothing goes out, and what was claimed is handed back without an attempt."""
    lanes = lanes_with(A=20)
    claim(lanes)
    send_all(lanes)

    unsent = answered(lanes, A, Retry(30_000, 429, "slow down"), NOW)

    assert [claimed.id for claimed in unsent] == ["A004", "A005", "A006", "A007"]
    assert claim(lanes) == []
    assert lanes.next_wake_ms(NOW) == NOW + 30_000
    for _ in range(3):
        answered(lanes, A, Retry(None, 500, "x"), NOW)
    assert len(claim(lanes, NOW + 30_000)) == 2
    assert len(send_all(lanes, NOW + 30_000)) == 1


def test_each_success_widens_a_narrow_lane() -> None:
    """So a provider that recovers is used to the full again."""
    lanes = lanes_with(A=30)
    claim(lanes)
    for claimed in send_all(lanes):
        answered(lanes, claimed.key, Retry(None, 503, "x"), NOW)
        lanes.forget(claimed.id)

    widths = []
    for _ in range(4):
        claim(lanes)
        sent = send_all(lanes)
        widths.append(len(sent))
        answered(lanes, A, Sent(200), NOW)
        for claimed in sent:
            lanes.forget(claimed.id)
        for _ in sent[1:]:
            answered(lanes, A, Sent(200), NOW)

    assert widths == [1, 2, 4, 4]


def test_hanging_providers_leave_half_of_the_places() -> None:
    """Fifteen broken connections cannot stop a sixteenth that works."""
    lanes = lanes_with(**{f"broken{n}": 20 for n in range(15)})
    for _ in range(20):
        claim(lanes)
        for claimed in send_all(lanes):
            answered(lanes, claimed.key, Retry(None, None, "timeout"), NOW)
    claim(lanes)
    hanging = send_all(lanes)

    for number in range(10):
        lanes.add(Pending(id=f"B{number}", key=B, due_ms=NOW), NOW)
    lanes.wake(NOW)
    claim(lanes)
    sent = send_all(lanes)

    assert len(hanging) == 8
    assert {claimed.key for claimed in sent} == {B}
    assert len(sent) == 4


def test_a_project_that_hangs_leaves_half_of_the_places_to_others() -> None:
    """However many connections it has, and before any of them has failed."""
    lanes = lanes_with(**{f"hangs{n}": 10 for n in range(60)})
    claim(lanes)
    hanging = send_all(lanes)

    lanes.add(Pending(id="B0", key=("other", "SMS"), due_ms=NOW), NOW)
    lanes.wake(NOW)
    claim(lanes)

    assert len(hanging) == 16
    assert [claimed.id for claimed in send_all(lanes)] == ["B0"]


def test_projects_take_turns() -> None:
    """One with many connections is not served as often as it has connections."""
    lanes = lanes_with(**{f"n{number:02}": 1 for number in range(16)})
    for number in range(3):
        lanes.add(Pending(id=f"B{number}", key=("other", "SMS"), due_ms=NOW), NOW)
    lanes.wake(NOW)

    claim(lanes)
    sent = [claimed.key[0] for claimed in send_all(lanes)]

    assert sorted(sent[:6]) == ["other"] * 3 + ["prj"] * 3


def test_what_is_far_away_stays_in_the_table() -> None:
    """And is asked for in time."""
    lanes = lanes_with()
    far_ms = NOW + 10 * HORIZON_MS

    lanes.add(Pending(id="A0", key=A, due_ms=far_ms), NOW)

    assert lanes.known_count == 0
    assert not lanes.sweep_due(NOW)
    assert lanes.sweep_due(far_ms - HORIZON_MS // 2)
    assert lanes.next_wake_ms(NOW) == far_ms - HORIZON_MS // 2


def test_a_backlog_of_one_connection_does_not_fill_the_memory() -> None:
    """The rest stays in the table until there is room."""
    lanes = lanes_with(LaneLimits(known_per_lane=10), A=100, B=5)

    assert lanes.known_count == 15
    assert lanes.lanes_to_refill() == []
    for _ in range(2):
        claim(lanes)
        for claimed in send_all(lanes):
            answered(lanes, claimed.key, Sent(200), NOW)
            lanes.forget(claimed.id)
    assert lanes.lanes_to_refill() == [A]


def test_an_earlier_time_replaces_a_later_one() -> None:
    """A delivery that is resent by hand does not wait for its old time, and goes once."""
    lanes = lanes_with()
    lanes.add(Pending(id="A0", key=A, due_ms=NOW + 5_000), NOW)

    lanes.add(Pending(id="A0", key=A, due_ms=NOW), NOW)
    lanes.wake(NOW)

    assert claim(lanes) == ["A0"]
    lanes.wake(NOW + 5_000)
    assert claim(lanes, NOW + 5_000) == []


def test_what_is_claimed_by_nobody_is_forgotten() -> None:
    """Cancelled or ended meanwhile: the claim does not return it."""
    lanes = lanes_with(A=1)
    asked = lanes.to_claim(NOW)

    lanes.claimed(asked, Turns(), NOW)

    assert lanes.known_count == 0
    assert lanes.is_settled(NOW)


def test_a_failed_claim_keeps_the_order() -> None:
    """The database refused: everything is as it was."""
    lanes = lanes_with(A=5)
    asked = lanes.to_claim(NOW)

    lanes.claim_failed(asked)

    assert claim(lanes) == [delivery_id for delivery_id, _ in asked]


def test_idle_lanes_leave_nothing_behind() -> None:
    """Connections come and go for months."""
    lanes = lanes_with(**{f"n{number}": 1 for number in range(100)})
    for _ in range(100):
        claim(lanes)
        for claimed in send_all(lanes):
            answered(lanes, claimed.key, Sent(200), NOW)
            lanes.forget(claimed.id)
    claim(lanes)

    assert lanes._lanes == {}
    assert lanes.known_count == 0


def test_idle_lanes_of_broken_providers_leave_nothing_behind() -> None:
    """Credentials of scripts make them without end; what failed is known to their gates."""
    lanes = lanes_with(**{f"n{number}": 1 for number in range(100)})
    for _ in range(100):
        claim(lanes)
        for claimed in send_all(lanes):
            answered(lanes, claimed.key, Retry(5_000, 503, "x"), NOW)
            lanes.forget(claimed.id)
    claim(lanes)

    assert (lanes._lanes, lanes._projects, lanes._timed) == ({}, {}, {})
    assert (lanes._narrow.claimed, lanes._narrow.sending, lanes._all.claimed) == (0, 0, 0)


def test_a_clock_that_is_set_back_ends_all_pauses() -> None:
    """They would last as long as it was set back."""
    lanes = lanes_with(A=3, B=3)
    claim(lanes, back={"A001", "A002"}, paused={A: NOW + 5_000})
    send_all(lanes)
    answered(lanes, B, Retry(60_000, 429, "x"), NOW)

    lanes.wake(NOW - 600_000)
    claimed = claim(lanes, NOW - 600_000)

    assert {"A001", "A002"} <= set(claimed)
    assert {one.key for one in send_all(lanes, NOW - 600_000)} == {A}  # B's are on their way


def test_what_was_claimed_long_ago_is_handed_back() -> None:
    """Its process was paused, and another node may have it; what is on its way is."""
    lanes = lanes_with(A=12)
    asked = lanes.to_claim(NOW)
    lanes.claimed(asked[:6], Turns(claimed=[a_claimed(*one) for one in asked[:6]]), NOW, 10)
    send_all(lanes)
    lanes.claimed(asked[6:], Turns(claimed=[a_claimed(*one) for one in asked[6:]]), NOW, 20)

    unsent = [claimed.id for claimed in lanes.claimed_before(15)]

    assert unsent == ["A004", "A005"]
    assert lanes.claimed_before(15) == []
    assert [one.id for one in lanes.hand_back_all()] == ["A006", "A007"]


def test_a_node_that_was_taken_over_forgets_what_waits() -> None:
    """But for what is on its way."""
    lanes = lanes_with_letters(a_letter(0, due_ms=NOW + 9_000), a_letter(1), a_letter(2, to="bob"))
    for number in range(8):
        lanes.add(Pending(id=f"B{number}", key=B, due_ms=NOW), NOW)
    lanes.wake(NOW)
    claim(lanes)
    sent = send_all(lanes)

    unsent = lanes.lost()
    for claimed in unsent:
        lanes.forget(claimed.id)

    assert len(unsent) == 4
    assert set(lanes.known) == {claimed.id for claimed in sent}


def test_who_is_waited_for_is_told() -> None:
    """Not who waits behind, is alone, or has its turn; once it is gone the next one goes."""
    lanes = lanes_with_letters(
        a_letter(0, due_ms=NOW + 9_000),
        a_letter(1),
        a_letter(2, to="bob", due_ms=NOW + 9_000),
        a_letter(3, to="eve"),
        a_letter(4, to="eve"),
    )
    claim(lanes)

    (head,) = lanes.heads()
    lanes.not_there(replace(head))  # has had its turn since it was asked for
    kept = set(lanes.known)
    lanes.not_there(head)
    lanes.wake(NOW)

    assert (head.id, len(kept)) == ("L0000", 5)
    assert claim(lanes) == ["L0001"]


def test_a_place_is_free_once_its_attempt_is_stored() -> None:
    """So a kill leaves at most one for each place that was taken and is not known to be."""
    lanes = lanes_with(A=8)
    claim(lanes)
    for claimed in send_all(lanes):
        lanes.answered(claimed.key, Sent(200), NOW)

    before = send_all(lanes)
    lanes.written(A)

    assert before == []
    assert [claimed.id for claimed in send_all(lanes)] == ["A004"]


def test_settings_say_how_many_of_a_connection_go_at_once() -> None:
    """From the first claim on, which tells them."""
    lanes = lanes_with(A=30, B=30)

    claim(lanes, sending={A: of_width(8), B: of_width(1)})
    claim(lanes)
    sent = [claimed.key for claimed in send_all(lanes)]

    assert (sent.count(A), sent.count(B)) == (8, 1)


def test_a_lane_that_must_wait_asks_again_then() -> None:
    """Also one whose provider is well; what it had asked for goes first, in its order."""
    lanes = lanes_with(A=3)

    claimed = claim(lanes, back={"A001", "A002"}, paused={A: NOW + 400})
    sent = send_all(lanes)
    early, wake_ms = claim(lanes, NOW + 399), lanes.next_wake_ms(NOW)

    assert (claimed, [one.id for one in sent]) == (["A000"], ["A000"])
    assert (early, wake_ms) == ([], NOW + 400)
    assert claim(lanes, NOW + 400) == ["A001", "A002"]


def test_a_long_pause_is_looked_at_now_and_then() -> None:
    """Somebody may have opened the gate by hand."""
    lanes = lanes_with(A=1)

    claim(lanes, back={"A000"}, paused={A: NOW + 600_000})

    assert lanes.is_settled(NOW)
    assert lanes.next_wake_ms(NOW) == NOW + LOOK_MS


def test_what_is_claimed_ahead_goes_at_its_time() -> None:
    """A place of a rate: neither before, nor does anybody wait for it to be over."""
    lanes = lanes_with(A=2)
    asked = lanes.to_claim(NOW)
    lanes.claimed(
        asked, Turns(claimed=[a_claimed("A000", A), a_claimed("A001", A, at_ms=NOW + 30)]), NOW
    )

    now = [claimed.id for claimed in send_all(lanes)]
    answered(lanes, A, Sent(200), NOW)
    settled, wake_ms = lanes.is_settled(NOW), lanes.next_wake_ms(NOW)
    early = send_all(lanes, NOW + 29)
    then = [claimed.id for claimed in send_all(lanes, NOW + 30)]

    assert (now, settled, wake_ms, early, then) == (["A000"], True, NOW + 30, [], ["A001"])


def test_of_those_to_one_recipient_one_alone_is_claimed() -> None:
    """The next one when it has ended; those to others meanwhile."""
    lanes = lanes_with_letters(*(a_letter(n) for n in (0, 1, 2)), a_letter(7, to="bob"))

    first, second = claim(lanes), claim(lanes)
    end(lanes, "L0000")

    assert (first, second) == (["L0000", "L0007"], [])
    assert claim(lanes) == ["L0001"]


def test_a_recipients_deliveries_go_in_their_order() -> None:
    """Whatever the order in which they are heard of behind the first."""
    lanes = lanes_with_letters(*(a_letter(number) for number in (0, 3, 1, 2)))

    order = []
    for _ in range(4):
        order += (claimed := claim(lanes))
        end(lanes, *claimed)

    assert order == ["L0000", "L0001", "L0002", "L0003"]
    assert lanes._lanes == {}
    assert lanes.lines_to_read() == []


def test_a_retry_holds_up_those_behind_it() -> None:
    """In memory, without a question to the table."""
    lanes = lanes_with_letters(a_letter(0), a_letter(1))
    claim(lanes)
    for claimed in send_all(lanes):
        answered(lanes, claimed.key, Retry(None, 500, "x"), NOW)

    lanes.again(a_letter(0, due_ms=NOW + 5_000), NOW)
    lanes.wake(NOW + 4_999)
    early = claim(lanes, NOW + 4_999)
    lanes.wake(NOW + 5_000)

    assert early == []
    assert claim(lanes, NOW + 5_000) == ["L0000"]


def test_a_long_line_stays_in_the_table() -> None:
    """And is read when those in memory are through."""
    lanes = lanes_with_letters(*(a_letter(number) for number in range(BEHIND_MAX + 10)))
    known = lanes.known_count
    for _ in range(BEHIND_MAX + 1):
        end(lanes, *claim(lanes))

    asked = lanes.lines_to_read()
    lanes.line_read(A, "ann", [a_letter(BEHIND_MAX + 1)], NOW, more=False)
    lanes.wake(NOW)

    assert (known, asked) == (BEHIND_MAX + 1, [(A, "ann")])
    assert claim(lanes) == [f"L{BEHIND_MAX + 1:04}"]
    assert lanes.lines_to_read() == []


def test_who_waits_for_another_nodes_looks_again() -> None:
    """After the time the table says, then less often; and this node's own line is read."""
    lanes = lanes_with_letters(a_letter(5))

    claim(lanes, later={"L0005": NOW + 500})
    read = lanes.lines_to_read()
    lanes.line_read(A, "ann", [a_letter(5)], NOW, more=False)
    first_ms = lanes.next_wake_ms(NOW)
    lanes.wake(NOW + 500)
    claim(lanes, NOW + 500, later={"L0005": NOW + 1_000})

    assert (read, first_ms) == ([(A, "ann")], NOW + 500)
    assert lanes.next_wake_ms(NOW + 500) == NOW + 1_500


def test_an_older_one_that_is_heard_of_later_goes_first() -> None:
    """When it is over, whoever waited for it is asked at once."""
    lanes = lanes_with_letters(a_letter(5))
    claim(lanes, later={"L0005": NOW + 500})

    lanes.line_read(A, "ann", [a_letter(1), a_letter(5)], NOW, more=False)
    lanes.wake(NOW)
    older = claim(lanes)
    end(lanes, *older)

    assert older == ["L0001"]
    assert claim(lanes) == ["L0005"]


def test_what_was_cancelled_holds_nobody_up() -> None:
    """Its place in the line goes to the next one, before its own time."""
    lanes = lanes_with_letters(a_letter(0, due_ms=NOW + 9_000), a_letter(1))

    lanes.gone("L0000")
    lanes.wake(NOW)

    assert claim(lanes) == ["L0001"]


def test_a_full_memory_takes_in_what_everybody_waits_for() -> None:
    """The head of a line, though the lane has no room for more."""
    lanes = lanes_with(LaneLimits(known_per_lane=8), A=8)

    lanes.line_read(A, "ann", [a_letter(0)], NOW, more=False)

    assert lanes.known_count == 9


def test_younger_ones_that_are_heard_of_first_wait() -> None:
    """A second part of a long list was noticed before the rest of the first was read."""
    lanes = lanes_with_letters(a_letter(50))
    claim(lanes, later={"L0050": NOW + 500})

    lanes.line_read(A, "ann", [a_letter(number) for number in range(10)], NOW, more=False)
    lanes.wake(NOW)
    order = []
    for _ in range(11):
        order += (claimed := claim(lanes))
        end(lanes, *claimed)

    assert order == [*(f"L{number:04}" for number in range(10)), "L0050"]


@dataclass
class Table:
    """What a database would know of letters: who waits, and so whose turn it is."""

    letters: dict[str, Pending]
    waiting: set[str] = field(default_factory=set)
    sent: list[str] = field(default_factory=list)

    def to(self, recipient: str, ids: Iterable[str]) -> list[str]:
        return [one for one in ids if self.letters[one].recipient == recipient]

    def oldest(self, recipient: str) -> list[Pending]:
        return [self.letters[one] for one in sorted(self.to(recipient, self.waiting))]

    def read(self, lanes: Lanes, now_ms: int) -> None:
        for key, recipient in lanes.lines_to_read():
            found = self.oldest(recipient)
            lanes.line_read(key, recipient, found[:5], now_ms, more=len(found) > 5)
        for key in lanes.lanes_to_refill():
            lanes.refilled(key, more=False)
            for one in [one for recipient in "abc" for one in self.oldest(recipient)[:1]]:
                lanes.add(one, now_ms, more=True)

    def claim(self, lanes: Lanes, now_ms: int) -> None:
        asked = lanes.to_claim(now_ms)
        heads = {found[0].id for recipient in "abc" if (found := self.oldest(recipient))}
        later = {one: now_ms + 500 for one, _ in asked if one in self.waiting - heads}
        got = [a_claimed(one, key) for one, key in asked if one in heads]
        lanes.claimed(asked, Turns(claimed=got, later=later), now_ms)

    def send(self, lanes: Lanes, now_ms: int, rng: Random) -> None:
        for claimed in send_all(lanes, now_ms):
            answered(lanes, claimed.key, Sent(200), now_ms)
            if rng.random() < 0.2:
                lanes.again(replace(self.letters[claimed.id], due_ms=now_ms + 100), now_ms)
            else:
                self.waiting.discard(claimed.id)
                self.sent.append(claimed.id)
                lanes.forget(claimed.id)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_heard_of_when_all_go_in_their_order(seed: int) -> None:
    """A table of letters, of which some fail, noticed in any order by a small memory."""
    rng, now_ms = Random(seed), NOW
    table = Table({one.id: one for one in (a_letter(n, to=rng.choice("abc")) for n in range(150))})
    table.waiting.update(table.letters)
    lanes = lanes_with(LaneLimits(known_per_lane=20))
    news = sorted(table.letters.values(), key=lambda one: (one.place[2] // 40, rng.random()))

    for _ in range(4_000):
        if news and rng.random() < 0.5:
            lanes.add(news.pop(0), now_ms)
        table.read(lanes, now_ms)
        lanes.wake(now_ms)
        table.claim(lanes, now_ms)
        table.send(lanes, now_ms, rng)
        now_ms += rng.choice((0, 10, 50))

    assert table.waiting == set()
    for recipient in "abc":
        sent = table.to(recipient, table.sent)
        assert sent == sorted(sent)
    assert lanes.known_count == 0
    assert lanes.is_settled(now_ms)
