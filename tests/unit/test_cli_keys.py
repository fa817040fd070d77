"""`cloudcode keys`: what it asks of the engine."""

# ruff: noqa: F811 - a test takes a fixture as a parameter of the name under which it imports it

import json

from tests.unit.test_cli import Api, api, cloudcode  # noqa: F401 - a fixture

KEY = {
    "id": "key_1", "name": "gateway 7", "scopes": ["operate", "ingest"], "project": "prj_1",
    "created_at": "2010-10-29T00:00:00.000Z", "requests_per_minute": None,
}  # fmt: skip


def test_keys_are_listed_and_deleted(api: Api) -> None:
    """Of all projects, or of one."""
    api.answer("GET /v1/api-keys", 200, {"items": [KEY], "next_cursor": None})
    api.answer("DELETE /v1/api-keys/key_1", 204, None)

    listed = cloudcode("keys", "list", "--project", "lab", url=api.url)
    raw = cloudcode("keys", "list", "--json", url=api.url)
    gone = cloudcode("keys", "delete", "key_1", url=api.url)

    assert "operate, ingest" in listed.out
    assert json.loads(raw.out)["items"] == [KEY]
    assert api.asked[0][2] == {"project": ["lab"], "limit": ["50"]}
    assert (gone.code, "deleted key_1" in gone.err) == (0, True)


def test_a_key_is_made_once_and_set(api: Api) -> None:
    """Only what was named is sent; `default` takes a rate back."""
    api.answer("POST /v1/api-keys", 201, KEY | {"key": "cck_1"})
    api.answer("PATCH /v1/api-keys/key_1", 200, KEY)

    scopes = ["--scope", "operate", "--scope", "ingest"]
    made = cloudcode("keys", "create", "gateway 7", *scopes, url=api.url)
    done = cloudcode("keys", "set", "key_1", "--requests-per-minute", "default", url=api.url)
    wrong = cloudcode("keys", "set", "key_1", "--requests-per-minute", "many", url=api.url)

    assert ("cck_1" in made.out, "shown once" in made.err) == (True, True)
    assert api.bodies("POST /v1/api-keys") == [
        {"name": "gateway 7", "scopes": ["operate", "ingest"]}
    ]
    assert api.bodies("PATCH /v1/api-keys/key_1") == [{"requests_per_minute": None}]
    assert (done.code, wrong.code) == (0, 1)
    assert "'many' of --requests-per-minute is no number" in wrong.err
