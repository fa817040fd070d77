"""Seals what must not be read or altered on disk: secrets, credentials, compiled modules.

Path:   control plane -> here -> store.vaulted; host calls, outbox <- here <- store.vaulted
        functions, programs -> here -> store.artifacts; idempotency -> here (answers)
Never:  stores anything itself; shows a key or a plain text in a repr, a message or a log.

A sealed value is: format byte 1, nonce (12 bytes), AES-256-GCM cipher text with its tag (16 bytes).
"""

import base64
import binascii
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from engine.errors import EngineError
from engine.settings import Settings

KEY_BYTES: Final = 32
KEY_FILE: Final = "master.key"
_FORMAT: Final = b"\x01"
_NONCE_BYTES: Final = 12  # NIST SP 800-38D 8.2.2: random, and far fewer than 2**32 seals per key

RandomBytes = Callable[[int], bytes]


class MasterKeyUnusable(EngineError):
    """The operator's: the key that seals secrets is missing its form or its protection."""

    code = "master_key_unusable"


class SealBroken(EngineError):
    """The operator's: a sealed value does not open: another key, or altered."""

    code = "seal_broken"

    def __init__(self, context: str) -> None:
        super().__init__(
            f"{context!r} does not open with this master key: it was sealed with another one or "
            f"altered. Restore the {KEY_FILE} (or CLOUDCODE_MASTER_KEY) it was stored with, "
            "or store it again"
        )


class Vault:
    """AES-256-GCM under one master key."""

    __slots__ = ("_cipher", "_random_bytes")

    def __init__(self, key: bytes, *, random_bytes: RandomBytes = os.urandom) -> None:
        if len(key) != KEY_BYTES:
            raise MasterKeyUnusable(
                f"the master key has {len(key)} bytes; it must have {KEY_BYTES}"
            )
        self._cipher = AESGCM(key)
        self._random_bytes = random_bytes

    @classmethod
    def from_settings(
        cls, settings: Settings, *, random_bytes: RandomBytes = os.urandom
    ) -> "Vault":
        """Take the key from the settings, else from the key file, which the first start makes.

        Raises:
            MasterKeyUnusable: not base64 of 32 bytes, or a key file that others may read.
        """
        if settings.master_key is not None:
            text = settings.master_key.get_secret_value()
            return cls(_decode(text, "CLOUDCODE_MASTER_KEY"), random_bytes=random_bytes)
        path = settings.data_dir / KEY_FILE
        if not path.exists():
            _make_key_file(path, random_bytes)
        return cls(_read_key_file(path), random_bytes=random_bytes)

    def seal(self, plain: bytes, *, context: str) -> bytes:
        """Return `plain` sealed; it opens only with the same `context`: rows cannot be swapped."""
        nonce = self._random_bytes(_NONCE_BYTES)
        return _FORMAT + nonce + self._cipher.encrypt(nonce, plain, _bound(context))

    def open(self, sealed: bytes, *, context: str) -> bytes:
        """Return what was sealed.

        Raises:
            SealBroken: another key, another context, or altered bytes.
        """
        start = len(_FORMAT) + _NONCE_BYTES
        if sealed[:1] != _FORMAT or len(sealed) < start:
            raise SealBroken(context)
        try:
            return self._cipher.decrypt(sealed[1:start], sealed[start:], _bound(context))
        except InvalidTag as error:
            raise SealBroken(context) from error

    def __repr__(self) -> str:
        return "Vault(...)"


def secret_context(project_id: str, name: str) -> str:
    """Return the context of a row of `secrets`."""
    return f"{project_id}/secret/{name}"


def connection_context(project_id: str, name: str) -> str:
    """Return the context of a row of `connections`."""
    return f"{project_id}/connection/{name}"


def artifact_context(project_id: str, version_id: str, fingerprint: str) -> str:
    """Return the context of a row of `artifacts`."""
    return f"{project_id}/artifact/{version_id}/{fingerprint}"


def answer_context(project_id: str, key: str) -> str:
    """Return the context of a row of `idempotency_keys`."""
    return f"{project_id}/answer/{key}"


def _bound(context: str) -> bytes:
    return _FORMAT + context.encode()


def _decode(text: str, source: str) -> bytes:
    remedy = "make one with: head -c 32 /dev/urandom | base64"
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        # `from None`: the error's text could carry a piece of the key.
        raise MasterKeyUnusable(f"{source} is not base64; {remedy}") from None
    if len(key) != KEY_BYTES:
        raise MasterKeyUnusable(
            f"{source} is base64 of {len(key)} bytes, not of {KEY_BYTES}; {remedy}"
        )
    return key


def _make_key_file(path: Path, random_bytes: RandomBytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{KEY_FILE}.{os.getpid()}.{random_bytes(4).hex()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(base64.b64encode(random_bytes(KEY_BYTES)) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)  # unlike rename, it never replaces a key that another start made
        except FileExistsError:
            return
    finally:
        draft.unlink()
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_key_file(path: Path) -> bytes:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise MasterKeyUnusable(
            f"{path} may be read by others (mode {mode:04o}); protect it: chmod 600 {path}"
        )
    return _decode(path.read_text(encoding="ascii", errors="replace"), str(path))
