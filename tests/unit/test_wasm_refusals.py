"""What the compiler's side of WebAssembly refuses, and how it says so; without an engine around it.

The guests are those of `tests/security/wasm_guests`, where each runs in a whole engine as well.
"""

import gzip

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wasmtime import wat2wasm

from runtimes.contract import LoadFailed
from runtimes.webassembly.guest import build
from tests.security.wasm_guests.binaries import MALFORMED, generated_guests, module
from tests.security.wasm_guests.expectations import REFUSED, Guest, text_guests

REFUSALS = {"CompileError", "ImportError", "ExportError"}
MESSAGE_CHARS_MAX = 4_000
# Taken by the compiler: what is wrong shows only when an instance is made, or never in one process.
AT_THE_START = {
    "call_in_start_section",
    "data_at_four_gigabytes",
    "data_at_the_last_byte_of_four_gigabytes",
    "data_of_ten_megabytes_in_one_page",
    "data_past_the_memory",
    "elements_past_the_table",
    "exit_in_start_section",
    "loop_in_initialize",
    "loop_in_start_section",
    "memory_starts_over_the_limit",
    "memory_starts_with_four_gigabytes",
    "pointers_beyond_memory_in_start_section",
    "recursion_in_start_section",
    "table_of_externref_starts_with_ten_million",
    "table_starts_with_ten_million",
    "tables_100",
    "trap_in_initialize",
    "trap_in_start_section",
}
FOR_A_CELL = {  # they take a whole cell's memory
    "functions_by_the_hundred_thousand",
    "loops_a_thousand_around_a_thousand_locals",
    "loops_one_in_another_100000",
}
ALL = [guest for guest in text_guests() + generated_guests() if guest.outcome == REFUSED]
STATIC = [guest for guest in ALL if guest.name not in AT_THE_START | FOR_A_CELL]
GOOD = module()
WITHOUT_DATA = GOOD.index(b"\x0b\x0a\1\0\x41\0\x0b\4null")  # a module as well, if it ends there
EXPORTED = '(memory (export "memory") 1)'


def refusal(binary: bytes, **options: object) -> LoadFailed:
    """Compile what has to be refused, and return the refusal."""
    header = msgspec.json.encode({"options": options})
    with pytest.raises(LoadFailed) as failed:
        build(header, binary)
    return failed.value


def test_the_good_module_is_taken() -> None:
    """What the broken ones are made of is itself in order."""
    assert build(b"{}", GOOD)


@pytest.mark.parametrize("guest", STATIC, ids=lambda guest: guest.name)
def test_a_refusal_says_why(guest: Guest) -> None:
    """A module that cannot run here is refused in the words that it expects."""
    error = refusal(guest.module(), **guest.options).error

    assert error.name in REFUSALS
    assert len(error.message) <= MESSAGE_CHARS_MAX
    for word in guest.words:
        assert word in error.message


def test_every_guest_of_the_start_is_known() -> None:
    """The lists above name guests that exist."""
    assert {guest.name for guest in ALL} >= AT_THE_START | FOR_A_CELL


@pytest.mark.parametrize("binary", MALFORMED.values(), ids=MALFORMED)
def test_what_is_no_module_is_refused(binary: bytes) -> None:
    """Text, pictures, archives and broken modules are refused, with a reason."""
    error = refusal(binary).error

    assert error.name in REFUSALS
    assert error.message


@pytest.mark.parametrize(
    ("binary", "word"),
    [
        (b"(module)", "(mod"),
        (gzip.compress(GOOD, mtime=0), "\\x1f\\x8b"),
        (b"\0asm\x0d\0\1\0", "component"),
        (b"\0asm\x01\0\0\0", "memory"),
    ],
    ids=["text_format", "gzip", "component", "nothing_in_it"],
)
def test_a_refusal_names_what_it_was_given(binary: bytes, word: str) -> None:
    """Whoever uploads the wrong file by mistake sees which it was."""
    assert word in refusal(binary).error.message


@pytest.mark.slow
def test_no_beginning_of_a_module_is_taken() -> None:
    """A transfer that was cut anywhere is refused."""
    for length in set(range(len(GOOD))) - {WITHOUT_DATA}:
        assert refusal(GOOD[:length]).error.message


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(position=st.integers(0, len(GOOD) - 1), byte=st.integers(0, 255))
def test_a_changed_byte_is_taken_or_refused(position: int, byte: int) -> None:
    """Whatever one byte becomes, the compiler's side ends in one of its two ways."""
    changed = GOOD[:position] + bytes([byte]) + GOOD[position + 1 :]

    name = "taken"
    try:
        build(b"{}", changed)
    except LoadFailed as failed:
        name = failed.error.name

    assert name in {"taken", *REFUSALS}


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(tail=st.binary(max_size=64))
def test_any_bytes_after_the_header_are_taken_or_refused(tail: bytes) -> None:
    """Nonsense never leaves as another exception."""
    error = refusal(GOOD[:8] + tail).error

    assert error.name in REFUSALS


def test_every_missing_import_is_named_with_its_type() -> None:
    """All that has to be linked in stands in one refusal: nobody uploads three times."""
    binary = wat2wasm("""
        (module
          (import "env" "now" (func (result f64)))
          (import "env" "put" (func (param i32 i64)))
          (import "host" "table" (table 1 funcref))
          (import "engine" "log" (func (param i32)))
          (memory (export "memory") 1)
          (func (export "_start")))
    """)

    message = refusal(binary).error.message

    assert "env.now (nothing -> f64)" in message
    assert "env.put (i32 i64 -> nothing)" in message
    assert "host.table (a table)" in message
    assert "engine.log (i32 -> nothing; here it is (i32 i32 i32 -> nothing))" in message


@pytest.mark.parametrize(
    "exports",
    [
        {"handle": "memory"},
        {"alloc": "handle"},
        {"handle": "alloc"},
        {"handle": "no_such"},
        {"alloc": ""},
        {"alloc": "\U0001f600"},
    ],
    ids=str,
)
def test_names_that_lead_elsewhere_are_refused(exports: dict[str, str]) -> None:
    """An author's own name for an export is looked up like the usual one."""
    error = refusal(GOOD, exports=exports).error

    assert error.name == "ExportError"


@pytest.mark.parametrize("result", ["i32", "f64", "i64 i64"])
def test_a_wrong_type_is_named_with_the_right_one(result: str) -> None:
    """An export of a wrong type is refused with both types."""
    values = " ".join(f"({kind}.const 0)" for kind in result.split())
    binary = wat2wasm(f"""
        (module
          {EXPORTED}
          (func (export "alloc") (param i32) (result i32) (i32.const 0))
          (func (export "handle") (param i32 i32) (result {result}) {values}))
    """)

    message = refusal(binary).error.message

    assert f"it is (i32 i32 -> {result})" in message
    assert "(i32 i32 -> i64)" in message


def test_a_hostile_import_name_is_shown_in_short() -> None:
    """A name of 100,000 letters does not come back to whoever uploaded it."""
    name = "x" * 100_000
    binary = wat2wasm(f'(module (import "{name}" "{name}" (func)) {EXPORTED})')

    assert len(refusal(binary).error.message) < 1_000
