"""Drives V8 through the C functions behind `init_mini_racer`. The only file that knows them.

Path:   sandbox.child -> runtimes.javascript.guest -> here -> V8's own thread, and back on it
Never:  waits for V8 on the thread that V8 calls us on; interprets what the guest says.

One isolate has one thread. A batch costs one hand-off: the batch's text crosses as the `this` of a
call (the only argument that needs no round trip of its own), the answer is taken and handed on by
V8's thread itself.
"""

import codecs
import ctypes
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Final

from py_mini_racer._dll import MR_CALLBACK, init_mini_racer

FLAGS: Final = ("--single-threaded",)
JITLESS: Final = "--jitless"

# Value types, as mini-racer's C side numbers them (py_mini_racer/_objects.py).
_STRING = 5
_SHARED_BUFFER = 101
_FIRST_ERROR = 200
_PARSE_ERROR = 201
_OOM_ERROR = 202

# Callback ids: the isolate's number, and which of our calls an answer belongs to.
_SYNC = 1
_PUMP = 2
_EMIT = 3
_TAKE = 4
_WHAT_BITS: Final = 3

WAIT_MS: Final = 5  # how often a waiting thread looks at the watchdog


class V8Error(Exception):
    """The guest's code did not evaluate. `kind` is `parse`, `threw` or `memory`; text is V8's."""

    def __init__(self, kind: str, text: str) -> None:
        self.kind = kind
        self.text = text
        super().__init__(text)


@dataclass(frozen=True, slots=True)
class Mark:
    """What the watchdog sees of an isolate: which run is on its thread, and its CPU limit."""

    changes: int
    run: int
    cpu_ms: int


class Callbacks:
    """What V8 calls back on, one function for all isolates of a process, and whom it is for.

    Made at the import: a callback is machine code, of which a hardened cell can make no more.
    """

    def __init__(self) -> None:
        self.function = MR_CALLBACK(self._called)
        self._isolates: dict[int, Isolate] = {}
        self._last_number = 0

    def enter(self, isolate: "Isolate") -> int:
        """Return the isolate's number: in the id of each of its calls, above _WHAT_BITS."""
        self._last_number += 1
        self._isolates[self._last_number] = isolate
        return self._last_number

    def leave(self, number: int) -> None:
        del self._isolates[number]

    def _called(self, callback: int, handle: Any) -> None:
        """Hand an answer to its isolate, on V8's thread."""
        isolate = self._isolates.get(callback >> _WHAT_BITS)
        if isolate is None:
            return  # it was closed meanwhile
        try:
            isolate.called(callback & (1 << _WHAT_BITS) - 1, handle)
        except MemoryError:
            isolate.on_broken("full")
        except Exception as error:  # noqa: BLE001 - C would drop it, and the answer with it
            isolate.on_broken(f"a callback failed: {error!r}"[:1000])


_CALLBACKS: Final = Callbacks()


def initialise(*, hardened: bool) -> None:
    """Start V8 in this process: once, before the lockdown (it reads its ICU data from a file).

    Hardened: it interprets everything, and makes no machine code; there is no `WebAssembly` then.
    """
    # Isolates made after the lockdown cannot read /dev/urandom: their hash seed comes from here.
    seed = int.from_bytes(os.urandom(4)) >> 1 or 1
    flags = (*FLAGS, f"--random-seed={seed}", f"--hash-seed={seed}")
    init_mini_racer(flags=(*flags, JITLESS) if hardened else flags)


