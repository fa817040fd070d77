"""One event that is retried, replayed and sent twice notifies each person once."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.conftest import Engine
from tests.standins.project import Project
from tests.standins.providers import twilio

TO = "+15005550010"
# Fails twice, each time with its message on the way, then tells in three ways.
WATCH = """
export default {
  async afterStore(event, env, ctx) {
    const value = event.data.values[0].value;
    const sms = (body) => env.SMS.send({ to: "+15005550010", body });
    await sms(`watch ${value}`);
    if (ctx.attempt < 3) throw new Error(`not yet: attempt ${ctx.attempt}`);
    await env.FN.call("escalate", { value });
    await env.DEVICES.write(event.deviceId, [{ key: "alarm", value }]);
    return ctx.attempt;
  },
};
"""
ESCALATE = """
export default {
  async job({ value }, env) {
    await env.SMS.send({ to: "+15005550010", body: `escalate ${value}` });
    await env.FN.call("deeper", { value });
  },
};
"""
DEEPER = """
export default async function ({ value }, env) {
  await env.SMS.send({ to: "+15005550010", body: `deeper ${value}` });
}
"""
FOUR = """
export default async function (p, env) {
  for (const n of [1, 2, 3, 4]) await env.FN.call("mail", { n });
}
"""
CLASSIC = """
function trigger(params, callback) {
  var alarm = params.values[0];
  new Twilio().sendMessage({ to: "+15005550010", body: "alarm " + alarm.value }, callback);
}
"""
SOON = {"max_attempts": 4, "backoff": {"kind": "fixed", "base_seconds": 0.05}}
BODIES = ["alarm 93", "deeper 93", "escalate 93", "watch 93"]


class Site:
    """A project with a boiler, and with functions that tell of it."""

    def __init__(self, engine: Engine, sms: twilio.StandIn) -> None:
        self.project = project = Project(engine, "one")
        self.sms = sms
        project.connect("SMS", sms)
        for name, source in {"escalate": ESCALATE, "deeper": DEEPER}.items():
            project.ok("POST", "/v1/functions", {"name": name, "source": source})
        project.ok("POST", "/v1/products", {"name": "boilers"})
        for name, source, key in (("watch", WATCH, "celsius"), ("classic", CLASSIC, "alarm")):
            fields = {"name": name, "source": source, "retries": SOON}
            project.ok("POST", "/v1/functions", fields)
            bound = {"function": name, "product": "boilers", "keys": [key]}
            project.ok("POST", "/v1/triggers", bound)
        self.device = project.ok("POST", "/v1/devices", {"product": "boilers", "name": "three"})

    def write(self, **value: Any) -> int:
        path = f"/v2/things/{self.device['token']}"
        return self.project.request("POST", path, {"values": [value]}).status_code

    def runs(self, function: str) -> list[dict[str, Any]]:
        query = {"function": function, "limit": 200}
        return self.project.ok("GET", "/v1/executions", params=query)["items"]

    def ended(self, function: str, count: int) -> list[dict[str, Any]]:
        """Wait until so many of its runs have succeeded, and none is under way."""

        def enough() -> list[dict[str, Any]]:
            runs = self.runs(function)
            done = [run for run in runs if run["status"] == "succeeded"]
            waits = [run for run in runs if run["status"] in {"queued", "running"}]
            return done if len(done) >= count and not waits else []

        return self.project.engine.until(enough)

    def replay(self, execution: str) -> None:
        self.project.ok("POST", f"/v1/executions/{execution}/replay")

    def bodies(self) -> list[str]:
        """Return what Twilio took in this project, once nothing is on its way."""
        waits = {"queued", "sending", "retrying"}
        self.project.engine.until(
            lambda: not any(row["state"] in waits for row in self.project.deliveries())
        )
        with self.sms.lock:
            return sorted(one["Body"] for one in self.sms.accepted)


@pytest.fixture
def site(engine: Engine) -> Iterator[Site]:
    with twilio.StandIn() as sms:
        yield Site(engine, sms)


def test_one_event_retried_replayed_and_duplicated_sends_one_sms(site: Site) -> None:
    """One each: of the trigger, the function it calls, that one's, and who hears its write."""
    reading = {"key": "celsius", "value": 93, "id": "reading-1"}

    first, second = site.write(**reading), site.write(**reading)
    (watch,) = site.ended("watch", 1)
    for name in ("escalate", "deeper", "classic"):
        site.ended(name, 1)
    once = site.bodies()
    for _ in range(2):
        site.replay(watch["id"])
    for name in ("watch", "escalate", "deeper", "classic"):
        site.ended(name, 3)

    assert (first, second) == (201, 200)
    assert len([run for run in site.runs("watch") if run["status"] == "succeeded"]) == 3
    assert once == site.bodies() == BODIES
    rows = site.project.deliveries()
    assert [row["state"] for row in rows] == ["delivered"] * 4
    shown = site.project.shown(watch["id"])
    assert shown["result"] == 3  # the attempt that got through


