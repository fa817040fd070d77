"""Prints: results on stdout, all else on stderr; with `--json` stdout is JSON and nothing else.

Path:   a verb -> session -> here -> the terminal
Never:  lets a guest's or a device's text move the cursor: control characters are shown, not sent.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Timer
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine.cli.failures import Failure

PROGRESS_S: Final = 1.0  # what is done by then needs no word
PIPED_COLUMNS: Final = 400  # a pipe has no width; wide enough that no id is cut


class Screen:
    """One command's output."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self._out = _console(stderr=False)
        self._err = _console(stderr=True)

    def say(self, message: str) -> None:
        """Print what a person wants to know and a script does not."""
        self._err.print(Text(plain(message)), soft_wrap=True)

    def warn(self, message: str) -> None:
        """Print what works, and should be looked at all the same."""
        text = Text.assemble(("warning: ", "bold yellow"), (plain(message), "yellow"))
        self._err.print(text, soft_wrap=True)

    @contextmanager
    def progress(self, message: str) -> Iterator[None]:
        """Tell a person at a terminal what takes so long, if it does."""
        timer = Timer(PROGRESS_S, self.say, (message,))
        timer.daemon = True
        if self._err.is_terminal:
            timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def text(self, document: Any, text: str) -> None:
        """Print a result that reads best as plain text."""
        if self.as_json:
            self._json(document)
        else:
            self._out.print(Text(plain(text)), soft_wrap=True)

    def line(self, document: Any, text: str, *, style: str = "") -> None:
        """Print one of many: with `--json` as a line of JSON, at once."""
        if self.as_json:
            sys.stdout.write(json.dumps(document, ensure_ascii=False) + "\n")
            sys.stdout.flush()
        else:
            self._out.print(Text(plain(text), style=style), soft_wrap=True)

    def rows(self, items: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
        """Print a list as a table of some of its fields; with `--json` every field."""
        if self.as_json:
            self._json({"items": items})
            return
        if not items:
            self.say("none")
            return
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in columns:
            table.add_column(name.replace("_", " "), overflow="fold")
        for item in items:
            table.add_row(*(Text(_cell(item.get(name))) for name in columns))
        self._out.print(table)

    def record(self, document: Mapping[str, Any]) -> None:
        """Print one thing, a field a line."""
        if self.as_json:
            self._json(document)
            return
        width = max((len(name) for name in document), default=0)
        for name, value in document.items():
            body = _cell(value)
            if "\n" in body:
                body = "\n" + "\n".join("  " + line for line in body.splitlines())
            self._out.print(Text.assemble((f"{name:<{width}}  ", "bold"), body), soft_wrap=True)

    def value(self, value: Any) -> None:
        """Print a JSON value, in colour when it goes to a terminal."""
        self._json(value)

    def failure(self, failure: Failure) -> None:
        """Print why the command ended: for people on stderr, with `--json` also on stdout."""
        if self.as_json:
            self._json({"error": failure.document()})
        first, *rest = failure.lines()
        self._err.print(Text.assemble(("error: ", "bold red"), plain(first)), soft_wrap=True)
        for line in rest:
            self._err.print(Text(plain(line)), soft_wrap=True)
        if failure.remedy:
            self._err.print(
                Text.assemble(("remedy: ", "bold"), plain(failure.remedy)), soft_wrap=True
            )

    def _json(self, document: Any) -> None:
        text = json.dumps(document, indent=2, ensure_ascii=False)
        if self._out.is_terminal:
            self._out.print_json(text, ensure_ascii=True)  # escapes control characters too
        else:
            sys.stdout.write(text + "\n")


def plain(text: str) -> str:
    r"""Return `text` with every control character but tab and newline written out, as `\x1b`."""
    return "".join(
        char if char.isprintable() or char in "\t\n" else char.encode("unicode_escape").decode()
        for char in text
    )


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return plain(", ".join(value)) or "-"
    if isinstance(value, dict) and any("\n" in str(text) for text in value.values()):
        return plain("\n".join(f"{name}:\n{text}" for name, text in value.items()))  # files
    text = json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict | list) and len(text) > 100:  # noqa: PLR2004 - reads better indented
        text = json.dumps(value, indent=2, ensure_ascii=False)
    return plain(text)


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = PIPED_COLUMNS
    return console