class Isolate:
    """One V8 heap with the prelude in it."""

    def __init__(
        self,
        prelude: str,
        heap_bytes: int,
        on_output: Callable[[bytes], None],
        on_broken: Callable[[str], None],
        tick: Callable[[], None],
    ) -> None:
        """Make the isolate and evaluate the prelude.

        Args:
            prelude: the joined prelude; evaluates to a function of `emit`.
            heap_bytes: V8 stops the guest when its heap passes this.
            on_output: called on V8's thread with the JSON of each batch's output.
            on_broken: called on V8's thread when a batch cannot end: `memory`, `threw`, `full` (the
                process has no memory left for its own work), or how a mistake of ours looks.
            tick: called every WAIT_MS while this object waits for V8.
        """
        self._dll: Any = init_mini_racer(ignore_duplicate_init=True)
        self._on_output = on_output
        self.on_broken = on_broken
        self._tick = tick
        self._answers: SimpleQueue[tuple[int, Any, bytes]] = SimpleQueue()
        self._input: Any = None
        self.cpu_clock: int | None = None
        self._number = _CALLBACKS.enter(self)
        self._ids = self._number << _WHAT_BITS
        self._context = self._dll.mr_init_context(_CALLBACKS.function)
        self.limit_heap(heap_bytes)
        boot = self.evaluate(prelude)
        self._undefined = self.evaluate("undefined")
        self._no_arguments = self.evaluate("[]")
        emit = self._dll.mr_make_js_callback(self._context, self._ids | _EMIT)
        kernel = self._call(boot, self._undefined, emit)
        self._pump = self._item(kernel, "pump")
        self._take = self._item(kernel, "take")
        self._define = self._item(kernel, "define")
        self._ready = self._item(kernel, "ready")
        shared = self._item(kernel, "shared").contents
        assert shared.type == _SHARED_BUFFER, shared.type
        self._shared = int(shared.value.value_ptr)
        self._marks = (ctypes.c_int32 * 4).from_address(self._shared)

    def post(self, batch: bytes) -> None:
        """Hand one batch to the guest; `on_output` follows. One batch at a time."""
        assert self._input is None, "the isolate is busy"
        self._input = self._string(batch)
        self._dll.mr_call_function(
            self._context, self._pump, self._input, self._no_arguments, self._ids | _PUMP
        )

    def evaluate(self, code: str) -> Any:
        """Evaluate a script in the global scope and return V8's handle of its value.

        Raises:
            V8Error: it does not parse, threw, or ran out of memory.
        """
        text = self._string(code.encode())
        self._dll.mr_eval(self._context, text, self._ids | _SYNC)
        return self._answer(text)

    def define(self, header: str, function: Any) -> None:
        """Give one compiled file to the prelude; `header` is JSON {name, imports}."""
        self._call(self._define, self._string(header.encode()), function)

    def ready(self, header: str) -> str:
        """Evaluate the program and return JSON {handlers, log}.

        Raises:
            V8Error: as `evaluate`.
        """
        answer = self._call(self._ready, self._string(header.encode()))
        return self._text(answer).decode()

    def mark(self) -> Mark:
        changes, run, cpu_ms, _ = self._marks
        return Mark(changes, run, cpu_ms)

    def limit_heap(self, heap_bytes: int) -> None:
        self._dll.mr_set_hard_memory_limit(self._context, heap_bytes)

    def cpu_ns(self) -> int:
        """Return the CPU time that the isolate's thread has used, in nanoseconds."""
        assert self.cpu_clock is not None
        return time.clock_gettime_ns(self.cpu_clock)

    def unsent_log(self) -> list[str]:
        """Return the log lines of the current step, each `level text`: what a kill would lose."""
        used = max(0, min(self._marks[3], 16384))
        units = ctypes.string_at(self._shared + 16, 2 * used)
        # Not units.decode: it would import the codec, and a locked cell can import nothing.
        return codecs.utf_16_le_decode(units, "replace")[0].split("\0")[:-1]

    def out_of_memory(self) -> bool:
        return bool(self._dll.mr_hard_memory_limit_reached(self._context))

    def collect_garbage(self) -> None:
        """Have V8 free all that it can, array buffers too."""
        self._dll.mr_low_memory_notification(self._context)

    def close(self) -> None:
        self._dll.mr_free_context(self._context)
        _CALLBACKS.leave(self._number)

    def called(self, callback: int, handle: Any) -> None:
        """Take one answer, on V8's thread. Only posts, never waits."""
        if callback == _EMIT:
            self._free(handle)
            self._dll.mr_call_function(
                self._context,
                self._take,
                self._undefined,
                self._no_arguments,
                self._ids | _TAKE,
            )
            return
        kind = handle.contents.type
        if callback == _TAKE:
            text = self._text(handle)
            self._free(handle)
            if kind == _STRING:
                self._on_output(text)
            else:
                self.on_broken(self._why_broken(kind))
            return
        if callback == _PUMP:
            self._free(handle)
            self._free(self._input)
            self._input = None
            if kind >= _FIRST_ERROR:
                self.on_broken(self._why_broken(kind))
            return
        if self.cpu_clock is None:
            self.cpu_clock = time.pthread_getcpuclockid(threading.get_ident())
        error = self._text(handle) if kind >= _FIRST_ERROR else b""
        self._answers.put((kind, handle, error))

    def _why_broken(self, kind: int) -> str:
        # A guest that is stopped for its heap may come back as OOM or as plain termination.
        return "memory" if kind == _OOM_ERROR or self.out_of_memory() else "threw"

    def _answer(self, *used: Any) -> Any:
        while True:
            try:
                kind, handle, error = self._answers.get(timeout=WAIT_MS / 1000)
                break
            except Empty:
                self._tick()
        for value in used:
            self._free(value)
        if kind >= _FIRST_ERROR:
            self._free(handle)
            name = {_PARSE_ERROR: "parse", _OOM_ERROR: "memory"}.get(kind, "threw")
            raise V8Error(name, error.decode("utf-8", "replace"))
        return handle

    def _call(self, function: Any, this: Any, *arguments: Any) -> Any:
        values = self._no_arguments if not arguments else self.evaluate("[]")
        for argument in arguments:
            self._free(self._dll.mr_array_push(self._context, values, argument))
        self._dll.mr_call_function(self._context, function, this, values, self._ids | _SYNC)
        return self._answer()

    def _item(self, holder: Any, name: str) -> Any:
        key = self._string(name.encode())
        item = self._dll.mr_get_object_item(self._context, holder, key)
        self._free(key)
        return item

    def _string(self, text: bytes) -> Any:
        return self._dll.mr_alloc_string_val(self._context, text, len(text), _STRING)

    def _text(self, handle: Any) -> bytes:
        value = handle.contents
        return ctypes.string_at(value.value.value_ptr, value.len) if value.len else b""

    def _free(self, handle: Any) -> None:
        self._dll.mr_free_value(self._context, handle)
