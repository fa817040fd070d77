"""How much slower a tenant gets while another one runs each of the hostile programs.

Part "m" of `run.py`, some five minutes; every 20 programs it says how far it is. The programs are
those of `tests/security/guests`. As a script it takes words, and tries the programs with one of
them in their name: `python benchmarks/neighbours.py flood bomb`.
"""

import itertools
import re
import sys
import threading
from collections.abc import Sequence
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
WALL_MS = 1_000  # of a program that says nothing else: nobody waits for those that only wait
QUIET_ROUNDS = 5
QUIET_EVERY = 20  # programs: what is quick on this machine changes within minutes
COPIES = 3  # of each program at the same time
KILLS_MAX = 4  # calls of one copy that cost a cell: a breaker would refuse the next one
RATIO_MAX = 3.0
FLOOR_MS = 5.0  # what counts as quick, whatever this machine can do
TRIES = 3  # of a program that was over the most: what else the machine does is no program's doing
Calls = list[list[Any]]
_numbers = itertools.count(1)


def neighbours(bench: "Bench", words: Sequence[str] = ("",)) -> None:
    """Compare the 99th percentile of a neighbour's calls beside each program with a quiet one."""
    bench.deploy("neighbour", "export default (p) => 2 * p")
    calls = [["POST", "/v1/functions/neighbour/invoke", dict(bench.client.headers), "21"]]
    made = bench.post("/v1/projects", {"name": "hostile"})
    headers = {"Authorization": f"Bearer {made['key']}"}
    guests = [g for g in sorted(GUESTS.glob("*.js")) if any(word in g.stem for word in words)]
    if not guests:
        raise SystemExit(f"no program in {GUESTS} has {' or '.join(words)} in its name")
    quiet_ms: list[float] = []
    ratios: dict[str, float] = {}
    with httpx.Client(base_url=bench.url, headers=headers, timeout=120) as attacker:
        for number, guest in enumerate(guests):
            if number % QUIET_EVERY == 0:
                _tell(number, len(guests), ratios)
                quiet_ms.append(_quiet_ms(bench, calls))
            tries = [_ratio(bench, attacker, guest, calls, quiet_ms[-1])]
            while len(tries) < TRIES and max(tries) > RATIO_MAX:
                quiet_ms.append(_quiet_ms(bench, calls))
                tries.append(_ratio(bench, attacker, guest, calls, quiet_ms[-1]))
            ratios[guest.stem] = median(tries)
            if len(tries) > 1:
                told = ", ".join(f"{ratio:.1f}" for ratio in tries)
                print(f"  {guest.stem}: {told} times", file=sys.stderr)
    by_ratio = sorted(ratios, key=lambda name: ratios[name])
    over = [name for name in by_ratio if ratios[name] > RATIO_MAX]
    _tell(len(guests), len(guests), ratios)
    bench.add("(m) a neighbour alone, 99th percentile", median(quiet_ms), "ms")
    bench.add(f"(m) ... beside each of {len(ratios)} hostile programs, median",
              median(ratios.values()), "times", RATIO_MAX, most=True)  # fmt: skip
    bench.add(f"(m) ... the worst, {by_ratio[-1]}", ratios[by_ratio[-1]], "times", RATIO_MAX,
              most=True)  # fmt: skip
    bench.add(f"(m) ... programs beside which it is over {RATIO_MAX:g} times", len(over), "of them")


def _tell(number: int, count: int, ratios: dict[str, float]) -> None:
    worst = max(ratios, key=lambda name: ratios[name], default="")
    so_far = f", slowest beside {worst}: {ratios[worst]:.1f} times" if worst else ""
    print(f"{number} of {count} hostile programs{so_far}", file=sys.stderr, flush=True)


def _quiet_ms(bench: "Bench", calls: Calls) -> float:
    return float(median(bench.load(calls, 1, SECONDS)["p99_ms"] for _ in range(QUIET_ROUNDS)))


def _ratio(
    bench: "Bench", attacker: httpx.Client, guest: Path, calls: Calls, quiet_ms: float
) -> float:
    source = guest.read_text()
    found = LIMITS.match(source)
    pairs = [part.split("=") for part in found[1].split(",")] if found else []
    limits = {"wall_ms": WALL_MS} | {name: int(value) for name, value in pairs}
    names = [f"{guest.stem}-{next(_numbers)}" for _ in range(COPIES)]
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
    return p99_ms / max(quiet_ms, FLOOR_MS)


def _attack(attacker: httpx.Client, name: str, over: threading.Event) -> None:
    kills = 0
    while not over.is_set() and kills < KILLS_MAX:
        answer = attacker.post(f"/v1/functions/{name}/invoke", json=None)
        if answer.is_error:
            kills += answer.json()["code"] != "function_error"


def main(words: Sequence[str]) -> None:
    from run import Bench  # here: it imports this file

    bench = Bench()
    try:
        neighbours(bench, words)
    finally:
        bench.close()
    for line in bench.lines:
        print(f"{line.what}: {line.figure:.2f} {line.unit}")


if __name__ == "__main__":
    main(sys.argv[1:] or [""])
