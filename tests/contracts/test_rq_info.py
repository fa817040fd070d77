"""What an operator sees with RQ's own tools."""

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.rq_node import ALIVE_S
from jobs.tickets import Ticket
from tests.standins.servers import Redis
from tests.standins.ticket_ends import rq_ends

pytestmark = pytest.mark.slow  # starts programs

RQ = Path(sys.executable).with_name("rq")


@pytest.fixture
def server() -> Iterator[Redis]:
    """One for each test: `rq info` shows everything that is in it."""
    with Redis() as running:
        yield running


def rq_info(server: Redis) -> str:
    shown = subprocess.run(
        [RQ, "info", "--raw", "--url", server.url], capture_output=True, text=True, check=True
    )
    return shown.stdout


async def test_queues_and_workers_are_shown(server: Redis) -> None:
    """Three queues from the start; the worker by its node's id, and what it has done."""
    async with rq_ends(server.url, "node_shown") as ends:

        def take(ticket: Ticket) -> None:
            if ticket.project_id == "prj_broken":
                raise ZeroDivisionError

        ends.on_take = take
        for ticket in (Ticket("prj_a", 1), Ticket("prj_b", 1), Ticket("prj_broken", 0)):
            ends.tickets.issue(ticket)
            await ends.next()
        ends.tickets.issue(Ticket("prj_a", 2))
        await ends.next()  # by now what came before is in the books

        shown = rq_info(server)

    assert re.search(
        rf"^queue {ends.prefix}-high 0, 0 executing, 0 finished, 1 failed", shown, re.MULTILINE
    )
    assert re.search(
        rf"^queue {ends.prefix}-default 0, 0 executing, 2 finished", shown, re.MULTILINE
    )
    assert re.search(rf"^queue {ends.prefix}-low 0, ", shown, re.MULTILINE)
    assert re.search(r"^worker node_shown \(", shown, re.MULTILINE)
    assert f"{ends.prefix}-high, {ends.prefix}-default, {ends.prefix}-low." in shown
    assert re.search(r"jobs: [23] finished, 1 failed", shown)


async def test_a_ticket_in_hand_is_shown(server: Redis) -> None:
    """A worker that waits for its database is seen to be busy."""
    go_on = threading.Event()
    async with rq_ends(server.url, "node_busy") as ends:
        ends.on_take = lambda _: go_on.wait(10) and None
        ends.tickets.issue(Ticket("prj_a", 1))
        await ends.next()

        shown = rq_info(server)
        go_on.set()

    assert f"queue {ends.prefix}-default 0, 1 executing" in shown
    assert re.search(r"^worker node_busy \(.*\) busy ", shown, re.MULTILINE)


async def test_a_worker_that_stopped_is_not_shown(server: Redis) -> None:
    """It takes leave."""
    async with rq_ends(server.url, "node_gone") as ends:
        ends.tickets.issue(Ticket("prj_a", 1))
        await ends.next()
        assert "node_gone" in rq_info(server)

    assert "node_gone" not in rq_info(server)


async def test_a_worker_that_died_is_forgotten(server: Redis) -> None:
    """Every sign of life ends by itself within a minute and a half."""
    async with rq_ends(server.url, "node_dead") as ends:
        ends.tickets.issue(Ticket("prj_a", 1))
        await ends.next()

        with server.client() as client:
            left_s = client.ttl("rq:worker:node_dead")
            client.delete("rq:worker:node_dead")  # as Redis does then

        assert 0 < left_s <= ALIVE_S + 60 <= 90
        assert "node_dead" not in rq_info(server)


async def test_a_new_life_has_a_new_name(server: Redis) -> None:
    """A node that was declared dead goes on under another id; the old one leaves the list."""
    async with rq_ends(server.url, "node_old") as ends:
        ends.tickets.issue(Ticket("prj_a", 1))
        await ends.next()
        assert ends.worker is not None

        ends.worker.rename("node_new")
        ends.tickets.issue(Ticket("prj_b", 1))  # ends the wait of the old one
        await ends.next()
        ends.tickets.issue(Ticket("prj_c", 1))
        await ends.next()

        shown = rq_info(server)

    assert "node_new" in shown
    assert "node_old" not in shown
