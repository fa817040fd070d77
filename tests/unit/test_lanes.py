"""Whose delivery has its turn."""

from engine.connectors.contract import Retry, Sent
from engine.lanes import HORIZON_MS, LaneLimits, Lanes
from engine.store.deliveries import Claimed, Key, Pending

A, B, C = ("prj", "A"), ("prj", "B"), ("prj", "C")
NOW = 1_000_000


def lanes_with(limits: LaneLimits | None = None, **counts: int) -> Lanes:
    lanes = Lanes(limits or LaneLimits())
    lanes.sweep_begins()
    for name, count in counts.items():
        for number in range(count):
            lanes.add(Pending(id=f"{name}{number:03}", key=("prj", name), due_ms=NOW), NOW)
    lanes.wake(NOW)
    return lanes


def claim(lanes: Lanes, now_ms: int = NOW) -> list[str]:
    asked = lanes.to_claim(now_ms)
    lanes.claimed(asked, [a_claimed(delivery_id, key) for delivery_id, key in asked])
    return [delivery_id for delivery_id, _ in asked]


def a_claimed(delivery_id: str, key: Key) -> Claimed:
    return Claimed(
        id=delivery_id,
        key=key,
        kind="slack",
        payload="{}",
        attempts=0,
        due_ms=NOW,
        connection=None,
    )


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


def test_at_most_eight_at_once_and_four_per_connection() -> None:
    """However much waits."""
    lanes = lanes_with(A=50, B=50, C=50)

    claim(lanes)
    sent = send_all(lanes)

    assert len(sent) == 8
    assert max(sum(claimed.key == key for claimed in sent) for key in (A, B, C)) <= 4


def test_a_provider_that_asks_for_patience_gets_it() -> None:
    """Until then nothing goes out, and what was claimed is handed back without an attempt."""
    lanes = lanes_with(A=20)
    claim(lanes)
    send_all(lanes)

    unsent = lanes.answered(A, Retry(30_000, 429, "slow down"), NOW)

    assert [claimed.id for claimed in unsent] == ["A004", "A005", "A006", "A007"]
    assert claim(lanes) == []
    assert lanes.next_wake_ms(NOW) == NOW + 30_000
    for _ in range(3):
        lanes.answered(A, Retry(None, 500, "x"), NOW)
    assert len(claim(lanes, NOW + 30_000)) == 2
    assert len(send_all(lanes, NOW + 30_000)) == 1


def test_each_success_widens_a_narrow_lane() -> None:
    """So a provider that recovers is used to the full again."""
    lanes = lanes_with(A=30)
    claim(lanes)
    for claimed in send_all(lanes):
        lanes.answered(claimed.key, Retry(None, 503, "x"), NOW)
        lanes.forget(claimed.id)

    widths = []
    for _ in range(4):
        claim(lanes)
        sent = send_all(lanes)
        widths.append(len(sent))
        lanes.answered(A, Sent(200), NOW)
        for claimed in sent:
            lanes.forget(claimed.id)
        for _ in sent[1:]:
            lanes.answered(A, Sent(200), NOW)

    assert widths == [1, 2, 4, 4]


def test_hanging_providers_leave_half_of_the_places() -> None:
    """Seven broken connections cannot stop an eighth that works."""
    lanes = lanes_with(**{f"broken{n}": 20 for n in range(7)})
    for _ in range(20):
        claim(lanes)
        for claimed in send_all(lanes):
            lanes.answered(claimed.key, Retry(None, None, "timeout"), NOW)
    claim(lanes)
    hanging = send_all(lanes)

    for number in range(10):
        lanes.add(Pending(id=f"B{number}", key=B, due_ms=NOW), NOW)
    lanes.wake(NOW)
    claim(lanes)
    sent = send_all(lanes)

    assert len(hanging) == 4
    assert {claimed.key for claimed in sent} == {B}
    assert len(sent) == 4


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
            lanes.answered(claimed.key, Sent(200), NOW)
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

    lanes.claimed(asked, [])

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
            lanes.answered(claimed.key, Sent(200), NOW)
            lanes.forget(claimed.id)
    claim(lanes)

    assert lanes._lanes == {}
    assert lanes.known_count == 0
