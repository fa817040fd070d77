"""Writes the table of attempts into sandbox/README.md: `python -m tests.security.breach.table`.

Counts what the tests run: the attempts of native code, the lies of breached cells, and the hostile
guests in JavaScript and WebAssembly. `test_breach_table.py` fails when the block is not of today.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Final

from tests.security.breach.attempts import ATTEMPTS, KILLED, Attempt
from tests.security.breach.lies import LIES, Lie
from tests.security.wasm_guests.binaries import MALFORMED, generated_guests
from tests.security.wasm_guests.expectations import text_guests

README: Final = Path(__file__).parents[3] / "sandbox" / "README.md"
BEGIN, END = "<!-- attempts:begin -->", "<!-- attempts:end -->"
GUESTS: Final = Path(__file__).parents[1] / "guests"
ENDS: Final[Mapping[str, str]] = {
    "crashed": "the cell is ended",
    "timed_out": "the run's time is over",
    "succeeded": "refused, or of no effect",
    "failed": "the version is refused",
}


def block() -> str:
    """Return the markers and what stands between them."""
    rows = [
        *((f"native code: {group}", ways) for group, ways in _native()),
        *((f"a lying cell: {group}", ways) for group, ways in _lies()),
        ("programs in JavaScript", Counter(_javascript())),
        ("modules of WebAssembly", Counter(_wasm())),
    ]
    total = sum(ways.total() for _, ways in rows)
    lines = [
        BEGIN,
        "",
        "| what is tried | attempts | how they end |",
        "|---|---|---|",
        *(f"| {name} | {ways.total()} | {_told(ways)} |" for name, ways in rows),
        f"| **together** | **{total}** | |",
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
    if attempt.contained == KILLED:
        return "the kernel ends the cell"
    if isinstance(attempt.contained, str) and attempt.contained:
        return "refused"
    if attempt.hardened == KILLED:
        return "allowed, but in hardened cells"
    return "nothing is found or had"


def _lies() -> Iterable[tuple[str, Counter[str]]]:
    by_group: dict[str, list[Lie]] = {}
    for lie in LIES:
        by_group.setdefault(lie.group, []).append(lie)
    for group, lies in by_group.items():
        yield group, Counter(ENDS[lie.ends[0]] for lie in lies)


def _javascript() -> Iterable[str]:
    for path in sorted(GUESTS.glob("*.js")):
        first = path.read_text().splitlines()[0]
        yield f"`{first.removeprefix('// expect: ').split()[0].split('|')[0]}`"


def _wasm() -> Iterable[str]:
    for guest in (*text_guests(), *generated_guests()):
        yield f"`{guest.outcome}`"
    for _ in MALFORMED:
        yield "`refused`"


if __name__ == "__main__":
    README.write_text(written(README.read_text()))
