"""Finds credentials that are written into a source, and says where else they can be kept.

Path:   compile -> here -> the warnings of an upload
Never:  refuses a source; puts a credential into a warning; looks at text that is no literal.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from tree_sitter import Node

from runtimes.contract import SourceWarning
from runtimes.javascript.source import CompileError, Source
from runtimes.javascript.syntax import parse, walk

WARNINGS_MAX: Final = 20
HOPS_MAX: Final = 4  # from a name to the literal it was declared with
CALLS_MAX: Final = 200  # that are looked into, and as many fields of each object: it is only advice
# How the keys of providers look, by what they publish themselves or their keys show.
KEYS: Final = (
    ("a Slack token", re.compile(r"xox[a-z]-[0-9A-Za-z-]{10,}")),
    ("the URL of a Slack webhook", re.compile(r"https://hooks\.slack\.com/services/T\w+/B\w+/\w+")),
    ("a SendGrid key", re.compile(r"SG\.[\w-]{16,}\.[\w-]{16,}")),
    ("a Telegram bot's token", re.compile(r"[0-9]{6,12}:[A-Za-z0-9_-]{30,}")),
    ("a Mailchimp key", re.compile(r"[0-9a-f]{32}-us[0-9]{1,2}")),
    ("a secret of Standard Webhooks", re.compile(r"whsec_[A-Za-z0-9+/=]{24,}")),
)
# Without one of these words there is nothing to find, and most sources need not be walked through.
_WORTH_A_LOOK: Final = re.compile(
    rb"\b(?:email|Twilio|Telegram)\b|xox[a-z]-|hooks\.slack\.com|\bSG\.|[0-9]{6}:|-us[0-9]"
    rb"|whsec_"
)
_NAME: Final = {"email": "EMAIL", "Twilio": "TWILIO", "Telegram": "TELEGRAM"}
_INSTEAD: Final = {
    "email": 'email({ connection: "EMAIL" }, ...)',
    "Twilio": 'new Twilio("TWILIO")',
    "Telegram": 'new Telegram("TELEGRAM")',
}
_SECRETS_OF_EMAIL: Final = frozenset(
    {"api_key", "apiKey", "secretAccessKey", "pass", "password"}
)  # in `auth`; who logs in, and where, is no secret
_TEXTS: Final = frozenset({"string", "template_string"})
_DECLARATIONS: Final = frozenset({"function_declaration", "class_declaration"})


@dataclass(slots=True)
class _Found:
    """What one walk through the tree has collected."""

    values: dict[str, Node] = field(default_factory=dict)  # name -> what it is declared to be
    own: set[str] = field(default_factory=set)  # classic names that the source declares itself
    calls: list[tuple[str, list[Node]]] = field(default_factory=list)  # (name, arguments)
    texts: list[Node] = field(default_factory=list)


def written_credentials(
    source: Source, root: Node | None, *, is_classic: bool
) -> list[SourceWarning]:
    """Return a warning for each credential in a literal; the classic calls: of scripts only."""
    if _WORTH_A_LOOK.search(source.data) is None:
        return []
    if root is None:
        try:
            root = parse(source, typed=False)
        except CompileError:  # too hard to read; it may run all the same
            return []
    return _Reader(source, _collected(source, root)).warnings(is_classic=is_classic)


def _collected(source: Source, root: Node) -> _Found:
    found = _Found()

    def enter(node: Node) -> bool:
        kind = node.type
        if kind in _TEXTS:
            found.texts.append(node)
        elif kind in {"new_expression", "call_expression"}:
            called = node.child_by_field_name("constructor" if kind[0] == "n" else "function")
            given = node.child_by_field_name("arguments")
            if called is not None and given is not None and called.type == "identifier":
                name = _text(source, called)
                is_one = name in _INSTEAD and (name == "email") == (kind == "call_expression")
                if is_one and len(found.calls) < CALLS_MAX:
                    found.calls.append((name, _without_comments(given)))
        elif kind in {"variable_declarator", "assignment_expression"}:
            declared = kind == "variable_declarator"
            name_node = node.child_by_field_name("name" if declared else "left")
            value = node.child_by_field_name("value" if declared else "right")
            if name_node is not None and name_node.type == "identifier" and value is not None:
                found.values.setdefault(_text(source, name_node), value)
        elif kind in _DECLARATIONS:
            name_node = node.child_by_field_name("name")
            if name_node is not None:
                found.own.add(_text(source, name_node))
        return True

    walk(root, enter)
    return found


class _Reader:
    """Follows the arguments of the calls that were found to the literals that they are."""

    def __init__(self, source: Source, found: _Found) -> None:
        self._source = source
        self._found = found

    def warnings(self, *, is_classic: bool) -> list[SourceWarning]:
        found = self._found
        told: dict[int, SourceWarning] = {}
        for name, given in found.calls if is_classic else ():
            if len(told) >= WARNINGS_MAX:
                break
            if name in found.own or name in found.values:
                continue  # not the engine's
            literal = self._secret(name, given)
            if literal is not None and literal.start_byte not in told:
                told[literal.start_byte] = self._warn(literal, _of_call(name))
        for text in found.texts:
            if len(told) >= WARNINGS_MAX:
                break
            if text.start_byte not in told and (what := self._key(text)) is not None:
                told[text.start_byte] = self._warn(text, what)
        return [told[at] for at in sorted(told)]

    def _secret(self, name: str, given: list[Node]) -> Node | None:
        """Return the literal that a call has its secret from."""
        if name == "Twilio":
            return self._literal(given[1]) if len(given) > 1 else None
        if name == "Telegram":
            literal = self._literal(given[0]) if given else None
            return literal if literal is not None and ":" in self._inside(literal) else None
        credentials = self._object(given[0]) if given else None
        auth = None if credentials is None else self._member(credentials, "auth")
        pairs = None if auth is None else self._object(auth)
        for key, value in self._pairs(pairs) if pairs is not None else ():
            if key in _SECRETS_OF_EMAIL and (literal := self._literal(value)) is not None:
                return literal
        return None

    def _literal(self, node: Node) -> Node | None:
        """Return the text that `node` is, or was declared to be; None: it is none, or is empty."""
        end = self._followed(node)
        if end is None or end.type not in _TEXTS or not self._inside(end).strip():
            return None
        if any(part.type == "template_substitution" for part in end.children):
            return None
        return end

    def _object(self, node: Node) -> Node | None:
        end = self._followed(node)
        return end if end is not None and end.type == "object" else None

    def _followed(self, node: Node) -> Node | None:
        """Go from a name, or from one's member, to what it was declared as."""
        at: Node | None = node
        for _ in range(HOPS_MAX):
            if at is None:
                return None
            if at.type in {"identifier", "shorthand_property_identifier"}:
                at = self._found.values.get(_text(self._source, at))
            elif at.type == "member_expression":
                at = self._of_member(at)
            elif at.type in {"parenthesized_expression", "as_expression"} and at.named_children:
                at = at.named_children[0]
            else:
                return at
        return None

    def _of_member(self, node: Node) -> Node | None:
        """Return the value of `settings.token`, one level deep."""
        owner, name = node.child_by_field_name("object"), node.child_by_field_name("property")
        if owner is None or name is None or owner.type != "identifier":
            return None
        value = self._found.values.get(_text(self._source, owner))
        if value is None or value.type != "object":
            return None
        return self._member(value, _text(self._source, name))

    def _member(self, node: Node, name: str) -> Node | None:
        return next((value for key, value in self._pairs(node) if key == name), None)

    def _pairs(self, node: Node) -> Iterator[tuple[str, Node]]:
        for part in node.named_children[:CALLS_MAX]:
            if part.type == "shorthand_property_identifier":
                yield _text(self._source, part), part
            elif part.type == "pair":
                key, value = part.child_by_field_name("key"), part.child_by_field_name("value")
                if key is not None and value is not None:
                    yield _text(self._source, key).strip("'\""), value

    def _key(self, text: Node) -> str | None:
        inside = self._inside(text)
        for what, shape in KEYS:
            if shape.fullmatch(inside):
                return (
                    f"this looks like {what}, and everyone who may read functions reads it: store "
                    "it as a secret (PUT /v1/secrets/NAME) or in a connection (PUT /v1/connections/"
                    "NAME), and change it at the provider"
                )
        return None

    def _inside(self, text: Node) -> str:
        return self._source.read(text.start_byte + 1, text.end_byte - 1)

    def _warn(self, node: Node, message: str) -> SourceWarning:
        place = self._source.error(node.start_byte, message)
        return SourceWarning(
            file=place.file, line=place.line, column=place.column, message=place.message
        )


def _of_call(name: str) -> str:
    call = name if name == "email" else f"new {name}"
    return (
        f"{call}(...) gets credentials that are written here, where everyone who may read functions"
        f" reads them: store them once, PUT /v1/connections/{_NAME[name]}, and write"
        f" {_INSTEAD[name]}"
    )


def _without_comments(node: Node) -> list[Node]:
    return [part for part in node.named_children if part.type != "comment"]


def _text(source: Source, node: Node) -> str:
    return source.read(node.start_byte, node.end_byte)
