"""Turns an author's JavaScript or TypeScript into code for bare V8, on the author's own lines.

Path:   upload -> a locked-down cell -> here -> V8
Never:  reads a file; imports engine or sandbox; moves a line, so no source map is needed.
Not X:  jsmeld bundles too, but has no source maps and names no line for a syntax error.
"""

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from tree_sitter import Node

from runtimes.contract import SourceWarning
from runtimes.javascript.credentials import WARNINGS_MAX, written_credentials
from runtimes.javascript.erase import Walker
from runtimes.javascript.link import Linker, Unit, wanted
from runtimes.javascript.modules import Shape, ShapeReader
from runtimes.javascript.source import CompileError, Source, utf16_length
from runtimes.javascript.syntax import (
    has_module_words_in_error,
    parse,
    syntax_error,
    unbalanced,
)

__all__ = ["CompileError", "CompiledFile", "Program", "compile_program"]

FILES_MAX: Final = 1_000  # in one program
NAME_LENGTH_MAX: Final = 200
NAME: Final = re.compile(r"[A-Za-z0-9._/-]+\.(?:js|mjs|cjs|ts|mts)")
TYPED: Final = (".ts", ".mts")
ALWAYS_MODULES: Final = (".mjs", ".mts")
# What may be left out of a specifier, in the order in which it is tried.
ENDINGS: Final = (".ts", ".js", ".mts", ".mjs", ".cjs")
# TypeScript's authors write the name that the file will have when it is JavaScript.
TYPED_TWINS: Final = {".js": ".ts", ".mjs": ".mts"}
FILES_SHOWN_COUNT: Final = 20
CLAUSES: Final = frozenset({"import_clause", "export_clause", "namespace_export", "string"})
MODULE_STATEMENTS: Final = frozenset({"import_statement", "export_statement"})


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledFile:
    """One file as V8 gets it."""

    name: str  # the author's file name, e.g. "main.ts"; becomes the V8 script name
    code: str  # for kind "module" an expression that yields function(exports, require)
    kind: Literal["module", "script"]
    prefix_columns: int  # UTF-16 columns put before the author's first character on line 1
    imports: dict[str, str]  # specifier as written -> file name in the bundle


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """All files that the main file needs, the main file first."""

    files: tuple[CompiledFile, ...]
    main: str
    warnings: tuple[SourceWarning, ...] = ()


def compile_program(files: Mapping[str, str], main: str) -> Program:
    """Compile `main` and what it imports.

    A file is a module if it has an import or export, is imported, or ends in .mjs or .mts.
    Modules are strict and have a scope of their own; any other file is a sloppy script.

    Where modules differ from a real loader's: an imported `let` of which the file also declares
    a namesake, in any scope, is read once; one that is live gets the exports as `this` when it
    is called; `export *` within a cycle cannot be read before its own line has run; what is
    anonymous and default is named `_default` in stacks.

    Raises:
        CompileError: the author's sources cannot run here; says where and what to do.
    """
    for name in files:
        _check_name(name)
    if main not in files:
        raise CompileError(main, 1, 1, f"there is no such file; {_listed(files)}")
    units = _read_all(files, main)
    linker = Linker(units)
    warnings = [warning for unit in units.values() for warning in unit.warnings]
    return Program(
        files=tuple(_finish(unit, linker) for unit in units.values()),
        main=main,
        warnings=tuple(warnings[:WARNINGS_MAX]),
    )


def _check_name(name: str) -> None:
    if len(name) > NAME_LENGTH_MAX:
        message = f"a file name has at most {NAME_LENGTH_MAX} characters; this has {len(name)}"
        raise CompileError(name[:NAME_LENGTH_MAX], 1, 1, message)
    if not NAME.fullmatch(name) or {"", ".", ".."} & set(name.split("/")):
        message = (
            "this file name is not allowed; use a relative path of letters, digits and . _ - / "
            "that ends in .js .mjs .cjs .ts or .mts"
        )
        raise CompileError(name, 1, 1, message)


def _read_all(files: Mapping[str, str], main: str) -> dict[str, Unit]:
    units: dict[str, Unit] = {}
    todo = [main]
    asked = {main}
    while todo:
        name = todo.pop()
        unit = units[name] = _read(name, files[name], is_imported=name != main)
        for number, request in wanted(unit):
            target = _resolve(name, request.specifier, files)
            if target is None:
                raise unit.source.error(request.at, _unknown(name, request.specifier, files))
            unit.targets[number] = target
            if target not in asked:
                asked.add(target)
                todo.append(target)
        if len(asked) > FILES_MAX:
            message = f"a program has at most {FILES_MAX} files; put some of them together"
            raise CompileError(name, 1, 1, message)
    return units


