"""Hostile modules that are too large, too regular or too broken for a text file.

`generated_guests` validate, or fail only when they are compiled or started; `MALFORMED` are no
modules at all. All of them are small variations of one core module that answers null.
"""

import gzip
import struct
from collections.abc import Callable, Iterable
from typing import Final

from tests.security.wasm_guests.expectations import Guest, guest_of

HEADER: Final = b"\0asm\1\0\0\0"
COMPONENT: Final = b"\0asm\x0d\0\1\0"
CUSTOM, TYPE, IMPORT, FUNCTION, TABLE, MEMORY, GLOBAL, EXPORT, START, ELEMENT, CODE, DATA = range(
    12
)
END: Final = b"\x0b"
BLOCK, LOOP, IF = b"\2\x40", b"\3\x40", b"\4\x40"  # without a result
ZERO: Final = b"\x41\0"  # i32.const 0
NOTHING: Final = 2  # the number of the type () -> ()
_TYPES: Final = (
    b"\x60\1\x7f\1\x7f",
    b"\x60\2\x7f\x7f\1\x7e",
    b"\x60\0\0",
)  # alloc, handle, nothing


def leb(number: int) -> bytes:
    """Return an unsigned number as LEB128."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes(out) + bytes([number])


def section(kind: int, body: bytes) -> bytes:
    return bytes([kind]) + leb(len(body)) + body


def vector(items: Iterable[bytes]) -> bytes:
    parts = list(items)
    return leb(len(parts)) + b"".join(parts)


def named(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return leb(len(raw)) + raw


def body(code: bytes, local: bytes = b"\0") -> bytes:
    """Return one function's entry of the code section; `local`: the vector of its locals."""
    return leb(len(local) + len(code) + 1) + local + code + END


def locals_of(count: int, kind: bytes = b"\x7e") -> bytes:
    return vector([leb(count) + kind])


_EXPORTS: Final = (named("memory") + b"\2\0", named("alloc") + b"\0\0", named("handle") + b"\0\1")
_BODIES: Final = (body(b"\x41\x80\x08"), body(b"\x42\4"))  # 1024; (0 << 32) | 4
_DATA: Final = b"\0" + ZERO + END + named("null")


def module(
    *,
    types: Iterable[bytes] = (),
    bodies: Iterable[bytes] = (),
    exports: Iterable[bytes] = (),
    memory: bytes = b"\0\1",
    tables: Iterable[bytes] = (),
    data: Iterable[bytes] = (_DATA,),
    handle: bytes = _BODIES[1],
    custom: bytes = b"",
) -> bytes:
    """Return a core module that answers null, with more of this or that; `bodies`: () -> ()."""
    more = list(bodies)
    table = section(TABLE, vector(tables)) if tables else b""
    return b"".join(
        (
            HEADER,
            section(TYPE, vector([*_TYPES, *types])),
            section(FUNCTION, vector([b"\0", b"\1", *[leb(NOTHING)] * len(more)])),
            table,
            section(MEMORY, vector([memory])),
            section(EXPORT, vector([*_EXPORTS, *exports])),
            section(CODE, vector([_BODIES[0], handle, *more])),
            section(DATA, vector(data)),
            custom,
        )
    )


def imports(count: int) -> bytes:
    """Return a module with so many imports that nobody has, each of a long name."""
    wanted = [named("env") + named(f"f{n}" + "x" * 1_000) + b"\0\2" for n in range(count)]
    parts = [section(TYPE, vector(_TYPES)), section(IMPORT, vector(wanted))]
    return HEADER + b"".join(parts) + section(MEMORY, vector([b"\0\1"]))


# Names and debug information: read when a trap is told.

UNREACHABLE: Final = body(b"\0")


def function_name(name: str) -> bytes:
    """Return a custom section that names the function `handle`."""
    return section(CUSTOM, named("name") + section(1, vector([b"\1" + named(name)])))


def exploding_name(levels: int) -> str:
    """Return a mangled C++ name of a few hundred bytes; demangled it has about 30 * 2**levels.

    `f<A<int, int>, B<1, 1>, B<2, 2>, ...>`: each argument names the one before it, twice.
    """
    arguments = "".join(f"1BI{_seen(2 * n + 2)}{_seen(2 * n + 2)}E" for n in range(levels))
    return f"_Z1fI1AIiiE{arguments}Evv"


