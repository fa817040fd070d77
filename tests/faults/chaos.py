"""Kills, pauses and restarts all parts of a cluster under load, and counts afterwards.

Path:   test_chaos, benchmarks/chaos.py -> `run_chaos` -> plan, clients, `Injector` -> the audit
Never:  changes what is promised: a fault may cost time, never an event, a job or an effect.
"""

import contextlib
import json
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from random import Random
from typing import Final

import psutil

from tests.faults.clients import Answers, Clients
from tests.faults.cluster import Cluster, Node
from tests.faults.cluster_audit import Finding, audit, stray_nodes, unfinished
from tests.faults.plan import OF_AN_API, Fault, Step, make_plan
from tests.faults.provider import Provider
from tests.faults.site import furnish, make_jobs, sendings

LOOK_S: Final = 0.05  # between two looks at other processes
LEARN_S: Final = 2.0
PUT_OFF_S: Final = 0.5
STRAYS_LEASES: Final = 3.0  # by then every dead node has been taken over
SHOWN_MAX: Final = 5
LOGGED: Final = {  # events in the nodes' logs -> what they are called in the report
    "node_taken_over": "nodes taken over",
    "node_was_taken_over": "leases lost",
    "run_not_ours": "runs whose end was void",
    "redis_lost": "losses of Redis noticed",
    "database_gone": "losses of PostgreSQL noticed",
    "outbox_recovered": "outboxes that took up interrupted deliveries",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much of everything."""

    events: int
    jobs: int
    faults: int
    seconds: float  # that faults and load are spread over
    settle_s_max: float
    clients: int = 12
    apis: int = 2
    workers: int = 3
    lease_s: float = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was done, what it caused, and whether everything is there."""

    seed: int
    faults: Counter[str]
    observed: dict[str, float]
    answers: Answers
    findings: list[Finding]
    stuck: list[str]
    logs: dict[str, str]  # by node, for whoever has to find out

    @property
    def broken(self) -> list[str]:
        """Return every promise that was not kept; empty: all were."""
        found = [f"{one.promise}: {len(one.broken)} times not so: {one.broken[:SHOWN_MAX]}"
                 for one in self.findings if one.broken]  # fmt: skip
        if self.answers.refusals:
            found.append(f"refused: {self.answers.refusals[:SHOWN_MAX]}")
        if self.answers.lost:
            found.append(f"never accepted: {sorted(self.answers.lost)[:SHOWN_MAX]}")
        return [*self.stuck, *found]

    def lines(self) -> list[str]:
        table = [("seed", f"{self.seed}"), ("FAULTS INJECTED", f"{self.faults.total()}")]
        table += [(f"  {fault}", f"{self.faults[fault]}") for fault in Fault]
        table += [("OBSERVED", "")]
        table += [(f"  {what}", f"{number:g}") for what, number in self.observed.items()]
        table += [("AUDIT", "broken")]
        rows = [f"{what:<58} {figure:>12}" for what, figure in table]
        rows += [f"  {one.promise:<56} {one.count:>6} {len(one.broken):>5}"
                 for one in self.findings]  # fmt: skip
        return rows


class Injector:
    """Carries a plan out, one step after the other."""

    def __init__(self, cluster: Cluster, plan: list[Step], rng: Random) -> None:
        self.counts: Counter[str] = Counter()
        self.restarts_count = 0  # of nodes that had ended by themselves
        self.recovery_s_most = 0.0
        self._cluster = cluster
        self._rng = rng
        self._nodes = {node.name: node for node in cluster.nodes}
        self._due: list[tuple[float, int, Callable[[], None]]] = []  # number: ties keep their order
        self._count = 0
        for step in plan:
            self._at(step.at_s, lambda step=step: self._begin(step))

    def run(self) -> None:
        """Return when the last fault is over and every process runs."""
        began_s = time.monotonic()
        while self._due:
            at_s, _, act = self._due[0]
            wait_s = began_s + at_s - time.monotonic()
            if wait_s > 0:
                time.sleep(min(wait_s, LOOK_S))  # the plan's own pace
                self.restarts_count += self._cluster.keep_up()
                continue
            heappop(self._due)
            act()
        for node in self._cluster.nodes:
            self._start(node)

    def _at(self, at_s: float, act: Callable[[], None]) -> None:
        self._count += 1
        heappush(self._due, (at_s, self._count, act))

    def _begin(self, step: Step) -> None:
        if step.fault in OF_AN_API and not self._another_answers(step.target):
            # It starts more slowly than planned; with no API at all, nothing would be accepted.
            later = replace(step, at_s=step.at_s + PUT_OFF_S, until_s=step.until_s + PUT_OFF_S)
            self._at(later.at_s, lambda: self._begin(later))
            return
        end = self._inject(step)
        if end is None:
            return
        self.counts[step.fault] += 1
        self._at(step.until_s, end)

    def _inject(self, step: Step) -> Callable[[], None] | None:
        """Do it; return what ends it, or None if there was nothing that it could befall."""
        cluster = self._cluster
        match step.fault:
            case Fault.WORKER_KILLED | Fault.API_KILLED:
                node = self._running(step.target)
                node.wanted = False
                node.kill()
                return lambda: self._start(node)
            case Fault.WORKER_STOPPED:
                node = self._running(step.target)
                node.terminate()
                return lambda: self._start(node)
            case Fault.WORKER_PAUSED | Fault.API_PAUSED:
                node = self._running(step.target)
                node.pause()
                return node.resume
            case Fault.CELL_KILLED:
                return _nothing if self._kill_cell() else None
            case Fault.REDIS_FLUSHED:
                cluster.redis.flush()
                return _nothing
            case Fault.REDIS_RESTARTED:
                cluster.redis.stop()
                return cluster.redis.start
            case Fault.POSTGRES_CRASHED:
                cluster.postgres.stop()
                return self._start_postgres
            case Fault.POSTGRES_RESTARTED:
                process = cluster.postgres.process
                assert process is not None
                process.send_signal(signal.SIGINT)  # "fast": no new sessions, all are ended
                process.wait()
                cluster.postgres.stop()
                return self._start_postgres

    def _another_answers(self, name: str) -> bool:
        return any(node.url is not None for node in self._cluster.apis if node.name != name)

    def _start_postgres(self) -> None:
        began_s = time.monotonic()
        self._cluster.postgres.start()
        self.recovery_s_most = max(self.recovery_s_most, time.monotonic() - began_s)

    def _running(self, name: str) -> Node:
        node = self._nodes[name]
        self._start(node)
        return node

    def _start(self, node: Node) -> None:
        node.wait_until_ended()
        if not node.is_running:
            node.start()

    def _kill_cell(self) -> bool:
        cells = [cell for node in self._cluster.nodes if node.is_running for cell in node.cells()]
        with contextlib.suppress(psutil.NoSuchProcess, IndexError):
            self._rng.choice(cells).kill()
            return True
        return False


def run_chaos(seed: int, size: Size, say: Callable[[str], None] = print) -> Report:
    """Run it once, from an empty cluster to the audit."""
    rng = Random(seed)
    with Provider() as provider, Cluster(
        apis_count=size.apis, workers_count=size.workers, lease_s=size.lease_s
    ) as cluster:  # fmt: skip
        site = furnish(cluster, provider.url)
        time.sleep(LEARN_S)  # until then a node that was not asked may not know of a new trigger
        jobs = make_jobs(site, size.jobs, rng)
        lanes = sendings(
            site, size.events, jobs, clients=size.clients, seconds=size.seconds, rng=rng
        )
        clients = Clients(cluster, lanes, rng)
        plan = make_plan(
            rng,
            seconds=size.seconds,
            count=size.faults,
            workers=[node.name for node in cluster.workers],
            apis=[node.name for node in cluster.apis],
            lease_s=size.lease_s,
        )
        for step in plan:
            say(f"{step.at_s:7.1f} s to {step.until_s:6.1f} s  {step.fault} {step.target}")
        injector = Injector(cluster, plan, rng)
        began_s = time.monotonic()
        with clients.running() as answers:
            injector.run()
        sent_s = time.monotonic()
        stuck = _settle(cluster, size)
        settled_s = time.monotonic()
        stuck += _strays(cluster, size)
        accepted = answers.accepted
        findings = audit(
            cluster.rows,
            accepted,
            [job for job in jobs if job.item in accepted],
            provider,
            events_count=size.events,
        )
        observed = {
            "seconds under load": round(sent_s - began_s, 1),
            "seconds to settle after it": round(settled_s - sent_s, 1),
            **_observed(cluster),
            "longest start of PostgreSQL, in seconds": round(injector.recovery_s_most, 1),
            "nodes that ended by themselves": injector.restarts_count,
            "requests sent again": answers.again_count,
            "messages that came to the provider again": provider.again_count,
            "messages refused by the provider once": provider.refused_count,
            **{
                f"answers: {name}": float(number)
                for name, number in sorted(answers.statuses.items())
            },
        }
        return Report(
            seed=seed,
            faults=injector.counts,
            observed=observed,
            answers=answers,
            findings=findings,
            stuck=stuck,
            logs={node.name: node.log() for node in cluster.nodes},
        )


def _settle(cluster: Cluster, size: Size) -> list[str]:
    """Wait until nothing is queued, running or on its way; return what is there for ever."""
    deadline = time.monotonic() + size.settle_s_max
    while left := unfinished(cluster.rows):
        if time.monotonic() > deadline:
            return [f"stuck: {number} {what}" for what, number in left]
        cluster.keep_up()
        time.sleep(LOOK_S)  # the nodes are other processes, so the tables have to be asked
    return []


def _strays(cluster: Cluster, size: Size) -> list[str]:
    deadline = time.monotonic() + STRAYS_LEASES * size.lease_s
    while left := stray_nodes(cluster):
        if time.monotonic() > deadline:
            return [f"nodes of dead processes: {left}"]
        time.sleep(LOOK_S)  # as above
    return []


def _observed(cluster: Cluster) -> dict[str, float]:
    """Return what the nodes logged: their counters went with their processes."""
    found: Counter[str] = Counter(dict.fromkeys(LOGGED.values(), 0))
    for event in _events(cluster.nodes):
        name = LOGGED.get(event.get("event", ""))
        if name is not None:
            found[name] += 1
        if event.get("event") == "node_taken_over":
            found["runs that were taken over"] += event["runs"]
            found["deliveries that were taken over"] += event["deliveries"]
    ((retried,),) = cluster.rows("SELECT count(*) FROM executions WHERE attempt > 1")
    ((again,),) = cluster.rows("SELECT count(*) FROM delivery_attempts WHERE attempt > 1")
    found["attempts after a failure"] = retried
    found["deliveries tried again"] = again
    return dict(found)


def _events(nodes: Iterable[Node]) -> Iterable[dict[str, object]]:
    for node in nodes:
        for line in node.log().splitlines():
            if line.startswith("{"):
                yield json.loads(line)


def _nothing() -> None:
    """End what was over at once."""
