"""Hides the values of secrets in what a run says: its log, result, error and transcript.

Path:   catalogue -> `redaction_of`, once a version; runner, commit, hostcalls -> here; api (inputs)
Never:  touches what a run does: the writes, messages and calls it makes carry what they were given.
"""

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, Final
from urllib.parse import quote, quote_plus

import msgspec

from runtimes.contract import GuestError

VALUE_CHARS_MIN: Final = 6  # shorter ones would hide half of all text, and are guessed anyway
END_CHARS_MIN: Final = 4  # of a value that was cut off with the text it stood in
LINE_CHARS_MIN: Final = 16  # of one line of a value that has several, such as a private key
MARKS_MAX: Final = 1_000  # in one text; one with more is hidden as a whole
LINE_CUT: Final = "… [line cut: log limit]"  # both runtimes end a line so that they have cut
UNREADABLE: Final = "[not shown: JSON that cannot be read]"
_UNRESERVED: Final = "-_.!~*'()"  # what encodeURIComponent leaves as it is (ECMA-262, 19.2.6.1.1)
_encode: Final = msgspec.json.encode


class Redaction:
    """The values that a version was given, in every form that is looked for."""

    def __init__(self, secrets: Mapping[str, str]) -> None:
        """Take values by their names. The forms are made at the first text: many never run."""
        self._secrets = dict(secrets)

    def __repr__(self) -> str:
        return "Redaction(...)"

    @cached_property
    def _names(self) -> dict[str, str]:
        """Return the names by the forms that show their values."""
        return {
            form: name for name, value in reversed(self._secrets.items()) for form in _forms(value)
        }

    @cached_property
    def _needles(self) -> tuple[str, ...]:
        """Return what to look for: a form that has another one of its value in it need not be."""
        needles = dict[str, None]()
        for value in self._secrets.values():
            own: list[str] = []
            for form in sorted(_forms(value), key=len):
                if not any(known in form for known in own):
                    own.append(form)
            needles |= dict.fromkeys(own)
        return tuple(needles)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        forms = sorted(self._names, key=len, reverse=True)  # of two at one place the longer one
        return re.compile("|".join(map(re.escape, forms)))

    def holds(self, text: str) -> bool:
        """Say whether a value is in the text."""
        for needle in self._needles:  # noqa: SIM110 - any() takes three times as long, in every run
            if needle in text:
                return True
        return False

    def text(self, text: str) -> str:
        """Return the text with `[secret NAME]` for each value."""
        if not self.holds(text):
            return text
        return self._hidden(text)

    def line(self, text: str) -> str:
        """Return a line of a log, whose end may have cut a value off."""
        if text.endswith(LINE_CUT):
            return self.cut_text(text.removesuffix(LINE_CUT)) + LINE_CUT
        return self.text(text)

    def cut_text(self, text: str) -> str:
        """Do as `text`, also for the beginning of a value that the text ends with."""
        text = self.text(text)
        for form, name in self._names.items():
            if form[:END_CHARS_MIN] not in text[-len(form) :]:
                continue
            for length in range(min(len(form) - 1, len(text)), END_CHARS_MIN - 1, -1):
                if text.endswith(form[:length]):
                    return f"{text[:-length]}[secret {name}]"
        return text

    def refusal(self, text: str, asked: str) -> str:
        """Do as `text`, also for beginnings of values that are in `asked` (JSON): it is quoted.

        What is quoted may have been cut off anywhere, and the refusal goes on after it.
        """
        asked = _plain(asked)
        held = {self._names[needle] for needle in self._needles if needle in asked}
        if not held:
            return self.text(text)
        forms = dict[str, list[str]]()
        for form, name in self._names.items():
            if name in held:
                forms.setdefault(form[:END_CHARS_MIN], []).append(form)
        parts, done = list[str](), 0
        for found in re.finditer(f"(?={'|'.join(map(re.escape, forms))})", text):
            start = found.start()
            if start < done:
                continue
            shown = max(
                (_shared(form, text[start : start + len(form)]), self._names[form])
                for form in forms[text[start : start + END_CHARS_MIN]]
            )
            mark = f"[secret {shown[1]}]"
            if len(parts) == MARKS_MAX:
                return mark
            parts.append(self.text(text[done:start]) + mark)
            done = start + shown[0]
        return "".join(parts) + self.text(text[done:])

    def json(self, data: bytes) -> bytes:
        """Return the JSON without the values; it stays JSON."""
        text = data.decode()
        if (plain := _plain(text)) is not text:
            text, data = plain, plain.encode()
        if not self.holds(text):
            return data
        hidden = self._hidden(text)
        if _is_json(hidden):
            return hidden.encode()
        return self._walked(text)

    def response(self, data: bytes) -> bytes:
        """Return what a `fetch` handler answered without the values; its own fields stay."""
        text = _plain(data.decode())
        if not self.holds(text):
            return text.encode()
        try:
            answer = msgspec.json.decode(text)
            if answer["body_base64"]:
                body = base64.b64decode(answer["body"]).decode("utf-8", "surrogateescape")
                hidden = self.text(body).encode("utf-8", "surrogateescape")
                answer["body"] = base64.b64encode(hidden).decode()
            else:
                answer["body"] = self._walk(answer["body"])
            answer["headers"] = self._walk(answer["headers"])
        except (msgspec.MsgspecError, LookupError, TypeError, ValueError, RecursionError):
            return self.json(data)  # it is no response, and will be refused
        return _encode(answer)

    def error(self, error: GuestError) -> GuestError:
        """Return the error without the values; the guest's side has cut its texts already."""
        return replace(
            error,
            name=self.cut_text(error.name),
            message=self.cut_text(error.message),
            stack=self.cut_text(error.stack),
        )

    def _hidden(self, text: str) -> str:
        hidden, count = self._pattern.subn(self._mark, text, count=MARKS_MAX)
        if count < MARKS_MAX:
            return hidden
        first = self._pattern.search(text)
        assert first is not None, "it holds many"
        return self._mark(first)

    def _mark(self, found: re.Match[str]) -> str:
        return f"[secret {self._names[found[0]]}]"

    def _walked(self, text: str) -> bytes:
        """Hide values in texts and numbers one by one: as text they run into what is around."""
        try:
            walked = _encode(self._walk(msgspec.json.decode(text)))
        except (msgspec.MsgspecError, RecursionError):
            return _encode(self._hidden(text))
        return walked if len(walked) <= 2 * len(text) + MARKS_MAX else _encode("[secrets]")

    def _walk(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self._walk(one) for one in value]
        if isinstance(value, dict):
            return {self.text(name): self._walk(one) for name, one in value.items()}
        if isinstance(value, int | float) and self.holds(str(value)):
            return self.text(str(value))
        return value


