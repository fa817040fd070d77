"""The whole engine is killed in the middle of its work and started on the same directory again."""

# ruff: noqa: T201 - seeds and the counts of what was injected are printed

import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from examples.slack_stand_in import SlackStandIn
from tests.conftest import Engine
from tests.faults.audit import audit, copy_of_database, is_sound, sending, settled
from tests.faults.load import Load, furnish

KILLS = 4
BETWEEN_KILLS_S = (0.2, 0.9)


@pytest.mark.slow
def test_kill_loses_and_doubles_nothing(own_engine: Callable[..., Engine], tmp_path: Path) -> None:
    """What was acknowledged is there once; what was not is there completely or not at all."""
    seed = time.time_ns()
    print(f"seed {seed}")
    rng = Random(seed)
    maybe_twice: set[str] = set()  # their delivery was on its way when the engine died
    with SlackStandIn() as slack:
        engine = own_engine()
        load = Load(furnish(engine, slack.webhook_url), pace_s=0.02)

        with load.running(write=2, thing=2, gateway=2, job=2):
            for _ in range(KILLS):
                load.rest(rng.uniform(*BETWEEN_KILLS_S))
                load.up.clear()
                engine.kill()
                with copy_of_database(engine.data_dir, tmp_path / "copy") as left:
                    assert is_sound(left)
                    maybe_twice |= sending(left)
                engine.start()
                load.up.set()
            load.rest(0.3)
        settled(engine)

        received = audit(engine, load.promises, slack)
        twice = {item for item, number in received.items() if number > 1}
        unanswered = len(load.promises.maybe_writes | load.promises.maybe_runs)
        print(
            f"{KILLS} kills; {load.promises.statuses}; {unanswered} items unanswered;"
            f" {len(maybe_twice)} deliveries on their way at a kill, {len(twice)} came twice"
        )
        assert load.promises.bodies == []
        assert 'cloudcode_held{kind="runs"} 0.0' in engine.client.get("/metrics").text
        assert len(load.promises.writes) > 100
        assert len(load.promises.runs) > 20
        assert twice <= maybe_twice
        assert max(received.values()) <= 1 + KILLS
