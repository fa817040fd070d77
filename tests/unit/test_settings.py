"""What the operator may set, and what is refused at the start."""

from ipaddress import ip_network
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import ValidationError

from engine.errors import Invalid
from engine.settings import Settings
from engine.wiring import check_kind


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"CLOUDCODE_{name.upper()}", raising=False)


def test_nothing_has_to_be_set() -> None:
    """Local, embedded database, no secrets: it runs out of the box."""
    settings = Settings()

    assert (settings.host, settings.port) == ("127.0.0.1", 8700)
    assert settings.database() == f"sqlite:///{Path('cloudcode-data').resolve() / 'engine.db'}"
    assert settings.admin_key is None
    assert settings.master_key is None
    assert settings.egress_allow == settings.egress_deny == settings.egress_nat64 == ()


def test_every_field_says_what_it_is() -> None:
    """The descriptions are the operator's documentation."""
    unsaid = [name for name, field in Settings.model_fields.items() if not field.description]

    assert unsaid == []


def test_the_environment_is_read_under_our_prefix_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """PORT belongs to someone else."""
    monkeypatch.setenv("PORT", "1")
    monkeypatch.setenv("CLOUDCODE_PORT", "9000")
    monkeypatch.setenv("CLOUDCODE_DATA_DIR", "/var/lib/cloudcode")
    monkeypatch.setenv("CLOUDCODE_NOT_A_SETTING", "x")

    settings = Settings()

    assert settings.port == 9000
    assert settings.database() == "sqlite:////var/lib/cloudcode/engine.db"


def test_a_database_url_replaces_the_embedded_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the data directory then holds only the key."""
    monkeypatch.setenv("CLOUDCODE_DATABASE_URL", "postgresql+psycopg://db/cloudcode")

    assert Settings().database() == "postgresql+psycopg://db/cloudcode"


@pytest.mark.parametrize(
    ("text", "networks"),
    [
        ("", ()),
        ("10.0.0.0/8", ("10.0.0.0/8",)),
        (" 10.0.0.0/8 , fd00::/8,", ("10.0.0.0/8", "fd00::/8")),
        ("192.168.1.7", ("192.168.1.7/32",)),
    ],
)
def test_networks_are_a_list_with_commas(
    monkeypatch: pytest.MonkeyPatch, text: str, networks: tuple[str, ...]
) -> None:
    """Spaces and a last comma do no harm; one address is a network of one."""
    monkeypatch.setenv("CLOUDCODE_EGRESS_ALLOW", text)

    assert Settings().egress_allow == tuple(ip_network(network) for network in networks)


def test_what_is_closed_and_what_leads_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks and hosts in one list, as an operator thinks of them; prefixes of NAT64."""
    monkeypatch.setenv("CLOUDCODE_EGRESS_DENY", "8.8.8.0/24, *.corp.example, db:5432")
    monkeypatch.setenv("CLOUDCODE_EGRESS_NAT64", "2001:67c:2b0:db32::/96")

    settings = Settings()

    assert settings.egress_deny == ("8.8.8.0/24", "*.corp.example", "db:5432")
    assert settings.egress_nat64 == (ip_network("2001:67c:2b0:db32::/96"),)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("port", "65536"),
        ("port", "-1"),
        ("port", "http"),
        ("egress_allow", "10.0.0.1/8"),  # host bits set: which network was meant?
        ("egress_allow", "example.com"),
        ("egress_deny", "10.0.0.1/8"),
        ("egress_deny", "https://example.com/"),
        ("egress_nat64", "2001:67c:2b0::/90"),  # no length that RFC 6052 knows
        ("egress_nat64", "10.0.0.0/8"),
        ("isolation_required", "none"),
        ("warm_cells", "-1"),
        ("warm_cells", "65"),
        ("cells_max", "0"),
        ("cell_memory_mb", "63"),
        ("log_level", "trace"),
    ],
)
def test_what_makes_no_sense_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    """At the start, naming the setting; not when it is first used."""
    monkeypatch.setenv(f"CLOUDCODE_{name.upper()}", text)

    with pytest.raises(ValidationError) as caught:
        Settings()

    assert {problem["loc"][0] for problem in caught.value.errors()} == {name}


def test_settings_do_not_change_while_the_engine_runs() -> None:
    """They are handed around freely."""
    settings: Any = Settings()

    with pytest.raises(ValidationError):
        settings.port = 1


def test_keys_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings may end up in a log."""
    monkeypatch.setenv("CLOUDCODE_ADMIN_KEY", "cck_topsecret")
    monkeypatch.setenv("CLOUDCODE_MASTER_KEY", "bWFzdGVy")

    settings = Settings()

    assert settings.admin_key is not None
    assert settings.admin_key.get_secret_value() == "cck_topsecret"
    assert "topsecret" not in f"{settings!r} {settings} {settings.model_dump()}"
    assert "bWFzdGVy" not in f"{settings!r} {settings} {settings.model_dump()}"


@pytest.mark.parametrize(
    ("given", "kind", "says"),
    [
        ({"redis_url": "redis://x"}, "serve", "need PostgreSQL"),
        (
            {"redis_url": "redis://x", "database_url": "postgresql://x/y"},
            "serve",
            "CLOUDCODE_MASTER_KEY",
        ),
        ({"database_url": "postgresql://x/y"}, "worker", "--redis-url"),
        ({}, "worker", "only `cloudcode serve`"),
    ],
)
def test_settings_that_cannot_work_together_are_refused(
    given: dict[str, str], kind: Literal["serve", "worker"], says: str
) -> None:
    """With what is missing, before anything is opened."""
    with pytest.raises(Invalid, match=says):
        check_kind(Settings(**given), kind)


def test_several_nodes_have_all_they_need() -> None:
    """Either spelling of the database's URL will do."""
    for scheme in ("postgresql", "postgres"):
        given = {
            "redis_url": "redis://x",
            "database_url": f"{scheme}://x/y",
            "master_key": "a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s=",
        }
        check_kind(Settings(**given), "worker")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("https://cloud.example.com/", "https://cloud.example.com"),
        ("http://box:8700/engine", "http://box:8700/engine"),
        ("", ""),
    ],
)
def test_the_public_url_has_no_slash_at_its_end(given: str, kept: str) -> None:
    """Paths are put behind it, and providers sign the whole."""
    assert Settings(public_url=given).public_url == kept


@pytest.mark.parametrize(
    "url", ["cloud.example.com", "ftp://a/", "https://", "https://u:p@a/", "https://a/?b", "http:a"]
)
def test_a_public_url_that_is_none_is_refused(url: str) -> None:
    """At the start, not at the first callback."""
    with pytest.raises(ValidationError):
        Settings(public_url=url)