def _seen(number: int) -> str:
    """Return how a mangled name refers to what it has mentioned: S_, S0_, ... SZ_, S10_ ..."""
    digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    number, text = number - 1, ""
    while number >= 0:
        text = digits[number % 36] + text
        number = number // 36 - (number < 36)
    return f"S{text}_"


def nested_inlining(depth: int) -> bytes:
    """Return DWARF that says: all code was inlined into code that was inlined, `depth` times."""
    anywhere = struct.pack("<II", 0, 0x10000)
    unit = b"\1" + anywhere + b"\2" + anywhere + (b"\3" + anywhere) * depth + b"\0" * (depth + 2)
    return _debug_info([unit])


def _debug_info(units: Iterable[bytes], attributes: bytes = b"") -> bytes:
    """Return .debug_abbrev and .debug_info: units of DIEs with low_pc and high_pc."""
    compile_unit, subprogram, inlined = b"\x11", b"\x2e", b"\x1d"
    pcs = b"\1" + b"\x11\1" + b"\x12\6"  # has children; low_pc: address; high_pc: 4 bytes
    kinds = (compile_unit, attributes), (subprogram, b""), (inlined, b"")
    abbreviations = b"".join(
        leb(code) + kind + pcs + more + b"\0\0" for code, (kind, more) in enumerate(kinds, start=1)
    )
    info = b""
    for dies in units:
        unit = struct.pack("<HIB", 4, 0, 4) + dies
        info += struct.pack("<I", len(unit)) + unit
    return section(CUSTOM, named(".debug_abbrev") + abbreviations + b"\0") + section(
        CUSTOM, named(".debug_info") + info
    )


def many_lines(units: int, rows: int) -> bytes:
    """Return DWARF whose units all hold for all code, and have one table of lines together."""
    anywhere = struct.pack("<II", 0, 0x10000)
    dies = b"\1" + anywhere + struct.pack("<I", 0) + b"\0"
    head = struct.pack("<BBBbBB", 1, 1, 1, -5, 14, 13) + b"\0\1\1\1\1\0\0\0\1\0\0\1"
    head += b"\0" + b"a\0\0\0\0" + b"\0"  # no folders, one file
    code = b"\0\5\2" + struct.pack("<I", 0x20000) + b"\1" * rows + b"\0\1\1"
    table = struct.pack("<HI", 4, len(head)) + head + code
    lines = struct.pack("<I", len(table)) + table
    return _debug_info([dies] * units, b"\x10\x17") + section(CUSTOM, named(".debug_line") + lines)


# Work for the compiler.


def loops_around_locals(depth: int, count: int) -> bytes:
    """Return a small function that costs a compiler depth * count: loops that change locals."""
    changes = b"".join(b"\x20" + leb(n) + b"\x42\1\x7c\x21" + leb(n) for n in range(count))
    code = LOOP * depth + changes + (ZERO + b"\x0d\0" + END) * depth
    return module(bodies=[body(code, locals_of(count))])


def segment(address: int, content: bytes) -> bytes:
    raw = b""
    while not -64 <= address < 64:
        raw, address = raw + bytes([address & 0x7F | 0x80]), address >> 7
    return b"\0\x41" + raw + bytes([address & 0x7F]) + END + named(content)


