"""Erases types: each becomes spaces, so every line and column of the author stays.

Path:   compile -> here -> lowering (enums, parameter properties)
Never:  changes what JavaScript there is, but for a `;` or a moved `(` where an erased
        type kept two statements, or a keyword and its operand, apart.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from tree_sitter import Node

from runtimes.javascript.lowering import assign_parameter_properties, lower_enum
from runtimes.javascript.source import Edit, Source
from runtimes.javascript.syntax import child, walk

FUNCTIONS: Final = frozenset({
    "function_declaration",
    "function_expression",
    "generator_function",
    "generator_function_declaration",
    "arrow_function",
    "method_definition",
})  # fmt: skip
TYPE_STATEMENTS: Final = frozenset({
    "ambient_declaration",
    "comment",
    "empty_statement",
    "function_signature",
    "interface_declaration",
    "type_alias_declaration",
})  # fmt: skip
MODIFIERS: Final = frozenset({
    "abstract",
    "accessibility_modifier",
    "declare",
    "override_modifier",
    "readonly",
})  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """A place where an imported name is read as a value."""

    start: int
    end: int
    is_shorthand: bool  # `{ name }`


@dataclass(slots=True, kw_only=True)
class Walker:
    """Goes once through the tree: erases types if `typed`, notes uses of `names`, refuses."""

    source: Source
    typed: bool
    in_module: bool
    names: frozenset[str]
    edits: list[Edit] = field(default_factory=list)
    uses: dict[str, list[Use]] = field(default_factory=dict)
    function_end: int = 0  # where the outermost function around the current node ends

    def run(self, root: Node) -> None:
        walk(root, self._enter)

    def _enter(self, node: Node) -> bool:
        kind = node.type
        if kind in FUNCTIONS:
            self.function_end = max(self.function_end, node.end_byte)
        handler = HANDLERS.get(kind)
        if handler is not None and not handler(self, node):
            return False
        if self.typed:
            eraser = ERASERS.get(kind)
            if eraser is not None:
                return eraser(self, node)
        return True

    # What JavaScript itself needs.

    def note_use(self, node: Node) -> bool:
        if self.names:
            name = self.source.read(node.start_byte, node.end_byte)
            if name in self.names:
                shorthand = node.type == "shorthand_property_identifier"
                use = Use(start=node.start_byte, end=node.end_byte, is_shorthand=shorthand)
                self.uses.setdefault(name, []).append(use)
        return False

    def skip(self, _node: Node) -> bool:
        return False

    def refuse_dynamic_import(self, node: Node) -> bool:
        if not node.is_named:
            return False
        message = "import() is not supported; write `import ... from` at the top of the file"
        raise self.source.error(node.start_byte, message)

    def refuse_import_meta(self, node: Node) -> bool:
        if not self.source.data.startswith(b"import", node.start_byte):
            return False
        message = "import.meta is not supported: a function has no address; use env for settings"
        raise self.source.error(node.start_byte, message)

    def refuse_outer_await(self, node: Node) -> bool:
        is_await = node.type != "for_in_statement" or child(node, "await") is not None
        if is_await and self.in_module and node.start_byte >= self.function_end:
            message = "top-level await is not supported; move it into an async function"
            raise self.source.error(node.start_byte, message)
        return True

    def refuse_outer_return(self, node: Node) -> bool:
        if self.in_module and node.start_byte >= self.function_end:
            message = "return outside of a function; export a function and return from it"
            raise self.source.error(node.start_byte, message)
        return True

    # Types: whole nodes.

    def erase(self, node: Node) -> bool:
        self.edits.append(self.source.erase(node.start_byte, node.end_byte))
        return False

    def erase_statement(self, node: Node) -> bool:
        """Leave a `;`: without it the statements before and after could join (`a` and `(b)`)."""
        self.edits.append(self.source.erase(node.start_byte, node.end_byte, lead=";"))
        return False

    def erase_annotation(self, node: Node) -> bool:
        self.edits.append(self.source.erase(node.start_byte, self._end_of_type(node)))
        return False

    def erase_namespace(self, node: Node) -> bool:
        todo = [node]
        while todo:
            each = todo.pop()
            body = each.child_by_field_name("body")
            for statement in body.named_children if body else []:
                inner = statement
                if inner.type in {"export_statement", "expression_statement"}:
                    inner = inner.named_children[0] if inner.named_children else inner
                if inner.type in {"internal_module", "module"}:
                    todo.append(inner)
                elif inner.type not in TYPE_STATEMENTS:
                    message = (
                        "a namespace with values is not supported; put them into a file of "
                        "their own, export them there and `import * as name` it"
                    )
                    raise self.source.error(node.start_byte, message)
        return self.erase_statement(node)

    # Types: parts of nodes.

    def erase_marks(self, node: Node) -> bool:
        """Erase `?`, `!`, `readonly`, `abstract` and the like."""
        for each in node.children:
            if each.type in MODIFIERS or each.type in {"?", "!"}:
                self.edits.append(self.source.erase(each.start_byte, each.end_byte))
        return True

    def erase_this(self, node: Node) -> bool:
        parts = [each for each in node.children if each.type != "comment"]
        for at, each in enumerate(parts[:2]):
            pattern = each.child_by_field_name("pattern")
            if pattern is not None and pattern.type == "this":
                after = parts[at + 1]
                end = after.end_byte if after.type == "," else each.end_byte
                self.edits.append(self.source.erase(each.start_byte, end))
        return True

    def erase_member(self, node: Node) -> bool:
        parts = [each for each in node.children if each.type != "comment"]
        kinds = [each.type for each in parts]
        if "abstract" in kinds or "declare" in kinds:
            return self.erase_statement(node)
        if "accessor" in kinds:
            message = "`accessor` is not supported; write a getter and a setter"
            raise self.source.error(parts[kinds.index("accessor")].start_byte, message)
        self.erase_marks(node)
        first_kept = next(each for each in parts if each.type not in MODIFIERS)
        if kinds[0] in MODIFIERS and first_kept.type in {"computed_property_name", "*"}:
            # `a = 1` before `private [b] = 2` must not become `a = 1 [b] = 2`.
            self._replace(parts[0], ";")
        name = node.child_by_field_name("name")
        if (
            node.type == "public_field_definition"
            and node.child_by_field_name("value") is None
            and name is not None
            and parts[-1] != name
            and self.source.read(name.start_byte, name.end_byte) in {"get", "set", "static"}
        ):
            # A field `get: T` before a method `a() {}` must not become a getter.
            after = next(each for each in parts if each.start_byte >= name.end_byte)
            self._replace(after, ";")
        return True

    def erase_assertion(self, node: Node) -> bool:
        """Erase `as T` and `satisfies T`, which end a statement that `(` or `[` would go on."""
        operator = child(node, "as") or child(node, "satisfies")
        assert operator is not None, node
        end = self._end_of_type(node)
        following = self.source.after_gap(end)
        if self.source.data.startswith((b".", b"?."), following):
            message = "the type after `as` is not understood; give it a name: `type A = ...`"
            raise self.source.error(operator.start_byte, message)
        joins = self.source.data[following : following + 1] in {b"(", b"[", b"`"}
        ends_statement = joins and self.source.breaks_line(end, following)
        lead = ";" if ends_statement else ""
        self.edits.append(self.source.erase(operator.start_byte, end, lead=lead))
        return True

    def erase_prefix_assertion(self, node: Node) -> bool:
        """Hold `<T>` and its operand together if a line ends between them."""
        asserted, operand = node.named_children[0], node.named_children[-1]
        if self.source.breaks_line(asserted.start_byte, operand.start_byte):
            self._replace(asserted, "(")
            self.edits.append(Edit(node.end_byte, node.end_byte, b")"))
        return True

    def erase_non_null(self, node: Node) -> bool:
        mark = node.children[-1]
        self.edits.append(self.source.erase(mark.start_byte, mark.end_byte))
        return True

    def keep_arrow_together(self, node: Node) -> bool:
        """Move `(` up or `)` down where an erased type would leave a line end in their place."""
        source = self.source
        parameters = node.child_by_field_name("parameters")
        if parameters is None:
            return True
        generics = node.child_by_field_name("type_parameters")
        if generics and source.breaks_line(generics.start_byte, parameters.start_byte):
            self._replace(generics, "(")
            at = parameters.start_byte
            self.edits.append(source.erase(at, at + 1))
        returned = node.child_by_field_name("return_type")
        if returned and source.breaks_line(parameters.end_byte, returned.end_byte):
            at = parameters.end_byte
            self.edits.append(source.erase(at - 1, at))
            self.edits.append(source.erase(returned.start_byte, returned.end_byte, tail=")"))
        return True

    def erase_tag_generics(self, node: Node) -> bool:
        """Erase `<T>` of a tagged template, which the grammar reads as two comparisons."""
        right = node.child_by_field_name("right")
        greater = child(node, ">")
        if right is None or right.type != "template_string" or greater is None:
            return True
        left = node.child_by_field_name("left")
        smaller = child(left, "<") if left and left.type == "binary_expression" else None
        if smaller is not None:
            self.edits.append(self.source.erase(smaller.start_byte, greater.end_byte))
        elif greater.end_byte == right.start_byte:
            message = "this type of a tagged template is not understood; give it a name: `type A =`"
            raise self.source.error(greater.start_byte, message)
        return True

    def erase_class(self, node: Node) -> bool:
        abstract = child(node, "abstract")
        if abstract:
            self.edits.append(self.source.erase(abstract.start_byte, abstract.end_byte))
        self.edits += assign_parameter_properties(node, self.source)
        return True

    def replace_enum(self, node: Node) -> bool:
        self.edits += lower_enum(node, self.source)
        return True

    def refuse_decorator(self, node: Node) -> bool:
        message = "decorators are not supported; call the function yourself: `A = decorate(A)`"
        raise self.source.error(node.start_byte, message)

    def refuse_alias(self, node: Node) -> bool:
        message = "`import a = b` is not supported; write `const a = b`"
        raise self.source.error(node.start_byte, message)

    def _replace(self, node: Node, lead: str) -> None:
        self.edits.append(self.source.erase(node.start_byte, node.end_byte, lead=lead))

    def _end_of_type(self, node: Node) -> int:
        """Return where the type ends for TypeScript, which lets no `[` follow on a new line."""
        end = node.end_byte
        inner = node.named_children[-1] if node.named_children else None
        while inner is not None and inner.type in {"array_type", "lookup_type"}:
            element, bracket = inner.children[0], child(inner, "[")
            if bracket and self.source.breaks_line(element.end_byte, bracket.start_byte):
                end = element.end_byte
            inner = element
        return end


HANDLERS: Final[dict[str, Callable[[Walker, Node], bool]]] = {
    "identifier": Walker.note_use,
    "shorthand_property_identifier": Walker.note_use,
    "import_statement": Walker.skip,
    "export_clause": Walker.skip,
    "namespace_export": Walker.skip,
    "import": Walker.refuse_dynamic_import,
    "meta_property": Walker.refuse_import_meta,
    "await_expression": Walker.refuse_outer_await,
    "for_in_statement": Walker.refuse_outer_await,
    "return_statement": Walker.refuse_outer_return,
}
ERASERS: Final[dict[str, Callable[[Walker, Node], bool]]] = {
    "type_annotation": Walker.erase_annotation,
    "asserts_annotation": Walker.erase,
    "type_predicate_annotation": Walker.erase,
    "type_arguments": Walker.erase,
    "type_parameters": Walker.erase,
    "implements_clause": Walker.erase,
    "interface_declaration": Walker.erase_statement,
    "type_alias_declaration": Walker.erase_statement,
    "ambient_declaration": Walker.erase_statement,
    "function_signature": Walker.erase_statement,
    "method_signature": Walker.erase_statement,
    "abstract_method_signature": Walker.erase_statement,
    "index_signature": Walker.erase_statement,
    "internal_module": Walker.erase_namespace,
    "module": Walker.erase_namespace,
    "required_parameter": Walker.erase_marks,
    "optional_parameter": Walker.erase_marks,
    "variable_declarator": Walker.erase_marks,
    "formal_parameters": Walker.erase_this,
    "public_field_definition": Walker.erase_member,
    "method_definition": Walker.erase_member,
    "as_expression": Walker.erase_assertion,
    "satisfies_expression": Walker.erase_assertion,
    "type_assertion": Walker.erase_prefix_assertion,
    "non_null_expression": Walker.erase_non_null,
    "arrow_function": Walker.keep_arrow_together,
    "binary_expression": Walker.erase_tag_generics,
    "class": Walker.erase_class,
    "class_declaration": Walker.erase_class,
    "abstract_class_declaration": Walker.erase_class,
    "enum_declaration": Walker.replace_enum,
    "decorator": Walker.refuse_decorator,
    "import_alias": Walker.refuse_alias,
}
