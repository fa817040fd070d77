"""What authors write, compiled and then run in real V8."""
# ruff: noqa: E501, ISC004 - a row of a table stays one row where it can

import contextlib
import json
import re
import time
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from py_mini_racer import JSEvalException, MiniRacer

from runtimes.javascript.compile import CompileError, Program, compile_program

LOADER = """
(function(files, main) {
  const loaded = new Map(), bodies = new Map();
  const byName = new Map(files.map((file) => [file.name, file]));
  function load(name) {
    if (loaded.has(name)) return loaded.get(name);
    const file = byName.get(name), exports = {};
    loaded.set(name, exports);
    const body = (0, eval)(file.code + "\\n//# sourceURL=" + name);
    if (file.kind === "module") {
      body.call(undefined, exports, (specifier) => load(file.imports[specifier]));
    }
    return exports;
  }
  globalThis.log = [];
  globalThis.main = load(main);
})
"""


@pytest.fixture(scope="module")
def isolate() -> Iterator[MiniRacer]:
    with MiniRacer() as racer:
        yield racer


class Guest:
    """Runs programs in a shared isolate; each leaves `main` and `log` behind."""

    def __init__(self, isolate: MiniRacer) -> None:
        self._isolate = isolate

    def load(self, program: Program) -> None:
        files = msgspec.json.encode(program.files).decode()
        self._isolate.eval(f"{LOADER}({files}, {json.dumps(program.main)})")

    def value(self, files: dict[str, str] | str, expression: str = "main.default") -> object:
        bundle = {"main.ts": files} if isinstance(files, str) else files
        self.load(compile_program(bundle, next(iter(bundle))))
        return json.loads(self._isolate.eval(f"JSON.stringify({expression}) ?? 'null'"))

    def thrown(self, files: dict[str, str], call: str) -> str:
        self.load(compile_program(files, next(iter(files))))
        return str(self._isolate.eval(f"try {{ {call}; 'nothing' }} catch (e) {{ e.stack }}"))


@pytest.fixture
def guest(isolate: MiniRacer) -> Guest:
    return Guest(isolate)


def refused(files: dict[str, str] | str) -> CompileError:
    bundle = {"main.ts": files} if isinstance(files, str) else files
    with pytest.raises(CompileError) as caught:
        compile_program(bundle, next(iter(bundle)))
    return caught.value


def only(source: str, name: str = "main.ts") -> str:
    return compile_program({name: source}, name).files[0].code


def lines(text: str) -> int:
    return len(re.findall("\r\n|[\n\r\u2028\u2029]", text))


# Types ------------------------------------------------------------------------------------

