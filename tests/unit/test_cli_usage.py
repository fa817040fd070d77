"""`cloudcode usage`: what it asks of the engine, and what it shows of it."""

# ruff: noqa: F811 - a test takes a fixture as a parameter of the name under which it imports it

import json
from typing import Any

from tests.unit.test_cli import Api, api, cloudcode  # noqa: F401 - a fixture

USAGE: dict[str, Any] = {
    "month": "2010-10",
    "items": [
        {
            "project_id": "prj_1",
            "project": "greenhouses",
            "month": {"cpu_seconds": 71.5, "runs": 3_000},
            "minute": {"cpu_seconds": 2.25, "runs": 12},
            "owed_cpu_seconds": 0.75,
            "allowances": {"cpu_seconds_per_month": 0, "cpu_seconds_per_minute": 2},
            "exceeded": "cpu_seconds_per_minute",
        }
    ],
}


def test_usage_is_a_line_a_project(api: Api) -> None:
    """What it has used, what it may use, and what is used up."""
    api.answer("GET /v1/usage", 200, USAGE)

    ran = cloudcode("usage", "--month", "2010-10", url=api.url)

    assert ran.code == 0
    words = ("greenhouses", "3000", "71.5", "no limit", "2.25", "0.75", "cpu_seconds_per_minute")
    assert [word for word in words if word not in ran.out] == []
    assert api.asked[0][2] == {"month": ["2010-10"]}


def test_usage_as_json_is_what_the_engine_said(api: Api) -> None:
    """The current month, unless another one is asked for."""
    api.answer("GET /v1/usage", 200, USAGE)

    ran = cloudcode("usage", "--json", url=api.url)

    assert json.loads(ran.out) == USAGE
    assert api.asked[0][2] == {}


def test_a_past_month_of_one_project_has_no_current_minute(api: Api) -> None:
    """`--project` after the verb names it; what is of now is empty."""
    past = USAGE["items"][0] | {"minute": None, "exceeded": None}
    api.answer("GET /v1/usage", 200, USAGE | {"items": [past]})

    ran = cloudcode("usage", "--month", "2010-09", "--project", "lab/7", url=api.url)

    assert (ran.code, "71.5" in ran.out) == (0, True)
    assert api.asked[0][2] == {"month": ["2010-09"], "project": ["lab/7"]}