@pytest.mark.parametrize("function", ["escalate", "deeper", "classic"])
def test_a_run_below_replayed_by_itself_sends_nothing_more(site: Site, function: str) -> None:
    """It stands for the same cause, whoever makes it once more."""
    site.write(key="celsius", value=93, id="reading-1")
    site.ended("watch", 1)
    for name in ("escalate", "deeper", "classic"):
        site.ended(name, 1)
    (run,) = [one for one in site.runs(function) if one["status"] == "succeeded"]

    for _ in range(2):
        site.replay(run["id"])
    site.ended(function, 3)

    assert site.bodies() == BODIES


def test_another_event_is_another_message(site: Site) -> None:
    """The same value at another time is news: nothing is sent once for ever."""
    for number in (1, 2):
        site.write(key="celsius", value=93, id=f"reading-{number}")
    for name in ("watch", "escalate", "deeper", "classic"):
        site.ended(name, 2)

    assert site.bodies() == sorted(2 * BODIES)


@pytest.mark.parametrize(
    "make",
    [
        lambda project: project.module(
            f"await env.SMS.send({{ to: '{TO}', body: 'twice' }});"
            f"await env.SMS.send({{ to: '{TO}', body: 'twice' }});"
        ),
        lambda project: project.classic(
            f"var t = new Twilio(); t.sendMessage({{ to: '{TO}', body: 'twice' }});"
            f"t.sendMessage({{ to: '{TO}', body: 'twice' }}, callback);"
        ),
    ],
    ids=["module", "classic"],
)
def test_two_equal_sends_in_one_run_are_two_messages(
    site: Site, make: Callable[[Project], str]
) -> None:
    """Two wishes with one text; and when the run is made once more, the same two."""
    name = make(site.project)

    run = site.project.run(name)
    site.replay(run["id"])
    site.ended(name, 2)

    assert len({effect["id"] for effect in run["effects"]}) == 2
    assert site.bodies() == ["twice", "twice"]


def test_a_dead_letter_redriven_sends_one_sms(site: Site) -> None:
    """What failed for good, with its message on the way, is made again by hand: one message."""
    source = """
      export default { async job(p, env) {
        await env.SMS.send({ to: "+15005550010", body: "redriven" });
        if (await env.KV.get("ready") === null) throw new Error("not ready");
      } };
    """
    once = {"max_attempts": 1}
    site.project.ok("POST", "/v1/functions", {"name": "late", "source": source, "retries": once})
    asked = site.project.ok(
        "POST", "/v1/functions/late/invoke", None, headers={"Prefer": "respond-async"}
    )

    def letters() -> list[dict[str, Any]]:
        return site.project.ok("GET", "/v1/dead-letters", params={"function": "late"})["items"]

    (letter,) = site.project.engine.until(letters)
    site.project.ok("PUT", "/v1/kv/default/ready", True)
    site.project.ok("POST", f"/v1/dead-letters/{letter['id']}/redrive")
    (run,) = site.ended("late", 1)
    site.replay(run["id"])
    site.ended("late", 2)

    assert asked["execution_id"]
    assert site.bodies() == ["redriven"]


def test_batches_of_one_run_are_told_apart(site: Site) -> None:
    """Two batches with one text are two messages; a batch that comes again is the same one."""
    source = """
      export default { async queue(batch, env) {
        await env.SMS.send({ to: "+15005550010", body: "batch" });
        if (batch.messages[0].attempts < 2) throw new Error("not yet");
      } };
    """
    settings = {"max_batch_size": 2, "max_batch_timeout": 20}
    site.project.ok(
        "POST",
        "/v1/functions",
        {"name": "mail", "source": source, "queue": settings, "retries": SOON},
    )
    site.project.ok("POST", "/v1/functions", {"name": "four", "source": FOUR})

    site.project.ask("four")
    batches = site.ended("mail", 2)
    once = site.bodies()
    for batch in batches:
        site.replay(batch["id"])
    site.ended("mail", 4)

    assert once == site.bodies() == ["batch", "batch"]


def test_two_triggers_of_one_function_are_two_messages(site: Site) -> None:
    """A write that both hear; made once more, with more in it than before, it is the same write."""
    project, device = site.project, site.device["id"]
    tell = f"""
      export default {{ async afterStore(event, env) {{
        await env.SMS.send({{ to: "{TO}", body: "changed" }});
      }} }};
    """
    project.ok("POST", "/v1/functions", {"name": "tell", "source": tell})
    for key in ("a", "b"):
        bound = {"function": "tell", "product": "boilers", "keys": [key]}
        project.ok("POST", "/v1/triggers", bound)
    write = project.module(f"""
      const runs = (await env.KV.get("runs") ?? 0) + 1;
      if (runs > 1) await env.KV.put("again", true);
      await env.DEVICES.write("{device}", [{{ key: "a", value: 1 }}, {{ key: "b", value: 2 }}]);
      await env.KV.put("runs", runs);
    """)

    run = project.run(write)
    site.ended("tell", 2)
    once = site.bodies()
    site.replay(run["id"])
    site.ended("tell", 4)

    assert once == site.bodies() == ["changed", "changed"]