# name: (source of a script that leaves its answer in `answer`, the answer)
SNIPPETS: dict[str, tuple[str, object]] = {
    "annotations": ("const a: number = 1, b: { c: string }[] = []; var answer = a + b.length", 1),
    "generic call": ("function f<T>(x: T): T { return x }; var answer = f<string>('x')", "x"),
    "generic call of a generic": ("const f = (x: any) => x; var answer = f<Map<string, A[]>>(2)", 2),
    "arrow generics": ("const f = <T,>(x: T): T => x; var answer = f(3)", 3),
    "async arrow generics": (
        "const f = async <T>(x: T): Promise<T> => x; var answer = f(1) instanceof Promise",
        True,
    ),
    "comparisons in a call": (
        "const f = (...x: boolean[]) => x; var a = 1, b = 2, c = 3, d = 4; var answer = f(a < b, c > d)",
        [True, False],
    ),
    "comparisons in a list": ("var a = 1, b = 2, c = 3, d = 4, answer; (a < b, answer = c > d)", False),
    "shift right": ("var a = 256; var answer = a >> 2 >>> 1", 32),
    "optional chain with !": (
        "const o: any = { a: { b: [5] } }; var answer = o?.a!.b![0]! + o!['a']?.b!.length",
        6,
    ),
    "not equal stays": ("var a: number = 1; var answer = [a != 2, a !== 2, !a, !!a]", [True, True, False, True]),
    "non-null assignment": ("const o: any = {}; o.a! = 4; o.b!++; var answer = o.a!", 4),
    "as": ("var answer = ((1 as unknown) as number) + (2 as any as number)", 3),
    "as const": ("var answer = ['a', 'b'] as const", ["a", "b"]),
    "as in a condition": ("const v: any = 1; var answer = v as number > 0 ? 'y' as string : 'n'", "y"),
    "as with dots": ("const v: any = { n: 1 }; var answer = (v as a.b.c.D<E>[] | f.g.h).n", 1),
    "as in a for head": ("var answer = 0; for (const i of [1, 2] as number[]) answer += i", 3),
    "as before a call on the next line": ("var answer = 7 as any\n(() => 8)()", 7),
    "as before a list on the next line": ("var answer = 7 as any\n[1].forEach(() => 8)", 7),
    "as as names": ("const as = 1, type = 2, of = 3, satisfies = 4; var answer = as + type + of + satisfies", 10),
    "satisfies": ("var answer = { a: 1 } satisfies Record<string, number>", {"a": 1}),
    "satisfies with dots": ("var answer = 5 satisfies z.core.Number", 5),
    "prefix assertion": ("const v: any = 2; var answer = <number>v + <any>1", 3),
    "prefix assertion after return": ("function f(x: any) { return <\nnumber\n>x }; var answer = f(9)", 9),
    "keywords as keys": (
        "var answer = { type: 1, as: 2, declare: 3, readonly: 4, abstract: 5, enum: 6 }.enum",
        6,
    ),
    "interface and alias": (
        "interface A { a: string\n [k: string]: any; (x: number): void }\ntype B<T> = T extends A ? 1 : 2\nvar answer = 1",
        1,
    ),
    "erased statement before (": ("var answer = 1\ntype T = string\n(() => { answer = 2 })()", 2),
    "erased statement before [": ("var answer = 1\ninterface A {}\n[2].forEach((x) => { answer = x })", 2),
    "statement of an if": ("var answer = 1; if (answer) type T = 1; else answer = 2", 1),
    "declare": (
        "declare const a: number; declare function f(): void; declare class C { x: T }\n"
        "declare module 'x' { export const y: T }\ndeclare global { interface W {} }\nvar answer = typeof a",
        "undefined",
    ),
    "type namespace": ("namespace N { export interface A {} export type B = 1 }\nvar answer = typeof N", "undefined"),
    "overloads": (
        "function f(a: string): string\nfunction f(a: number): number\nfunction f(a: any) { return a }\nvar answer = f(3)",
        3,
    ),
    "method overloads": (
        "class A { f(a: string): string\n f(a: any): any { return a } }; var answer = new A().f('q')",
        "q",
    ),
    "this parameter": (
        "function f(this: { a: number }, b: number) { return this.a + b }\n"
        "function g(this: any) { return this.a }\nvar answer = f.call({ a: 1 }, 2) + f.length + g.length",
        4,
    ),
    "optional parameters": ("function f(a?: number, { b }: { b?: T } = {}, ...c: T[]) { return [a, b, c] }; var answer = f(1)", [1, None, []]),
    "predicates": (
        "function f(x: any): x is string { return true }\nfunction g(x: any): asserts x is T {}\nfunction h(x: any): asserts x {}\nvar answer = f(1)",
        True,
    ),
    "arrow type on the next line": ("const f = (a: number)\n: number => a + 1; var answer = f(1)", 2),
    "arrow type over lines": ("const f = (a: number,): {\n  b: number\n} => ({ b: a }); var answer = f(1).b", 1),
    "arrow predicate over lines": ("const f = (a: any): a is\n  string => true; var answer = f(1)", True),
    "async generics over lines": ("const f = async <\n  T\n>(a: T) => a; var answer = f(1) instanceof Promise", True),
    "return generic arrow over lines": ("function f() { return <\n T,\n>(a: T) => a }\nvar answer = f()(4)", 4),
    "conditional with arrows": ("var a: any = 0, b = 1; var answer = (a ? (b) : ((c): number => c + 1))(1)", 2),
    "definite assignment": ("let x!: number; class A { y!: string; z: number = 1 }; var answer = Object.keys(new A())", ["y", "z"]),
    "class modifiers": (
        "class B { protected x = 1 }\nclass A<T> extends B implements C<T>, D { private readonly a: number = 1; static readonly s?: T;\n"
        "  public static override async f<U>(x?: U): Promise<void> {} declare q: T; override x = 2; #p: number = 3; get p(): number { return this.#p } }\n"
        "const i = new A<string>(); var answer = [i.x, i.p, Object.keys(i), 's' in A]",
        [2, 3, ["x", "a"], True],
    ),
    "abstract class": (
        "abstract class A { abstract f(): number; abstract g: string; abstract get h(): T; protected abstract readonly i: T\n k() { return this.f() } }\n"
        "class B extends A { f() { return 1 } }; var answer = [new B().k(), Object.keys(new B())]",
        [1, []],
    ),
    "modifier before a computed field": (
        "const b = 'k'; class A { a = [1]\n private [b] = 2\n public *c() {} }; var answer = Object.keys(new A())",
        ["a", "k"],
    ),
    "field named get": ("class A { get: any\n foo() { return 1 } static: any\n bar() { return 2 } }; var answer = new A().foo() + new A().bar()", 3),
    "index signature": ("class A { a: number\n [k: string]: any\n b = 2 }; var answer = Object.keys(new A())", ["a", "b"]),
    "class expression": ("const A = class<T> implements I { x: T = 1 as any }; var answer = new A<string>().x", 1),
    "parameter properties": (
        "class A { constructor(private a: number, public readonly b = 2, c?: number) {} sum() { return this.a + this.b } }\nvar answer = [new A(1).sum(), Object.keys(new A(1))]",
        [3, ["a", "b"]],
    ),
    "parameter properties of a derived class": (
        "class B { x = 1 }\nclass A extends B { constructor(readonly a: number) { 'use strict'; const n = a\n super()\n this.a += n } }\nvar answer = new A(4)",
        {"x": 1, "a": 8},
    ),
    "enum": (
        "enum E { A, B, C = 'c', D = 1 << 3, F, G = D | B, 'two words' = 5, H = E.A + `x`.length, }\n"
        "var answer = [E.A, E.B, E.C, E.D, E.F, E.G, E['two words'], E.H, E[0], E[9], E[5], (E as any).c]",
        [0, 1, "c", 8, 9, 9, 5, 1, "A", "G", "two words", None],
    ),
    "enum without a reverse for texts": ("enum E { A = 'x', B = A }\nvar answer = E", {"A": "x", "B": "x"}),
    "enum merged": ("enum E { A }\nenum E { B = 1 }\nvar answer = [E.A, E.B]", [0, 1]),
    "const enum": ("const enum E { A = 1, default, new }\nvar answer = [E.A, E.default, E.new]", [1, 2, 3]),
    "enum with comments": ("enum E { // one, two\n  A /* { */ = 1 // }\n  , B // last\n}\nvar answer = E.B", 2),
    "catch type": ("var answer; try { throw 1 } catch (e: unknown) { answer = e }", 1),
    "regex like types": ("var answer = [/: string<T>/.test(': string<T>'), 4 / 2 / 1]", [True, 2]),
    "template like types": ("const x = 1; var answer = `a: string ${x as number} as T <U> ${`b!: ${x!}`}`", "a: string 1 as T <U> b!: 1"),
    "strings like types": ("var answer = 'let a: string = b as T' + \"interface A {}\"", "let a: string = b as Tinterface A {}"),
    "tagged template generics": ("const t = (s: any, ...v: any[]) => s.raw[0]; var answer = t<string>`x`", "x"),
    "instantiation": ("const f = <T,>(x: T) => x; const g = f<string>; var answer = g('x')", "x"),
    "new generics": ("var answer = new Map<string, Array<number>>([['a', [1]]]).get('a')", [1]),
    "optional call generics": ("const f: any = (x: any) => x; var answer = f?.<string>('x')", "x"),
    "unicode identifiers": ("const größe: number = 1, 变量: string = 'x', \\u{61}b: T = 2; var answer = größe + 变量 + ab", "1x2"),
    "comments stay": ("var answer = (function f(a /* : T */, b: /* c */ number) { return String(f) })()", "function f(a /* : T */, b                ) { return String(f) }"),
    "windows line ends": ("type A =\r\n  string\r\nvar answer = (1 as\r\n number)\r\n", 1),
    "variance": ("interface A<in T, out U> {}\nclass B<in out T> { x?: T }\nvar answer = 1", 1),
    "const type parameter": ("function f<const T extends readonly unknown[]>(x: T) { return x }\nvar answer = f([1])", [1]),
    "call signatures": ("const f: {\n  (a: string): void\n  <T>(a: T): T\n} = (a: any) => a\nvar answer = f<number>(1)", 1),
    "accessors in objects": ("const o = { get a(): number { return 1 }, set a(v: number) {}, async *g<T>(): any {} }; var answer = o.a", 1),
    "abstract constructor type": ("type C = abstract new (...a: any[]) => object; let x: typeof import('x').y; var answer = 1", 1),
    "labels and ternaries": ("let a = true, b = 1, c = 2\nouter: for (;;) { break outer }\nvar answer = a ? b : c", 1),
}  # fmt: skip


