"""What is checked of a WebAssembly upload before any of it is compiled."""

import base64
import gzip
from typing import Any

import pytest

from engine.bundles import (
    HANDLER_DEFAULTS,
    WASM_HANDLERS,
    WasmOptions,
    check_module,
    check_options,
    decode_wasm,
)
from engine.errors import CompileFailed, Invalid, PayloadTooLarge
from engine.quotas import (
    EXPORT_NAME_BYTES_MAX,
    FUEL_MAX,
    WASM_ARGS_BYTES_MAX,
    WASM_ARGS_MAX,
    WASM_BYTES_MAX,
    check_limits,
    least_memory_mb,
    limits_for,
    published,
)
from runtimes.contract import Runtime

EMPTY = b"\0asm\x01\0\0\0"  # a module with nothing in it
PIECE = 256 * 1024  # characters that are decoded at a time


def options(**given: Any) -> WasmOptions:
    fields = dict.fromkeys(("handlers", "args", "io", "exports", "reuse"))
    return check_options(**fields | given)


@pytest.mark.parametrize("size", [0, 1, 2, 3, PIECE * 3 // 4, PIECE * 3 // 4 + 1, 1_000_000])
def test_what_was_encoded_comes_back_to_the_byte(size: int) -> None:
    """Whatever its length, and where its pieces end."""
    data = bytes(at * 7 % 256 for at in range(size))

    assert decode_wasm(base64.b64encode(data).decode()) == data


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("AGFzbQEAAAA", "padding do not fit"),
        ("A", "padding do not fit"),
        ("====", "padding do not fit"),
        ("AGFz====", "padding do not fit"),
        ("AGFz\nbQEAAAA=", "line break at character 4; encode without: base64 -w0"),
        ("AGFz bQEAAAA=", "blank"),
        ("AGFz_QEAAAA=", "alphabet of URLs (character 4)"),
        ("AGFz=bQEAAAA", "character 4 is '='"),
        ("AGFzbQEAAAÄ=", "character 10 is 'Ä'"),
        ("AGFz\0QEAAAA=", "character 4"),
        ("(module)", "wat2wasm"),
        ("  (module)", "wat2wasm"),
        (";; a comment\n(module)", "wat2wasm"),
        ("data:application/wasm;base64,AGFzbQEAAAA=", "behind its comma"),
        ("A" * PIECE + "AA==" + "A" * 8, "is '='"),
    ],
)
def test_what_is_not_base64_is_told_where_and_what_to_do(text: str, said: str) -> None:
    """Strictly: a module that was cut or pasted wrongly is not guessed at."""
    with pytest.raises(Invalid) as caught:
        decode_wasm(text)

    assert said in str(caught.value)
    assert caught.value.problems[0].pointer == "/wasm"
    assert len(str(caught.value)) < 300


def test_a_module_that_is_too_large_is_not_even_decoded() -> None:
    """413 with the limit and the size; one byte less passes."""
    fits = base64.b64encode(bytes(WASM_BYTES_MAX)).decode()
    over = base64.b64encode(bytes(WASM_BYTES_MAX + 1)).decode()

    assert len(decode_wasm(fits)) == WASM_BYTES_MAX
    with pytest.raises(PayloadTooLarge) as caught:
        decode_wasm(over)

    used = WASM_BYTES_MAX + 1
    assert caught.value.limit == {"name": "wasm_bytes", "value": WASM_BYTES_MAX, "used": used}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"(module)", "wat2wasm"),
        (b"\n  (component)", "wat2wasm"),
        (b";; a comment", "wat2wasm"),
        (b"\0asm\x0d\0\x01\0", "component"),
        (b"\0asm\x02\0\0\0", "version is 02000000"),
        (b"\0asm", "was it cut?"),
        (b"\0asm\x01\0", "was it cut?"),
        (gzip.compress(EMPTY, mtime=0), "gzip"),
        (b"\x7fELF\x02\x01\x01", "wasm32-wasip1"),
        (base64.b64encode(EMPTY), "base64 twice"),
        (b"export default {}", "begins with 65 78 70 6f"),
        (b"\0", "begins with 00"),
    ],
)
def test_what_is_no_module_is_told_what_it_is(data: bytes, said: str) -> None:
    """Without a cell: the first bytes tell."""
    with pytest.raises(CompileFailed) as caught:
        check_module(data, options())

    assert said in str(caught.value)
    assert caught.value.problems[0].pointer == "/wasm"
    assert caught.value.extra == {"file": "", "line": 0, "column": 0}


def test_no_module_and_an_empty_one_are_told_apart() -> None:
    """Either is a field that is wrong, not code that does not compile."""
    for data, said in ((None, "give the module"), (b"", "is empty")):
        with pytest.raises(Invalid, match=said) as caught:
            check_module(data, options())
        assert caught.value.code == "validation_failed"


