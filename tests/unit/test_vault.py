"""What the vault keeps, and what it refuses."""

import base64
import os
from pathlib import Path

import pytest
from pydantic import SecretStr

from engine.settings import Settings
from engine.vault import MasterKeyUnusable, SealBroken, Vault

KEY = bytes(range(32))


def test_what_was_sealed_opens_again() -> None:
    """The plain text comes back, and is not in what is stored."""
    vault = Vault(KEY)

    sealed = vault.seal(b"s3cret", context="prj_1/secret/A")

    assert vault.open(sealed, context="prj_1/secret/A") == b"s3cret"
    assert b"s3cret" not in sealed


def test_equal_secrets_do_not_look_equal() -> None:
    """A fresh nonce each time: rows cannot be compared."""
    vault = Vault(KEY)

    assert vault.seal(b"x", context="c") != vault.seal(b"x", context="c")


@pytest.mark.parametrize("broken", ["context", "key", "bytes", "short"])
def test_a_seal_that_does_not_fit_is_refused(broken: str) -> None:
    """Another row's context, another key or altered bytes: refused, with a remedy."""
    sealed = Vault(KEY).seal(b"x", context="prj_1/secret/A")
    vault = Vault(bytes(32)) if broken == "key" else Vault(KEY)
    context = "prj_2/secret/A" if broken == "context" else "prj_1/secret/A"
    altered = {"bytes": sealed[:-1] + bytes([sealed[-1] ^ 1]), "short": sealed[:5]}

    with pytest.raises(SealBroken, match=r"master\.key"):
        vault.open(altered.get(broken, sealed), context=context)


def test_the_first_start_makes_a_key_that_only_its_owner_reads(tmp_path: Path) -> None:
    """The file has mode 0600, and the next start takes the same key."""
    settings = Settings(data_dir=tmp_path / "data")

    first = Vault.from_settings(settings)
    second = Vault.from_settings(settings)

    assert (tmp_path / "data" / "master.key").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["master.key"]
    assert second.open(first.seal(b"x", context="c"), context="c") == b"x"


def test_a_key_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    """The error says what to type."""
    settings = Settings(data_dir=tmp_path)
    Vault.from_settings(settings)
    (tmp_path / "master.key").chmod(0o640)

    with pytest.raises(MasterKeyUnusable, match=f"chmod 600 {tmp_path}/master.key"):
        Vault.from_settings(settings)


def test_the_key_of_the_settings_comes_first(tmp_path: Path) -> None:
    """With CLOUDCODE_MASTER_KEY no file is made."""
    settings = Settings(
        data_dir=tmp_path, master_key=SecretStr(base64.b64encode(KEY).decode("ascii"))
    )

    vault = Vault.from_settings(settings)

    assert vault.open(Vault(KEY).seal(b"x", context="c"), context="c") == b"x"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["not base64!", base64.b64encode(b"short").decode("ascii")])
def test_a_key_of_the_wrong_form_is_refused_without_showing_it(tmp_path: Path, text: str) -> None:
    """The message names the setting and a remedy, never the text."""
    settings = Settings(data_dir=tmp_path, master_key=SecretStr(text))

    with pytest.raises(MasterKeyUnusable, match="CLOUDCODE_MASTER_KEY") as refused:
        Vault.from_settings(settings)

    assert text not in str(refused.value)


def test_the_repr_shows_nothing() -> None:
    """A vault in a log line gives nothing away."""
    assert repr(Vault(os.urandom(32))) == "Vault(...)"