@pytest.mark.parametrize(("source", "answer"), SNIPPETS.values(), ids=SNIPPETS)
def test_typescript_runs_as_its_javascript(guest: Guest, source: str, answer: object) -> None:
    """Each snippet gives in V8 what TypeScript's own compiler would make of it."""
    wrapped = f"export default (() => {{{source}\n;return answer}})();"

    value = guest.value(wrapped)

    assert value == answer


@pytest.mark.parametrize("source", [each[0] for each in SNIPPETS.values()], ids=SNIPPETS)
def test_lines_never_move(source: str) -> None:
    """A script has as many lines after the types are gone as before."""
    code = only(source)

    assert lines(code) == lines(source)


def test_columns_do_not_move_when_types_go() -> None:
    """Erased text becomes as many UTF-16 columns of spaces, also for letters outside of ASCII."""
    source = "let a: Größe<'😀', \u2028'变'> = 1; mark"

    code = only(source)

    assert code.index("mark") == source.index("mark") + 1  # one code point, two UTF-16 units
    assert len(code.encode("utf-16-le")) == len(source.encode("utf-16-le"))


def test_a_byte_order_mark_is_no_column() -> None:
    """A BOM in front of TypeScript is dropped: editors do not count it."""
    code = only("\ufefflet a: T = 1")

    assert code == "let a    = 1"


