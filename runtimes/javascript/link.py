"""Joins the files of a program: who exports what, and what code stands for each import.

Path:   compile -> here
An import becomes `const {a}=require("./m");` on its own line. That reads `a` once, so a name
that may still change (an exported `let`), or not be there yet (a cycle), is read anew at each
use instead, as `_m0.a`: the only edit that moves columns inside of a line.
"""

import json
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from tree_sitter import Node

from runtimes.contract import SourceWarning
from runtimes.javascript.erase import Use
from runtimes.javascript.modules import Binding, Kind, Request, Shape
from runtimes.javascript.source import CompileError, Edit, Source
from runtimes.javascript.syntax import names_of, walk

EXPORTS_MAX: Final = 100_000  # names in all tables together; `export *` multiplies them
NAMES_SHOWN_COUNT: Final = 20
# Where a name is declared, and the field that holds it.
DECLARING: Final = {
    "variable_declarator": "name",
    "required_parameter": "pattern",
    "optional_parameter": "pattern",
    "function_declaration": "name",
    "generator_function_declaration": "name",
    "function_expression": "name",
    "generator_function": "name",
    "class_declaration": "name",
    "abstract_class_declaration": "name",
    "class": "name",
    "enum_declaration": "name",
    "catch_clause": "parameter",
    "arrow_function": "parameter",
    "for_in_statement": "left",
}


