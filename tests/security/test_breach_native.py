"""The assumed breach: V8 is broken, and the attacker runs native code in a cell.

Each attempt runs in real cells, made by the real supervisor, zygote and lockdown: of JavaScript
and WebAssembly, and hardened; each where the engine is root's, and where it is an ordinary user's.
That one may read every file, for the tests may lie where only root can go; its cells may not. Only
the zygote is told to run what it is given natively; see tests/security/breach/.
"""

import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from runtimes.contract import CellKind, Runtime
from sandbox.lockdown import probe
from tests.security.breach.attempts import ATTEMPTS, Attempt
from tests.security.breach.cells import Cells

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the lockdown is Linux only")
JAVASCRIPT = CellKind(Runtime.JAVASCRIPT)
KINDS = (JAVASCRIPT, CellKind(Runtime.WASM), CellKind(Runtime.JAVASCRIPT, hardened=True))


def cells(*options: str) -> Iterator[Cells]:
    inactive = [layer for layer in probe() if not layer.active]
    if inactive:
        pytest.skip(f"this machine lacks a layer: {inactive}")
    running = Cells(*options)
    yield running
    running.close()


@pytest.fixture(scope="module")
def breached() -> Iterator[Cells]:
    yield from cells()


@pytest.fixture(scope="module")
def of_an_ordinary_user(breached: Cells) -> Iterator[Cells]:
    if os.getuid() != 0:
        yield breached  # already one
    else:
        yield from cells("--ordinary-user")


@pytest.fixture(scope="module")
def without_walls() -> Iterator[Cells]:
    yield from cells("--without-walls")


def named(attempts: tuple[Attempt, ...]) -> Any:
    return pytest.mark.parametrize(
        "attempt", [pytest.param(one, id=f"{one.group}-{one.name}") for one in attempts]
    )


def test_names_are_unique() -> None:
    """No attempt hides another one: the table in sandbox/README.md counts them."""
    names = [(one.group, one.name) for one in ATTEMPTS]

    assert len(names) == len(set(names))
    assert len(names) >= 50


@named(ATTEMPTS)
def test_native_code_is_contained(
    breached: Cells, of_an_ordinary_user: Cells, attempt: Attempt
) -> None:
    """In every kind of cell, and whoever runs the engine, it ends as the table says."""
    asked = [(kind, attempt.code) for kind in KINDS]

    found = breached.attempts(asked)
    found_by_ordinary = of_an_ordinary_user.attempts(asked)

    assert dict(zip(KINDS, found, strict=True)) == {
        kind: attempt.contained_in(kind) for kind in KINDS
    }
    assert found_by_ordinary == found


@named(tuple(one for one in ATTEMPTS if not one.same_without))
def test_only_the_walls_stop_it(without_walls: Cells, attempt: Attempt) -> None:
    """The same attempt goes another way without the lockdown, so the test above proves it."""
    found = without_walls.attempt(JAVASCRIPT, attempt.code)

    assert found != attempt.contained
