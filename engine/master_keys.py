"""The keys that seal secrets: from the settings, or the key file, which a rotation writes anew.

Path:   settings, key file -> here -> vault (seals and opens), rotation (changes the file)
Never:  shows a key in a repr, a message or a log; leaves half a key file behind.

The key file: one key a line, base64. The first one seals; the others only open. What stands behind
a `#` says why a key is there: see Mark.
"""

import base64
import binascii
import fcntl
import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

from engine.errors import Conflict, EngineError
from engine.settings import Settings

KEY_BYTES: Final = 32
KEY_FILE: Final = "master.key"
REMEDY: Final = "make one with: head -c 32 /dev/urandom | base64"

RandomBytes = Callable[[int], bytes]
Signature = tuple[int, int, int]
"""What changes when a file is replaced: inode, time of the last change in nanoseconds, size."""


class MasterKeyUnusable(EngineError):
    """The operator's: the key that seals secrets is missing its form or its protection."""

    code = "master_key_unusable"


class Mark(StrEnum):
    """Why a key is there that is not the first one."""

    NEXT = "next"  # it will be the first one as soon as every node can open with it
    LEAVING = "until all is sealed anew"
    KEPT = "kept for old backups"
    SETTINGS = "of CLOUDCODE_MASTER_KEY_OLD"  # in no file


@dataclass(frozen=True, slots=True, kw_only=True)
class MasterKey:
    """One key; `mark` is None of the one that seals."""

    key: bytes = field(repr=False)
    mark: Mark | None = None

    @property
    def id(self) -> str:
        """Return a name that may be shown: it says whether two keys are equal, and no more."""
        return hashlib.sha256(b"cloudcode master key\x00" + self.key).hexdigest()[:8]


Ring = tuple[MasterKey, ...]
"""All keys in force; the first one seals."""


def keys_of_settings(settings: Settings) -> tuple[Ring, Ring]:
    """Return the key of the settings, if there is one, and the further ones that open.

    Raises:
        MasterKeyUnusable: one of them is not base64 of 32 bytes.
    """
    first: Ring = ()
    if settings.master_key is not None:
        text = settings.master_key.get_secret_value()
        first = (MasterKey(key=_decode(text, "CLOUDCODE_MASTER_KEY")),)
    told = "" if settings.master_key_old is None else settings.master_key_old.get_secret_value()
    others = [part for part in told.split(",") if part.strip()]
    return first, tuple(
        MasterKey(key=_decode(text, "a key of CLOUDCODE_MASTER_KEY_OLD"), mark=Mark.SETTINGS)
        for text in others
    )


def signature(path: Path) -> Signature:
    """Return what tells whether the file is still the one that was read."""
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size


def read_key_file(path: Path) -> Ring:
    """Return the keys of the file.

    Raises:
        MasterKeyUnusable: others may read it, or a line is no key.
    """
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise MasterKeyUnusable(
            f"{path} may be read by others (mode {mode:04o}); protect it: chmod 600 {path}"
        )
    ring: list[MasterKey] = []
    for row in path.read_text(encoding="utf-8", errors="replace").splitlines():
        text, _, why = row.partition("#")
        if not text.strip():
            continue
        mark = None
        if ring:  # a line that somebody added by hand opens, and is nobody's to remove
            mark = Mark(why.strip()) if why.strip() in set(Mark) else Mark.KEPT
        ring.append(MasterKey(key=_decode(text, str(path)), mark=mark))
    if not ring:
        raise MasterKeyUnusable(f"{path} is empty; restore it: without its key nothing opens")
    return tuple(ring)


def make_key_file(path: Path, random_bytes: RandomBytes) -> None:
    """Make a file with a new key, unless another start has made one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = _draft(path, (MasterKey(key=random_bytes(KEY_BYTES)),))
    try:
        os.link(draft, path)  # unlike rename, it never replaces a key that another start made
    except FileExistsError:
        return
    finally:
        draft.unlink(missing_ok=True)
    _sync_directory(path.parent)


def replace_key_file(path: Path, before: Ring, after: Ring) -> None:
    """Put other keys into the file, if it still has those of `before`: whole, or not at all.

    Raises:
        Conflict: somebody else has changed it, or it cannot be written.
        MasterKeyUnusable: as `read_key_file`.
    """
    try:
        with _locked(path.parent):
            if read_key_file(path) != before:
                raise Conflict(f"{path} was changed just now; try again")
            for left in path.parent.glob(f".{KEY_FILE}.*"):
                left.unlink(missing_ok=True)  # a draft of a process that was killed
            _draft(path, after).replace(path)
            _sync_directory(path.parent)
    except OSError as error:
        raise Conflict(
            f"{path} cannot be written: {error.strerror}; make it writable, or give the key as "
            "CLOUDCODE_MASTER_KEY"
        ) from error


def _draft(path: Path, ring: Sequence[MasterKey]) -> Path:
    """Write a key file beside the one of this name, and return it: it is on disk."""
    draft = path.with_name(f".{KEY_FILE}.{os.getpid()}.{os.urandom(4).hex()}")
    rows = [
        base64.b64encode(one.key).decode() + ("" if one.mark is None else f" # {one.mark}")
        for one in ring
    ]
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write("\n".join(rows) + "\n")
        file.flush()
        os.fsync(file.fileno())
    return draft


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _decode(text: str, source: str) -> bytes:
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        # `from None`: the error's text could carry a piece of the key.
        raise MasterKeyUnusable(f"{source} is not base64; {REMEDY}") from None
    if len(key) != KEY_BYTES:
        raise MasterKeyUnusable(
            f"{source} is base64 of {len(key)} bytes, not of {KEY_BYTES}; {REMEDY}"
        )
    return key
