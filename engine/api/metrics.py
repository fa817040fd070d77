"""`/metrics`: the platform's plain counters in Prometheus' words. No label ever names a device."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from engine.api.openapi import problems
from engine.api.platform import Histogram, Metrics, PlatformHere, Samples

router = APIRouter(tags=["operations"])

COUNTER: Final = "counter"
GAUGE: Final = "gauge"
HISTOGRAM: Final = "histogram"


@dataclass(frozen=True, slots=True)
class Family:
    """One metric: what it is, and its labels in the order of a sample's key."""

    kind: str
    help: str
    labels: tuple[str, ...] = ()


FAMILIES: Final[Mapping[str, Family]] = {
    "cloudcode_executions_total": Family(
        COUNTER, "Runs that ended.", ("function", "trigger", "status")
    ),
    "cloudcode_execution_duration_seconds": Family(
        HISTOGRAM, "Wall time of runs.", ("function", "trigger")
    ),
    "cloudcode_execution_cpu_seconds": Family(
        HISTOGRAM, "CPU time of runs.", ("function", "trigger")
    ),
    "cloudcode_queue_wait_seconds": Family(
        HISTOGRAM, "Time from being asked for to the start.", ("function", "trigger")
    ),
    "cloudcode_execution_memory_bytes": Family(
        HISTOGRAM, "Peak memory of the cell, as each run saw it.", ("function", "trigger")
    ),
    "cloudcode_coldstarts_total": Family(COUNTER, "Runs that waited for a load.", ("function",)),
    "cloudcode_queue_depth": Family(
        GAUGE,
        "Runs in the queue of all nodes: queued, delayed, parked (their lane is full), held (a "
        "node has them). Counting stops at 50000 of them.",
        ("queue", "priority", "state"),
    ),
    "cloudcode_queue_oldest_age_seconds": Family(
        GAUGE, "How long the oldest of them has been due.", ("queue", "priority", "state")
    ),
    "cloudcode_held": Family(GAUGE, "What this node has in hand: runs, deliveries.", ("kind",)),
    "cloudcode_retries_total": Family(
        COUNTER, "Attempts after the first: the one before failed, or was lost.", ("reason",)
    ),
    "cloudcode_dead_letters_total": Family(COUNTER, "Runs that were given up."),
    "cloudcode_jobs": Family(
        GAUGE,
        "Jobs by status; those that run are among the queued. Counting stops at 10000 a project.",
        ("status",),
    ),
    "cloudcode_deliveries": Family(
        GAUGE,
        "Deliveries that have not ended. Counting stops at 10000 of a state.",
        ("state",),
    ),
    "cloudcode_connection_gates": Family(
        GAUGE,
        "Connections that nothing passes: open, half_open (but for a trial), disabled.",
        ("state",),
    ),
    "cloudcode_schedule_lag_seconds": Family(
        GAUGE, "How late the last schedule fired, or how long one has been overdue."
    ),
    "cloudcode_schedule_missed_total": Family(COUNTER, "Due times that nothing fired for."),
    "cloudcode_loops_stopped_total": Family(
        COUNTER, "Runs that were not made: too deep, or more than one event may cause."
    ),
    "cloudcode_nodes": Family(GAUGE, "Nodes that are alive.", ("kind",)),
    "cloudcode_lease_takeovers_total": Family(COUNTER, "Nodes that this one has taken over."),
    "cloudcode_lease_lost_total": Family(COUNTER, "Times that this node was taken over."),
    "cloudcode_runs_void_total": Family(
        COUNTER, "Runs that ended here and were not this node's any more: nothing of them counts."
    ),
    "cloudcode_tickets_issued_total": Family(COUNTER, "Tickets sent: there is work."),
    "cloudcode_tickets_taken_total": Family(COUNTER, "Tickets that this node took work for."),
    "cloudcode_retention_deleted_total": Family(
        COUNTER, "Rows that are kept no longer.", ("kind",)
    ),
    "cloudcode_database_up": Family(GAUGE, "1: the database answers; 0: it does not."),
    "cloudcode_connector_requests_total": Family(
        COUNTER, "Attempts to deliver.", ("connector", "outcome")
    ),
    "cloudcode_deliveries_held_total": Family(
        COUNTER, "Deliveries held by the cost guard, or for a disabled connection.", ("reason",)
    ),
    "cloudcode_breaker_openings_total": Family(
        COUNTER, "Times that the breaker of a connection has opened.", ("connector",)
    ),
    "cloudcode_breakers": Family(
        GAUGE,
        "Functions, and devices of functions, that are held back: open, half_open (a trial runs).",
        ("state",),
    ),
    "cloudcode_breakers_opened_total": Family(
        COUNTER, "Times that this node began to hold back a function or a device.", ("scope",)
    ),
    "cloudcode_egress_blocked_total": Family(
        COUNTER, "Outgoing requests that were refused.", ("reason",)
    ),
    "cloudcode_quota_refused_total": Family(
        COUNTER, "Requests refused for an allowance of the project.", ("limit",)
    ),
    "cloudcode_project_waiting": Family(
        GAUGE, "Runs in hand, of all projects, that wait for room in this node's cells."
    ),
    "cloudcode_project_cpu_seconds_total": Family(
        COUNTER, "CPU time that all projects have used on this node."
    ),
    "cloudcode_rate_limited_total": Family(
        COUNTER,
        "Requests, and writes of a gateway, refused since the key or device had used its minute "
        "up.",
        ("scope",),
    ),
    "cloudcode_worker_busy": Family(GAUGE, "Cells that work right now."),
    "cloudcode_cells": Family(
        GAUGE, "Cells of this node: warm (in the pool), idle, busy.", ("state",)
    ),
    "cloudcode_cells_memory_bytes": Family(
        GAUGE, "Memory that all of them hold, without what they share."
    ),
    "cloudcode_cells_reclaimed_total": Family(
        COUNTER,
        "Cells that were ended for their memory: budget (idle ones, for others), cell (it held "
        "more than one may), tight (it worked, and was the largest).",
        ("reason",),
    ),
}


@router.get("/metrics", response_class=Response, responses=problems(public=True))
async def show_metrics(platform: PlatformHere, request: Request) -> Response:
    """Show counters for Prometheus, as text or OpenMetrics by the header Accept."""
    await platform.metrics.refresh()
    registry = CollectorRegistry(auto_describe=False)
    registry.register(EngineCollector(platform.metrics))
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(registry), headers={"content-type": content_type})


class EngineCollector(Collector):
    """Makes metric families of one snapshot."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        for name, samples in self._metrics.snapshot().items():
            yield _family(name, FAMILIES[name], samples)


def _family(name: str, family: Family, samples: Samples) -> Metric:
    if family.kind == HISTOGRAM:
        return _histograms(name, family, samples)
    make = CounterMetricFamily if family.kind == COUNTER else GaugeMetricFamily
    metric = make(name, family.help, labels=family.labels)
    for labels, value in samples.items():
        assert not isinstance(value, Histogram), name
        metric.add_metric(labels, value)
    return metric


def _histograms(name: str, family: Family, samples: Samples) -> Metric:
    metric = HistogramMetricFamily(name, family.help, labels=family.labels)
    for labels, value in samples.items():
        assert isinstance(value, Histogram), name
        # The last bucket is open: Prometheus reads the number of observations from it.
        buckets = [(_bound(bound), count) for bound, count in value.buckets]
        metric.add_metric(labels, buckets=buckets, sum_value=value.sum)
    return metric


def _bound(bound: float) -> str:
    return "+Inf" if bound == float("inf") else repr(float(bound))