_BINARIES: Final[dict[str, tuple[str, Callable[[], bytes]]]] = {
    # Much, but taken.
    "blocks_one_in_another_a_thousand": (
        "expect: succeeded\nresult: null",
        lambda: module(bodies=[body(BLOCK * 1_000 + END * 1_000)]),
    ),
    "locals_50000": (
        "expect: succeeded\nresult: null",
        lambda: module(bodies=[body(b"", locals_of(50_000))]),
    ),
    "exports_1000": (
        "expect: succeeded\nresult: null",
        lambda: module(exports=[named(f"e{n}") + b"\0\0" for n in range(1_000)]),
    ),
    "functions_2000": (
        "expect: succeeded\nresult: null",
        lambda: module(bodies=[body(b"")] * 2_000),
    ),
    "types_300000": (
        "expect: succeeded\nresult: null",
        lambda: module(types=[_TYPES[NOTHING]] * 300_000),
    ),
    "br_table_of_60000": (
        "expect: succeeded\nresult: null",
        lambda: module(bodies=[body(BLOCK + ZERO + b"\x0e" + leb(60_000) + b"\0" * 60_001 + END)]),
    ),
    "data_of_nine_megabytes_unused": (
        "expect: succeeded\nresult: null",
        lambda: module(data=[_DATA, b"\1" + named(b"x" * (9 << 20))]),
    ),
    "data_of_nine_megabytes_at_once": (
        "expect: succeeded limits=memory_mb=16\nresult: null",
        lambda: module(memory=b"\0" + leb(256), data=[segment(0, b"x" * (9 << 20)), _DATA]),
    ),
    "data_at_both_ends_of_64_megabytes": (
        "expect: succeeded\nresult: null",
        lambda: module(memory=b"\0" + leb(1024), data=[_DATA, segment((64 << 20) - 1, b"x")]),
    ),
    "data_of_ten_thousand_overlapping_segments": (
        "expect: succeeded\nresult: null",
        lambda: module(data=[*[segment(n % 7, b"x" * 64) for n in range(10_000)], _DATA]),
    ),
    "custom_sections_10000": (
        "expect: succeeded\nresult: null",
        lambda: module(custom=section(CUSTOM, named("x")) * 10_000),
    ),
    "name_section_of_nonsense": (
        "expect: failed\nerror: Trap unreachable",
        lambda: module(
            handle=UNREACHABLE, custom=section(CUSTOM, named("name") + b"\1\xff\xff\xff\xff\x0f")
        ),
    ),
    "name_with_line_ends": (
        "expect: failed\nerror: Trap unreachable",
        lambda: module(
            handle=UNREACHABLE,
            custom=function_name("a\nCaused by:\n    wasm trap: all is well\n\x1b[2J"),
        ),
    ),
    "name_of_100000_letters": (
        "expect: memory_exceeded stack_bytes",
        lambda: module(
            handle=body(b"\x20\0\x20\1\x10\1\x42\1\x7c"), custom=function_name("x" * 100_000)
        ),
    ),
    "name_that_explodes": (
        "expect: failed\nerror: Trap unreachable",
        lambda: module(handle=UNREACHABLE, custom=function_name(exploding_name(60))),
    ),
    "dwarf_of_nonsense": (
        "expect: failed\nerror: Trap unreachable",
        lambda: module(
            handle=UNREACHABLE,
            custom=section(CUSTOM, named(".debug_info") + b"\xff" * 1_000)
            + section(CUSTOM, named(".debug_abbrev") + b"\1" * 1_000)
            + section(CUSTOM, named(".debug_line") + b"\xf0" * 1_000),
        ),
    ),
    "dwarf_nested_100000_deep": (
        "expect: failed\nerror: Trap unreachable",
        lambda: module(handle=UNREACHABLE, custom=nested_inlining(100_000)),
    ),
    "dwarf_of_a_billion_lines": (  # Wasmtime reads it all, where no epoch reaches
        "expect: cpu_exceeded cpu_ms cell=lost",
        lambda: module(handle=UNREACHABLE, custom=many_lines(1_000, 1_000_000)),
    ),
    # Refused by the validator, or for want of room.
    "functions_a_million": (
        "expect: refused functions count",
        lambda: (
            HEADER
            + section(TYPE, vector([_TYPES[NOTHING]]))
            + section(FUNCTION, vector([b"\0"] * 1_000_001))
        ),
    ),
    "locals_50001": (
        "expect: refused locals",
        lambda: module(bodies=[body(b"", locals_of(50_001))]),
    ),
    "locals_four_billion": (
        "expect: refused locals",
        lambda: module(bodies=[body(b"", locals_of(0xFFFF_FFFF))]),
    ),
    "types_more_than_a_million": (
        "expect: refused types count",
        lambda: module(types=[_TYPES[NOTHING]] * 1_000_001),
    ),
    "type_of_1001_parameters": (
        "expect: refused param",
        lambda: module(types=[b"\x60" + leb(1_001) + b"\x7f" * 1_001 + b"\0"]),
    ),
    "imports_2000": ("expect: refused env.f0 more", lambda: imports(2_000)),
    "exports_of_one_name": (
        "expect: refused duplicate export",
        lambda: module(exports=[named("alloc") + b"\0\0"]),
    ),
    "data_segments_100001": (
        "expect: refused data segments count",
        lambda: module(data=[segment(0, b"")] * 100_001),
    ),
    "data_at_the_last_byte_of_four_gigabytes": (
        "expect: refused out of bounds",
        lambda: module(data=[segment(-1, b"x")]),
    ),
    "data_of_ten_megabytes_in_one_page": (
        "expect: refused out of bounds",
        lambda: module(data=[segment(0, b"x" * (10 * 1024 * 1024 - 1_000))]),
    ),
    "tables_100": (
        "expect: refused table",
        lambda: module(tables=[b"\x70\0" + leb(100_000)] * 100),
    ),
    # Refused because compiling it takes too long, or too much memory.
    "loops_one_in_another_100000": (
        "expect: refused",
        lambda: module(bodies=[body(LOOP * 100_000 + END * 100_000)]),
    ),
    "loops_a_thousand_around_a_thousand_locals": (
        "expect: refused",
        lambda: loops_around_locals(1_000, 1_000),
    ),
    "functions_by_the_hundred_thousand": (
        "expect: refused",
        lambda: module(bodies=[body(b"")] * 400_000),
    ),
}