def test_what_is_left_out_has_a_default() -> None:
    """`fetch` is not among them: it makes a function public."""
    found = options()

    assert found.as_json() == {
        "handlers": ["default", "afterStore", "job", "scheduled"],
        "args": [],
        "io": "json",
        "exports": {"alloc": "alloc", "handle": "handle"},
        "reuse": False,
    }
    assert "fetch" not in HANDLER_DEFAULTS
    assert {"fetch", "beforeStore", "queue", "decodeUplink"} < set(WASM_HANDLERS)
    assert not {"trigger", "main"} & set(WASM_HANDLERS)


def test_options_are_kept_as_they_are_given() -> None:
    """Any script, empty arguments, the order; a handler counts once."""
    found = options(
        handlers=["job", "fetch", "job"],
        args=["-", "", "größe=❄ 温度", "a b\n\t\"'$(x)"],
        io="text",
        exports={"handle": "redact"},
        reuse=True,
    )

    assert found.handlers == ("job", "fetch")
    assert found.args == ("-", "", "größe=❄ 温度", "a b\n\t\"'$(x)")
    assert found.exports == {"alloc": "alloc", "handle": "redact"}
    assert (found.io, found.reuse) == ("text", True)


WRONG = {
    "no handler": ({"handlers": []}, "/handlers", "at least one"),
    "unknown handler": ({"handlers": ["job", "Job"]}, "/handlers/1", "afterStore"),
    "classic handler": ({"handlers": ["trigger"]}, "/handlers/0", "afterStore"),
    "NUL": ({"args": ["a", "b\0c"]}, "/args/1", "NUL"),
    "many": ({"args": ["a"] * (WASM_ARGS_MAX + 1)}, "/args", f"at most {WASM_ARGS_MAX}"),
    "long": ({"args": ["é" * (WASM_ARGS_BYTES_MAX // 2)]}, "/args", f"{WASM_ARGS_BYTES_MAX + 1}"),
    "io": ({"io": "xml"}, "/io", "json or text"),
    "role": ({"exports": {"free": "free"}}, "/exports", "alloc and handle"),
    "no name": ({"exports": {"handle": ""}}, "/exports/handle", "1 to"),
    "long name": ({"exports": {"alloc": "a" * (EXPORT_NAME_BYTES_MAX + 1)}}, "/exports/alloc",
                  "bytes"),
    "one for both": ({"exports": {"handle": "alloc"}}, "/exports", "they differ"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_option_is_named(case: str) -> None:
    """By its pointer, with what there is instead."""
    given, pointer, said = WRONG[case]

    with pytest.raises(Invalid) as caught:
        options(**given)

    assert caught.value.problems[0].pointer == pointer
    assert said in str(caught.value)


def test_arguments_may_be_as_long_as_the_limit() -> None:
    """Each counts with its end, as in a command's memory."""
    fits = ["a" * 127] * WASM_ARGS_MAX

    assert sum(len(text) + 1 for text in fits) == WASM_ARGS_BYTES_MAX
    assert options(args=fits).args == tuple(fits)


@pytest.mark.parametrize("fuel", [0, -1, FUEL_MAX + 1])
def test_fuel_has_bounds(fuel: int) -> None:
    """Like every other limit."""
    with pytest.raises(Invalid, match="fuel must be 1 to") as caught:
        check_limits({"fuel": fuel}, ["job"], Runtime.WASM)

    assert caught.value.problems[0].pointer == "/limits/fuel"


def test_fuel_is_for_webassembly_alone() -> None:
    """A run of JavaScript knows nothing of it; one without is not metered."""
    check_limits({"fuel": FUEL_MAX}, ["job"], Runtime.WASM)

    with pytest.raises(Invalid, match="cpu_ms limits JavaScript"):
        check_limits({"fuel": 1}, ["job"])
    assert limits_for("job", {"fuel": 7}).fuel == 7
    assert limits_for("job", {}).fuel == 0


def test_a_module_is_tried_out_with_the_least_that_a_handler_may_have() -> None:
    """Its author's limit, cut to what each handler gets."""
    assert least_memory_mb(["default", "afterStore"], {}) == 64
    assert least_memory_mb(["default", "job"], {}) == 64
    assert least_memory_mb(["default", "job"], {"memory_mb": 200}) == 128
    assert least_memory_mb(["default"], {"memory_mb": 100}) == 100


def test_the_limits_are_published() -> None:
    """With the sizes of the cell's own limits."""
    limits = published()

    assert limits["wasm"] == {
        "wasm_bytes": 10 * 1024 * 1024,
        "stack_bytes": 524_288,
        "table_elements": 100_000,
        "instances": 32,
        "args": 64,
        "args_bytes": 8192,
        "fuel": {"default": None, "max": 10**12},
    }
    assert limits["sizes"]["upload_bytes"] > limits["wasm"]["wasm_bytes"] * 4 // 3
