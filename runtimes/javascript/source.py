"""Holds one source as UTF-8 bytes and applies edits that never move a line.

Path:   compile -> modules, erase, lowering -> here
Never:  knows a grammar; reads a file.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

LINE_END: Final = re.compile("\r\n|[\n\r\u2028\u2029]")  # what V8 counts as a line
LINE_END_BYTES: Final = re.compile(rb"[\n\r]|\xe2\x80[\xa8\xa9]")
SPACED: Final = bytes(byte if byte in b"\r\n" else 0x20 for byte in range(256))
NOT_LINE_END: Final = re.compile("[^\n\r\u2028\u2029]")
GAP: Final = re.compile(
    rb"(?:[ \t\v\f\r\n]|\xc2\xa0|\xef\xbb\xbf|\xe2\x80[\xa8\xa9]"
    rb"|//(?:(?!\xe2\x80[\xa8\xa9])[^\r\n])*+|/\*(?s:.*?)\*/)*+"
)


class CompileError(Exception):
    """The author's source cannot be turned into code; the author's fault, never ours."""

    code = "compile_error"

    def __init__(self, file: str, line: int, column: int, message: str) -> None:
        """Keep the position: `line` and `column` count from 1, columns in UTF-16 units."""
        self.file = file
        self.line = line
        self.column = column
        self.message = message
        super().__init__(f"{file}:{line}:{column}: {message}")


@dataclass(frozen=True, slots=True)
class Edit:
    """Bytes `start` to `end` become `text`. An edit inside another one is dropped."""

    start: int
    end: int
    text: bytes
    is_special: bool = False  # wins over the plain erasure of the same bytes


class Source:
    """One file of the author."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text
        self._fresh: dict[str, str] = {}
        try:
            self.data = text.encode()
        except UnicodeEncodeError as broken:
            line, column = _position(text[: broken.start])
            message = "half of a surrogate pair stands alone here; write it as \\uXXXX"
            raise CompileError(name, line, column, message) from None

    def read(self, start: int, end: int) -> str:
        return self.data[start:end].decode()

    def fresh(self, name: str) -> str:
        """Return `name`, with as many `_` as keep it apart from every word of the source."""
        if name not in self._fresh:
            found = (len(each[1]) for each in re.finditer(name + "(_*)", self.text))
            self._fresh[name] = name + "_" * (max(found, default=-1) + 1)
        return self._fresh[name]

    def error(self, at: int, message: str) -> CompileError:
        """Return, not raise, an error at byte `at`."""
        return CompileError(self.name, *_position(self.data[:at].decode(errors="replace")), message)

    def breaks_line(self, start: int, end: int) -> bool:
        return LINE_END_BYTES.search(self.data, start, end) is not None

    def after_gap(self, at: int) -> int:
        """Return the first byte at or after `at` that is no white space and in no comment."""
        found = GAP.match(self.data, at)
        assert found is not None, at
        return found.end()

    def erase(self, start: int, end: int, *, lead: str = "", tail: str = "") -> Edit:
        """Replace by spaces that take as many UTF-16 columns; `lead` and `tail` lie within.

        `lead` and `tail` are ASCII and stand in the place of ASCII characters.
        """
        erased = blank(self.data[start:end])
        stop = len(erased) - len(tail)
        text = lead.encode() + erased[len(lead) : stop] + tail.encode()
        return Edit(start, end, text, is_special=bool(lead or tail))

    def fit(self, start: int, end: int, code: str) -> Edit:
        """Put `code` on the first line of the erased text, pushing columns only if it is longer."""
        erased = blank(self.data[start:end]).decode()
        found = LINE_END.search(erased)
        first = found.start() if found else len(erased)
        padding = " " * (first - utf16_length(code))
        return Edit(start, end, (code + padding + erased[first:]).encode())

    def apply(self, edits: Iterable[Edit]) -> str:
        """Return the text with all edits made; of two that begin alike the longer wins."""
        parts: list[bytes] = []
        done = 0
        for edit in sorted(edits, key=_place):
            if edit.start < done:
                continue
            parts += (self.data[done : edit.start], edit.text)
            done = edit.end
        parts.append(self.data[done:])
        return b"".join(parts).decode()


def blank(data: bytes) -> bytes:
    """Return spaces for `data`, with its line ends and its width in UTF-16 units."""
    if data.isascii():
        return data.translate(SPACED)
    return NOT_LINE_END.sub(lambda found: " " * utf16_length(found[0]), data.decode()).encode()


def utf16_length(text: str) -> int:
    return len(text) + sum(character > "\uffff" for character in text)


def _place(edit: Edit) -> tuple[int, bool, int, bool]:
    return edit.start, edit.end > edit.start, -edit.end, not edit.is_special


def _position(before: str) -> tuple[int, int]:
    ends = [found.end() for found in LINE_END.finditer(before)]
    return len(ends) + 1, utf16_length(before[ends[-1] if ends else 0 :]) + 1