def redaction_of(secrets: Mapping[str, str]) -> Redaction | None:
    """Return how to hide these values, by name; None: there is none to hide."""
    hidden = {name: text for name, text in secrets.items() if len(text) >= VALUE_CHARS_MIN}
    return Redaction(hidden) if hidden else None


def _forms(value: str) -> set[str]:
    """Return the texts that show the value: itself, in JSON, in a URL, in base64."""
    escaped = _encode(value).decode()[1:-1]
    forms = {value, escaped, _encode(escaped).decode()[1:-1]}
    forms.add(json.dumps(value)[1:-1])  # of Python: only ASCII
    forms.add(repr(value)[1:-1])  # of Python, too: as our own errors quote it
    for char in "<>&":  # of Go
        escaped = escaped.replace(char, f"\\u{ord(char):04x}")
    forms.add(escaped)
    forms |= {quote(value, safe=""), quote(value, safe=_UNRESERVED), quote_plus(value)}
    forms |= _in_base64(value.encode())
    lines = value.splitlines()
    if len(lines) > 1:
        forms |= {line for line in lines if len(line) >= LINE_CHARS_MIN}
    return forms


def _in_base64(value: bytes) -> set[str]:
    """Return the value in base64, by itself and wherever it stands in what is encoded.

    Three bytes make four characters, so there are three ways to begin; the characters at both ends
    that have bits of a neighbour are left out.
    """
    forms = set()
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        whole = encode(value).decode()
        forms |= {whole, whole.rstrip("=")}
        for before in range(3):
            text = encode(bytes(before) + value).decode()
            first, last = -(-before * 8 // 6), (before + len(value)) * 8 // 6
            forms.add(text[first:last])
    return forms


def _shared(form: str, text: str) -> int:
    """Return how many characters both begin with."""
    pairs = enumerate(zip(form, text, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(form), len(text)))


def _plain(text: str) -> str:
    r"""Return JSON in which each sign is written one way: `\u0073` and `\/` would hide a value.

    Without such an escape it is the same text.
    """
    if "\\u" not in text and "\\/" not in text:
        return text
    try:
        return _encode(msgspec.json.decode(text)).decode()
    except (msgspec.MsgspecError, RecursionError):
        return f'"{UNREADABLE}"'


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError):
        return False
    return True