def test_a_classic_script_stays_as_it_is() -> None:
    """JavaScript without import and export is not touched, whatever is in it."""
    source = "\ufeff#!x\r\nfunction trigger(params, callback) { important = a < b > (c) }\x00\n ]["

    program = compile_program({"main.js": source}, "main.js")

    assert program.files[0].code == source
    assert program.files[0].kind == "script"


def test_a_typed_script_is_global_and_sloppy(guest: Guest) -> None:
    """A .ts file without import and export runs like a classic script."""
    source = "var shared: number = 010; function trigger(this: any): boolean { return this === globalThis }"

    value = guest.value(source, "[shared, trigger()]")

    assert value == [8, True]


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.sampled_from(
            [each[0] for each in SNIPPETS.values()]
            + ["\n", "\r\n", "\u2028", "// c\n", "/* \n */", "`\n${1}\n`;", "'ä😀';", "x as\nT;"]
        ),
        max_size=6,
    ).map("\n".join)
)
def test_line_count_is_never_changed(source: str) -> None:
    """Whatever is put together: as many lines come out as went in, or an error comes out."""
    try:
        code = only(source)
    except CompileError:
        return

    assert lines(code) == lines(source)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="abc(){}[]<>=;:,.?!\"'`$ \n/*@#é😀\u2028", max_size=60), st.booleans())
def test_garbage_is_compiled_or_refused(noise: str, in_module: bool) -> None:
    """Any text gives code on the same lines or a CompileError with a place in the text."""
    source = f"{noise}\nexport {{}}" if in_module else noise
    try:
        compiled = compile_program({"main.ts": source}, "main.ts").files[0]
        found, most = lines(compiled.code), lines(source) + (compiled.kind == "module")
    except CompileError as error:
        found = most = min(error.line, lines(source) + 1)

    assert found == most


# Modules ----------------------------------------------------------------------------------

