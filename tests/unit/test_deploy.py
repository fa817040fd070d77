"""What stands in deploy/ fits this engine: settings, commands, ports, times, files.

The Compose file is checked against the shape that Compose documents, as far as we use it; the
units by `systemd-analyze`, where there is one.
"""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
import typer.main
import yaml

from engine.cli import app as command_line
from engine.cli.serve import WORKER_PORT
from engine.serve import GRACE_S
from engine.settings import Settings
from engine.wiring import DRAIN_S, WORKER_DRAIN_S

ROOT: Final = Path(__file__).parents[2]
DEPLOY: Final = ROOT / "deploy"
FILES: Final = sorted(file for file in DEPLOY.rglob("*") if file.is_file() and file.name != ".env")
UNITS: Final = sorted((DEPLOY / "systemd").iterdir())
EXAMPLE: Final = DEPLOY / "cloudcode.env.example"
PROGRAM: Final = "/opt/cloudcode/.venv/bin/cloudcode"
# Of the Compose Specification, what we use; Compose refuses any other word.
KEYS_OF_A_SERVICE: Final = {
    "build", "cap_drop", "command", "depends_on", "deploy", "env_file", "environment",
    "healthcheck", "image", "init", "mem_limit", "pids_limit", "ports", "read_only", "restart",
    "security_opt", "shm_size", "stop_grace_period", "tmpfs", "ulimits", "volumes",
}  # fmt: skip
KEYS_OF_A_HEALTHCHECK: Final = {"test", "interval", "timeout", "retries", "start_period"}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "docker-compose.yml").read_text())


def commands() -> Iterator[tuple[str, list[str]]]:
    """Yield (file, words after `cloudcode`) of every command line that there is."""
    for service in yaml.safe_load((DEPLOY / "docker-compose.yml").read_text())["services"].values():
        if service.get("command", [""])[0] == "cloudcode":
            yield "docker-compose.yml", service["command"][1:]
    for file in FILES:
        for line in file.read_text().splitlines():
            words = line.partition("#")[0]
            if file.name == "Dockerfile" and (
                found := re.search(r'CMD \["cloudcode", (.*)\]', line)
            ):
                yield file.name, [word.strip('" ') for word in found[1].split(",")]
            elif file.suffix == ".service" and line.startswith("ExecStart="):
                yield file.name, shlex.split(words)[1:]
            elif file.suffix == ".md" and (found := re.match(r"(?:\S*/)?cloudcode (.*)", words)):
                yield file.name, shlex.split(found[1])
            elif file.suffix == ".md":
                yield from (
                    (file.name, shlex.split(found))
                    for found in re.findall(r"`cloudcode (.+?)`", line)
                )


def settings_named(text: str) -> set[str]:
    return set(re.findall(r"\bCLOUDCODE_[A-Z_]+\b", text))


def example() -> dict[str, str]:
    lines = [line for line in EXAMPLE.read_text().splitlines() if line and line[0] != "#"]
    return dict(line.split("=", 1) for line in lines)


