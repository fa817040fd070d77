"""Writes JavaScript for the two parts of TypeScript that are more than types.

Path:   compile -> erase -> here
An enum becomes a function call around its own members; a constructor's `private a` becomes
`this.a=a;`. Both stay on the author's lines; only columns after them on a line may move.
"""

import json
from collections.abc import Iterator
from typing import Final

from tree_sitter import Node

from runtimes.javascript.source import Edit, Source
from runtimes.javascript.syntax import child

# Words that cannot name a `const` in strict code, so no initialiser can mean them either.
RESERVED: Final = frozenset({
    "arguments", "await", "break", "case", "catch", "class", "const", "continue", "debugger",
    "default", "delete", "do", "else", "enum", "eval", "export", "extends", "false", "finally",
    "for", "function", "if", "implements", "import", "in", "instanceof", "interface", "let",
    "new", "null", "package", "private", "protected", "public", "return", "static", "super",
    "switch", "this", "throw", "true", "try", "typeof", "var", "void", "while", "with", "yield",
})  # fmt: skip
PROPERTY_MODIFIERS: Final = frozenset({"accessibility_modifier", "override_modifier", "readonly"})


def lower_enum(node: Node, source: Source) -> Iterator[Edit]:
    """Turn `enum E { A, B = 'b' }` into `var E;(function(E){...})(E||(E={}));`.

    Each member is also a `const` in there, since later members may use it by its bare name.
    """
    name_node, body = node.child_by_field_name("name"), node.child_by_field_name("body")
    assert name_node is not None, node
    assert body is not None, node
    name = source.read(name_node.start_byte, name_node.end_byte)
    put = source.fresh("put")
    keyword = child(node, "enum")
    assert keyword is not None, node
    if node.start_byte < keyword.start_byte:
        yield source.erase(node.start_byte, keyword.start_byte)
    yield source.fit(keyword.start_byte, keyword.end_byte, "var")
    opened = (
        f";(function({name}){{const {put}=(k,v)=>"
        f'({name}[k]=v,typeof v==="string"||({name}[v]=k),v);'
    )
    yield Edit(body.start_byte, body.start_byte + 1, opened.encode())
    yield Edit(body.end_byte - 1, body.end_byte, f"}})({name}||({name}={{}}));".encode())
    yield from _members(body, source, name, put)


def _members(body: Node, source: Source, enum: str, put: str) -> Iterator[Edit]:
    before = ""  # the key of the member before, as code
    after_text = False  # the member before is a text, so there is no next number
    for each in body.children:
        if each.type == ",":
            yield Edit(each.start_byte, each.end_byte, b";")
            continue
        value = each.child_by_field_name("value") if each.type == "enum_assignment" else None
        label = each.child_by_field_name("name") if value is not None else each
        if label is None or not each.is_named or each.type == "comment":
            continue
        word, key = _key(label, source)
        bare = word and word not in RESERVED and word not in {enum, put}
        text = f"const {word}={put}({key}" if bare else f"{put}({key}"
        if value is not None:
            equals = child(each, "=")
            assert equals is not None, each
            yield Edit(equals.start_byte, equals.end_byte, b",")
            yield Edit(value.end_byte, value.end_byte, b")")
            after_text = value.type in {"string", "template_string"}
        elif after_text:
            message = f"enum member {key} needs a value, because the member before it is a text"
            raise source.error(each.start_byte, message)
        else:
            text += f",{enum}[{before}]+1)" if before else ",0)"
        before = key
        yield Edit(label.start_byte, label.end_byte, text.encode())


def _key(label: Node, source: Source) -> tuple[str, str]:
    """Return the member's name if it is a word, and the code of its key."""
    if label.type == "computed_property_name" and label.named_children:
        label = label.named_children[0]
    text = source.read(label.start_byte, label.end_byte)
    if label.type == "property_identifier":
        return text, json.dumps(text, ensure_ascii=False)
    if label.type == "string":
        return "", text
    raise source.error(label.start_byte, "an enum member is named by a word or a plain text")


def assign_parameter_properties(klass: Node, source: Source) -> Iterator[Edit]:
    """Put `this.a=a;` where TypeScript does: first in the constructor, or after `super()`."""
    heritage, body = child(klass, "class_heritage"), klass.child_by_field_name("body")
    is_derived = heritage is not None and child(heritage, "extends_clause") is not None
    for method in body.children if body else []:
        name = method.child_by_field_name("name")
        block = method.child_by_field_name("body")
        if (
            method.type == "method_definition"
            and block is not None
            and name is not None
            and source.data[name.start_byte : name.end_byte] == b"constructor"
        ):
            names = list(_property_names(method, source))
            if names:
                code = "".join(f"this.{each}={each};" for each in names)
                at = _after_super(block, source) if is_derived else block.start_byte + 1
                yield Edit(at, at, (";" + code if is_derived else code).encode())


def _property_names(method: Node, source: Source) -> Iterator[str]:
    parameters = method.child_by_field_name("parameters")
    for each in parameters.named_children if parameters else []:
        if not any(part.type in PROPERTY_MODIFIERS for part in each.children):
            continue
        pattern = each.child_by_field_name("pattern")
        if pattern is None or pattern.type != "identifier":
            raise source.error(each.start_byte, "a parameter property must be a plain name")
        yield source.read(pattern.start_byte, pattern.end_byte)


def _after_super(block: Node, source: Source) -> int:
    for statement in block.named_children:
        call = statement.named_children[0] if statement.named_children else None
        if statement.type == "expression_statement" and call and call.type == "call_expression":
            called = call.child_by_field_name("function")
            if called and called.type == "super":
                return statement.end_byte
    message = "call super(...) as a statement of its own in this constructor: it has properties"
    raise source.error(block.start_byte, message)
