"""Drives Wasmtime through its C functions, which are five times faster than its Python classes.

Path:   guest -> here -> Wasmtime; imports of a module come back here, and go to `Imports`
Never:  reads or writes guest memory without a look at its bounds; lets an exception into Wasmtime.

wasmtime-py keeps callbacks and exceptions in module-level variables that threads would share;
nothing of that is used here. One `WasmEngine` belongs to one version: to raise its epoch stops
that version's runs and no other's.
"""

import ctypes
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from ctypes import POINTER, byref, c_void_p
from dataclasses import dataclass
from typing import Any, Final, Protocol

from wasmtime import Config, Engine, FuncType, Linker, Module, WasmtimeError
from wasmtime import _bindings as c

FRAMES_MAX: Final = 32  # of a trap
STACK_BYTES: Final = 512 * 1024  # of the guest; the thread has 1.5 MiB, ours comes on top of it
PULLEY: Final = "pulley64"  # Wasmtime's interpreter, whose code is the same on every CPU
TABLE_ELEMENTS_MAX: Final = 100_000  # 8 bytes each
_TABLES_MAX: Final = 16
U32: Final = 0xFFFF_FFFF

# <wasmtime/trap.h>
TRAP_STACK: Final = 0
TRAP_INTERRUPT: Final = 10
TRAP_FUEL: Final = 11
TRAP_UNCAUGHT: Final[int] = (  # another number in each version
    c.wasmtime_trap_code_enum.WASMTIME_TRAP_CODE_UNCAUGHT_EXCEPTION.value
)

Values = Any  # ctypes array of wasmtime_val_raw: arguments in, results out


class ModuleRefused(Exception):
    """The author's: Wasmtime does not take the module; the text is Wasmtime's."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One function on the guest's stack when it trapped."""

    name: str  # of the module's name section; "" for none
    function: int  # its index
    offset: int  # in the module, bytes


class Trapped(Exception):
    """The guest's: its code trapped.

    `code` is Wasmtime's number, -1 for none; `text` Wasmtime's own report with files and lines,
    for a module with DWARF, else empty.
    """

    def __init__(self, code: int, frames: Sequence[Frame], text: str) -> None:
        self.code = code
        self.frames = frames
        self.text = text
        super().__init__(f"trap {code}")


class OutOfBounds(Exception):
    """The guest's: it named memory that it does not have."""

    def __init__(self, pointer: int, length: int, size: int) -> None:
        super().__init__(
            f"{length} bytes at {pointer:#x} are outside of the memory of {size} bytes"
        )


class Imports(Protocol):
    """Port: what a guest's imports do. Called on the thread that runs the guest."""

    instance: "Instance | None"  # set by the instance as soon as its memory can be reached

    def call(self, name: str, values: Values) -> None:
        """Do what the import `name` does: arguments are in `values`, the result goes to [0].

        Whatever it raises ends the run, and comes out of the call that led here.
        """
        ...


def initialise(*, hardened: bool) -> None:
    """Start nothing: the first engine claims the signals of traps, which the lockdown resets.

    Hardened: each engine is told by itself, in the header of what it compiles or loads.
    """


class WasmEngine:
    """A compiler and what its modules share: one epoch."""

    def __init__(
        self, *, fuel: bool, lines: bool = False, images: bool = True, hardened: bool = False
    ) -> None:
        """Make a compiler.

        Args:
            fuel: have its code count what it does.
            lines: keep a module's DWARF, and read it when the module traps.
            images: make an image of a module's first memory, which each instance copies.
            hardened: compile for the interpreter, which needs no executable memory.
        """
        os.putenv("WASMTIME_BACKTRACE_DETAILS", "1" if lines else "0")
        config = Config()
        if hardened:
            config.target = PULLEY
        config.epoch_interruption = True
        config.consume_fuel = fuel
        config.max_wasm_stack = STACK_BYTES
        # The same bits come out on every machine: a run can be repeated anywhere.
        config.cranelift_nan_canonicalization = True
        config.wasm_relaxed_simd_deterministic = True
        # What costs memory that no limit of ours counts, or what nobody's compiler emits yet.
        config.wasm_threads = False
        config.wasm_memory64 = False
        config.wasm_multi_memory = False
        config.wasm_gc = False
        config.wasm_function_references = False
        config.wasm_stack_switching = False
        config.wasm_component_model = False
        c.wasmtime_config_memory_init_cow_set(config.ptr(), images)
        c.wasmtime_config_native_unwind_info_set(config.ptr(), False)  # nobody unwinds but Wasmtime
        self.metered = fuel
        self.lines = lines
        self.engine = Engine(config)
        self.pointer = _address(self.engine.ptr())

    def compile(self, binary: bytes) -> bytes:
        """Return the module compiled for this machine.

        Raises:
            ModuleRefused: it does not validate, or is too large to compile.
        """
        try:
            return bytes(Module(self.engine, binary).serialize())
        except WasmtimeError as error:
            raise ModuleRefused(str(error)) from None

    def load(self, program: bytes) -> Module:
        """Return the module that `compile` made; whoever made `program` could do all we can.

        Raises:
            ModuleRefused: another Wasmtime, CPU or configuration made it.
        """
        try:
            return Module.deserialize(self.engine, program)
        except WasmtimeError as error:
            raise ModuleRefused(str(error)) from None

    def link(
        self,
        module: Module,
        imports: Mapping[tuple[str, str], FuncType],
        functions: Sequence[str],
    ) -> "Linked":
        """Resolve the module's imports, of which each is named in `imports` with its type.

        Args:
            module: from `load`.
            imports: all of the module's, and nothing else.
            functions: exports that `Instance.call` calls by their place here; at most two.
        """
        return Linked(self, module, imports, functions)

    def raise_epoch(self) -> None:
        """Stop what runs now: it traps with TRAP_INTERRUPT at its next loop or call."""
        c.wasmtime_engine_increment_epoch(self.engine.ptr())