def unit(file: Path) -> list[tuple[str, str]]:
    lines = [line for line in file.read_text().splitlines() if "=" in line and line[0] != "#"]
    return [(name, value) for name, _, value in (line.partition("=") for line in lines)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_setting_is_one(file: Path) -> None:
    """A name that is misspelt would be passed over in silence."""
    known = {f"CLOUDCODE_{name.upper()}" for name in Settings.model_fields}

    assert settings_named(file.read_text()) - known == set()


@pytest.mark.parametrize(("file", "words"), list(commands()), ids=str)
def test_every_command_is_one(file: str, words: Sequence[str]) -> None:
    """With options that it has."""
    command: Any = typer.main.get_command(command_line.build())
    rest = list(words)
    while verbs := getattr(command, "commands", None):
        command = verbs[rest.pop(0)]
    options = {name for part in command.params for name in part.opts}

    assert {word for word in rest if word.startswith("-")} <= options


def test_the_commands_were_found() -> None:
    """So that the test above tests something."""
    found = {(file, words[0]) for file, words in commands()}

    assert found >= {
        ("Dockerfile", "serve"),
        ("docker-compose.yml", "serve"),
        ("docker-compose.yml", "worker"),
        ("cloudcode-serve.service", "serve"),
        ("cloudcode-worker@.service", "worker"),
        ("README.md", "migrate"),
    }


def test_the_example_of_settings_is_read_alike_by_all_who_read_it() -> None:
    """Compose and systemd differ in quotes, spaces and what stands behind a value."""
    for name, value in example().items():
        assert re.fullmatch(r"[A-Z_]+", name)
        assert re.fullmatch(r"[\w./:@+-]*", value), name


def test_the_example_holds_no_key_that_somebody_might_keep() -> None:
    """An engine with a key from a public repository would be open to everyone."""
    given = example()

    assert given["CLOUDCODE_MASTER_KEY"] == ""
    assert given["CLOUDCODE_ADMIN_KEY"] == ""
    assert given["POSTGRES_PASSWORD"] == ""


def test_compose_knows_every_word(compose: dict[str, Any]) -> None:
    """And each service that another one waits for, and each volume, is there."""
    assert {name for name in compose if not name.startswith("x-")} == {
        "name",
        "services",
        "volumes",
    }
    for name, service in compose["services"].items():
        assert service.keys() <= KEYS_OF_A_SERVICE, name
        assert service["healthcheck"].keys() <= KEYS_OF_A_HEALTHCHECK, name
        assert service["healthcheck"]["test"][0] == "CMD", name
        assert service.get("depends_on", {}).keys() <= compose["services"].keys(), name
        named = {volume.split(":")[0] for volume in service.get("volumes", [])}
        assert named <= compose["volumes"].keys(), name


def test_compose_asks_for_what_the_example_says(compose: dict[str, Any]) -> None:
    """A key that was not filled in stops it before anything starts."""
    asked = dict(re.findall(r"\$\{(\w+)(:\?)?", str(compose)))

    assert asked == dict.fromkeys(
        ("POSTGRES_PASSWORD", "CLOUDCODE_MASTER_KEY", "CLOUDCODE_ADMIN_KEY"), ":?"
    )
    assert asked.keys() <= example().keys()


@pytest.mark.parametrize(("name", "port"), [("serve", 8700), ("worker", WORKER_PORT)])
def test_a_node_is_asked_how_it_is_where_it_listens(
    compose: dict[str, Any], name: str, port: int
) -> None:
    """/readyz of its own port; and two of each kind run."""
    service = compose["services"][name]
    command = service["command"]
    given = command[command.index("--port") + 1] if "--port" in command else str(port)

    assert given == str(port)
    assert f"http://127.0.0.1:{port}/readyz" in service["healthcheck"]["test"][-1]
    assert service["deploy"]["replicas"] == 2


def test_the_image_has_what_the_engine_is_made_of() -> None:
    """Nothing else gets into it, secrets and data directories least of all."""
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]

    assert "*" in ignored
    assert {line[1:] for line in ignored if line.startswith("!")} == {
        *packages, "pyproject.toml", "README.md", "LICENSE",
    }  # fmt: skip


def test_a_container_writes_nowhere_but_to_memory(compose: dict[str, Any]) -> None:
    """As the user of the image, whose home it is."""
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    (uid,) = re.findall(r"--uid (\d+)", dockerfile)
    (home,) = re.findall(r"CLOUDCODE_DATA_DIR=(\S+)", dockerfile)

    for name in ("serve", "worker"):
        service = compose["services"][name]
        assert service["read_only"]
        assert service["tmpfs"] == ["/tmp", f"{home}:uid={uid},mode=0700"]


def test_a_stop_is_given_the_time_that_the_engine_takes(compose: dict[str, Any]) -> None:
    """Open requests, then runs, then what is left to write."""
    most_s = GRACE_S + max(DRAIN_S, WORKER_DRAIN_S) + 10

    for name in ("serve", "worker"):
        assert int(compose["services"][name]["stop_grace_period"].removesuffix("s")) >= most_s
    for file in UNITS:
        assert int(dict(unit(file))["TimeoutStopSec"]) >= most_s


def test_the_units_differ_in_what_they_start_alone() -> None:
    """What is taken away from one kind of node is taken away from the other."""
    serve, worker = (
        [pair for pair in unit(file) if pair[0] not in {"Description", "ExecStart"}]
        for file in UNITS
    )

    assert serve == worker


def test_the_units_leave_cells_what_they_need() -> None:
    """V8 and Wasmtime compile; a cell that the kernel kills is no reason to stop the node."""
    said = dict(unit(UNITS[0]))

    assert said["OOMPolicy"] == "continue"
    assert said["KillMode"] == "mixed"
    assert said["Restart"] == "always"
    assert said["SystemCallFilter"].startswith("~")
    assert {"MemoryDenyWriteExecute", "RestrictNamespaces", "LimitNPROC"} & said.keys() == set()


def test_systemd_understands_the_units(tmp_path: Path) -> None:
    """Each word, each value, and the program is where they say."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is missing: this machine has no systemd")
    here = Path(sys.executable).with_name("cloudcode")
    for file in UNITS:
        text = file.read_text()
        assert f"ExecStart={PROGRAM} " in text
        (tmp_path / file.name).write_text(text.replace(PROGRAM, str(here)))

    found = subprocess.run(
        ["systemd-analyze", "verify", *(str(tmp_path / file.name) for file in UNITS)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    ours = [line for line in found.stderr.splitlines() if "cloudcode" in line]
    assert ours == []