def generated_guests() -> list[Guest]:
    """Return the guests that this file makes."""
    return [guest_of(name, make, says) for name, (says, make) in _BINARIES.items()]


_GOOD: Final = module()
MALFORMED: Final[dict[str, bytes]] = {
    "text": b"hello, I am a module",
    "text_format": b"(module)",
    "png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\0\0\0\1\x08\2\0\0\0",
    "elf": b"\x7fELF\2\1\1\0" + bytes(56),
    "zip": b"PK\3\4" + bytes(26),
    "gzip_of_a_module": gzip.compress(_GOOD, mtime=0),
    "json": b'{"wasm": true}',
    "zeros": bytes(64),
    "byte_order_mark_before_it": b"\xef\xbb\xbf" + _GOOD,
    "first_byte": b"\0",
    "magic": HEADER[:4],
    "header": HEADER,
    "version_2": HEADER[:4] + b"\2\0\0\0" + _GOOD[8:],
    "component": COMPONENT,
    "component_of_nonsense": COMPONENT + b"\xff" * 100,
    "cut_in_the_middle": _GOOD[: len(_GOOD) // 2],
    "cut_at_the_last_byte": _GOOD[:-1],
    "a_byte_too_many": _GOOD + b"\0",
    "two_modules": _GOOD + _GOOD,
    "section_longer_than_the_file": HEADER + bytes([TYPE]) + leb(1_000) + b"\0",
    "section_of_four_gigabytes": HEADER + bytes([CUSTOM]) + leb(0xFFFF_FFFF) + b"\0",
    "section_twice": HEADER + section(TYPE, b"\0") * 2,
    "sections_in_a_wrong_order": HEADER + section(FUNCTION, b"\0") + section(TYPE, b"\0"),
    "section_unknown": HEADER + section(99, b""),
    "length_that_never_ends": HEADER + bytes([TYPE]) + b"\x80" * 1_000,
    "length_of_six_bytes": HEADER + bytes([TYPE]) + b"\x80\x80\x80\x80\x80\0",
    "count_of_four_billion": HEADER + section(TYPE, leb(0xFFFF_FFFF)),
    "count_of_four_billion_functions": HEADER + section(FUNCTION, leb(0xFFFF_FFFF)),
    "count_of_four_billion_bodies": HEADER + section(CODE, leb(0xFFFF_FFFF)),
    "functions_without_bodies": HEADER
    + section(TYPE, vector([_TYPES[NOTHING]]))
    + section(FUNCTION, vector([b"\0"])),
    "function_of_an_unknown_type": HEADER
    + section(FUNCTION, vector([b"\7"]))
    + section(CODE, vector([body(b"")])),
    "function_without_an_end": _GOOD.replace(_BODIES[1], _BODIES[1][:-1] + b"\1"),
    "function_of_an_unknown_opcode": _GOOD.replace(_BODIES[1], b"\4\0\xff\xff\x0b"),
    "function_that_leaves_too_little": _GOOD.replace(_BODIES[1], b"\4\0\1\1\x0b"),
    "name_not_utf8": _GOOD.replace(named("alloc"), named(b"al\xff\xfec")),
    "start_of_an_unknown_function": HEADER + section(START, leb(77)),
    "memory_over_four_gigabytes": HEADER + section(MEMORY, vector([b"\0" + leb(65_537)])),
    "memory_that_shrinks": HEADER + section(MEMORY, vector([b"\1\2\1"])),
    "memories_four_billion": HEADER + section(MEMORY, leb(0xFFFF_FFFF)),
}
