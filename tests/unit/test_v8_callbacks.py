"""What V8 calls in Python must not fail unheard: C drops the exception, and the answer with it."""

import json
import subprocess
import sys

import pytest

# In a process of its own: V8 begins once in a process, and here something is broken on purpose.
PROGRAM = """
import ctypes, json, os, sys
from runtimes.javascript import guest, v8_unsafe

def broken(why):
    os.write(1, json.dumps(why).encode())
    os._exit(0)

v8_unsafe.initialise(hardened=False)
isolate = v8_unsafe.Isolate(guest.PRELUDE, 64 << 20, print, broken, lambda: None)

def fails(handle):
    raise {error}

isolate._{step} = fails
isolate.post(b"[]")
v8_unsafe.threading.Event().wait(20)
"""


@pytest.mark.parametrize("step", ["free", "text"])
@pytest.mark.parametrize(
    ("error", "why"),
    [
        ("MemoryError", "full"),
        ("ValueError('x' * 5000)", f"a callback failed: ValueError('{'x' * 5000}"[:1000]),
    ],
)
def test_a_callback_that_fails_is_told(step: str, error: str, why: str) -> None:
    """Without memory, the cell is full; anything else is a mistake of ours."""
    program = PROGRAM.format(error=error, step=step)

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, timeout=60
    )

    assert json.loads(done.stdout) == why
