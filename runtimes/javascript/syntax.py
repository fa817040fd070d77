"""Parses JavaScript and TypeScript with tree-sitter, and finds the best place of a syntax error.

Path:   compile -> here -> modules, erase
Never:  recurses: a hostile source nests a million brackets.
"""

import re
import time
from collections.abc import Callable, Iterator
from typing import Final

import tree_sitter
import tree_sitter_typescript
from tree_sitter import Node

from runtimes.javascript.source import LINE_END, CompileError, Source

# The grammar of TypeScript is a superset of JavaScript's: one grammar for both.
GRAMMAR: Final = tree_sitter.Language(tree_sitter_typescript.language_typescript())
# Real code takes 0.15 s for a megabyte. Not X: a count of steps, since a step's cost varies.
PARSE_SECONDS_MAX: Final = 2
CHUNK_BYTES: Final = 65_536
CLOSERS: Final = {"(": ")", "[": "]", "{": "}", "${": "}"}
JSX: Final = re.compile(r"</[A-Za-z>]|/>|=\s*<>")
VARIANCE: Final = re.compile(rb"\b(?:in|out)\s+[A-Za-z_$]")
# The grammar reads `x as a.b.C` as `(x as a.b).C`; a name without dots it gets right.
DOTTED_TYPE: Final = re.compile(
    rb"\b(?:as|satisfies)[ \t]+(?:[\w$.]+(?:\[\])*\s*[|&]\s*)*+[\w$]+(?:\.[\w$]+){2,}"
)

# A line of an interface that begins with `<T>(` is read as going on the line before it.
LINE_OF_GENERICS: Final = re.compile(rb"(?<=[\w)\]}>/])(?<!=>)(\s*?)\n([ \t]*)<")


def parse(source: Source, *, typed: bool) -> Node:
    """Return the tree; its nodes' places are right in `source`, whatever was masked."""
    if not typed:
        return _parse(source, source.data)
    data = DOTTED_TYPE.sub(lambda found: found[0].replace(b".", b"_"), source.data)
    root = _parse(source, data)
    if root.has_error and LINE_OF_GENERICS.search(data):
        second = _parse(source, LINE_OF_GENERICS.sub(rb"\1;\2<", data))
        root = root if second.has_error else second
    return root


def _parse(source: Source, data: bytes) -> Node:
    """Parse with a deadline: a megabyte of open comments would take the grammar hours."""
    stop_at = time.monotonic() + PARSE_SECONDS_MAX
    reached = 0

    def is_over(at: int, _has_error: bool) -> bool:
        nonlocal reached
        reached = at
        return time.monotonic() > stop_at

    try:
        return (
            tree_sitter.Parser(GRAMMAR)
            .parse(lambda at, _: data[at : at + CHUNK_BYTES], progress_callback=is_over)
            .root_node
        )
    except ValueError:  # what tree-sitter raises when the callback said stop
        message = f"syntax error: not understood within {PARSE_SECONDS_MAX} s, up to here"
        raise source.error(min(reached, len(data)), message) from None


def walk(root: Node, enter: Callable[[Node], bool]) -> None:
    """Call `enter` on each node, parents first; where it returns False, skip the children."""
    cursor = root.walk()
    while True:
        node = cursor.node
        assert node is not None
        if enter(node) and cursor.goto_first_child():
            continue
        while not cursor.goto_next_sibling():
            if not cursor.goto_parent():
                return


def child(node: Node, kind: str) -> Node | None:
    """Return the first child of this kind."""
    return next((each for each in node.children if each.type == kind), None)


def names_of(pattern: Node, source: Source) -> Iterator[tuple[str, int]]:
    """Yield each name that a binding pattern declares, with its place."""
    todo = [pattern]
    while todo:
        node = todo.pop()
        if node.type in {"identifier", "type_identifier", "shorthand_property_identifier_pattern"}:
            yield source.read(node.start_byte, node.end_byte), node.start_byte
        elif node.type in {"pair_pattern", "assignment_pattern", "object_assignment_pattern"}:
            inner = node.child_by_field_name("value") or node.child_by_field_name("left")
            todo += [inner] if inner else []
        elif node.type in {"object_pattern", "array_pattern", "rest_pattern"}:
            todo += reversed(node.named_children)


def syntax_error(root: Node, source: Source) -> CompileError | None:
    """Return what is wrong with a source that has an error, unless it is known to be harmless.

    A bracket without its partner comes first, since tree-sitter then marks half of the file.
    """
    broken = _innermost_error(root, source)
    if broken is None:
        return None
    if broken.is_missing:
        found = source.error(broken.start_byte, f"syntax error: {broken.type!r} is missing here")
    else:
        found = source.error(broken.start_byte, "syntax error: this is not expected here")
    line = LINE_END.split(source.text)[found.line - 1]
    if JSX.search(line):
        message = "JSX is not supported; build the text or the object with plain function calls"
        return source.error(broken.start_byte, message)
    return unbalanced(root, source) or found


def unbalanced(root: Node, source: Source) -> CompileError | None:
    """Return an error for the first bracket that has no partner."""
    open_brackets: list[tuple[str, int]] = []
    odd: list[tuple[str, int]] = []

    def enter(node: Node) -> bool:
        kind = node.type
        if odd or node.is_named or node.is_missing:
            return not odd
        if kind in CLOSERS:
            open_brackets.append((kind, node.start_byte))
        is_closer = kind in {")", "]", "}"}
        if is_closer and (not open_brackets or CLOSERS[open_brackets.pop()[0]] != kind):
            odd.append((kind, node.start_byte))
        return True

    walk(root, enter)
    if odd:
        kind, at = odd[0]
        return source.error(at, f"syntax error: '{kind}' does not match what was opened before it")
    if open_brackets:
        kind, at = open_brackets[-1]
        return source.error(at, f"syntax error: '{kind}' is never closed")
    return None


def _innermost_error(root: Node, source: Source) -> Node | None:
    found: list[Node] = []
    harmless_until = 0

    def enter(node: Node) -> bool:
        nonlocal harmless_until
        if not node.has_error or node.start_byte < harmless_until:
            return False
        if found and node.start_byte >= found[0].end_byte and not found[0].is_missing:
            return False
        if node.type == "type_parameters" and VARIANCE.search(
            source.data, node.start_byte, node.end_byte
        ):
            # The grammar does not know `in` and `out`; they are erased anyway.
            harmless_until = node.end_byte
            return False
        if node.type == "export_statement" and is_export_type_star(node, source):
            harmless_until = node.end_byte
            return False
        if node.is_error or node.is_missing:
            inner = not found or (
                found[0].start_byte <= node.start_byte and node.end_byte <= found[0].end_byte
            )
            if inner:
                found[:] = [node]
        return True

    walk(root, enter)
    return found[0] if found else None


def is_export_type_star(node: Node, source: Source) -> bool:
    """Tell `export type * from`, which the grammar reads as an error of one word."""
    kinds = [each.type for each in node.children[:3]]
    if kinds not in (["export", "ERROR", "*"], ["export", "ERROR", "namespace_export"]):
        return False
    wrong = node.children[1]
    return source.data[wrong.start_byte : wrong.end_byte] == b"type"


def has_module_words_in_error(root: Node) -> bool:
    """Tell whether an `import` or `export` was not understood."""
    found: list[Node] = []

    def enter(node: Node) -> bool:
        if node.is_error:
            found.extend(each for each in node.children if each.type in {"import", "export"})
        return node.has_error and not found

    walk(root, enter)
    return bool(found)
