"""Checks what an author uploads: one source, or several files of which one is the main one."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from engine.errors import CompileFailed, Invalid, PayloadTooLarge
from engine.quotas import BUNDLE_BYTES_MAX, BUNDLE_FILES_MAX

FILE_NAME: Final = re.compile(r"(?!.*(\.\.|//|/$))[A-Za-z0-9_@][A-Za-z0-9_@./+-]{0,127}")
MAIN_DEFAULTS: Final = ("main.js", "main.ts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """An upload that has passed every check there is without building it."""

    files: dict[str, str]
    main: str
    is_one_source: bool  # it came as `source`: problems point there

    def pointer(self, file: str) -> str:
        """Return the JSON pointer, into the request's body, of one of the files."""
        if self.is_one_source or file not in self.files:
            return "/source" if self.is_one_source else "/files"
        return "/files/" + file.replace("~", "~0").replace("/", "~1")

    def explain(self, error: CompileFailed) -> CompileFailed:
        """Return the builder's complaint with a pointer into this upload."""
        return CompileFailed(
            str(error), self.pointer(str(error.extra.get("file", ""))), **error.extra
        )


def check_bundle(source: str | None, files: Mapping[str, str] | None, main: str | None) -> Bundle:
    """Take `source`, or `files` and `main`, but not both.

    Raises:
        Invalid: names the field.
        PayloadTooLarge: all files together are larger than a bundle may be.
    """
    if (source is None) == (files is None):
        raise Invalid("give either source, or files and main", "/source")
    if source is not None:
        files = {main if main is not None else MAIN_DEFAULTS[0]: source}
    assert files is not None
    if not 1 <= len(files) <= BUNDLE_FILES_MAX:
        raise Invalid(f"must be 1 to {BUNDLE_FILES_MAX} files, not {len(files)}", "/files")
    for name in files:
        if not FILE_NAME.fullmatch(name):
            pointer = "/main" if source is not None else "/files"
            raise Invalid(f"{name[:80]!r} is no file name: use letters and . _ - /", pointer)
    used = sum(len(text.encode()) for text in files.values())
    if used > BUNDLE_BYTES_MAX:
        raise PayloadTooLarge("the bundle", "bundle_bytes", BUNDLE_BYTES_MAX, used)
    return Bundle(files=dict(files), main=_main(files, main), is_one_source=source is not None)


def _main(files: Mapping[str, str], main: str | None) -> str:
    candidates = MAIN_DEFAULTS if main is None else (main,)
    for name in candidates:
        if name in files:
            return name
    if main is None and len(files) == 1:
        return next(iter(files))
    if main is None:
        raise Invalid("name the file to start with; there is no main.js among them", "/main")
    raise Invalid(f"there is no file {main[:80]!r} among files", "/main")