@dataclass(slots=True, kw_only=True)
class Unit:
    """One file while the program is put together."""

    source: Source
    root: Node | None  # None: a classic script, which nobody needs to look into
    shape: Shape
    typed: bool
    edits: list[Edit]
    uses: dict[str, list[Use]]
    targets: dict[int, str] = field(default_factory=dict)  # number of the request -> file
    warnings: list[SourceWarning] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an exported name is declared."""

    file: str
    local: str | None  # None: the whole file, as a namespace
    kind: Kind | Literal["ambiguous"]


def wanted(unit: Unit) -> Iterator[tuple[int, Request]]:
    """Yield the requests that are about values, as far as this file alone can tell."""
    exported = set(unit.shape.exports.values())
    for number, request in enumerate(unit.shape.requests):
        if unit.typed and request.imports:
            named = {binding.name for binding in request.imports}
            if not named & (exported | unit.uses.keys()):
                continue  # every name is a type: TypeScript drops the import as well
        elif unit.typed and not (request.names_nothing or request.reexports or request.is_star):
            continue  # `import { type A }`
        yield number, request


class Linker:
    """Knows the exports of all files; writes the edits and the head of each."""

    def __init__(self, units: Mapping[str, Unit]) -> None:
        self._units = units
        self._tables = _export_tables(units)
        self._reach: dict[str, frozenset[str]] = {}

    def link(self, file: str) -> tuple[str, dict[str, str]]:
        """Add the edits for imports to the unit; return what goes in front and its imports."""
        return _FileLinker(self._units[file], self).link()

    def origin(self, file: str, name: str | None) -> Origin | None:
        return Origin(file, None, "const") if name is None else self._tables[file].get(name)

    def names(self, file: str) -> list[str]:
        """Return the names of values that a file exports."""
        return [name for name, origin in self._tables[file].items() if _is_value(origin)]

    def reaches(self, start: str, goal: str) -> bool:
        """Tell whether evaluating `start` may need `goal`."""
        if start not in self._reach:
            seen, todo = {start}, [start]
            while todo:
                for target in self._units[todo.pop()].targets.values():
                    if target not in seen:
                        seen.add(target)
                        todo.append(target)
            self._reach[start] = frozenset(seen)
        return goal in self._reach[start]


class _FileLinker:
    """Writes the imports and exports of one file."""

    def __init__(self, unit: Unit, linker: Linker) -> None:
        self._unit = unit
        self._source = unit.source
        self._linker = linker
        self._variables: dict[int, str] = {}  # request -> the variable that holds its exports
        self._reads: dict[str, str] = {}  # imported name -> the expression that reads it
        self._types: set[str] = set()  # imported names that turned out to be types
        self._declared: frozenset[str] | None = None

    def link(self) -> tuple[str, dict[str, str]]:
        unit, shape = self._unit, self._unit.shape
        late: list[str] = []
        imports: dict[str, str] = {}
        for number, request in enumerate(shape.requests):
            code = self._code_for(number, request)
            if code:
                imports[request.specifier] = unit.targets[number]
            if code and not request.is_late:
                unit.edits.append(self._source.fit(request.start, request.end, code))
            else:
                late.append(code)
                unit.edits.append(self._source.erase(request.start, request.end, lead=";"))
        self._erase_default_type()
        head = self._getters()
        if shape.lead_end:
            unit.edits.append(Edit(shape.lead_end, shape.lead_end, "".join(late).encode()))
        else:
            head += "".join(late)
        return head, imports

    def _code_for(self, number: int, request: Request) -> str:
        """Return the statement that stands for an import, or nothing if only types are asked."""
        target = self._unit.targets.get(number)
        if target is None:
            self._types.update(binding.name for binding in request.imports)
            return ""
        snapshots: list[str] = []
        live: list[Binding] = []
        names: list[str] = []  # variables that hold all exports of the other file
        for binding in request.imports:
            if self._is_dropped(binding, target):
                self._types.add(binding.name)
            elif binding.imported is None:
                names.append(binding.name)
            elif self._must_be_live(binding, target):
                live.append(binding)
            else:
                snapshots.append(_pair(binding.imported, binding.name))
        reexports = [each for each in request.reexports if not self._is_type(each, target)]
        if live or reexports or request.is_star:
            self._variables[number] = f"{self._source.fresh('_m')}{number}"
            names.insert(0, self._variables[number])
            for binding in live:
                self._read_anew(binding, names[0])
        call = f"{self._source.fresh('require')}({json.dumps(request.specifier)})"
        if names or snapshots:
            return _const(call, names, snapshots)
        is_about_types = self._unit.typed and not request.names_nothing
        return "" if is_about_types else f"{call};"

    def _is_dropped(self, binding: Binding, target: str) -> bool:
        """Tell an import that is only a type; raise if there is nothing of that name."""
        unit = self._unit
        if unit.typed:
            used = binding.name in unit.uses or binding.name in unit.shape.exports.values()
            if not used:
                return True
        return self._is_type(binding, target)

    def _is_type(self, binding: Binding, target: str) -> bool:
        origin = self._linker.origin(target, binding.imported)
        if origin is None or origin.kind == "ambiguous":
            names = self._linker.names(target)
            shown = ", ".join(sorted(names)[:NAMES_SHOWN_COUNT]) or "nothing"
            more = len(names) - NAMES_SHOWN_COUNT
            raise self._source.error(
                binding.at,
                f"{target} does not export {binding.imported!r}; it exports {shown}"
                + (f" and {more} more" if more > 0 else ""),
            )
        return origin.kind == "type"

    def _must_be_live(self, binding: Binding, target: str) -> bool:
        origin = self._linker.origin(target, binding.imported)
        assert origin is not None, binding
        is_cycle = self._linker.reaches(target, self._source.name)
        is_hoisted = origin.kind == "function" and origin.file == target
        if origin.kind != "let" and (not is_cycle or is_hoisted):
            return False
        if self._declared is None:
            assert self._unit.root is not None, binding
            self._declared = _declared_names(self._unit.root, self._source)
        # Where another variable has the same name, which use means which is not worked out.
        return binding.name not in self._declared

    def _read_anew(self, binding: Binding, variable: str) -> None:
        assert binding.imported is not None, binding
        code = _member(variable, binding.imported)
        self._reads[binding.name] = code
        for use in self._unit.uses.get(binding.name, []):
            text = f"{binding.name}:{code}" if use.is_shorthand else code
            self._unit.edits.append(Edit(use.start, use.end, text.encode(), is_special=True))

    def _getters(self) -> str:
        """Return the code in front of line 1 that lets other files read the exports."""
        shape = self._unit.shape
        reads = {
            name: self._reads.get(local, local)
            for name, local in shape.exports.items()
            if local not in self._types and _is_value(self._linker.origin(self._source.name, name))
        }
        for number, request in enumerate(shape.requests):
            variable = self._variables.get(number)
            if variable is None:
                continue
            target = self._unit.targets[number]
            for binding in request.reexports:
                if binding.imported is None:
                    reads[binding.name] = variable
                elif not self._is_type(binding, target):
                    reads[binding.name] = _member(variable, binding.imported)
            for name in self._linker.names(target) if request.is_star else []:
                origin = self._linker.origin(target, name)
                is_ours = origin == self._linker.origin(self._source.name, name)
                if name not in reads and is_ours and name != "default":
                    reads[name] = _member(variable, name)
        if not reads:
            return ""
        getters = ",".join(
            f"[{json.dumps(name)}]:{{enumerable:true,get:()=>{code}}}"
            for name, code in reads.items()
        )
        return f"Object.defineProperties({self._source.fresh('exports')},{{{getters}}});"

    def _erase_default_type(self) -> None:
        """Take out `export default T` of a type."""
        node, shape = self._unit.shape.default_name, self._unit.shape
        if node is None:
            return
        name = self._source.read(node.start_byte, node.end_byte)
        if name in self._types or shape.kinds.get(name) == "type":
            # Its place in front of the value has been taken by `let _default=`: give it one.
            self._unit.edits.append(
                Edit(node.start_byte, node.end_byte, b"0" + b" " * (len(name) - 1), is_special=True)
            )


def _export_tables(units: Mapping[str, Unit]) -> dict[str, dict[str, Origin]]:
    """Return what each file exports, through any chain or cycle of `export ... from`."""
    tables: dict[str, dict[str, Origin]] = {}
    dependents: dict[str, set[str]] = {name: set() for name in units}
    for file, unit in units.items():
        shape = unit.shape
        tables[file] = {name: Origin(file, None, "type") for name in shape.types}
        for name, local in shape.exports.items():
            kind = shape.kinds.get(local, "let")
            if shape.default_name is not None and name == "default":
                kind = _default_kind(unit, shape.default_name)
            if kind != "import":
                tables[file][name] = Origin(file, local, kind)
        for target in unit.targets.values():
            dependents[target].add(file)
    todo = deque(units)
    waiting = set(units)
    while todo:
        file = todo.popleft()
        waiting.discard(file)
        if _pull(units[file], tables):
            if sum(map(len, tables.values())) > EXPORTS_MAX:
                message = f"more than {EXPORTS_MAX} exported names; use fewer `export *`"
                raise CompileError(file, 1, 1, message)
            todo.extend(dependents[file] - waiting)
            waiting |= dependents[file]
    return tables


def _default_kind(unit: Unit, name: Node) -> Kind:
    text = unit.source.read(name.start_byte, name.end_byte)
    return "type" if unit.shape.kinds.get(text) == "type" else "const"


def _pull(unit: Unit, tables: dict[str, dict[str, Origin]]) -> bool:
    """Add to a file's table what it passes on; tell whether that changed anything."""
    shape, table = unit.shape, tables[unit.source.name]
    passed: dict[str, list[str]] = {}
    for name, local in shape.exports.items():
        if shape.kinds.get(local) == "import":
            passed.setdefault(local, []).append(name)
    found: dict[str, Origin] = {}
    explicit = {*shape.exports, *shape.types}
    for number, target in unit.targets.items():
        request, theirs = shape.requests[number], tables[target]
        pairs = [
            (each.imported, name) for each in request.imports for name in passed.get(each.name, [])
        ]
        pairs += [(each.imported, each.name) for each in request.reexports]
        explicit.update(name for _, name in pairs)
        for imported, name in pairs:
            origin = Origin(target, None, "const") if imported is None else theirs.get(imported)
            if origin is not None:
                found[name] = origin
    for number, target in unit.targets.items():
        for name, origin in tables[target].items() if shape.requests[number].is_star else []:
            if name != "default" and name not in explicit:
                known = found.setdefault(name, origin)
                if known != origin:
                    found[name] = Origin(target, name, "ambiguous")
    new = {name: origin for name, origin in found.items() if table.get(name) != origin}
    table.update(new)
    return bool(new)


def _declared_names(root: Node, source: Source) -> frozenset[str]:
    """Return every name that any scope of the file declares, imports left out."""
    names: set[str] = set()

    def enter(node: Node) -> bool:
        where = DECLARING.get(node.type)
        pattern = node.child_by_field_name(where) if where else None
        if pattern is not None:
            names.update(name for name, _ in names_of(pattern, source))
        return node.type != "import_statement"

    walk(root, enter)
    return frozenset(names)


def _is_value(origin: Origin | None) -> bool:
    return origin is not None and origin.kind not in {"type", "ambiguous"}


def _const(call: str, names: list[str], snapshots: list[str]) -> str:
    parts = [f"{name}={names[0] if at else call}" for at, name in enumerate(names)]
    if snapshots:
        parts.append(f"{{{','.join(snapshots)}}}={names[0] if names else call}")
    return f"const {','.join(parts)};"


def _pair(name: str, local: str) -> str:
    if name == local:
        return name
    return f"{name if name.isidentifier() else f'[{json.dumps(name)}]'}:{local}"


def _member(variable: str, name: str) -> str:
    return f"{variable}.{name}" if name.isidentifier() else f"{variable}[{json.dumps(name)}]"