# name: (files, the main one first; expression; value)
BUNDLES: dict[str, tuple[dict[str, str], str, object]] = {
    "default expression": ({"main.js": "export default { a: 1 }"}, "main.default", {"a": 1}),
    "default expression in brackets": ({"main.js": "export default(1 + 2)"}, "main.default", 3),
    "default function": ({"main.js": "log.push(f()); export default function f() { return 1 }"}, "[main.default(), main.default.name, log]", [1, "f", [1]]),
    "default anonymous function": ({"main.js": "export default function (a) { return a }\n(1)"}, "main.default(2)", 2),
    "default async generator": ({"main.js": "export default async function* () {}"}, "String(main.default()[Symbol.toStringTag])", "AsyncGenerator"),
    "default anonymous class": ({"main.js": "export default class { a() { return 1 } }\n[1].map(String)"}, "new main.default().a()", 1),
    "default derived class": ({"main.ts": "class B {}\nexport default class<T> extends B { x?: T }"}, "new main.default() instanceof Object", True),
    "default abstract class": ({"main.ts": "export default abstract class A { abstract f(): T; g() { return 1 } }"}, "main.default.prototype.g()", 1),
    "default overloads": ({"main.ts": "export default function f(a: string): string;\nexport default function f(a: any) { return a }"}, "main.default(1)", 1),
    "declarations": (
        {"main.js": "export const a = 1, { b, c: [d = 4], ...e } = { b: 2, c: [], f: 5 }; export let g = 6; export var h\nexport function i() {} export async function j() {} export function* k() {} export class L {}"},
        "[Object.keys(main).sort().join(), main.a, main.b, main.d, main.e, main.g]",
        ["L,a,b,d,e,g,h,i,j,k", 1, 2, 4, {"f": 5}, 6],
    ),
    "export list": ({"main.js": "export { a as b, a as default, a as 'two words', a as __proto__ }; const a = 1"}, "[main.b, main.default, main['two words'], Object.keys(main)]", [1, 1, 1, ["b", "default", "two words", "__proto__"]]),
    "exports are live": ({"main.js": "export let n = 1; export function up() { n++ }; export { n as m }"}, "[main.n, main.up(), main.n, main.m]", [1, None, 2, 2]),
    "enum and types": ({"main.ts": "export enum E { A = 1 }\nexport interface I {}\nexport type T = I\nexport declare const q: T\nexport default interface D {}\nexport type { I as J }\nexport abstract class C {}\nexport namespace N { export type Q = 1 }"}, "[Object.keys(main), main.E.A]", [["E", "C"], 1]),
    "all imports": (
        {
            "main.js": "#!/usr/bin/env node\nimport d, { a as b, 'two words' as w, default as e } from './m.js'; import * as ns from \"./m.js\"\nimport './side'\nimport d2, * as ns2 from './m'\nexport const r = [d, b, w, e, ns.a, d2, ns2.a, log]",
            "m.js": "const x = 3; export default 1; export const a = 2; export { x as 'two words' }",
            "side.js": "log.push('side'); this === undefined && log.push('strict')",
        },
        "main.r",
        [1, 2, 3, 1, 2, 1, 2, ["side", "strict"]],
    ),
    "re-exports": (
        {
            "main.ts": "export { a as b, default } from './m'\nexport * from './m'; export * as ns from './m'; export type * from './m'; export { type T } from './m'",
            "m.ts": "export const a = 1, c = 2; export default 3; export type T = 1",
        },
        "[Object.keys(main).sort(), main.b, main.default, main.ns.c]",
        [["a", "b", "c", "default", "ns"], 1, 3, 2],
    ),
    "import then export": ({"main.ts": "import { a, T } from './m'; import * as n from './m'; export { a as x, T, n }", "m.ts": "export const a = 1; export type T = 1"}, "[Object.keys(main), main.n.a]", [["x", "n"], 1]),
    "local name wins over a star": ({"main.js": "export * from './m'; export const a = 1", "m.js": "export const a = 2, b = 3"}, "[main.a, main.b]", [1, 3]),
    "two stars with one name": ({"main.js": "export * from './m'; export * from './n'", "m.js": "export const a = 2, b = 3", "n.js": "export const a = 1; export { b } from './m'"}, "Object.keys(main)", ["b"]),
    "endings": (
        {
            "src/main.mts": "import { a } from '../lib/a.js'; import { b } from '../lib'; import { c } from './c'; import { d } from './d.mjs'; export default [a, b, c, d]",
            "lib/a.ts": "export const a = 1",
            "lib/index.js": "export * from './b'",
            "lib/b.mjs": "export const b = 2",
            "src/c.cjs": "export const c = 3",
            "src/d.mts": "export const d = 4",
        },
        "main.default",
        [1, 2, 3, 4],
    ),
    "imports run first and in order": (
        {"main.js": "'use strict'\nlog.push('main')\nimport './a'\nimport { b } from './b'; log.push(b)", "a.js": "import './b'; log.push('a')", "b.js": "log.push('b'); export const b = 'B'"},
        "log",
        ["b", "a", "main", "B"],
    ),
    "late imports after early ones": (
        {"main.js": "import './a'; log.push('main')\nimport './b'\nexport * from './c'", "a.js": "log.push('a')", "b.js": "log.push('b')", "c.js": "log.push('c')"},
        "log",
        ["a", "b", "c", "main"],
    ),
    "a file runs once": ({"main.js": "import './a'; import './a.js'; import './b'", "a.js": "log.push(1)", "b.js": "import './a'"}, "log", [1]),
    "functions in a cycle": (
        {
            "main.js": "import { odd } from './odd'; export function even(n) { return n === 0 || odd(n - 1) }; export default even(10)",
            "odd.js": "import { even } from './main'; export function odd(n) { return n !== 0 && even(n - 1) }; log.push(even(0))",
        },
        "[main.default, log]",
        [True, [True]],
    ),
    "classes in a cycle": (
        {
            "main.js": "import { B } from './b'; export class A { b() { return new B() } }; export default new A().b().a() instanceof A",
            "b.js": "import { A } from './main'; export class B { a() { return new A } both() { return { A } } }",
        },
        "main.default",
        True,
    ),
    "a cycle through an index": (
        {
            "main.js": "import { a } from './index'; export default a()",
            "index.js": "export * from './a'; export * from './b'",
            "a.js": "import { b } from './index'; export function a() { return b() }",
            "b.js": "export const b = () => 5",
        },
        "main.default",
        5,
    ),
    "an imported let is live": (
        {"main.ts": "import { n, up } from './m'; up(); up()\nexport default [n, { n }, `${n}`, typeof n]; export { n }", "m.ts": "export let n: number = 0; export function up(): void { n++ }"},
        "[main.default, main.n]",
        [[2, {"n": 2}, "2", "number"], 2],
    ),
    "a shadowed imported let is a snapshot": (
        {"main.js": "import { n, up } from './m'; up(); function f(n) { return n } export default [n, f(5)]", "m.js": "export let n = 0; export function up() { n++ }"},
        "main.default",
        [0, 5],
    ),
    "unused imports of types": (
        {
            "main.ts": "import Missing, { A, type B, C } from './types'; import type { D } from 'npm-package'; import { E } from 'other-package'\nimport { value } from './types'\nconst x: A = 1 as B satisfies C; let y: Missing<E>; type Q = typeof value\nexport default x",
            "types.ts": "export type A = number; export const value = 1; log.push('evaluated')",
        },
        "[main.default, log]",
        [1, []],
    ),
    "imports that the other file knows as types": (
        {"main.ts": "import { A, b } from './m'; export { A, b }; export const A2 = b", "m.ts": "export interface A {}; export const b = 1"},
        "Object.keys(main)",
        ["b", "A2"],
    ),
    "export default of a type": ({"main.ts": "import D from './m'; import { type default as E, x } from './m'; export const r = x as unknown as D & E", "m.ts": "interface D {} export default D; export const x = 1"}, "main.r", 1),
    "empty import keeps effects": ({"main.ts": "import './m'", "m.ts": "log.push(1)"}, "log", [1]),
    "names of ours in the source": ({"main.js": "import { a } from './a'; const exports = 1, require = 2, _default = 3, _m0 = 4; export default [a, exports, require, _default, _m0]", "a.js": "export let a = 0"}, "main.default", [0, 1, 2, 3, 4]),
    "line comment at the end": ({"main.js": "export default 1 // }"}, "main.default", 1),
    "a .mjs is always a module": ({"main.mjs": "var hidden = 1; log.push(this === undefined)"}, "[typeof hidden, log]", ["undefined", [True]]),
    "words in strings are no modules": ({"main.js": "var text = 'import x from y; export default'; // export\n/* import */ main = 1"}, "text.length", 31),
}  # fmt: skip


