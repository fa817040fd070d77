"""How much slower a tenant gets while another one runs each of the hostile programs.

Part "m" of `run.py`, some five minutes. The programs are those of `tests/security/guests`.
"""

import re
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from run import Bench

GUESTS = Path(__file__).parents[1] / "tests" / "security" / "guests"
LIMITS = re.compile(r"// expect: .*limits=(\S+)")
SECONDS = 0.5
QUIET_ROUNDS = 5
COPIES = 3  # of each program at the same time
KILLS_MAX = 4  # calls of one copy that cost a cell: a breaker would refuse the next one
RATIO_MAX = 3.0
FLOOR_MS = 5.0  # what counts as quick, whatever this machine can do


def neighbours(bench: "Bench") -> None:
    """Compare the 99th percentile of a neighbour's calls beside each program with a quiet one."""
    bench.deploy("neighbour", "export default (p) => 2 * p")
    calls = [["POST", "/v1/functions/neighbour/invoke", dict(bench.client.headers), "21"]]
    made = bench.post("/v1/projects", {"name": "hostile"})
    headers = {"Authorization": f"Bearer {made['key']}"}
    with httpx.Client(base_url=bench.url, headers=headers, timeout=120) as attacker:
        quiet_ms = median(bench.load(calls, 1, SECONDS)["p99_ms"] for _ in range(QUIET_ROUNDS))
        ratios = {
            guest.stem: _beside(bench, attacker, guest, calls) / max(quiet_ms, FLOOR_MS)
            for guest in sorted(GUESTS.glob("*.js"))
        }
    by_ratio = sorted(ratios, key=lambda name: ratios[name])
    print("slowest beside", ", ".join(by_ratio[-5:]), file=sys.stderr)
    bench.add("a neighbour alone, 99th percentile", quiet_ms, "ms")
    bench.add(f"... beside each of {len(ratios)} hostile programs, median",
              median(ratios.values()), "times", RATIO_MAX, most=True)  # fmt: skip
    bench.add(f"... the worst, {by_ratio[-1]}", ratios[by_ratio[-1]], "times", RATIO_MAX, most=True)


def _beside(bench: "Bench", attacker: httpx.Client, guest: Path, calls: list[list[Any]]) -> float:
    source = guest.read_text()
    found = LIMITS.match(source)
    pairs = [part.split("=") for part in found[1].split(",")] if found else []
    limits = {name: int(value) for name, value in pairs}
    names = [f"{guest.stem}-{copy}" for copy in range(COPIES)]
    for name in names:
        body = {"name": name, "source": source, "limits": limits}
        attacker.post("/v1/functions", json=body)  # some are refused already here
    over = threading.Event()
    with ThreadPoolExecutor(COPIES) as pool:
        for name in names:
            pool.submit(_attack, attacker, name, over)
        try:
            p99_ms: float = bench.load(calls, 1, SECONDS)["p99_ms"]
        finally:
            over.set()
    return p99_ms


def _attack(attacker: httpx.Client, name: str, over: threading.Event) -> None:
    kills = 0
    while not over.is_set() and kills < KILLS_MAX:
        answer = attacker.post(f"/v1/functions/{name}/invoke", json=None)
        if answer.is_error:
            kills += answer.json()["code"] != "function_error"
