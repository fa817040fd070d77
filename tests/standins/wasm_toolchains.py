"""Builds WebAssembly guests from WAT, C, AssemblyScript and Rust, each only when it has changed.

What was built stays in .venv/wasm-cache, named by what went into it: the source, the files beside
it, the flags and the compiler. Without its compiler a test is skipped; in continuous integration,
where `make test` has installed them all, it fails.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Final

import pytest
import wasmtime

ROOT: Final = Path(__file__).parents[2]
CACHE: Final = ROOT / ".venv" / "wasm-cache"
BUILD_S_MAX: Final = 120
RUSTC: Final = "/usr/bin/rustc"  # Debian's: another one may come first, without these targets
RUST_TARGETS: Final = ("wasm32-wasip1", "wasm32-wasi")  # one target: since Rust 1.78, and before
ASC: Final = ROOT / ".venv" / "assemblyscript" / "node_modules" / "assemblyscript"


def c_module(source: Path, *flags: str) -> bytes:
    """Build a C program: a WASI command, or a core module with "-mexec-model=reactor".

    Without "-g" among the flags, the C library's DWARF is left out too; names always stay.
    """
    clang = _tool("clang")
    # With "-g" the place of the source does not become part of the module.
    debug = "-ffile-compilation-dir=." if "-g" in flags else "-Wl,--strip-debug"
    command = [str(clang), "--target=wasm32-wasi", "-O2", debug, *flags]
    named = [flag.removeprefix("-I") for flag in flags if flag.startswith("-I")]
    included = [source.parent, *(source.parent / folder for folder in named)]
    headers = [header for folder in included for header in folder.glob("*.h")]
    return _built(command, source, [clang], headers)


def wat_module(text_or_path: str | Path) -> bytes:
    """Assemble WebAssembly's text format; too fast to be worth keeping."""
    text = text_or_path.read_text() if isinstance(text_or_path, Path) else text_or_path
    return bytes(wasmtime.wat2wasm(text))


def assemblyscript_module(path: Path) -> bytes:
    """Build an AssemblyScript core module; a `cloudcode.ts` beside it has the `abort` it needs."""
    node, package = _tool("node"), _tool(str(ASC / "package.json"))
    command = [str(node), str(ASC / "bin" / "asc.js"), "-O", "--debug"]
    command += ["--exportStart", "_initialize", "--use", "abort=cloudcode/abort"]
    return _built(command, path, [package], path.parent.glob("*.ts"))


def rust_module(path: Path, *, command: bool, debug: bool = False) -> bytes:
    """Build a Rust program: a WASI command (`fn main`), or a core module as a cdylib.

    Args:
        path: the root of the crate; its modules are files beside it.
        command: whether it is a program with `fn main`.
        debug: keep DWARF, of Rust's library too (5 MB).
    """
    rustc = _tool(RUSTC)
    line = [str(rustc), "--edition", "2021", "-O", "--target", _rust_target()]
    line += ["-C", "linker=wasm-ld"]  # Debian 13 has no rust-lld, which is the default
    line += ["--crate-type", "bin" if command else "cdylib"]
    if debug:
        line += ["-g", "--remap-path-prefix", f"{path.resolve().parent}=."]
    else:
        line += ["-C", "strip=debuginfo"]
    return _built(line, path, [rustc], path.parent.glob("*.rs"))


def _built(
    command: Sequence[str], source: Path, compilers: Sequence[Path], beside: Iterable[Path]
) -> bytes:
    """Return what `command` makes of `source`, from the cache if nothing has changed."""
    kept = CACHE / f"{_digest(command, source, compilers, beside)}.wasm"
    if kept.exists():
        return kept.read_bytes()
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        made = Path(folder) / "module.wasm"
        run = subprocess.run(
            [*command, source.name, "-o", str(made)],
            cwd=source.parent,  # AssemblyScript names modules by their path below it
            capture_output=True,
            text=True,
            timeout=BUILD_S_MAX,
            check=False,
        )
        assert run.returncode == 0, f"{source} does not build:\n{run.stdout}{run.stderr}"
        made.replace(kept)  # at once: another test run may read it
    return kept.read_bytes()


def _digest(
    command: Sequence[str], source: Path, compilers: Sequence[Path], beside: Iterable[Path]
) -> str:
    found = hashlib.sha256()
    here = str(source.resolve().parent)  # often a folder for one test run
    parts = [argument.replace(here, ".").encode() for argument in command]
    for compiler in compilers:
        state = compiler.resolve().stat()
        parts += [str(state.st_mtime_ns).encode(), str(state.st_size).encode()]
    for file in [source, *sorted(set(beside) - {source})]:
        parts += [file.name.encode(), file.read_bytes()]
    for part in parts:
        found.update(len(part).to_bytes(8, "big") + part)
    return found.hexdigest()[:32]


@cache
def _rust_target() -> str:
    """Return the name that WASI has in this release of Rust, if its library is there."""
    for target in RUST_TARGETS:
        asked = [RUSTC, "--print", "target-libdir", "--target", target]
        answer = subprocess.run(asked, capture_output=True, text=True, check=False)
        if answer.returncode == 0 and list(Path(answer.stdout.strip()).glob("libstd-*")):
            return target
    return _missing(f"Rust's library for {' or '.join(RUST_TARGETS)}")


def _tool(name: str) -> Path:
    """Return the path of a command, or the path itself if it is one and there is such a file."""
    found = shutil.which(name) if "/" not in name else name
    if found is None or not Path(found).exists():
        _missing(name)
    return Path(found or "")


def _missing(what: str) -> str:
    text = f"{what} is missing; `make test` installs it, or says what to install"
    if os.environ.get("CI"):
        pytest.fail(text)
    pytest.skip(text)