@pytest.mark.parametrize(("files", "expression", "value"), BUNDLES.values(), ids=BUNDLES)
def test_modules_run_as_the_standard_says(
    guest: Guest, files: dict[str, str], expression: str, value: object
) -> None:
    """Each bundle exports and evaluates what a real module loader would."""
    found = guest.value(files, expression)

    assert found == value


@pytest.mark.parametrize("files", [each[0] for each in BUNDLES.values()], ids=BUNDLES)
def test_modules_stay_on_their_lines(files: dict[str, str]) -> None:
    """A module has one line more than the author wrote: the one that closes the function."""
    program = compile_program(files, next(iter(files)))

    for file in program.files:
        extra = 1 if file.kind == "module" else 0
        assert lines(file.code) == lines(files[file.name]) + extra, file.name


def test_imports_tell_the_loader_which_file_is_meant() -> None:
    """Each specifier as written is mapped to a file; specifiers of types are left out."""
    files = {
        "a/main.ts": "import '../b'; import { x } from './c.js'; import { T } from './t'; f(x as T)",
        "b.js": "",
        "a/c.ts": "export const x = 1",
        "unused.ts": "not even valid (",
    }

    program = compile_program(files, "a/main.ts")

    assert program.main == "a/main.ts"
    assert program.files[0].imports == {"../b": "b.js", "./c.js": "a/c.ts"}
    assert {file.name for file in program.files} == {"a/main.ts", "b.js", "a/c.ts"}


def test_a_program_survives_json() -> None:
    """The engine stores a compiled program as JSON and gets the same program back."""
    program = compile_program({"main.ts": "export default 1"}, "main.ts")

    again = msgspec.json.decode(msgspec.json.encode(program), type=Program)

    assert again == program


# Places of run-time errors ------------------------------------------------------------------


def test_a_stack_names_the_authors_line_and_column(guest: Guest) -> None:
    """Types before it and on its line do not move the place where an error is thrown."""
    source = (
        "import type { A } from './a';\r\n"
        "interface B<T> {\r\n  c: T;\r\n}\r\n"
        "export function f<T>(a: B<T>): never {\r\n"
        "  const b: number = 1; throw new Error(`x ${b as number}`);\r\n"
        "}\r\n"
    )

    stack = guest.thrown({"main.ts": source}, "main.f()")

    assert "f (main.ts:6:30)" in stack


