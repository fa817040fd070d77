"""Seals what must not be read or altered on disk: secrets, credentials, compiled modules.

Path:   control plane -> here -> store.vaulted; host calls, outbox <- here <- store.vaulted
        functions, programs -> here -> store.artifacts; idempotency -> here (answers)
Never:  stores anything itself; shows a key or a plain text in a repr, a message or a log.

A sealed value is: format byte 1, nonce (12 bytes), AES-256-GCM cipher text with its tag (16 bytes).
"""

import os
from pathlib import Path
from typing import Final

import structlog
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from engine.errors import EngineError
from engine.master_keys import (
    KEY_BYTES,
    KEY_FILE,
    MasterKey,
    MasterKeyUnusable,
    RandomBytes,
    Ring,
    Signature,
    keys_of_settings,
    make_key_file,
    read_key_file,
    signature,
)
from engine.settings import Settings

__all__ = ["KEY_FILE", "MasterKeyUnusable", "SealBroken", "Vault"]
_FORMAT: Final = b"\x01"
_NONCE_BYTES: Final = 12  # NIST SP 800-38D 8.2.2: random, and far fewer than 2**32 seals per key
_log = structlog.get_logger()


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
    """AES-256-GCM: seals with the current master key, opens with any there is.

    The keys of a file are read anew when it was replaced: before each seal, at a value that does
    not open, and whenever somebody asks which keys there are. Used from several threads.
    """

    __slots__ = ("_ciphers", "_further", "_path", "_random_bytes", "_ring", "_seen")

    def __init__(
        self, key: bytes, *, older: Ring = (), random_bytes: RandomBytes = os.urandom
    ) -> None:
        if len(key) != KEY_BYTES:
            raise MasterKeyUnusable(
                f"the master key has {len(key)} bytes; it must have {KEY_BYTES}"
            )
        self._random_bytes = random_bytes
        self._path: Path | None = None
        self._seen: Signature | None = None  # of the file, when it was read
        self._further: Ring = ()  # of the settings, besides those of the file
        self._take((MasterKey(key=key), *older))

    @classmethod
    def from_settings(
        cls, settings: Settings, *, random_bytes: RandomBytes = os.urandom
    ) -> "Vault":
        """Take the keys from the settings, else from the key file, which the first start makes.

        Raises:
            MasterKeyUnusable: not base64 of 32 bytes, or a key file that others may read.
        """
        first, further = keys_of_settings(settings)
        if first:
            return cls(first[0].key, older=further, random_bytes=random_bytes)
        path = settings.data_dir / KEY_FILE
        if not path.exists():
            make_key_file(path, random_bytes)
        seen, ring = signature(path), read_key_file(path)
        vault = cls(ring[0].key, older=(*ring[1:], *further), random_bytes=random_bytes)
        vault._path, vault._seen, vault._further = path, seen, further
        return vault

    @property
    def path(self) -> Path | None:
        """Return the key file; None: the settings have the key."""
        return self._path

    def ring(self) -> Ring:
        """Return the keys in force; the first one seals."""
        self._refresh()
        return self._ring

    def key_ids(self) -> list[str]:
        """Return the names of the keys in force; the first one seals."""
        return [one.id for one in self.ring()]

    def new_key(self) -> bytes:
        return self._random_bytes(KEY_BYTES)

    def seal(self, plain: bytes, *, context: str) -> bytes:
        """Return `plain` sealed; it opens only with the same `context`: rows cannot be swapped."""
        self._refresh()
        return self._sealed(plain, context)

    def open(self, sealed: bytes, *, context: str) -> bytes:
        """Return what was sealed.

        Raises:
            SealBroken: another key, another context, or altered bytes.
        """
        ciphers = self._ciphers
        plain = _opened(ciphers, sealed, context)
        if plain is None and self._refresh():
            plain = _opened(self._ciphers, sealed, context)
        if plain is None:
            raise SealBroken(context)
        return plain

    def renewed(self, sealed: bytes, *, context: str) -> bytes | None:
        """Return the value sealed with the current key; None: it is already.

        Raises:
            SealBroken: as `open`.
        """
        self._refresh()
        if _opened(self._ciphers[:1], sealed, context) is not None:
            return None
        return self._sealed(self.open(sealed, context=context), context)

    def _sealed(self, plain: bytes, context: str) -> bytes:
        nonce = self._random_bytes(_NONCE_BYTES)
        return _FORMAT + nonce + self._ciphers[0].encrypt(nonce, plain, _bound(context))

    def _refresh(self) -> bool:
        """Read the key file if it is another one now; return whether it was."""
        if self._path is None:
            return False
        try:
            seen = signature(self._path)
            if seen == self._seen:
                return False
            ring = read_key_file(self._path)
        except (OSError, MasterKeyUnusable) as error:
            _log.error("key_file_not_read", error=str(error), remedy="the keys known are kept")
            return False
        self._take((*ring, *self._further))
        self._seen = seen
        return True

    def _take(self, ring: Ring) -> None:
        self._ring = ring
        self._ciphers = tuple(AESGCM(one.key) for one in ring)  # one step: threads see old or new

    def __repr__(self) -> str:
        return "Vault(...)"


def secret_context(project_id: str, name: str) -> str:
    """Return the context of a row of `secrets`."""
    return f"{project_id}/secret/{name}"


def connection_context(project_id: str, name: str) -> str:
    """Return the context of a row of `connections`."""
    return f"{project_id}/connection/{name}"


def delivery_context(project_id: str, delivery_id: str) -> str:
    """Return the context of the credentials in a row of `deliveries`."""
    return f"{project_id}/delivery/{delivery_id}"


def artifact_context(project_id: str, version_id: str, fingerprint: str) -> str:
    """Return the context of a row of `artifacts`."""
    return f"{project_id}/artifact/{version_id}/{fingerprint}"


def answer_context(project_id: str, key: str) -> str:
    """Return the context of a row of `idempotency_keys`."""
    return f"{project_id}/answer/{key}"


def _opened(ciphers: tuple[AESGCM, ...], sealed: bytes, context: str) -> bytes | None:
    """Return what was sealed with one of the keys; None: with none of them."""
    start = len(_FORMAT) + _NONCE_BYTES
    if sealed[:1] != _FORMAT or len(sealed) < start:
        return None
    for cipher in ciphers:
        try:
            return cipher.decrypt(sealed[1:start], sealed[start:], _bound(context))
        except InvalidTag:
            continue
    return None


def _bound(context: str) -> bytes:
    return _FORMAT + context.encode()
