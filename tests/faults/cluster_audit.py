"""Holds what a cluster stored against what it promised: all of it, once, and nothing by half.

Path:   chaos, when the load is over -> `unfinished` until it is empty -> `audit`
Never:  asks an engine: it reads the tables, and what the provider got.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any, Final

from tests.faults.cluster import Cluster
from tests.faults.provider import Provider
from tests.faults.site import CHAINS_COUNT, DOOMED_ATTEMPTS, Job, chain_items

SHOWN_MAX: Final = 5
Rows = Callable[[str], list[tuple[Any, ...]]]

UNFINISHED: Final = """
SELECT 'runs queued of ' || function_id || ' ' || cause, count(*) FROM run_queue GROUP BY 1
UNION ALL
SELECT 'deliveries ' || state, count(*) FROM deliveries
  WHERE state NOT IN ('delivered', 'failed', 'cancelled') GROUP BY 1
UNION ALL
SELECT 'jobs ' || status, count(*) FROM jobs WHERE ended_ms IS NULL GROUP BY 1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One promise: how often it was looked at, and where it was broken."""

    promise: str
    count: int
    broken: list[str]


def unfinished(rows: Rows) -> list[tuple[str, int]]:
    """Return what still has to run or to be sent, and how much of it."""
    return [(what, count) for what, count in rows(UNFINISHED)]


def audit(
    rows: Rows,
    accepted: Collection[str],
    jobs: Collection[Job],
    provider: Provider,
    *,
    events_count: int,
) -> list[Finding]:
    """Look at every promise.

    Args:
        rows: runs a query.
        accepted: items that were.
        jobs: those that were accepted.
        provider: what came to it.
        events_count: as it was given to `sendings`.
    """
    executions = _executions(rows)
    values = _values(rows)
    events = [item for item in accepted if item.startswith("event-")]
    stored = [item for item in accepted if not item.startswith("job-")]
    return [
        _once("accepted events are stored", stored, _stored_events(rows)),
        _once("... each value of theirs", stored, values["item"]),
        _once("... ran their trigger's function to success", events, executions["seen"]),
        _once("... whose write is there", events, values["seen"]),
        _once("... whose key is in KV", events, _kv(rows)),
        _once("... whose call has run", events, executions["note"]),
        _once("... with its own write", events, values["noted"]),
        _once("... whose delivery is there", events, _deliveries(rows)),
        _once("... and came under one webhook-id", events, _messages(provider)),
        _attempted(rows, provider),
        _chained(rows, accepted, events_count),
        _once("jobs have ended, well or as planned", _planned(jobs), _ended(rows)),
        _once("... with their write if they succeeded", _good(jobs), values["done"]),
        _once("... and one successful attempt", _good(jobs), executions["work"]),
        _once("... with their write if in a batch", _good(jobs, piled=True), values["piled"]),
        _once("... or a dead letter", [job.item for job in jobs if job.doomed], _dead(rows)),
        _once(
            "attempts of each job are numbered without a gap",
            [job.item for job in jobs if not job.piled],
            _numbered(rows),
        ),
        _once("each event's runs are two, under one root", *_roots(rows)),
    ]


def stray_nodes(cluster: Cluster) -> list[str]:
    """Return the rows of `nodes` whose process is not there."""
    alive = {node.pid for node in cluster.nodes if node.is_running}
    return [f"{kind} {pid}" for kind, pid in cluster.rows("SELECT kind, pid FROM nodes")
            if pid not in alive]  # fmt: skip


def _once(promise: str, wanted: Collection[str], found: Counter[str]) -> Finding:
    """Compare what must be there once with what is there."""
    doubled = [f"{item} {number} times" for item, number in found.items() if number > 1]
    missing = [f"{item} is missing" for item in wanted if item not in found]
    wanted_set = set(wanted)
    foreign = [f"{item} is there, nobody asked for it" for item in found if item not in wanted_set]
    return Finding(promise=promise, count=len(wanted_set), broken=doubled + missing + foreign)


def _stored_events(rows: Rows) -> Counter[str]:
    found = rows("SELECT payload FROM events WHERE source <> 'function'")
    return Counter(json.loads(row[0])["values"][0]["value"] for row in found)


def _values(rows: Rows) -> defaultdict[str, Counter[str]]:
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for key, value in rows('SELECT "key", value FROM "values"'):
        found[key][json.loads(value)] += 1
    return found


def _executions(rows: Rows) -> defaultdict[str, Counter[str]]:
    """Return the items of the runs of each function that succeeded."""
    query = (
        "SELECT x.function, x.input, e.payload FROM executions x"
        " LEFT JOIN events e ON e.id = x.event_id WHERE x.status = 'succeeded'"
    )
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for function, given, payload in rows(query):
        if function == "pile":
            continue  # a batch, of many items
        item = json.loads(given)["item"] if given else json.loads(payload)["values"][0]["value"]
        found["work" if function == "narrow" else function][item] += 1
    return found


def _kv(rows: Rows) -> Counter[str]:
    found = rows('SELECT "key", value FROM kv WHERE "key" LIKE \'seen/%\'')
    return Counter(json.loads(value) for key, value in found if key == f"seen/{json.loads(value)}")


def _attempted(rows: Rows, provider: Provider) -> Finding:
    """Whatever came, and came again, must be an attempt that is on record."""
    query = "SELECT delivery_id, count(*) FROM delivery_attempts GROUP BY 1"
    attempts: dict[str, int] = dict(rows(query))
    broken = [
        f"{webhook_id} came {number} times, after {attempts.get(webhook_id, 0)} attempts"
        for webhook_id, number in provider.arrivals.items()
        if number > attempts.get(webhook_id, 0)
    ]
    what = "... no more often than was tried"
    return Finding(promise=what, count=len(provider.arrivals), broken=broken)


def _chained(rows: Rows, accepted: Collection[str], events_count: int) -> Finding:
    """Compare what the runs of each chained device have left with what it sent, in that order."""
    found = rows("SELECT value FROM kv WHERE \"key\" LIKE 'chain/%'")
    chains = {_number(chain[0]): chain for chain in (json.loads(value) for (value,) in found)}
    broken = []
    for number in range(CHAINS_COUNT):
        sent = [item for item in chain_items(number, events_count) if item in accepted]
        left = chains.get(number, [])
        if left != sent:
            pairs = enumerate(zip(left, sent, strict=False))
            at = next((at for at, (one, other) in pairs if one != other), -1)
            broken.append(f"{len(left)} of {len(sent)}, and from {at} on: {left[at:][:SHOWN_MAX]}")
    return Finding(promise="ordered events ran in order", count=CHAINS_COUNT, broken=broken)


def _number(item: str) -> int:
    return int(item.split("-")[1])


def _deliveries(rows: Rows) -> Counter[str]:
    found = rows("SELECT payload FROM deliveries WHERE state = 'delivered'")
    return Counter(json.loads(row[0])["item"] for row in found)


def _messages(provider: Provider) -> Counter[str]:
    return Counter({item: len(ids) for item, ids in provider.ids.items()})


def _ended(rows: Rows) -> Counter[str]:
    found = rows("SELECT payload, status FROM jobs")
    return Counter(f"{json.loads(payload)['item']} {status}" for payload, status in found)


def _planned(jobs: Iterable[Job]) -> list[str]:
    return [f"{job.item} {'dead_lettered' if job.doomed else 'succeeded'}" for job in jobs]


def _dead(rows: Rows) -> Counter[str]:
    found = rows("SELECT payload, attempts FROM dead_letters")
    return Counter(json.loads(text)["item"] for text, number in found if number == DOOMED_ATTEMPTS)


def _numbered(rows: Rows) -> Counter[str]:
    query = (
        "SELECT j.payload, j.attempts, count(*), min(x.attempt), max(x.attempt) FROM jobs j"
        " JOIN executions x ON x.job_id = j.id GROUP BY j.id"
    )
    found: Counter[str] = Counter()
    for payload, attempts, number, first, last in rows(query):
        if (first, last, number) == (1, attempts, attempts):
            found[json.loads(payload)["item"]] += 1
    return found


def _roots(rows: Rows) -> tuple[list[str], Counter[str]]:
    query = (
        "SELECT (report::json)->>'root_id', count(*) FROM executions"
        " WHERE function IN ('seen', 'note') AND status = 'succeeded' GROUP BY 1"
    )
    counts = dict(rows(query))
    return list(counts), Counter(root for root, number in counts.items() if number == 2)


def _good(jobs: Iterable[Job], *, piled: bool = False) -> list[str]:
    return [job.item for job in jobs if not job.doomed and job.piled == piled]