def _prototype(result: Any, name: str, *arguments: Any, quick: bool = True) -> Any:
    """Return a function of Wasmtime's that takes addresses as plain integers.

    wasmtime-py's own prototypes turn each pointer into an object, for 2 us a call. `quick`: the
    interpreter's lock is kept, as the call is over before anybody could take it.
    """
    kind = ctypes.PYFUNCTYPE if quick else ctypes.CFUNCTYPE
    library = c.dll  # type: ignore[attr-defined]  # the bindings import it without exporting it
    return kind(result, *arguments)((name, library))


_P, _Z, _I = c_void_p, ctypes.c_size_t, ctypes.c_int64
_store_new = _prototype(_P, "wasmtime_store_new", _P, _P, _P)
_store_delete = _prototype(None, "wasmtime_store_delete", _P, quick=False)
_store_context = _prototype(_P, "wasmtime_store_context", _P)
_store_limiter = _prototype(None, "wasmtime_store_limiter", _P, _I, _I, _I, _I, _I)
_set_deadline = _prototype(None, "wasmtime_context_set_epoch_deadline", _P, ctypes.c_uint64)
_set_fuel = _prototype(_P, "wasmtime_context_set_fuel", _P, ctypes.c_uint64)
_get_fuel = _prototype(_P, "wasmtime_context_get_fuel", _P, _P)
_instantiate = _prototype(_P, "wasmtime_instance_pre_instantiate", _P, _P, _P, _P, quick=False)
_export_get = _prototype(ctypes.c_bool, "wasmtime_instance_export_get", _P, _P, _P, _Z, _P)
_caller_export_get = _prototype(ctypes.c_bool, "wasmtime_caller_export_get", _P, _P, _Z, _P)
_func_call = _prototype(_P, "wasmtime_func_call_unchecked", _P, _P, _P, _Z, _P, quick=False)
_memory_data = _prototype(_P, "wasmtime_memory_data", _P, _P)
_memory_size = _prototype(_Z, "wasmtime_memory_data_size", _P, _P)


class _Room(ctypes.Structure):
    """What Wasmtime writes to, of one instance."""

    _fields_ = (
        ("instance", c.wasmtime_instance_t),
        ("memory", c.wasmtime_extern_t),
        ("function_0", c.wasmtime_extern_t),
        ("function_1", c.wasmtime_extern_t),
        ("other", c.wasmtime_extern_t),
        ("trap", c_void_p),
        ("fuel", ctypes.c_uint64),
        ("values", c.wasmtime_val_raw_t * 2),
    )


_ITEM: Final = c.wasmtime_extern_t.of.offset  # where the memory or function is in an extern
_MEMORY: Final = _Room.memory.offset
_FUNCTIONS: Final = (_Room.function_0.offset, _Room.function_1.offset)
_OTHER: Final = _Room.other.offset
_TRAP: Final = _Room.trap.offset
_FUEL: Final = _Room.fuel.offset
_VALUES: Final = _Room.values.offset


class _OnThread(threading.local):
    """Which instance runs on this thread."""

    instance: "Instance | None" = None


_here: Final = _OnThread()
_NO_FINALIZER: Final = ctypes.CFUNCTYPE(None, c_void_p)()
_NAME_OF_MEMORY: Final = ctypes.create_string_buffer(b"memory")
_MEMORY_NAMED: Final = ctypes.addressof(_NAME_OF_MEMORY)


