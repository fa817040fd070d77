"""What people do with deliveries: send them again, cancel, hold and release one, or all that match.

Path:   api.deliveries, engine.connections -> here -> store.delivery_actions -> journal -> outbox
Never:  touches what is being sent right now; changes what was made after it was asked
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Final, Protocol

from engine.control import Control
from engine.deliveries import State
from engine.errors import Conflict, Invalid, NotFound
from engine.quotas import BULK_RUNS_MAX
from engine.replays import SHOWN, Done
from engine.store.delivery_actions import CHANGES, Acted, Action, act
from engine.store.delivery_views import DeliveryFilter, Place, count, places

STEP: Final = 500  # deliveries of one transaction
_FAILED: Final = frozenset({State.FAILED, State.CANCELLED})


class Outbox(Protocol):
    """Port: sends what runs left behind."""

    def notice(self, delivery_ids: Collection[str]) -> None:
        """Take note of deliveries that were just committed as due. Never blocks, never raises."""
        ...


class Sender(Control, Protocol):
    """Port: what changing deliveries needs besides."""

    @property
    def outbox(self) -> Outbox: ...

    def outbox_node(self) -> str | None:
        """Return whose outbox has what is sent again by hand; None: there is only one node."""
        ...


async def change_one(sender: Sender, project_id: str, delivery_id: str, action: Action) -> State:
    """Do `action` with one delivery; return its state then. Asked once more, nothing changes.

    Raises:
        NotFound: the project has none of that id.
        Conflict: it is being sent right now, or in a state that does not allow it.
    """
    acted = await _act(sender, project_id, [delivery_id], action)
    if delivery_id not in acted.states:
        raise NotFound("delivery", delivery_id)
    if delivery_id in acted.refused:
        raise Conflict(f"delivery {delivery_id}: {acted.refused[delivery_id]}")
    return acted.states[delivery_id]


def states_for(action: Action, asked: State | None) -> tuple[State, ...]:
    """Return of which states a request about many takes deliveries.

    What was delivered is sent again only where that is said.

    Raises:
        Invalid: `action` can do nothing with those of the state that is asked for.
    """
    able = CHANGES[action].before
    if asked is None:
        return tuple(sorted(able & _FAILED if action is Action.RESEND else able))
    if asked not in able:
        raise Invalid(
            f"{asked.value!r} is none of {', '.join(sorted(able))}: others cannot be "
            f"{CHANGES[action].past}",
            "/filter/state",
        )
    return (asked,)


async def count_matching(sender: Sender, project_id: str, wanted: DeliveryFilter) -> int:
    """Return how many deliveries match.

    Raises:
        Invalid: more than one request may be about.
    """
    found = await sender.database.read(count, project_id, wanted)
    if found > BULK_RUNS_MAX:
        raise Invalid(
            f"{found} deliveries match; one request takes up to {BULK_RUNS_MAX}: narrow the "
            "filter, for example by since and until",
            "/filter",
        )
    return found


async def first_ids(sender: Sender, project_id: str, wanted: DeliveryFilter) -> list[str]:
    """Return the ids of the oldest deliveries that match, as many as are shown."""
    found = await sender.database.read(places, project_id, wanted, limit=SHOWN)
    return [delivery_id for _, delivery_id in found]


async def change_matching(
    sender: Sender, project_id: str, action: Action, wanted: DeliveryFilter, *, clear: bool = True
) -> Done:
    """Do `action` with all deliveries that match and were made before it began, oldest first."""
    now_ms = sender.clock()
    until_ms = now_ms + 1 if wanted.until_ms is None else min(now_ms + 1, wanted.until_ms)
    wanted = replace(wanted, until_ms=until_ms)
    if action in (Action.CANCEL, Action.HOLD) and wanted.states is not None:
        wanted = replace(wanted, states=(*wanted.states, State.SENDING))  # to tell of them
    done, after = Done(), None
    while step := await _next(sender, project_id, wanted, after):
        ids = [delivery_id for _, delivery_id in step]
        acted = await _act(sender, project_id, ids, action, clear=clear)
        done.count += len(acted.changed)
        done.ids = [*done.ids, *acted.changed][:SHOWN]
        done.skipped_count += len(acted.refused)
        done.skipped = dict([*done.skipped.items(), *acted.refused.items()][:SHOWN])
        after = step[-1]
    return done


async def _next(
    sender: Sender, project_id: str, wanted: DeliveryFilter, after: Place | None
) -> list[Place]:
    return await sender.database.read(places, project_id, wanted, after=after, limit=STEP)


async def _act(
    sender: Sender, project_id: str, ids: list[str], action: Action, *, clear: bool = True
) -> Acted:
    acted: Acted = await sender.journal.run(
        act,
        project_id,
        ids,
        action,
        now_ms=sender.clock(),
        node_id=sender.outbox_node(),
        clear=clear,
    )
    if acted.changed:
        sender.outbox.notice(acted.changed)
    return acted
