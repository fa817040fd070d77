"""`cloudcode secret` and `cloudcode admin rotate-key` against canned answers."""

# ruff: noqa: F811 - a test takes a fixture as a parameter of the name under which it imports it

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.unit.test_cli import Api, api, cloudcode  # noqa: F401 - a fixture

ROTATE = "POST /v1/admin/master-key/rotate"
STEP = {
    "phase": "accept", "key": "0a", "others": ["0b"], "waits_for": [], "checked": 0, "total": 0,
    "resealed": 0, "unreadable": [], "note": "",
}  # fmt: skip


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), {}),
        (("--function", "report", "--function", "alarm"), {"functions": ["report", "alarm"]}),
        (("--all-functions",), {"functions": None}),
    ],
)
def test_who_may_have_a_secret_is_said_with_it(
    api: Api, options: tuple[str, ...], said: dict[str, Any]
) -> None:
    """Not said: it stays as it was."""
    api.answer("PUT /v1/secrets/TOKEN", 204, None)

    ran = cloudcode("secret", "put", "TOKEN", *options, url=api.url, stdin="s3cret\n")

    assert ran.code == 0
    assert api.bodies("PUT /v1/secrets/TOKEN") == [{"value": "s3cret", **said}]


def test_a_secret_is_taken_from_functions_by_force_only(api: Api) -> None:
    """The engine refuses without it."""
    api.answer("PUT /v1/secrets/TOKEN", 204, None)

    for options in ((), ("--force",)):
        args = ("secret", "put", "TOKEN", "--function", "a", *options)
        assert cloudcode(*args, url=api.url, stdin="s3cret\n").code == 0

    assert [query for _, _, query, _ in api.asked] == [{}, {"force": ["true"]}]


def test_all_functions_and_some_is_a_mistake(api: Api) -> None:
    """Before anything is asked for."""
    ran = cloudcode(
        "secret", "put", "TOKEN", "--function", "a", "--all-functions", url=api.url, stdin="x"
    )

    assert ran.code == 1
    assert "not both" in ran.err
    assert api.asked == []


def test_a_secret_that_is_needed_is_deleted_by_force_only(api: Api) -> None:
    """The engine refuses without it."""
    api.answer("DELETE /v1/secrets/TOKEN", 204, None)

    for options in ((), ("--force",)):
        assert cloudcode("secret", "delete", "TOKEN", *options, url=api.url).code == 0

    assert [query for _, _, query, _ in api.asked] == [{}, {"force": ["true"]}]


def test_a_change_of_the_key_goes_on_to_its_end(api: Api) -> None:
    """One request a step; only the first one may begin. The steps are for people, on stderr."""
    for phase, more in (
        ("accept", {}),
        ("switch", {"key": "0b", "others": ["0a"]}),
        ("reseal", {"checked": 40, "total": 90}),
        ("verify", {"checked": 10, "total": 90}),
        ("done", {"resealed": 90, "others": [], "note": "save it"}),
    ):
        api.answer(ROTATE, 200, STEP | {"phase": phase} | more)

    ran = cloudcode("admin", "rotate-key", "--keep-old", "--json", url=api.url)

    bodies = api.bodies(ROTATE)
    assert [one["begin"] for one in bodies] == [True, False, False, False, False]
    assert {one["keep_old"] for one in bodies} == {True}
    assert json.loads(ran.out)["resealed"] == 90
    assert ran.err.splitlines() == [
        "accept: made the key 0b",
        "switch: 0b seals from now on",
        "reseal: 40 of 90",
        "verify: 10 of 90",
    ]


def test_a_node_that_does_not_learn_the_key_ends_the_command(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says which, and what to do; what was begun goes on when it is run again."""
    monkeypatch.setattr("engine.cli.admin.WAITS_MAX", 2)
    for _ in range(2):
        note = "copy the key file"
        api.answer(ROTATE, 200, STEP | {"waits_for": ["node_2 (worker on b)"], "note": note})

    ran = cloudcode("admin", "rotate-key", url=api.url)

    assert ran.code == 1
    assert "accept: waiting for node_2 (worker on b)" in ran.err
    assert "copy the key file; then run this again" in ran.err


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
@pytest.mark.parametrize(
    ("verb", "given"),
    [
        (("secret", "put", "BIN"), b"\xff\xfe"),
        (("connections", "put", "ZZ", "--kind", "webhook"), b'{"url":"http://x/\xff"}'),
        (("invoke", "f", "-"), b'"\xff"'),
    ],
)
def test_bytes_that_are_no_text_are_said_to_be_none(
    api: Api, verb: tuple[str, ...], given: bytes, errors: str
) -> None:
    """However the machine's locale has stdin read."""
    encoding = {"PYTHONIOENCODING": f"utf-8:{errors}", "PATH": os.environ["PATH"]}
    ran = subprocess.run(
        [sys.executable, "-m", "engine", *verb],
        input=given,
        capture_output=True,
        env={"CLOUDCODE_URL": api.url, "CLOUDCODE_KEY": "cck_test", **encoding},
        timeout=60,
        check=False,
    )

    assert ran.returncode == 1
    assert b"Traceback" not in ran.stderr
    assert b"is not UTF-8 text; encode binary values, for example in base64" in ran.stderr
    assert api.asked == []


@pytest.mark.parametrize(
    "words",
    [
        ("secret", "put", "BIN", "--value", "\udcff"),
        ("invoke", "f", '{"a": "\\ud800"}'),
        ("kv", "put", "limits", '"\udcff"'),
        ("connections", "show", "\udcff"),
        ("deliveries", "list", "--connection", "\udcff"),
        ("--project", "\udcff", "functions", "list"),
    ],
)
def test_arguments_that_are_no_text_are_said_to_be_none(api: Api, words: tuple[str, ...]) -> None:
    """In a body, a path, a query and a header alike."""
    ran = cloudcode(*words, url=api.url)

    assert ran.code == 1
    assert "is not UTF-8 text" in ran.err
    assert api.asked == []