def _read(name: str, text: str, *, is_imported: bool) -> Unit:
    typed = name.endswith(TYPED)
    is_module = is_imported or name.endswith(ALWAYS_MODULES)
    source = Source(name, text.removeprefix("\ufeff") if typed or is_module else text)
    words = "import" in text or "export" in text
    if not (typed or is_module or words):  # a classic script: no need to look closer
        unit = Unit(source=source, root=None, shape=Shape(), typed=False, edits=[], uses={})
        unit.warnings = written_credentials(source, None, is_classic=True)
        return unit
    root = parse(source, typed=typed)
    if root.has_error:
        _check_syntax(root, source, typed=typed, is_module=is_module)
    shape = ShapeReader(source, root, typed=typed).read()
    shape.is_module = shape.is_module or is_module
    names = frozenset(binding.name for each in shape.requests for binding in each.imports)
    walker = Walker(source=source, typed=typed, in_module=shape.is_module, names=names)
    walker.run(root)
    edits = shape.edits + walker.edits
    unit = Unit(source=source, root=root, shape=shape, typed=typed, edits=edits, uses=walker.uses)
    unit.warnings = written_credentials(source, root, is_classic=not shape.is_module)
    return unit


def _check_syntax(root: Node, source: Source, *, typed: bool, is_module: bool) -> None:
    """Raise for TypeScript; leave JavaScript to V8, whose messages are better.

    But a JavaScript module must hold together, for it is going to stand inside a function.
    """
    error = syntax_error(root, source)
    if error is not None and typed:
        raise error
    statements = [each for each in root.children if each.type in MODULE_STATEMENTS]
    is_ours = any(
        part.is_error or part.is_missing or (part.has_error and part.type in CLAUSES)
        for each in statements
        for part in each.children
    )
    if error is not None and (is_ours or has_module_words_in_error(root)):
        raise error
    if is_module or statements:
        error = unbalanced(root, source)
        if error is not None:
            raise error


def _resolve(importer: str, specifier: str, files: Mapping[str, str]) -> str | None:
    """Return the file that a relative specifier means, or None."""
    if not specifier.startswith(("./", "../")) and specifier not in {".", ".."}:
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(importer), specifier))
    stem, ending = posixpath.splitext(path)
    tries = [path, stem + TYPED_TWINS.get(ending, ending)]
    tries += [path + each for each in ENDINGS]
    tries += [posixpath.join(path, "index" + each).removeprefix("./") for each in ENDINGS]
    return next((each for each in tries if each in files), None)


def _unknown(importer: str, specifier: str, files: Mapping[str, str]) -> str:
    if specifier.startswith("."):
        return f"there is no file {specifier!r} beside {importer}; {_listed(files)}"
    near = next((file for file in files if posixpath.splitext(file)[0] == specifier), None)
    if near is not None or specifier in files:
        return f"{specifier!r} is read as a package; write './{specifier}'; {_listed(files)}"
    return (
        f"package {specifier!r} cannot be imported: packages are not installed here; "
        f"put its code into a file of yours and import './that-file'; {_listed(files)}"
    )


def _listed(files: Mapping[str, str]) -> str:
    names = sorted(files)
    more = len(names) - FILES_SHOWN_COUNT
    shown = ", ".join(names[:FILES_SHOWN_COUNT]) or "none"
    return f"the files are: {shown}" + (f" and {more} more" if more > 0 else "")


def _finish(unit: Unit, linker: Linker) -> CompiledFile:
    source = unit.source
    if not unit.shape.is_module:
        code = source.apply(unit.edits)
        return CompiledFile(
            name=source.name, code=code, kind="script", prefix_columns=0, imports={}
        )
    head, imports = linker.link(source.name)
    # Parameters go by their place; their names avoid every word of the author.
    parameters = f"{source.fresh('exports')}, {source.fresh('require')}"
    prefix = f"(function({parameters}){{'use strict';{head}"
    return CompiledFile(
        name=source.name,
        code=f"{prefix}{source.apply(unit.edits)}\n}})",
        kind="module",
        prefix_columns=utf16_length(prefix),
        imports=imports,
    )
