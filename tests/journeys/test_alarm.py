"""An alarm, from the first product to the deleted function: one afternoon of a new user."""

import itertools
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from examples.slack_stand_in import SlackStandIn, Trouble

ALARM = """
export default {
  async afterStore(event, env, ctx) {
    const limit = Number(env.LIMIT);
    for (const { key, value } of event.data.values) {
      if (key !== "temperature" || !(value > limit)) continue;
      console.log("too hot:", value);
      await env.DEVICES.write(event.deviceId, [{ key: "alarm", value: true }]);
      await env.CHANNEL.send({ text: `VERSION ${value} °C on ${event.deviceId}` });
    }
  }
}
"""


class Plant:
    """One product with one device, an alarm function on it, and the channel it speaks in."""

    def __init__(self, engine: Any, slack: SlackStandIn, number: int) -> None:
        self.engine = engine
        self.slack = slack
        self.alarm = f"alarm-{number}"
        self.channel = f"CHANNEL_{number}"
        self.product = f"boiler-{number}"
        self.device = engine.device(self.product)
        credentials = {"webhook_url": slack.webhook_url}
        connection = {"kind": "slack", "credentials": credentials}
        engine.ok("PUT", f"/v1/connections/{self.channel}", connection)
        engine.deploy(self.alarm, self.source("one:"), variables={"LIMIT": "90"})
        trigger = {"function": self.alarm, "product": self.product, "keys": ["temperature"]}
        engine.ok("POST", "/v1/triggers", trigger)

    @property
    def path(self) -> str:
        return f"/v1/functions/{self.alarm}"

    def source(self, version: str) -> str:
        """Return the alarm's code; its messages begin with `version`."""
        return ALARM.replace("VERSION", version).replace("CHANNEL", self.channel)

    def write(self, key: str, value: Any) -> list[str]:
        """Write as the device does; return the executions that it causes."""
        body = {"values": [{"key": key, "value": value}]}
        return self.engine.ok("POST", f"/v1/devices/{self.device['id']}/values", body)["executions"]

    def heat(self, value: float) -> dict[str, Any]:
        """Write a temperature and return the execution once it has ended."""
        (execution,) = self.write("temperature", value)
        path = f"/v1/executions/{execution}"
        waits = {"queued", "running"}
        return self.engine.until(
            lambda: (found := self.engine.ok("GET", path))["status"] not in waits and found
        )

    def alarms(self) -> int:
        path = f"/v1/devices/{self.device['id']}/values?key=alarm&limit=200"
        return len(self.engine.ok("GET", path)["items"])

    def deploy(self, source: str, *, live: bool) -> int:
        """Upload the next version of the alarm and return its number."""
        path = f"{self.path}/versions?deploy={str(live).lower()}"
        return self.engine.ok("POST", path, {"source": source})["version"]

    def said(self, count: int) -> list[str]:
        """Return what arrived in the channel, once that many messages have."""
        self.engine.until(lambda: len(self.slack.messages) >= count)
        return [message["text"] for message in self.slack.messages]


@pytest.fixture
def slack() -> Iterator[SlackStandIn]:
    with SlackStandIn() as stand_in:
        yield stand_in


_numbers = itertools.count(1)


@pytest.fixture
def plant(engine: Any, slack: SlackStandIn) -> Iterator[Plant]:
    """A plant with version 1 of the alarm live, bound to writes of `temperature`."""
    plant = Plant(engine, slack, next(_numbers))
    yield plant
    engine.ok("DELETE", f"/v1/connections/{plant.channel}")


def test_an_alarm_goes_from_a_write_to_a_message(plant: Plant) -> None:
    """Product, device, connection, function, trigger, write: the message, and all its records."""
    cool = plant.heat(20)
    hot = plant.heat(95.5)
    other = plant.write("pressure", 99)

    text = f"one: 95.5 °C on {plant.device['id']}"
    assert plant.said(1) == [text]
    assert (cool["status"], cool["effects"]) == ("succeeded", [])
    assert other == []
    assert plant.alarms() == 1

    # The execution: what started it, what it cost, what it did.
    assert (hot["status"], hot["handler"], hot["cause"]) == ("succeeded", "afterStore", "write")
    assert (hot["function"], hot["version"], hot["attempt"]) == (plant.alarm, 1, 1)
    assert hot["device_id"] == plant.device["id"]
    assert hot["queue_ms"] >= 0
    assert hot["wall_ms"] >= hot["cpu_ms"] >= 0
    assert [effect["kind"] for effect in hot["effects"]] == ["write", "delivery"]

    # Its log.
    (line,) = plant.engine.ok("GET", f"/v1/executions/{hot['id']}/logs")["items"]
    assert (line["level"], line["msg"]) == ("info", "too hot: 95.5")

    # Its delivery, with each attempt and never the credentials.
    path = f"/v1/deliveries/{hot['effects'][1]['id']}"
    delivery = plant.engine.until(
        lambda: (found := plant.engine.ok("GET", path))["state"] == "delivered" and found
    )
    assert delivery["connection"] == plant.channel
    assert delivery["execution_id"] == hot["id"]
    assert delivery["payload"] == {"text": text}
    (attempt,) = delivery["attempts_log"]
    assert (attempt["status"], attempt["delivered"]) == (200, True)
    assert "webhook_url" not in str(delivery)


