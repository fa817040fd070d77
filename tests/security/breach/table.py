"""Writes the table of attempts into sandbox/README.md: `python -m tests.security.breach.table`.

Counts what the tests run and what they ask for, in every kind of cell: attempts of native code,
lies of breached cells, hostile guests. Odd modules that may succeed are in a row by themselves.
`test_breach_table.py` fails when the block is not of today.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Final

from runtimes.contract import CellKind, Runtime
from tests.security.breach.attempts import ATTEMPTS, KILLED, Attempt
from tests.security.breach.lies import LIES, Lie
from tests.security.test_hostile_functions import expectation
from tests.security.wasm_guests.binaries import MALFORMED, generated_guests
from tests.security.wasm_guests.expectations import text_guests

README: Final = Path(__file__).parents[3] / "sandbox" / "README.md"
BEGIN, END = "<!-- attempts:begin -->", "<!-- attempts:end -->"
GUESTS: Final = Path(__file__).parents[1] / "guests"
ENDS: Final[Mapping[str, str]] = {
    "crashed": "the cell is ended",
    "timed_out": "the run's time is over",
    "succeeded": "of no effect",
    "failed": "the version is refused",
    "host_calls_exceeded": "the run is over its limit",
}
_BY_ENGINE: Final = "SIGKILL"
_OF_NO_EFFECT: Final = "`succeeded`, to no effect"


def block() -> str:
    """Return the markers and what stands between them."""
    attacks, odd = _wasm()
    rows = [
        *((f"native code: {group}", ways) for group, ways in _native()),
        *((f"a lying cell: {group}", ways) for group, ways in _lies()),
        ("programs in JavaScript", Counter(_javascript())),
        ("modules of WebAssembly", attacks),
    ]
    total = sum(ways.total() for _, ways in rows)
    lines = [
        BEGIN,
        "",
        "| what is tried | attempts | how they end |",
        "|---|---|---|",
        *(f"| {name} | {ways.total()} | {_told(ways)} |" for name, ways in rows),
        f"| **together** | **{total}** | |",
        f"| not counted: odd modules that are right | {odd} | {odd} `succeeded` |",
        "",
        END,
    ]
    return "\n".join(lines)


def written(readme: str) -> str:
    """Return the README with the block of today.

    Raises:
        ValueError: it has no markers.
    """
    before, _, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"{README.name} has no {BEGIN} ... {END}")
    return before + block() + after


def _told(ways: Counter[str]) -> str:
    return "; ".join(f"{count} {way}" for way, count in sorted(ways.items(), key=_most_first))


def _most_first(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]


def _native() -> Iterable[tuple[str, Counter[str]]]:
    for group, attempts in groupby(ATTEMPTS, key=lambda attempt: attempt.group):
        yield group, Counter(map(_way, attempts))


def _way(attempt: Attempt) -> str:
    """Return how it ends in standard cells, and in hardened ones where it ends otherwise."""
    standard, hardened = (
        _way_of(attempt, CellKind(Runtime.JAVASCRIPT, hardened=one)) for one in (False, True)
    )
    return standard if hardened == standard else f"{standard} (hardened: {hardened})"


def _way_of(attempt: Attempt, kind: CellKind) -> str:
    contained = attempt.contained_in(kind)
    if contained == _BY_ENGINE:
        return "the engine ends the cell"
    if isinstance(contained, str) and contained.startswith("SIG"):
        return "the kernel ends the cell"
    if isinstance(contained, str) and contained:
        return "refused"
    return "allowed" if attempt.hardened == KILLED else "nothing is found or had"


def _lies() -> Iterable[tuple[str, Counter[str]]]:
    by_group: dict[str, list[Lie]] = {}
    for lie in LIES:
        by_group.setdefault(lie.group, []).append(lie)
    for group, lies in by_group.items():
        yield group, Counter(map(_end, lies))


def _end(lie: Lie) -> str:
    return (
        "answered by an error"
        if lie.refused
        else " or ".join(ENDS[one] for one in sorted(lie.ends))
    )


def _javascript() -> Iterable[str]:
    for path in sorted(GUESTS.glob("*.js")):
        outcomes = expectation(path.read_text()).outcomes
        is_harmless = outcomes == {"succeeded"}
        yield _OF_NO_EFFECT if is_harmless else " or ".join(f"`{one}`" for one in sorted(outcomes))


def _wasm() -> tuple[Counter[str], int]:
    """Return how the attacks end, and how many modules are merely odd."""
    guests = (*text_guests(), *generated_guests())
    attacks = Counter({"`refused`": len(MALFORMED)})
    for guest in guests:
        if guest.outcome != "succeeded":
            attacks[f"`{guest.outcome}`"] += 1
        elif guest.result == "ok false":
            attacks["answered by an error"] += 1
    return attacks, len(guests) + len(MALFORMED) - attacks.total()


if __name__ == "__main__":
    README.write_text(written(README.read_text()))
