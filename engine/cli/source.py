"""The author's files or module: reads them for an upload, shows the place of a mistake in them.

Path:   deploy -> here -> the upload; the engine's compile problem -> DoesNotCompile -> screen
Never:  compiles; only the engine knows the language.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from engine.cli.failures import Misused, Refused
from engine.quotas import WASM_BYTES_MAX

SUFFIXES: Final = (".js", ".mjs", ".cjs", ".ts", ".mts")
MODULE: Final = ".wasm"
MAINS: Final = ("main.ts", "main.js", "index.ts", "index.js")
FILES_MAX: Final = 100  # more is a folder named by mistake: node_modules, say


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What an upload carries: every file by its name relative to the folder, and which starts."""

    files: Mapping[str, str]
    main: str


def is_module(path: Path) -> bool:
    """Say whether this is to be uploaded as WebAssembly: its ending decides."""
    if path.suffix.lower() == ".wat":
        raise Misused(
            f"{path}: this is WebAssembly text; only its binary can be deployed",
            remedy=f"assemble it: wat2wasm {path} -o {path.with_suffix(MODULE)}",
        )
    return path.suffix.lower() == MODULE


def read_module(path: Path) -> str:
    """Return the module as an upload carries it: base64.

    Raises:
        Misused: nothing there, or larger than any engine takes.
    """
    try:
        wasm = path.read_bytes()
    except OSError as error:
        raise Misused(f"{path}: {error.strerror}") from error
    if len(wasm) > WASM_BYTES_MAX:
        raise Misused(
            f"{path}: {len(wasm)} bytes; a module may have {WASM_BYTES_MAX}",
            remedy=f"make it smaller: wasm-opt -Oz --strip-debug {path} -o {path.name}",
        )
    return base64.b64encode(wasm).decode()


def read_source(path: Path, *, main: str = "") -> Source:
    """Read one file, or a folder with its scripts; hidden files and `node_modules` stay out.

    Raises:
        Misused: nothing there, not text, too many files, or no way to tell which one starts.
    """
    if path.is_file():
        return Source(files={path.name: _text(path)}, main=path.name)
    if not path.is_dir():
        raise Misused(f"{path}: no such file or directory")
    found = sorted(file for file in path.rglob("*") if _uploads(file.relative_to(path), file))
    if len(found) > FILES_MAX:
        raise Misused(f"{path}: {len(found)} files; the most is {FILES_MAX}")
    files = {file.relative_to(path).as_posix(): _text(file) for file in found}
    return Source(files=files, main=_main_of(path, files, main))


def _uploads(name: Path, file: Path) -> bool:
    hidden = any(part.startswith(".") or part == "node_modules" for part in name.parts)
    return file.suffix in SUFFIXES and file.is_file() and not hidden and not name.match("*.d.ts")


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise Misused(f"{file}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise Misused(f"{file}: {error.strerror}") from error


def _main_of(path: Path, files: Mapping[str, str], asked: str) -> str:
    if asked:
        if asked not in files:
            raise Misused(
                f"{path}: no {asked} in it; there are: {', '.join(files) or 'no scripts'}"
            )
        return asked
    mains = [name for name in MAINS if name in files] or [
        name for name in files if not name.endswith(".json")
    ][:2]
    if not mains:
        raise Misused(f"{path}: no {', '.join(SUFFIXES)} file in it")
    if len(mains) > 1 and mains[0] not in MAINS:
        raise Misused(f"{path}: which file starts? name it with --main, or call it {MAINS[0]}")
    return mains[0]


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the author's files: 1-based line and column; column 0 is unknown."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" + (f":{self.column}" if self.column else "")


def place_of(problem: Mapping[str, Any]) -> Place | None:
    """Return the place that a compile problem names, if it names one."""
    named = problem.get("error") or problem
    line = named.get("line")
    if not isinstance(line, int) or line < 1:
        return None
    return Place(str(named.get("file") or ""), line, int(named.get("column") or 0))


def frame(place: Place, files: Mapping[str, str]) -> list[str]:
    """Return the source line with its number, and a caret under the column.

    Tabs are kept in front of the caret, so that it stands right however wide they are shown.
    """
    lines = files.get(place.file, "").splitlines()
    if place.line > len(lines):
        return []
    text = lines[place.line - 1]
    number = f"{place.line:>5} | "
    shown = [number + text]
    if place.column:
        before = "".join("\t" if char == "\t" else " " for char in text[: place.column - 1])
        shown.append(" " * (len(number) - 2) + "| " + before + "^")
    return shown


class DoesNotCompile(Refused):
    """The uploaded source has a mistake; the engine named its place, we have its text."""

    def __init__(self, problem: Mapping[str, Any], files: Mapping[str, str]) -> None:
        self.place = place_of(problem)
        self.files = files
        super().__init__(problem)

    def lines(self) -> list[str]:
        if self.place is None:
            return super().lines()
        return [f"{self.place}: {self.message}", *frame(self.place, self.files)]