def test_a_stack_goes_through_files(guest: Guest) -> None:
    """Each frame names the file, line and column of its author."""
    files = {
        "main.ts": "import {\n  f,\n} from './lib/f';\n\nexport default (x: any) => f<string>(x);",
        "lib/f.js": "\nexport const f = (x) => x.y.z;",
    }

    stack = guest.thrown(files, "main.default({})")

    assert "lib/f.js:2:29" in stack
    assert "main.ts:5:28" in stack


def test_prefix_columns_correct_line_one(guest: Guest) -> None:
    """On line 1 the column minus the prefix is the author's column."""
    source = "export const é = 1; export default () => { throw new Error('x') }"
    compiled = compile_program({"main.js": source}, "main.js").files[0]

    stack = guest.thrown({"main.js": source}, "main.default()")

    place = re.search(r"main\.js:1:(\d+)", stack)
    assert place is not None
    assert int(place[1]) - compiled.prefix_columns == source.index("new Error") + 1


def test_a_script_has_no_prefix(guest: Guest) -> None:
    """A classic script's columns on line 1 are the author's own."""
    stack = guest.thrown({"main.js": "function job() { null.x }"}, "job()")

    assert "main.js:1:23" in stack


def test_v8_reports_syntax_errors_of_javascript(isolate: MiniRacer) -> None:
    """What is wrong with JavaScript is left to V8, which gives the better message."""
    program = compile_program({"main.js": "export const a = 1;\nlet b = = 2;\n"}, "main.js")

    with pytest.raises(JSEvalException, match=r"(?s):2.*Unexpected token '='"):
        isolate.eval(program.files[0].code)


# What is refused ----------------------------------------------------------------------------

# source: (line, column, a part of the message)
REFUSED: dict[str, tuple[int, int, str]] = {
    "\nnamespace N { const x = 1 }": (2, 1, "namespace with values"),
    "export namespace N { export namespace M { export function f() {} } }": (1, 8, "namespace"),
    "@dec class A {}": (1, 1, "decorators are not supported; call"),
    "class A { @dec() f() {} }": (1, 11, "decorators"),
    "import x = require('y');": (1, 8, "import * as"),
    "import x = A.B;": (1, 1, "const a = b"),
    "const a = 1\nexport = a;": (2, 1, "export default"),
    "const a = <div>x</div>;": (1, 1, "JSX is not supported"),
    "export {}; await f();": (1, 12, "top-level await"),
    "export {}; for await (const a of b) {}": (1, 12, "top-level await"),
    "export {}\nif (a) { return 1 }": (2, 10, "return outside"),
    "const a = import('./b');": (1, 11, "import() is not supported"),
    "export default import.meta.url": (1, 16, "import.meta"),
    "import x from './gone'; x()": (1, 15, "there is no file './gone' beside main.ts; the files are: main.ts"),
    "import x from 'lodash'; x()": (1, 15, "package 'lodash' cannot be imported"),
    "import x from 'main'; x()": (1, 15, "write './main'"),
    "import x from './main' with { type: 'json' }; x()": (1, 24, "import attributes"),
    "let x: = 5": (1, 8, "syntax error"),
    "function f( {\n  let a = 1;\n}\n": (1, 11, "'(' is never closed"),
    "f(\n  [1, 2\n)": (3, 1, "')' does not match"),
    "let ä = '😀'; let y = (;": (1, 23, "'(' is never closed"),
    "enum E { A = 'x', B }": (1, 19, "needs a value"),
    "class A extends B { constructor(private a) { if (a) super() } }": (1, 44, "call super"),
    "class A { accessor x = 1 }": (1, 11, "getter and a setter"),
    "export default t<A | B>`x`": (1, 23, "tagged template"),
    "x = '\ud800'": (1, 6, "surrogate"),
}  # fmt: skip


