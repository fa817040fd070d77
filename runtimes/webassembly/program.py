"""One version's module: compiled once, loaded into a cell, run again and again.

Path:   guest -> `compile_module`, `Program` -> wasmtime_unsafe
Never:  runs two guests in one instance at a time; keeps an instance that did not end well.
"""

from collections.abc import Mapping
from functools import partial
from typing import Final

import msgspec

from runtimes.contract import MIB, GuestError, LoadFailed
from runtimes.webassembly.abi import Kind, Shape, has_lines, shape_of
from runtimes.webassembly.results import Io, input_of, result_of
from runtimes.webassembly.run import Bound, GuestRun, Start
from runtimes.webassembly.wasi import Exit
from runtimes.webassembly.wasmtime_unsafe import (
    U32,
    Instance,
    Linked,
    ModuleRefused,
    OutOfBounds,
    WasmEngine,
)

PROGRAM_BYTES_MAX: Final = 64 * MIB  # of a compiled module: it crosses in one frame
KEPT_MAX: Final = 4  # instances of a version with `reuse` that wait for their next run
_ALLOC, _HANDLE = 0, 1  # places among the linked functions of a core module
_START = 0  # ... and of a command
_LINES, _IMAGES = 1, 2  # flags in the byte before a compiled module: it has DWARF, an image
IMAGE_SLACK_BYTES: Final = 4 * MIB  # a compiled module in proportion to its binary is smaller
IMAGE_FACTOR: Final = 12
_NO_MEMORY: Final = "os error 12"  # ENOMEM, as Rust says it
_PROPOSALS: Final[Mapping[str, str]] = {  # a word of the validator's: what the author can do
    "threads": "build without threads: for wasm32-wasip1, without -pthread or +atomics",
    "shared memory": "build without threads: for wasm32-wasip1, without -pthread or +atomics",
    "gc feature": "languages that need WebAssembly's garbage collector are not taken yet",
    "gc proposal": "languages that need WebAssembly's garbage collector are not taken yet",
    "memory64": "build for 32 bits: wasm32-wasip1",
    "multiple memories": "build with one memory: wasm-opt --multi-memory-lowering",
    "legacy exceptions": "build with -mllvm -wasm-use-legacy-eh=false",
}
MAGIC: Final = b"\0asm"
_COMPONENT: Final = b"\0asm\x0d\0\x01\0"


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How its author wants a module to be run."""

    handlers: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    io: Io = Io.JSON
    exports: dict[str, str] = {}
    reuse: bool = False


class Bindings(msgspec.Struct, frozen=True, kw_only=True):
    variables: dict[str, str] = {}
    secrets: dict[str, str] = {}


class LoadHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What stands before the program in a LOAD frame."""

    memory_mb: int
    now_ms: int
    handlers_memory_mb: dict[str, int] = {}  # where a handler may have less than `memory_mb`
    name: str = ""
    fuel: int = 0
    options: Options = Options()
    bindings: Bindings = Bindings()
    trial: bool = False  # right after it was compiled: make one instance and see
    hardened: bool = False  # the cell is; so was the one that compiled


class BuildHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What stands before the binary in a BUILD frame."""

    options: Options = Options()
    fuel: int = 0
    hardened: bool = False  # the cell is, and those that will run it


def compile_module(header: BuildHeader, binary: bytes) -> bytes:
    """Return the module compiled for this machine, or for the interpreter.

    Raises:
        LoadFailed: CompileError, ImportError or ExportError.
    """
    if not binary.startswith(MAGIC):
        raise _refused(f"this is no WebAssembly: it begins with {binary[:4]!r}, not {MAGIC!r}")
    if binary.startswith(_COMPONENT):
        raise _refused(
            "this is a component, and components are not taken yet; build a core module: "
            "wasm32-wasip1 instead of wasm32-wasip2"
        )
    lines = _says_lines(binary)
    new_engine = partial(WasmEngine, fuel=header.fuel > 0, lines=lines, hardened=header.hardened)
    try:
        engine = new_engine()
        program, images = engine.compile(binary), True
        if len(program) > IMAGE_SLACK_BYTES + IMAGE_FACTOR * len(binary):
            # Its memory's image is mostly gaps, and would be in no limit's count.
            engine = new_engine(images=False)
            program, images = engine.compile(binary), False
    except ModuleRefused as error:
        raise _refused(_with_remedy(str(error))) from None
    if len(program) > PROGRAM_BYTES_MAX:
        raise _refused(
            f"compiled it has {len(program) // MIB} MB; the most is {PROGRAM_BYTES_MAX // MIB} MB: "
            "make it smaller with wasm-opt -Oz --strip-debug"
        )
    shape_of(engine.load(program), header.options.exports)
    return bytes([_LINES * lines | _IMAGES * images]) + program


class Program:
    """A loaded module, ready to make instances."""

    def __init__(self, header: LoadHeader, program: bytes) -> None:
        """Load what `compile_module` returned.

        Raises:
            LoadFailed: LinkError: it was compiled for another machine or by another Wasmtime.
        """
        self.options = header.options
        self._memory_mb = header.memory_mb
        self._handlers_memory_mb = header.handlers_memory_mb
        self.fuel = header.fuel
        flags = program[0]
        self.engine = WasmEngine(
            fuel=header.fuel > 0,
            lines=bool(flags & _LINES),
            images=bool(flags & _IMAGES),
            hardened=header.hardened,
        )
        try:
            module = self.engine.load(program[1:])
        except ModuleRefused as error:
            name = "MemoryError" if _NO_MEMORY in str(error) else "LinkError"
            raise LoadFailed(GuestError(name=name, message=str(error)[:4000])) from None
        self.shape: Shape = shape_of(module, header.options.exports)
        shape = self.shape
        is_core = shape.kind is Kind.CORE
        functions = (shape.alloc, shape.handle) if is_core else ("_start", shape.alloc)
        self._linked: Linked = self.engine.link(
            module, shape.imports, [name for name in functions if name]
        )
        self._reuses = header.options.reuse and self.shape.kind is Kind.CORE
        self._kept: list[Instance] = []
        self._bound = Bound(
            name=header.name,
            arguments=header.options.args,
            variables=header.bindings.variables,
            secrets=header.bindings.secrets,
        )

    def new_run(self, start: Start) -> GuestRun:
        stdin = input_of(bytes(start.input), self.options.io, start.handler)
        return GuestRun(start=start, shape=self.shape, bound=self._bound, stdin=stdin)

    def run(self, run: GuestRun) -> bytes:
        """Run to the end and return the result as JSON.

        Raises:
            Whatever ended the guest; see `endings`. The instance stays with the run then.
        """
        instance = self._instance(run)
        if self.shape.kind is Kind.COMMAND:
            try:
                instance.call(_START)
            except Exit as exit_:
                if exit_.status != 0:
                    raise
            data = bytes(run.stdout)
        else:
            data = self._handle(instance, run.stdin)
        return result_of(
            data, self.options.io, run.start.handler, strict=self.shape.kind is Kind.CORE
        )

    def memory_mb(self, run: GuestRun) -> int:
        """Return the most memory of the run's instance; one that is used again serves them all."""
        if self._reuses:
            return self._memory_mb
        return self._handlers_memory_mb.get(run.start.handler, self._memory_mb)

    def release(self, run: GuestRun, *, succeeded: bool) -> None:
        """Close the run's instance, or keep it for another run if it is to be used again."""
        instance = run.instance
        if instance is None:
            return
        if succeeded and self._reuses and len(self._kept) < KEPT_MAX:
            self._kept.append(instance)
        else:
            instance.close()

    def try_out(self, run: GuestRun) -> None:
        """Make an instance, as every run does: its start has to come to an end."""
        self._instance(run)
        self.release(run, succeeded=False)

    def close(self) -> None:
        for instance in self._kept:
            instance.close()
        self._kept.clear()

    def _instance(self, run: GuestRun) -> Instance:
        if self._kept:
            instance = run.instance = self._kept.pop()
            instance.imports = run
            instance.allow(self.fuel or None)
        else:
            instance = self._linked.instantiate(
                run, memory_bytes=self.memory_mb(run) * MIB, fuel=self.fuel
            )
            if self.shape.initialize:
                instance.call_named("_initialize")
        run.starting = False
        return instance

    def _handle(self, instance: Instance, text: bytes) -> bytes:
        at = instance.call(_ALLOC, len(text)) & U32
        try:
            instance.write(at, text)
        except OutOfBounds as error:
            raise BadPointer(f"what `{self.shape.alloc}` returned is no room: {error}") from None
        packed = instance.call(_HANDLE, at, len(text))
        try:
            return instance.read(packed >> 32, packed & U32)
        except OutOfBounds as error:
            raise BadPointer(f"the result of `{self.shape.handle}`: {error}") from None


class BadPointer(Exception):
    """The guest's: it named memory that it does not have."""


def _with_remedy(text: str) -> str:
    """Return the compiler's complaint on one line, and what to do about a proposal not taken."""
    text = ": ".join(" ".join(part.split()) for part in text.split("Caused by:"))
    found = next((remedy for word, remedy in _PROPOSALS.items() if word in text), "")
    return f"{text}; {found}" if found else text


def _says_lines(binary: bytes) -> bool:
    try:
        return has_lines(binary)
    except IndexError:  # cut off: the compiler says so better
        return False


def _refused(text: str) -> LoadFailed:
    return LoadFailed(GuestError(name="CompileError", message=text[:4000]))
