"""What the vault keeps, and what it refuses."""

import base64
import os
from pathlib import Path

import pytest
from pydantic import SecretStr

from engine.errors import Conflict
from engine.master_keys import Mark, MasterKey, Ring, read_key_file, replace_key_file
from engine.settings import Settings
from engine.vault import MasterKeyUnusable, SealBroken, Vault

KEY = bytes(range(32))
OTHER = bytes(range(32, 64))


def in_base64(*keys: bytes) -> SecretStr:
    return SecretStr(", ".join(base64.b64encode(key).decode("ascii") for key in keys))


def replaced(path: Path, *keys: bytes) -> Ring:
    """Put keys into the file, the first of which seals."""
    first, *others = keys
    after = (MasterKey(key=first), *(MasterKey(key=key, mark=Mark.LEAVING) for key in others))
    replace_key_file(path, read_key_file(path), after)
    return after


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


def test_an_older_key_opens_and_never_seals() -> None:
    """What it sealed is sealed anew on demand; what the current key sealed is left alone."""
    before = Vault(KEY).seal(b"x", context="c")
    vault = Vault(OTHER, older=(MasterKey(key=KEY, mark=Mark.SETTINGS),))

    renewed = vault.renewed(before, context="c")

    assert renewed is not None
    assert vault.open(before, context="c") == b"x"
    assert Vault(OTHER).open(vault.seal(b"y", context="c"), context="c") == b"y"
    assert Vault(OTHER).open(renewed, context="c") == b"x"
    assert vault.renewed(renewed, context="c") is None
    with pytest.raises(SealBroken):
        vault.renewed(before, context="another")


@pytest.mark.parametrize("has_file", [True, False])
def test_further_keys_of_the_settings_open(tmp_path: Path, *, has_file: bool) -> None:
    """Beside the key of the settings or of the file; several, with commas."""
    first = None if has_file else in_base64(KEY)
    further = in_base64(OTHER, bytes(32))
    settings = Settings(data_dir=tmp_path, master_key=first, master_key_old=further)

    vault = Vault.from_settings(settings)

    for key in (OTHER, bytes(32)):
        assert vault.open(Vault(key).seal(b"x", context="c"), context="c") == b"x"
    assert len(vault.key_ids()) == 3
    with pytest.raises(MasterKeyUnusable, match="CLOUDCODE_MASTER_KEY_OLD"):
        Vault.from_settings(Settings(data_dir=tmp_path, master_key_old=SecretStr("short")))


@pytest.mark.parametrize("by", ["seal", "open", "ring", "renewed"])
def test_a_key_file_that_was_replaced_is_noticed(tmp_path: Path, by: str) -> None:
    """Whatever is done first: no restart, and no value that does not open."""
    vault = Vault.from_settings(Settings(data_dir=tmp_path))
    old = vault.seal(b"old", context="c")
    ring = replaced(tmp_path / "master.key", OTHER, vault.ring()[0].key)
    new = Vault(OTHER)

    if by == "seal":
        assert new.open(vault.seal(b"x", context="c"), context="c") == b"x"
    elif by == "open":
        assert vault.open(new.seal(b"x", context="c"), context="c") == b"x"
    elif by == "ring":
        assert vault.ring() == ring
    else:
        assert new.open(vault.renewed(old, context="c") or b"", context="c") == b"old"
    assert vault.open(old, context="c") == b"old"


@pytest.mark.parametrize("how", ["no key", "others may read it", "gone"])
def test_a_key_file_that_became_unusable_changes_nothing(tmp_path: Path, how: str) -> None:
    """A mistake of the operator's is in the log; what runs keeps the keys that it has."""
    vault = Vault.from_settings(Settings(data_dir=tmp_path))
    path, sealed = tmp_path / "master.key", vault.seal(b"x", context="c")

    if how == "gone":
        path.unlink()
    else:
        path.write_text("no key\n" if how == "no key" else in_base64(OTHER).get_secret_value())
        path.chmod(0o644 if how == "others may read it" else 0o600)

    assert vault.open(sealed, context="c") == b"x"
    assert vault.open(vault.seal(b"y", context="c"), context="c") == b"y"


def test_a_key_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    """Not what somebody else has changed; drafts of those who were killed go."""
    path = tmp_path / "master.key"
    Vault.from_settings(Settings(data_dir=tmp_path))
    before = read_key_file(path)
    (tmp_path / ".master.key.1.abcd").write_text("half a k")

    replaced(path, OTHER, before[0].key)
    with pytest.raises(Conflict, match="was changed just now"):
        replace_key_file(path, before, (MasterKey(key=KEY),))

    assert [one.mark for one in read_key_file(path)] == [None, Mark.LEAVING]
    assert path.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in tmp_path.iterdir()] == ["master.key"]


def test_a_key_that_was_added_by_hand_opens(tmp_path: Path) -> None:
    """A line without a reason: it stays until whoever put it there takes it away."""
    path = tmp_path / "master.key"
    path.write_text(f"# ours\n{in_base64(KEY).get_secret_value()}\n\n")
    path.chmod(0o600)
    with path.open("a") as file:
        file.write(f"{in_base64(OTHER).get_secret_value()}  # of the old machine\n")

    vault = Vault.from_settings(Settings(data_dir=tmp_path))

    assert [one.mark for one in vault.ring()] == [None, Mark.KEPT]
    assert vault.open(Vault(OTHER).seal(b"x", context="c"), context="c") == b"x"


def test_the_name_of_a_key_tells_nothing_about_it() -> None:
    """Equal keys have equal names; no repr has a key."""
    one = MasterKey(key=KEY)

    assert one.id == MasterKey(key=KEY, mark=Mark.NEXT).id != MasterKey(key=OTHER).id
    assert len(one.id) == 8
    assert "x00" not in repr(one)
    assert KEY.hex() not in repr(one)