@pytest.mark.parametrize(("source", "expected"), REFUSED.items())
def test_what_cannot_run_is_refused_with_a_remedy(
    source: str, expected: tuple[int, int, str]
) -> None:
    """The error says where the trouble is and what to write instead."""
    error = refused(source)

    assert (error.line, error.column) == expected[:2], str(error)
    assert expected[2] in error.message


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"main.js": "import { b } from './a'", "a.js": "export const a = 1"}, "main.js:1:10: a.js does not export 'b'; it exports a"),
        ({"main.js": "\nexport { b } from './a'", "a.js": ""}, "main.js:2:10: a.js does not export 'b'; it exports nothing"),
        ({"main.js": "import d from './a'", "a.js": "export * from './b'", "b.js": "export default 1"}, "main.js:1:8: a.js does not export 'default'; it exports nothing"),
        ({"main.js": "import { a } from './main'; export { a }"}, "main.js:1:10: main.js does not export 'a'; it exports nothing"),
        ({"main.js": "import './a'", "a.ts": "\n\nlet x: = 1"}, "a.ts:3:8: syntax error: this is not expected here"),
        ({"main.js": "export type A = 1"}, "main.js:1:8: types are for TypeScript; give this file a name that ends in .ts"),
        ({"main.js": "import { type A } from './a'"}, "main.js:1:10: types are for TypeScript; give this file a name that ends in .ts"),
        ({"main.js": "export const a = 1; }); evil(); (() => {"}, "main.js:1:21: syntax error: '}' does not match what was opened before it"),
        ({"main.js": "const a = 1; export { a as b, a c }"}, "main.js:1:33: syntax error: this is not expected here"),
        ({"main.js": "import { a } frm './a'"}, "main.js:1:8: syntax error: this is not expected here"),
    ],
)  # fmt: skip
def test_errors_across_files(files: dict[str, str], message: str) -> None:
    """The text of an error begins with the file, line and column it is about."""
    error = refused(files)

    assert str(error) == message


@pytest.mark.parametrize(
    "name",
    ["", "/main.js", "../main.js", "a/../main.js", "a//b.js", "./main.js", "main", "main.json", "a b.js", "ä.js", "main.js\n", "a" * 200 + ".js", ".js/"],
)  # fmt: skip
def test_odd_file_names_are_refused(name: str) -> None:
    """A file name is a plain relative path of a language that we run."""
    error = refused({name: ""})

    assert error.file == name[:200]
    assert "file name" in error.message


def test_a_main_file_that_is_missing_is_refused() -> None:
    """The error names the files there are."""
    with pytest.raises(CompileError, match=r"main\.js:1:1: there is no such file; .* a\.js, b\.js"):
        compile_program({"b.js": "", "a.js": ""}, "main.js")


def test_a_specifier_cannot_leave_the_bundle() -> None:
    """`..` beyond the root means no file."""
    error = refused({"main.js": "import '../main.js'"})

    assert "there is no file '../main.js'" in error.message


# Hostile sources ----------------------------------------------------------------------------

HOSTILE: dict[str, str] = {
    "brackets": "[" * 1_000_000,
    "closed brackets": "[" * 300_000 + "]" * 300_000,
    "braces": "{" * 1_000_000,
    "members": "a" + ".a" * 300_000,
    "sums": "a+" * 300_000 + "a",
    "as": "a" + " as T" * 100_000,
    "types": "let a:" + "T[" * 200_000,
    "arrows": "a=>" * 200_000 + "a",
    "enums": "enum put{A}" * 40_000,
    "exports": "".join(f"export const a{at} = 1;" for at in range(40_000)),
    "underscores": "exports" + "_" * 900_000 + ";export{}",
    "line ends": "\n" * 1_000_000,
    "newlines and generics": "a\n<b" * 50_000,
    "classes": "class A{constructor(private a){}" * 20_000,
    "comments": "a as T /*" * 100_000,
}


@pytest.mark.slow
@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("name", ["main.ts", "main.mjs"])
def test_a_hostile_source_ends_soon(name: str, source: str) -> None:
    """A megabyte of nesting is compiled or refused; it neither hangs nor exhausts the stack."""
    before = time.process_time()

    with contextlib.suppress(CompileError):
        compile_program({name: source}, name)

    assert time.process_time() - before < 8  # twice what the worst takes on two slow cores


@pytest.mark.slow
def test_long_chains_of_exports_end_soon() -> None:
    """A name that goes through hundreds of files, in a cycle, is found without recursion."""
    files = {f"f{at}.js": f"export * from './f{at + 1}'" for at in range(900)}
    files["f900.js"] = "export * from './f0'; export const a = 1"
    files = {"main.js": "export { a } from './f0'", **files}

    program = compile_program(files, "main.js")

    assert len(program.files) == 902


def test_too_many_files_are_refused() -> None:
    """A program has a limit of files."""
    files = {f"f{at}.js": f"import './f{at + 1}'" for at in range(1_001)}

    error = refused({**files, "f1001.js": ""})

    assert "at most 1000 files" in error.message


def test_too_many_passed_on_exports_are_refused() -> None:
    """`export *` cannot multiply a few names into gigabytes."""
    names = ",".join(f"a{at}" for at in range(5_000))
    files = {f"f{at}.js": f"export * from './f{at + 1}'" for at in range(40)}

    error = refused({**files, "f40.js": f"export let {names}"})

    assert "more than 100000 exported names" in error.message
