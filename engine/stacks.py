"""Turns V8's stack text into the author's view: own file, line, column; none of our frames."""

import re
from typing import Final

import msgspec

from runtimes.contract import GuestError

# Numbers that fit a `Count`: a guest can write any, and Python reads only so many digits.
_FRAME: Final = re.compile(r"(?<![^\s()])([^\s()]+):(\d{1,9}):(\d{1,9})\)?$", re.ASCII)
_OURS: Final = "cloudcode:"


class _File(msgspec.Struct):
    name: str
    prefix_columns: int


class _Program(msgspec.Struct):
    files: list[_File]
    main: str


def authors_stack(error: GuestError, program: str) -> GuestError:
    """Return `error` with file, line and column of the first frame in the author's files.

    Args:
        error: as the guest reported it: the stack is V8's text, and not to be trusted.
        program: the version's compiled program, JSON: tells what stands before line 1. Empty for
            WebAssembly, whose cell has named the place already. Made in a cell, so perhaps not
            what it should be: then the stack stays as it is.
    """
    if not program:
        return error
    try:
        files = {file.name: file for file in msgspec.json.decode(program, type=_Program).files}
    except (msgspec.MsgspecError, RecursionError):
        return error
    rows = []
    place: tuple[str, int, int] | None = None
    for row in error.stack.split("\n"):
        if _OURS in row:
            continue
        match = _FRAME.search(row)
        if match is not None and match[1] in files and row.lstrip().startswith("at "):
            name, line, column = match[1], int(match[2]), int(match[3])
            if line == 1:
                column = max(1, column - files[name].prefix_columns)
            place = place or (name, line, column)
            rows.append(f"{row[: match.start(1)]}{name}:{line}:{column}{row[match.end(3) :]}")
        else:
            rows.append(row)
    file, line, column = place or ("", 0, 0)
    return GuestError(
        name=error.name,
        message=error.message,
        stack="\n".join(rows).rstrip(),
        file=file,
        line=line,
        column=column,
    )
