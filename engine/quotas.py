"""How much of everything: per handler, per request, per bundle. Published at `/v1/limits`.

Source: the product's limits table; README "Limits" repeats it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from engine.allowed_hosts import ENTRIES_MAX as ALLOWED_HOSTS_MAX
from engine.errors import Invalid
from engine.policies import ATTEMPTS_MAX, JOB_ATTEMPTS, Batch
from runtimes.contract import Limits, Runtime

KIB: Final = 1024
BODY_BYTES_MAX: Final = 2 * KIB * KIB  # what the control plane reads of most requests
WASM_BYTES_MAX: Final = 10 * KIB * KIB  # of a module
UPLOAD_BYTES_MAX: Final = 15 * KIB * KIB  # of the body that brings one: base64, and what is with it
PARAMS_BYTES_MAX: Final = KIB * KIB  # body of an invocation, and its result
EVENT_BYTES_MAX: Final = 256 * KIB
GATEWAY_BYTES_MAX: Final = 16 * KIB * KIB
JSON_DEPTH_MAX: Final = 200  # of values and params; the prelude keeps the same for results
CALL_DEPTH_MAX: Final = 8  # functions that call functions that call ...
TRIGGER_DEPTH_MAX: Final = 5  # writes of functions that trigger functions that write ...
CAUSAL_BUDGET: Final = 10_000  # runs that one root event may cause, all told
BUNDLE_BYTES_MAX: Final = KIB * KIB
BUNDLE_FILES_MAX: Final = 100
BATCH_ITEMS_MAX: Final = 1_000
BULK_RUNS_MAX: Final = 100_000  # that one request may replay, cancel, redrive or delete
JOB_AHEAD_S_MAX: Final = 365 * 24 * 3600  # how far away its time may be, or the end of its life
JOB_KEY_CHARS_MAX: Final = 255
JOB_WAIT_S_MAX: Final = 30  # of whoever asks for a job and waits for its end
BACKOFF_S_MAX: Final = 24 * 3600  # between two attempts
CONCURRENCY_MAX: Final = 1_000  # runs beside each other that a version may declare
FLOW_KEY_CHARS_MAX: Final = 200
FLOW_PERIOD_S_MAX: Final = 7 * 24 * 3600  # of a throttle, a rate limit, a debounce
QUEUE_BATCH_MAX: Final = 100  # messages that the `queue` handler gets at once
QUEUE_TIMEOUT_S_MAX: Final = 60  # that the first of them waits for others
LATENESS_S_MAX: Final = 3600  # that an ordered trigger waits for earlier values
SCHEDULE_PAYLOAD_BYTES_MAX: Final = 64 * KIB  # of each run there is a copy
SCHEDULE_EVERY_S_MIN: Final = 1
SCHEDULE_CATCHUP_S_MIN: Final = 10  # less would be missed by a node that has much to do
SCHEDULE_CATCHUP_S: Final = 3600
SCHEDULE_CATCHUP_S_MAX: Final = 365 * 24 * 3600
SCHEDULE_JITTER_S_MAX: Final = 24 * 3600
SCHEDULE_FAILURES_MAX: Final = 1_000  # in a row, before something follows from them
SCHEDULE_BUFFERED_MAX: Final = 1_000  # runs of one schedule that wait for each other
SCHEDULE_BACKFILL_MAX: Final = 1_000  # runs of one request
SCHEDULE_PREVIEW_MAX: Final = 1_000  # due times of one request
WRITE_VALUES_MAX: Final = 1_000
VARIABLE_BYTES_MAX: Final = 5 * KIB
SECRET_BYTES_MAX: Final = 5 * KIB
CREDENTIALS_BYTES_MAX: Final = 16 * KIB
CALLBACK_BYTES_MAX: Final = KIB * KIB  # in which a provider tells what became of messages
VARIABLES_MAX: Final = 128
SECRETS_MAX: Final = 128
TRIGGER_KEYS_MAX: Final = 100
DEVICE_TAGS_MAX: Final = 64
KV_KEY_BYTES_MAX: Final = 512  # as UTF-8
KV_VALUE_BYTES_MAX: Final = 64 * KIB  # as JSON
KV_TTL_S_MIN: Final = 60
KV_TTL_S_MAX: Final = 365 * 24 * 3600
KV_LIST_KEYS: Final = 100  # of one host call, unless it asks for another number
KV_LIST_KEYS_MAX: Final = 1_000
MEMORY_MB_MIN: Final = 8  # V8 needs some 4 MB for itself
WASM_ARGS_MAX: Final = 64
WASM_ARGS_BYTES_MAX: Final = 8 * KIB  # of all of them, each with its end
EXPORT_NAME_BYTES_MAX: Final = 128
WASM_STACK_BYTES: Final = 512 * KIB  # these three are kept by `runtimes.webassembly`
WASM_TABLE_ELEMENTS_MAX: Final = 100_000
WASM_INSTANCES_MAX: Final = 32  # runs of one version that interleave
FUEL_MAX: Final = 10**12
assert WASM_BYTES_MAX * 4 // 3 + BUNDLE_BYTES_MAX // 2 < UPLOAD_BYTES_MAX


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerLimits:
    """What one handler gets by default, and the most that its author may ask for."""

    cpu_ms: int
    cpu_ms_max: int
    wall_ms: int
    wall_ms_max: int
    memory_mb: int
    memory_mb_max: int
    network_requests: int

    def __post_init__(self) -> None:
        assert 0 < self.cpu_ms <= self.cpu_ms_max <= self.wall_ms_max, self
        assert self.cpu_ms <= self.wall_ms <= self.wall_ms_max, self
        assert MEMORY_MB_MIN <= self.memory_mb <= self.memory_mb_max, self


def _row(
    cpu_ms: tuple[int, int], wall_ms: tuple[int, int], memory_mb: tuple[int, int], network: int
) -> HandlerLimits:
    return HandlerLimits(
        cpu_ms=cpu_ms[0],
        cpu_ms_max=cpu_ms[1],
        wall_ms=wall_ms[0],
        wall_ms_max=wall_ms[1],
        memory_mb=memory_mb[0],
        memory_mb_max=memory_mb[1],
        network_requests=network,
    )


_EVENT: Final = _row((200, 2_000), (10_000, 60_000), (64, 128), 50)
_CALL: Final = _row((200, 2_000), (10_000, 30_000), (64, 128), 50)
_LONG: Final = _row((2_000, 30_000), (60_000, 900_000), (128, 512), 200)

HANDLER_LIMITS: Final[Mapping[str, HandlerLimits]] = {
    "beforeStore": _row((20, 50), (100, 250), (64, 64), 0),
    "afterStore": _EVENT,
    "trigger": _row((200, 2_000), (2_000, 60_000), (64, 128), 50),  # classic: ended after 2 s
    "queue": _EVENT,
    "decodeUplink": _EVENT,
    "fetch": _CALL,
    "main": _CALL,
    "default": _CALL,  # a module whose default export is a function
    "job": _LONG,
    "scheduled": _LONG,
}
OVERRIDABLE: Final = ("cpu_ms", "wall_ms", "memory_mb")  # and, for WebAssembly, fuel


def limits_for(handler: str, overrides: Mapping[str, int]) -> Limits:
    """Return the hard stops of one run of `handler`.

    Args:
        handler: a key of HANDLER_LIMITS.
        overrides: the author's `limits` of the version. They hold for all its handlers, so each
            is cut to what this handler may have at most.
    """
    row = HANDLER_LIMITS[handler]
    wall_ms = min(overrides.get("wall_ms", row.wall_ms), row.wall_ms_max)
    cpu_ms = min(overrides.get("cpu_ms", row.cpu_ms), row.cpu_ms_max)
    if "wall_ms" not in overrides:
        wall_ms = max(wall_ms, cpu_ms)  # more CPU time was asked for: it must fit
    return Limits(
        cpu_ms=min(cpu_ms, wall_ms),
        wall_ms=wall_ms,
        memory_mb=min(overrides.get("memory_mb", row.memory_mb), row.memory_mb_max),
        network_requests=row.network_requests,
        fuel=overrides.get("fuel", 0),
    )


def least_memory_mb(handlers: Iterable[str], overrides: Mapping[str, int]) -> int:
    """Return what a module's start has to do with, whichever of its handlers it starts for."""
    return min(limits_for(handler, overrides).memory_mb for handler in handlers)