def test_a_delivery_outlives_trouble_at_the_provider(plant: Plant) -> None:
    """Slack answers 500 first: the run has long succeeded, and the message comes all the same."""
    plant.slack.then(Trouble(500, "rollup_error"))

    hot = plant.heat(120)

    assert hot["status"] == "succeeded"
    assert len(plant.said(1)) == 1
    listed = plant.engine.ok("GET", "/v1/deliveries", params={"execution": hot["id"]})["items"]
    assert len(listed) == 1
    plant.engine.until(
        lambda: plant.engine.ok("GET", f"/v1/deliveries/{listed[0]['id']}")["attempts"] == 2
    )


def test_a_broken_alarm_leaves_nothing_and_is_rolled_back(plant: Plant) -> None:
    """All or nothing: no alarm value and no message; one call brings the former version back."""
    broken = plant.source("two:").replace("    }\n  }", "      null.x;\n    }\n  }")
    assert plant.deploy(broken, live=True) == 2

    failed = plant.heat(95)
    rolled_back = plant.engine.ok("POST", f"{plant.path}/rollback")
    healed = plant.heat(96)

    assert (failed["status"], failed["version"]) == ("failed", 2)
    assert failed["effects"] == []
    assert (failed["error"]["name"], failed["error"]["file"]) == ("TypeError", "main.js")
    assert broken.splitlines()[failed["error"]["line"] - 1].strip() == "null.x;"
    assert rolled_back["versions"] == [{"version": 1, "percent": 100}]
    assert (healed["status"], healed["version"]) == ("succeeded", 1)
    assert plant.said(1) == [f"one: 96 °C on {plant.device['id']}"]
    assert plant.alarms() == 1


def test_a_new_version_takes_a_share(plant: Plant) -> None:
    """Uploading changes nothing; a deployment in percent parts the runs between two versions."""
    assert plant.deploy(plant.source("two:"), live=False) == 2
    before = plant.heat(1)
    shares = [{"version": 1, "percent": 50}, {"version": 2, "percent": 50}]

    plant.engine.ok("POST", f"{plant.path}/deployments", {"versions": shares})
    item = {"device": plant.device["id"], "values": [{"key": "temperature", "value": 2}]}
    plant.engine.ok("POST", "/v1/writes", [item] * 100)
    plant.engine.settled()

    runs = plant.engine.executions(function=plant.alarm)
    by_version = [sum(run["version"] == version for run in runs) for version in (1, 2)]
    shown = plant.engine.ok("GET", plant.path)
    assert before["version"] == 1
    assert sum(by_version) == 101
    assert min(by_version) >= 20  # of 100 fair coins, fewer once in 10^10
    assert sorted(share["version"] for share in shown["live"]) == [1, 2]


def test_a_deployment_that_makes_no_sense_changes_nothing(plant: Plant) -> None:
    """Percents that do not sum to 100, a version that is not there, nothing to roll back to."""
    client = plant.engine.client
    path = f"{plant.path}/deployments"

    answers = [
        client.post(path, json={"versions": [{"version": 1, "percent": 99}]}),
        client.post(path, json={"versions": [{"version": 9, "percent": 100}]}),
        client.post(path, json={"versions": []}),
        client.post(f"{plant.path}/rollback"),
    ]

    assert [answer.status_code for answer in answers] == [422, 422, 422, 409]
    assert plant.heat(1)["version"] == 1
    assert len(plant.engine.ok("GET", path)["items"]) == 1


def test_a_deleted_alarm_is_silent_and_remembered(plant: Plant) -> None:
    """Its trigger goes with it, writes go on, and its executions can still be read."""
    hot = plant.heat(99)
    plant.said(1)

    plant.engine.ok("DELETE", plant.path)

    assert plant.write("temperature", 99) == []
    triggers = plant.engine.ok("GET", "/v1/triggers", params={"product": plant.product})
    assert triggers["items"] == []
    assert plant.engine.client.get(plant.path).status_code == 404
    assert plant.engine.invoke(plant.alarm).status_code == 404
    assert plant.engine.ok("GET", f"/v1/executions/{hot['id']}")["status"] == "succeeded"
    assert [run["id"] for run in plant.engine.executions(function=plant.alarm)] == [hot["id"]]
    assert len(plant.slack.messages) == 1


def test_the_name_of_a_deleted_function_is_free(plant: Plant) -> None:
    """A new function of that name begins at version 1, and inherits no trigger."""
    plant.engine.ok("DELETE", plant.path)

    made = plant.engine.deploy(plant.alarm, "export default () => 'new'")

    assert made["version"] == 1
    assert plant.engine.invoke(plant.alarm).json() == "new"
    assert plant.write("temperature", 99) == []


def test_a_device_without_a_key_only_writes(plant: Plant) -> None:
    """The token of the device is enough to raise the alarm, and opens nothing else."""
    url, token = plant.engine.url, plant.device["token"]
    body = {"values": [{"key": "temperature", "value": 91}]}

    written = httpx.post(f"{url}/v2/things/{token}", json=body, verify=False)
    listed = httpx.get(f"{url}/v1/executions", headers={"Authorization": f"Bearer {token}"})

    assert (written.status_code, listed.status_code) == (201, 401)
    assert len(plant.said(1)) == 1