@c.wasmtime_func_unchecked_callback_t  # type: ignore[untyped-decorator]  # ctypes has no types for prototypes
def _called(number: int, caller: Any, values: Values, _count: int) -> int:
    """Do one call of an import; a trap's address tells Wasmtime that the run is over."""
    instance = _here.instance
    assert instance is not None
    instance.forget_memory()
    try:
        if instance.imports.instance is not instance:
            instance.find_memory(caller)  # called from the module's start function
        instance.imports.call(instance.names[number - 1], values)
    except BaseException as error:  # noqa: BLE001 - below are Wasmtime's frames: it is a trap
        instance.raised = error
        trap = c.wasmtime_trap_new(b"stopped", 7)
        return ctypes.cast(trap, c_void_p).value or 0
    return 0


class Linked:
    """A module whose imports are resolved: makes instances."""

    def __init__(
        self,
        engine: WasmEngine,
        module: Module,
        imports: Mapping[tuple[str, str], FuncType],
        functions: Sequence[str],
    ) -> None:
        linker = Linker(engine.engine)
        # Wasmtime hands a number back with each call; it must not be 0, which ctypes makes None.
        for number, ((space, name), kind) in enumerate(imports.items(), start=1):
            error = c.wasmtime_linker_define_func_unchecked(
                linker.ptr(), space.encode(), len(space), name.encode(), len(name), kind.ptr(),
                _called, number, _NO_FINALIZER,
            )  # fmt: skip
            assert not error, (space, name)
        assert len(functions) <= len(_FUNCTIONS), functions
        self.engine = engine
        self.names = tuple(name for _, name in imports)
        self._texts = [ctypes.create_string_buffer(name.encode()) for name in functions]
        self.exports = [
            (ctypes.addressof(text), len(text) - 1, offset)
            for text, offset in zip(self._texts, _FUNCTIONS, strict=False)
        ]
        self._ready = linker.instantiate_pre(module)
        self._linker = linker  # holds what `_ready` points to
        self.pointer = _address(self._ready.ptr())

    def instantiate(self, imports: Imports, *, memory_bytes: int, fuel: int) -> "Instance":
        """Make a fresh instance; its start function runs here.

        Raises:
            Trapped: the start function did.
            ModuleRefused: it needs more memory at its start than `memory_bytes`, or than there is.
        """
        return Instance(self, imports, memory_bytes, fuel)


