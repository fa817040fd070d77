"""The database can take nothing more for a while: RLIMIT_FSIZE below the size of its files.

Every write past it fails with EFBIG then, as it would with ENOSPC on a full disk; smaller files
(the log of the engine) and sockets go on working.
"""

# ruff: noqa: T201 - seeds and the counts of what was injected are printed

import resource
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from examples.slack_stand_in import SlackStandIn
from tests.conftest import Engine
from tests.faults.audit import DATABASE, audit, settled
from tests.faults.load import Load, Site, furnish

FULL_S = 1.5
FULL_BYTES = 512 * 1024  # more than all that is written to stderr meanwhile


def fill(engine: Engine) -> None:
    _limit(engine, FULL_BYTES)


def empty(engine: Engine) -> None:
    _limit(engine, resource.RLIM_INFINITY)


def _limit(engine: Engine, size: int) -> None:
    process = psutil.Process(engine.process.pid)
    process.rlimit(psutil.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@pytest.mark.slow
def test_full_disk_refuses_and_recovers(own_engine: Callable[..., Engine]) -> None:
    """Meanwhile writes get 503 store_failed and leave nothing behind; afterwards all goes on."""
    with SlackStandIn() as slack:
        engine = own_engine()
        load = Load(furnish(engine, slack.webhook_url))

        with load.running(write=2, thing=1, gateway=1, job=2, call=1):
            load.rest(1.0)
            fill(engine)
            load.rest(FULL_S)
            empty(engine)
            load.rest(0.5)
        settled(engine)

        statuses = load.promises.statuses
        print(f"the disk was full for {FULL_S} s; {statuses}")
        assert set(statuses) == {
            "write 201", "write 503", "thing 201", "thing 503", "gateway 200", "gateway 503",
            "job 202", "job 503", "call 200",
        }  # fmt: skip
        refusals = [body for body in load.promises.bodies if "type" in body]
        assert {body["code"] for body in refusals} == {"store_failed"}
        received = audit(engine, load.promises, slack)
        assert set(received.values()) == {1}


@pytest.mark.slow
def test_resource_refused_once_is_listed_later(own_engine: Callable[..., Engine]) -> None:
    """A key whose first write the full disk refused is listed once a later write is stored."""
    with SlackStandIn() as slack:
        engine = own_engine()
        site = furnish(engine, slack.webhook_url)
        grow(site)
        token = site.devices[0]["token"]
        body = {"values": [{"key": "late", "value": 1}]}

        fill(engine)
        refused = engine.client.post(f"/v2/things/{token}", json=body)
        empty(engine)
        engine.ok("POST", f"/v2/things/{token}", body)

        assert refused.status_code == 503
        listed = engine.client.get(f"/v2/things/{token}/resources").text
        assert '"late"' in listed


@pytest.mark.slow
def test_call_whose_effects_are_refused_says_store_failed(
    own_engine: Callable[..., Engine],
) -> None:
    """The function succeeded, the database did not: 503 store_failed, and no effect of it."""
    with SlackStandIn() as slack:
        engine = own_engine()
        site = furnish(engine, slack.webhook_url)
        grow(site)
        device_id = site.devices[0]["id"]
        params = {"device": device_id, "item": "one"}

        fill(engine)
        refused = engine.invoke("note", params)
        empty(engine)
        noted = engine.ok("GET", f"/v1/devices/{device_id}/values", params={"key": "noted"})

        assert (refused.status_code, refused.json()["code"]) == (503, "store_failed")
        assert noted["items"] == []
        assert slack.messages == []


def grow(site: Site) -> None:
    """Write until the write-ahead log is past the limit, so that its next write fails."""
    wal = Path(f"{site.engine.data_dir / DATABASE}-wal")
    device_id = site.devices[0]["id"]
    body = {"values": [{"key": "ballast", "value": "x" * 60_000}]}
    while wal.stat().st_size < 2 * FULL_BYTES:
        site.engine.ok("POST", f"/v1/devices/{device_id}/values", body)
