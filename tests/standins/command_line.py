"""The command line in this process, as one who types would call it."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import typer
from typer.testing import CliRunner

from engine.cli.app import build


@dataclass
class Ran:
    code: int
    out: str
    err: str


@cache
def _tree() -> Any:
    """Make the tree of verbs once: it takes a tenth of a second."""
    return typer.main.get_command(build())


def run(
    arguments: Sequence[str], environment: Mapping[str, str | None], stdin: str | None = None
) -> Ran:
    """Call `cloudcode` with these arguments; it sees the environment on top of the tests' own."""
    code: Any = 0
    with CliRunner().isolation(input=stdin, env=environment) as (out, err, _both):
        try:
            _tree().main(args=list(arguments), prog_name="cloudcode")
        except SystemExit as end:
            code = end.code
        sys.stdout.flush()
        sys.stderr.flush()
        return Ran(code, out.getvalue().decode(), err.getvalue().decode())