class Instance:
    """One instance in a store of its own. Used by one thread at a time; closed by its user."""

    __slots__ = ("_at", "_base", "_context", "_lines", "_memory", "_room", "_size", "_store",
                 "_values", "imports", "names", "raised")  # fmt: skip

    def __init__(self, linked: Linked, imports: Imports, memory_bytes: int, fuel: int) -> None:
        self.imports = imports
        self.names = linked.names
        self.raised: BaseException | None = None
        self._room = _Room()
        self._values = self._room.values
        self._at = at = ctypes.addressof(self._room)
        self._memory = at + _MEMORY + _ITEM
        self._base, self._size = 0, -1  # of the memory; -1: look, it may have grown
        engine = linked.engine
        self._lines = engine.lines
        self._store: int | None = _store_new(engine.pointer, None, None)
        _store_limiter(self._store, memory_bytes, TABLE_ELEMENTS_MAX, 1, _TABLES_MAX, 1)
        self._context = context = _store_context(self._store)
        self.allow(fuel if engine.metered else None)
        before, _here.instance = _here.instance, self
        is_made = False
        try:
            error = _instantiate(linked.pointer, context, at, at + _TRAP)
            if error or self._room.trap:
                self._check(error)
            there = _export_get(context, at, _MEMORY_NAMED, 6, at + _MEMORY)
            for name, length, offset in linked.exports:
                there = there and _export_get(context, at, name, length, at + offset)
            assert there
            imports.instance = self
            is_made = True
        finally:
            _here.instance = before
            if not is_made:
                self.close()

    def find_memory(self, caller: Any) -> None:
        """Reach the memory of an instance that is still being made."""
        there = _caller_export_get(_address(caller), _MEMORY_NAMED, 6, self._at + _MEMORY)
        assert there
        self.imports.instance = self

    def forget_memory(self) -> None:
        """Look anew where the memory is: it grows only while the guest's own code runs."""
        self._size = -1

    def allow(self, fuel: int | None) -> None:
        """Let the guest run until the next rise of the epoch, on so much fuel."""
        assert self._store is not None, "closed"
        _set_deadline(self._context, 1)
        if fuel is not None:
            _set_fuel(self._context, fuel)

    def fuel_left(self) -> int:
        if self._store is None:
            return 0
        _get_fuel(self._context, self._at + _FUEL)
        return int(self._room.fuel)

    def call(self, function: int, *arguments: int) -> int:
        """Call one of the linked functions, by its place, with up to two i32s.

        Returns:
            Its result as an unsigned i64; 0 for none.

        Raises:
            Trapped: the guest did, or was stopped.
            Exception: whatever an import raised.
        """
        return self._call(self._at + _FUNCTIONS[function] + _ITEM, arguments)

    def call_named(self, name: str) -> None:
        """Call any export that takes nothing. Raises as `call`."""
        text = ctypes.create_string_buffer(name.encode())
        at = self._at
        there = _export_get(self._context, at, ctypes.addressof(text), len(name), at + _OTHER)
        assert there, name
        self._call(at + _OTHER + _ITEM, ())

    def memory_bytes(self) -> int:
        if self._store is None:
            return 0
        return int(_memory_size(self._context, self._memory))

    def read(self, pointer: int, length: int) -> bytes:
        """Return a copy of guest memory.

        Raises:
            OutOfBounds: it does not lie within.
        """
        return ctypes.string_at(self._within(pointer, length), length) if length else b""

    def write(self, pointer: int, data: bytes) -> None:
        """Copy `data` into guest memory.

        Raises:
            OutOfBounds: there is no room; nothing is written.
        """
        ctypes.memmove(self._within(pointer, len(data)), data, len(data))

    def close(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            _store_delete(store)

    def _call(self, function: int, arguments: Sequence[int]) -> int:
        assert self._store is not None, "closed"
        values = self._values
        values[0].i64 = 0
        for position, argument in enumerate(arguments):
            values[position].i32 = argument  # ctypes takes it modulo 2**32
        at = self._at
        before, _here.instance = _here.instance, self
        try:
            error = _func_call(self._context, function, at + _VALUES, 2, at + _TRAP)
        finally:
            _here.instance = before
            self._size = -1
        if error or self._room.trap:
            self._check(error)
        return int(values[0].i64) & 0xFFFF_FFFF_FFFF_FFFF

    def _within(self, pointer: int, length: int) -> int:
        if self._size < 0:
            self._size = int(_memory_size(self._context, self._memory))
            self._base = int(_memory_data(self._context, self._memory) or 0)
        if not 0 <= pointer <= pointer + length <= self._size:
            raise OutOfBounds(pointer, length, self._size)
        return self._base + pointer

    def _check(self, error: int | None) -> None:
        """Raise what an import raised, or what Wasmtime says."""
        raised, self.raised = self.raised, None
        if error:
            text = _error_text(ctypes.cast(error, POINTER(c.wasmtime_error_t)))
            raise raised or ModuleRefused(text)
        trap = ctypes.cast(self._room.trap, POINTER(c.wasm_trap_t))
        self._room.trap = None
        if raised is not None:  # our own trap: there is nothing to read in it
            c.wasm_trap_delete(trap)
            raise raised
        raise _trapped(trap, lines=self._lines)


def _address(pointer: Any) -> int:
    return int(ctypes.cast(pointer, c_void_p).value or 0)


def _error_text(error: Any) -> str:
    try:
        return _text(lambda vector: c.wasmtime_error_message(error, vector))
    finally:
        c.wasmtime_error_delete(error)


def _trapped(trap: Any, *, lines: bool) -> Trapped:
    """Read a trap, and free it.

    Wasmtime's report takes mangled C++ names apart, which may need seconds: it is only asked for
    where there are lines to be had.
    """
    try:
        code = c.wasmtime_trap_code_t()
        known = c.wasmtime_trap_code(trap, byref(code))
        text = _text(lambda vector: c.wasm_trap_message(trap, vector)) if lines else ""
        frames = c.wasm_frame_vec_t()
        c.wasm_trap_trace(trap, byref(frames))
        try:
            shown = [_frame(frames.data[n]) for n in range(min(frames.size, FRAMES_MAX))]
        finally:
            c.wasm_frame_vec_delete(byref(frames))
        return Trapped(int(code.value) if known else -1, shown, text.rstrip("\0"))
    finally:
        c.wasm_trap_delete(trap)


def _frame(frame: Any) -> Frame:
    name = c.wasmtime_frame_func_name(frame)
    text = ctypes.string_at(name.contents.data, min(name.contents.size, 200)) if name else b""
    return Frame(
        text.decode("utf-8", "replace"),
        c.wasm_frame_func_index(frame),
        c.wasm_frame_module_offset(frame),
    )


def _text(fill: Callable[[Any], None]) -> str:
    vector = c.wasm_byte_vec_t()
    fill(byref(vector))
    try:
        return ctypes.string_at(vector.data, vector.size).decode("utf-8", "replace")
    finally:
        c.wasm_byte_vec_delete(byref(vector))
