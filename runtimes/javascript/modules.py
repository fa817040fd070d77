"""Reads what a file imports and exports, and takes the words `export` and `export default` out.

Path:   compile -> here -> link (which writes the imports, once all files are read)
`export const a = 1` keeps `const a = 1` in its columns; the getter for `a` goes in front of
line 1. `export default ` is as long as `let _default=`, so that an expression stays in place.
"""

from dataclasses import dataclass, field
from typing import Final, Literal

from tree_sitter import Node

from runtimes.javascript.source import Edit, Source
from runtimes.javascript.syntax import child, is_export_type_star, names_of

Kind = Literal["const", "let", "function", "class", "type", "import"]

DECLARED: Final[dict[str, Kind]] = {
    "function_declaration": "function",
    "generator_function_declaration": "function",
    "class_declaration": "class",
    "abstract_class_declaration": "class",
    "enum_declaration": "const",
    "interface_declaration": "type",
    "type_alias_declaration": "type",
    "internal_module": "type",  # one with values is refused by the eraser
    "module": "type",
}
TYPE_DECLARATIONS: Final = frozenset({
    "ambient_declaration",
    "function_signature",
    "interface_declaration",
    "type_alias_declaration",
})  # fmt: skip
ANONYMOUS: Final[dict[str, Kind]] = {
    "function_expression": "function",
    "generator_function": "function",
    "class": "class",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """One name that goes from one file to another, by import or by `export ... from`."""

    name: str  # the local name, or for `export ... from` the name that others will see
    imported: str | None  # the name in the other file; None: all of it, `* as name`
    at: int


@dataclass(slots=True, kw_only=True)
class Request:
    """One statement that needs another file."""

    start: int
    end: int
    specifier: str
    at: int
    is_late: bool  # stands after other code, though it is evaluated before it
    imports: list[Binding] = field(default_factory=list)
    reexports: list[Binding] = field(default_factory=list)
    is_star: bool = False  # `export * from`
    names_nothing: bool = False  # `import './a'`: for what evaluating it does


@dataclass(slots=True, kw_only=True)
class Shape:
    """What a file says to other files."""

    is_module: bool = False
    requests: list[Request] = field(default_factory=list)
    exports: dict[str, str] = field(default_factory=dict)  # name for others -> local name
    types: set[str] = field(default_factory=set)  # exported names that are only types
    kinds: dict[str, Kind] = field(default_factory=dict)  # of the names declared at the top
    edits: list[Edit] = field(default_factory=list)
    lead_end: int = 0  # end of the last request in front of other code; 0 if there is none
    default_name: Node | None = None  # `export default name`, which may name a type


class ShapeReader:
    """Reads the statements at the top of one file."""

    def __init__(self, source: Source, root: Node, *, typed: bool) -> None:
        self._source = source
        self._root = root
        self._typed = typed
        self._shape = Shape()
        self._is_leading = True

    def read(self) -> Shape:
        shape = self._shape
        for node in self._root.children:
            if node.type == "import_statement":
                shape.is_module = True
                self._read_import(node)
            elif node.type == "export_statement":
                shape.is_module = True
                self._read_export(node)
            else:
                self._read_other(node)
        if shape.is_module and self._root.children[0].type == "hash_bang_line":
            first = self._root.children[0]
            shape.edits.append(self._source.erase(first.start_byte, first.end_byte))
        return shape

    def _read_other(self, node: Node) -> None:
        declared = node
        if node.type == "expression_statement" and node.named_children:
            inner = node.named_children[0]
            if inner.type == "internal_module":
                declared = inner
            elif inner.type == "string":
                return  # a directive such as 'use strict'
        self._declare(declared)
        if node.type not in {*TYPE_DECLARATIONS, "comment", "hash_bang_line", "empty_statement"}:
            self._is_leading = False

    def _declare(self, node: Node) -> list[str]:
        """Note the names that a declaration makes and return them."""
        shape = self._shape
        if node.type in {"lexical_declaration", "variable_declaration"}:
            is_const = child(node, "const") is not None
            names = []
            for each in node.named_children:
                pattern = each.child_by_field_name("name")
                if each.type == "variable_declarator" and pattern is not None:
                    names += [name for name, _ in names_of(pattern, self._source)]
            shape.kinds.update(dict.fromkeys(names, "const" if is_const else "let"))
            return names
        kind = DECLARED.get(node.type)
        name = node.child_by_field_name("name")
        if kind is None or name is None:
            return []
        text = self._text(name)
        if kind != "type" or text not in shape.kinds:  # a value may share its name with a type
            shape.kinds[text] = kind
        return [text]

    def _read_import(self, node: Node) -> None:
        source = self._source
        required = child(node, "import_require_clause")
        if required is not None:
            message = "`import a = require()` is not supported; write `import * as a from '...'`"
            raise source.error(required.start_byte, message)
        if self._is_type(node):
            self._erase(node)
            return
        request = self._request(node)
        if request is None:
            return
        clause = child(node, "import_clause")
        request.names_nothing = clause is None
        for each in clause.named_children if clause else []:
            if each.type == "identifier":
                self._import(request, each, "default")
            elif each.type == "namespace_import":
                self._import(request, each.named_children[-1], None)
            elif each.type == "named_imports":
                for specifier in each.named_children:
                    if specifier.type == "import_specifier" and not self._is_type(specifier):
                        name, alias = self._names(specifier)
                        self._import(request, alias, self._text(name))

    def _import(self, request: Request, local: Node, imported: str | None) -> None:
        name = self._text(local)
        self._shape.kinds[name] = "import"
        request.imports.append(Binding(name=name, imported=imported, at=local.start_byte))

    def _request(self, node: Node) -> Request | None:
        where = node.child_by_field_name("source")
        if where is None:
            return None
        attribute = child(node, "import_attribute")
        if attribute is not None:
            message = "import attributes are not supported; only JavaScript and TypeScript files"
            raise self._source.error(attribute.start_byte, message)
        request = Request(
            start=node.start_byte,
            end=node.end_byte,
            specifier=self._text(where),
            at=where.start_byte,
            is_late=not self._is_leading,
        )
        self._shape.requests.append(request)
        if self._is_leading:
            self._shape.lead_end = node.end_byte
        return request

    def _read_export(self, node: Node) -> None:
        shape, source = self._shape, self._source
        equals = child(node, "=")
        if equals is not None:
            message = "`export =` is not supported; write `export default` or `export { ... }`"
            raise source.error(node.start_byte, message)
        declaration = node.child_by_field_name("declaration")
        clause = child(node, "export_clause")
        specifiers = [
            each for each in (clause.named_children if clause else []) if each.type != "comment"
        ]
        if self._is_type(node) or is_export_type_star(node, source):
            shape.types.update(self._text(self._names(each)[1]) for each in specifiers)
            self._erase(node)
        elif child(node, "namespace") is not None:  # `export as namespace Name`
            self._erase(node)
        elif node.child_by_field_name("source") is not None:
            self._read_reexport(node, specifiers)
        elif clause is not None:
            for each in specifiers:
                name, alias = self._names(each)
                if self._is_type(each):
                    shape.types.add(self._text(alias))
                else:
                    shape.exports[self._text(alias)] = self._text(name)
            self._erase(node)
        elif child(node, "default") is not None:
            self._is_leading = False
            self._read_default(node, declaration)
        elif declaration is not None:
            self._read_declaration(node, declaration)

    def _read_reexport(self, node: Node, specifiers: list[Node]) -> None:
        request = self._request(node)
        assert request is not None, node
        namespace = child(node, "namespace_export")
        if namespace is not None:
            name = namespace.named_children[-1]
            binding = Binding(name=self._text(name), imported=None, at=name.start_byte)
            request.reexports.append(binding)
        request.is_star = child(node, "*") is not None
        for each in specifiers:
            name, alias = self._names(each)
            if self._is_type(each):
                self._shape.types.add(self._text(alias))
                continue
            binding = Binding(name=self._text(alias), imported=self._text(name), at=each.start_byte)
            request.reexports.append(binding)

    def _read_declaration(self, node: Node, declaration: Node) -> None:
        shape = self._shape
        names = self._declare(declaration)
        if declaration.type in TYPE_DECLARATIONS:
            self._refuse_in_javascript(declaration)
            shape.types.update(names)
            self._erase(node)
            return
        self._is_leading = False
        if declaration.type in {"internal_module", "module"}:
            shape.types.update(names)
        else:
            shape.exports.update({name: name for name in names})
        shape.edits.append(self._source.erase(node.start_byte, declaration.start_byte))

    def _read_default(self, node: Node, declaration: Node | None) -> None:
        shape, source = self._shape, self._source
        if declaration is not None:
            names = self._declare(declaration)
            if declaration.type in TYPE_DECLARATIONS:
                shape.types.add("default")
                self._erase(node)
                return
            shape.exports["default"] = names[0] if names else "default"
            shape.edits.append(source.erase(node.start_byte, declaration.start_byte))
            return
        value = node.child_by_field_name("value")
        if value is None:
            raise source.error(node.start_byte, "syntax error: `export default` needs a value")
        name = source.fresh("_default")
        shape.exports["default"] = name
        # A function or class here ends the statement, whatever the grammar joins to it.
        first = value
        while first.is_named and first.type not in ANONYMOUS and first.children:
            first = first.children[0]
        if first.type in ANONYMOUS:
            shape.kinds[name] = ANONYMOUS[first.type]
            parts = {each.type: each for each in first.children}
            head = [parts[word] for word in ("async", "function", "class", "*") if word in parts]
            code = " ".join(each.type for each in head) + " " + name
            shape.edits.append(source.fit(node.start_byte, head[-1].end_byte, code))
            return
        shape.kinds[name] = "const"
        if value.type == "identifier" and self._typed:
            shape.default_name = value
        shape.edits.append(source.fit(node.start_byte, value.start_byte, f"let {name}="))

    def _is_type(self, node: Node) -> bool:
        word = child(node, "type")
        if word is not None:
            self._refuse_in_javascript(word)
        return word is not None

    def _refuse_in_javascript(self, node: Node) -> None:
        if not self._typed:
            message = "types are for TypeScript; give this file a name that ends in .ts"
            raise self._source.error(node.start_byte, message)

    def _erase(self, node: Node) -> None:
        self._shape.edits.append(self._source.erase(node.start_byte, node.end_byte, lead=";"))

    def _names(self, specifier: Node) -> tuple[Node, Node]:
        name = specifier.child_by_field_name("name")
        assert name is not None, specifier
        return name, specifier.child_by_field_name("alias") or name

    def _text(self, node: Node) -> str:
        quotes = 1 if node.type == "string" else 0
        return self._source.read(node.start_byte + quotes, node.end_byte - quotes)