def check_limits(
    overrides: Mapping[str, int], handlers: Iterable[str], runtime: Runtime = Runtime.JAVASCRIPT
) -> None:
    """Refuse an override that none of these handlers may have.

    Raises:
        Invalid: names the limit, what was asked, and the most there is.
    """
    rows = [HANDLER_LIMITS[handler] for handler in handlers]
    for name, asked in overrides.items():
        if name == "fuel" and runtime is not Runtime.WASM:
            raise Invalid("fuel is for WebAssembly; cpu_ms limits JavaScript", "/limits/fuel")
        least = MEMORY_MB_MIN if name == "memory_mb" else 1
        most = FUEL_MAX if name == "fuel" else max(getattr(row, f"{name}_max") for row in rows)
        if not least <= asked <= most:
            raise Invalid(f"{name} must be {least} to {most} here, not {asked}", f"/limits/{name}")
    if "wall_ms" in overrides and overrides.get("cpu_ms", 0) > overrides["wall_ms"]:
        raise Invalid("cpu_ms must not be more than wall_ms", "/limits/cpu_ms")


def published() -> dict[str, Any]:
    """Return all limits as JSON for `/v1/limits`."""
    run = limits_for("fetch", {})
    return {
        "handlers": {name: _published_row(row) for name, row in HANDLER_LIMITS.items()},
        "sizes": {
            "request_bytes": BODY_BYTES_MAX,
            "upload_bytes": UPLOAD_BYTES_MAX,
            "params_bytes": PARAMS_BYTES_MAX,
            "result_bytes": run.output_bytes,
            "event_bytes": EVENT_BYTES_MAX,
            "gateway_bytes": GATEWAY_BYTES_MAX,
            "json_depth": JSON_DEPTH_MAX,
            "bundle_bytes": BUNDLE_BYTES_MAX,
            "bundle_files": BUNDLE_FILES_MAX,
            "batch_items": BATCH_ITEMS_MAX,
            "write_values": WRITE_VALUES_MAX,
            "variable_bytes": VARIABLE_BYTES_MAX,
            "secret_bytes": SECRET_BYTES_MAX,
            "credentials_bytes": CREDENTIALS_BYTES_MAX,
            "callback_bytes": CALLBACK_BYTES_MAX,
            "variables": VARIABLES_MAX,
            "secrets": SECRETS_MAX,
            "allowed_hosts": ALLOWED_HOSTS_MAX,
            "trigger_keys": TRIGGER_KEYS_MAX,
            "device_tags": DEVICE_TAGS_MAX,
            "bulk_runs": BULK_RUNS_MAX,
        },
        "schedules": {
            "payload_bytes": SCHEDULE_PAYLOAD_BYTES_MAX,
            "every_seconds": {"min": SCHEDULE_EVERY_S_MIN},
            "catchup_window_seconds": {
                "min": SCHEDULE_CATCHUP_S_MIN,
                "default": SCHEDULE_CATCHUP_S,
                "max": SCHEDULE_CATCHUP_S_MAX,
            },
            "jitter_seconds": SCHEDULE_JITTER_S_MAX,
            "failures": SCHEDULE_FAILURES_MAX,
            "buffered": SCHEDULE_BUFFERED_MAX,
            "backfill": SCHEDULE_BACKFILL_MAX,
            "preview": SCHEDULE_PREVIEW_MAX,
        },
        "run": {
            "log_lines": run.log_lines,
            "log_bytes": run.log_bytes,
            "host_calls": run.host_calls,
            "device_writes": run.device_writes,
            "deliveries": run.deliveries,
            "effect_bytes": run.effect_bytes,
            "kv_operations": run.kv_operations,
            "trigger_depth": TRIGGER_DEPTH_MAX,
            "function_calls": run.function_calls,
            "call_depth": CALL_DEPTH_MAX,
            "causal_budget": CAUSAL_BUDGET,
        },
        "jobs": {
            "attempts": {"default": JOB_ATTEMPTS, "max": ATTEMPTS_MAX},
            "ahead_seconds": JOB_AHEAD_S_MAX,
            "ttl_seconds": JOB_AHEAD_S_MAX,
            "backoff_seconds": BACKOFF_S_MAX,
            "key_chars": JOB_KEY_CHARS_MAX,
            "wait_seconds": JOB_WAIT_S_MAX,
        },
        "flow": {
            "concurrency": CONCURRENCY_MAX,
            "key_chars": FLOW_KEY_CHARS_MAX,
            "period_seconds": FLOW_PERIOD_S_MAX,
            "lateness_seconds": LATENESS_S_MAX,
        },
        "queue": {
            "max_batch_size": {"default": Batch().max_batch_size, "max": QUEUE_BATCH_MAX},
            "max_batch_timeout_seconds": {
                "default": Batch().max_batch_timeout_ms / 1000,
                "max": QUEUE_TIMEOUT_S_MAX,
            },
        },
        "kv": {
            "key_bytes": KV_KEY_BYTES_MAX,
            "value_bytes": KV_VALUE_BYTES_MAX,
            "ttl_seconds": {"min": KV_TTL_S_MIN, "max": KV_TTL_S_MAX},
            "list_keys": {"default": KV_LIST_KEYS, "max": KV_LIST_KEYS_MAX},
        },
        "wasm": {
            "wasm_bytes": WASM_BYTES_MAX,
            "stack_bytes": WASM_STACK_BYTES,
            "table_elements": WASM_TABLE_ELEMENTS_MAX,
            "instances": WASM_INSTANCES_MAX,
            "args": WASM_ARGS_MAX,
            "args_bytes": WASM_ARGS_BYTES_MAX,
            "fuel": {"default": None, "max": FUEL_MAX},
        },
    }


def _published_row(row: HandlerLimits) -> dict[str, Any]:
    shown: dict[str, Any] = {
        name: {"default": getattr(row, name), "max": getattr(row, f"{name}_max")}
        for name in OVERRIDABLE
    }
    return shown | {"network_requests": row.network_requests}
