"""The walls as an operator meets them: every user, every lack, both settings of isolation_required.

A lack is a real one: the engine or the probe is started where the kernel refuses a call, as the
profile of a container or a unit of systemd would have it.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest

from sandbox.supervisor import Death
from tests.conftest import Engine
from tests.standins.ordinary_user import ORDINARY_ID, as_ordinary_user

START_S = 60
LAYERS = ("process", "rlimits", "namespaces", "identity", "privileges", "landlock", "seccomp")
ENGINE = [sys.executable, "-P", "-m", "engine"]
TRIAL = [sys.executable, "-I", "-m", "sandbox.lockdown.trial"]
PLUS = "function main(params, callback) { callback(null, params.a + params.b); }"
FULL = "function main() { const kept = []; for (;;) kept.push({ a: [1, 2, 3, kept.length] }); }"

# Runs a command where some calls fail with EPERM: `python -c` [[name, flag or 0], ...] COMMAND...
REFUSING = """
import errno, json, os, sys
import pyseccomp
rules = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
for name, flag in json.loads(sys.argv[1]):
    looks = [pyseccomp.Arg(0, pyseccomp.MASKED_EQ, flag, flag)] if flag else []
    rules.add_rule(pyseccomp.ERRNO(errno.EPERM), name, *looks)
rules.load()
os.execv(sys.argv[2], sys.argv[2:])
"""
NET, NEW_USER = 0x4000_0000, 0x1000_0000


def refusing(command: list[str], *calls: tuple[str, int]) -> list[str]:
    """Return the command line that runs `command` where these calls are refused.

    A call is its name, and a flag of its first argument without which it may pass; 0: it may not.
    """
    return [sys.executable, "-c", REFUSING, json.dumps(calls), *command]


AS_ROOT: list[Callable[[list[str]], list[str]]] = [list] if os.getuid() == 0 else []


@pytest.fixture(params=[*AS_ROOT, as_ordinary_user], ids=[*(["root"] * len(AS_ROOT)), "ordinary"])
def as_user(request: pytest.FixtureRequest) -> Callable[[list[str]], list[str]]:
    """Changes a command line, so that it runs as one kind of user."""
    return request.param


@pytest.fixture
def engine_as(
    as_user: Callable[[list[str]], list[str]],
) -> Iterator[Callable[..., Engine]]:
    """Starts engines of that user, on a data directory that is its own."""
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="cloudcode-walls-"))
        stack.callback(shutil.rmtree, folder)
        folder.chmod(0o755)
        (folder / "data").mkdir()
        if as_user is as_ordinary_user and os.getuid() == 0:
            os.chown(folder / "data", ORDINARY_ID, ORDINARY_ID)

        def start(*refused: tuple[str, int], **settings: str) -> Engine:
            class EngineOfUser(Engine):
                command: ClassVar[tuple[str, ...]] = tuple(
                    as_user(refusing(ENGINE, *refused) if refused else ENGINE)
                )

            engine = EngineOfUser(folder / "data", **settings).start()
            stack.callback(engine.stop)
            return engine

        yield start


def cells_of(engine: Engine) -> list[psutil.Process]:
    (zygote,) = [
        child
        for child in psutil.Process(engine.process.pid).children()
        if "sandbox.zygote_unsafe" in child.cmdline()
    ]
    return zygote.children()


def data_limit_of(cell: psutil.Process) -> str:
    text = Path(f"/proc/{cell.pid}/limits").read_text()
    return next(row for row in text.splitlines() if row.startswith("Max data size")).split()[3]


def test_an_engine_has_every_wall_whoever_runs_it(engine_as: Callable[..., Engine]) -> None:
    """With `strict` it starts; its cells run, die and are replaced, for root and anybody else."""
    engine = engine_as(isolation_required="strict", cell_memory_mb="64")
    engine.deploy("plus", PLUS)
    engine.deploy("full", FULL, limits={"memory_mb": 128, "cpu_ms": 2_000, "wall_ms": 20_000})

    before = engine.invoke("plus", {"a": 1, "b": 2})
    full = engine.invoke("full")
    users, limits = set(), set()
    for cell in cells_of(engine):
        with suppress(psutil.NoSuchProcess, FileNotFoundError):  # what ran `full`
            users.add(cell.uids().real)
            limits.add(data_limit_of(cell))
            cell.kill()
    after = engine.invoke("plus", {"a": 3, "b": 4})

    assert before.json() == 3
    assert full.json()["code"] == "memory_exceeded"  # V8 aborts, which is told apart from an attack
    assert users
    assert 0 not in users
    assert "unlimited" not in limits
    assert after.json() == 7


@pytest.mark.parametrize("as_user", [as_ordinary_user], ids=["ordinary"], indirect=True)
def test_best_effort_names_what_is_missing_once_and_runs(
    engine_as: Callable[..., Engine],
) -> None:
    """One wall less is said at the start, with what stands and the remedy; cells work."""
    engine = engine_as(("unshare", NET))
    engine.deploy("plus", PLUS)

    answer = engine.invoke("plus", {"a": 1, "b": 2})
    engine.process.terminate()
    assert engine.process.stdout is not None
    said = engine.process.stdout.read().decode()

    assert answer.json() == 3
    warnings = [line for line in said.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert warnings[0].startswith(
        "warning: namespaces is off: net: Operation not permitted"
        " (stands: user, mount, ipc, uts, pid). Remedy: "
    )
    assert "unshare" in warnings[0]


def test_strict_refuses_to_start_and_says_why(tmp_path: Path) -> None:
    """Each missing layer is named, with its remedy; the exit status tells a service manager."""
    refused = (("unshare", NET), ("landlock_create_ruleset", 0))
    command = [*ENGINE, "serve", "--port", "0", "--data-dir", str(tmp_path / "data")]

    done = subprocess.run(
        refusing(command, *refused),
        env={"PATH": os.environ["PATH"], "CLOUDCODE_ISOLATION_REQUIRED": "strict"},
        capture_output=True,
        timeout=START_S,
        text=True,
        check=False,
    )

    assert done.returncode != 0
    assert "listening on" not in done.stdout
    assert "\n  namespaces: net: Operation not permitted (stands: " in done.stderr
    assert "\n  landlock: the container's profile blocks Landlock. Remedy: allow" in done.stderr


DENIED = "Operation not permitted"
ALL_DENIED = "; ".join(f"{kind}: {DENIED}" for kind in ("net", "ipc", "uts", "mount"))
# What is refused, and what is then missing: of root, and of an ordinary user if that differs.
REFUSED: dict[str, tuple[tuple[tuple[str, int], ...], str, str, str]] = {
    "every namespace": (
        (("unshare", 0),),
        "namespaces",
        f"pid: {DENIED}; user: {DENIED}; {ALL_DENIED} (stands: none)",
        f"user: {DENIED}; pid: {DENIED}; {ALL_DENIED} (stands: none)",
    ),
    "user namespaces": (
        (("unshare", NEW_USER),),
        "namespaces",
        f"user: {DENIED} (stands: mount, net, ipc, uts, pid)",
        f"user: {DENIED}; pid: {DENIED}; {ALL_DENIED} (stands: none)",
    ),
    "mounts": (
        (("mount", 0),),
        "namespaces",
        "mount: Operation not permitted (stands: user, net, ipc, uts, pid)",
        "",
    ),
    "a new root": (
        (("pivot_root", 0),),
        "namespaces",
        "mount: Operation not permitted (stands: user, net, ipc, uts, pid)",
        "",
    ),
    "another host name": (
        (("sethostname", 0),),
        "namespaces",
        "uts: Operation not permitted (stands: user, mount, net, ipc, pid)",
        "",
    ),
    "Landlock": (
        (("landlock_create_ruleset", 0),),
        "landlock",
        "the container's profile blocks Landlock",
        "",
    ),
    "limits": (
        (("prlimit64", 0), ("setrlimit", 0)),
        "rlimits",
        "RLIMIT_NOFILE: ",
        "",
    ),
    "dropping capabilities": (
        (("capset", 0),),
        "privileges",
        "capabilities: Operation not permitted",
        "",
    ),
    "a filter": (
        (("seccomp", 0), ("prctl", 22)),
        "seccomp",
        "the filter was refused",
        "",
    ),
}


def layers(command: list[str]) -> dict[str, dict[str, Any]]:
    """Return what the probe's process prints, by name."""
    done = subprocess.run(command, capture_output=True, timeout=START_S, check=True)
    return {layer["name"]: layer for layer in json.loads(done.stdout)}


@pytest.mark.parametrize("what", REFUSED)
def test_what_the_machine_refuses_is_named_and_the_rest_stands(
    as_user: Callable[[list[str]], list[str]], what: str
) -> None:
    """The layer that needs it is missing, with what of it stands, and a remedy; no other is."""
    refused, layer, of_root, of_ordinary_user = REFUSED[what]

    found = layers(as_user(refusing(TRIAL, *refused)))

    assert tuple(found) == LAYERS
    assert [name for name in LAYERS if not found[name]["active"]] == [layer]
    expected = of_root if as_user is list else of_ordinary_user or of_root
    assert found[layer]["detail"].startswith(expected)
    assert found[layer]["remedy"]


@pytest.mark.skipif(os.getuid() != 0, reason="nobody but root has a user to change to")
def test_root_that_may_change_to_no_other_user_is_named() -> None:
    """A cell that stays root has no identity of its own; everything else stands."""
    found = layers(refusing(TRIAL, ("setresuid", 0)))

    assert [name for name in LAYERS if not found[name]["active"]] == ["identity"]
    assert found["identity"]["detail"] == "stays root: Operation not permitted"
    assert "ordinary user" in found["identity"]["remedy"]


def test_a_machine_without_room_for_namespaces_is_named() -> None:
    """`user.max_net_namespaces` at 0: the layer says what stands, and the sysctls to raise."""
    full = 'echo 0 > /proc/sys/user/max_net_namespaces; exec "$@"'
    command = ["unshare", "--user", "--map-current-user", "--keep-caps", "sh", "-c", full, "sh"]

    found = layers(as_ordinary_user([*command, *TRIAL]))

    assert not found["namespaces"]["active"]
    assert found["namespaces"]["detail"] == (
        "net: No space left on device (stands: user, mount, ipc, uts, pid)"
    )
    assert found["namespaces"]["remedy"] == "raise the sysctls user.max_*_namespaces"


# What ran out since the first cell: no more than four networks. Cells until there is none, then one
# more after one has gone; [how many, what was said, whether there was one again].
RUNS_OUT = """
import asyncio, json, sys
from sandbox.supervisor import Sandbox, SandboxError

async def main():
    sandbox = Sandbox(warm_count=0, cell_memory_mb=64, strict=sys.argv[1] == "strict")
    await sandbox.start()
    cells, said, again = [], "", False
    while not said and len(cells) < 9:
        try:
            cells.append(await sandbox.acquire())
        except SandboxError as error:
            said = str(error)
    cells[0].kill()
    for _ in range(50):
        try:
            again = all(one.active for one in (await sandbox.acquire()).layers)
            break
        except SandboxError:
            await asyncio.sleep(0.1)  # the kernel takes a network apart later
    await sandbox.close()
    print(json.dumps([len(cells), said, again]))

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("required", "words"),
    [
        ("best_effort", "a cell lacks a wall that the first one had: namespaces: net: No space"),
        ("strict", "isolation_required=strict, but namespaces: net: No space"),
    ],
)
def test_a_wall_that_stood_at_the_start_is_not_lost_later(required: str, words: str) -> None:
    """A cell without it is not used and the loss is logged; it passes with its cause."""
    few = 'echo 4 > /proc/sys/user/max_net_namespaces; exec "$@"'
    command = ["unshare", "--user", "--map-current-user", "--keep-caps", "sh", "-c", few, "sh"]

    done = subprocess.run(
        as_ordinary_user([*command, sys.executable, "-P", "-c", RUNS_OUT, required]),
        capture_output=True, timeout=START_S, text=True, check=True,
    )  # fmt: skip
    count, said, again = json.loads(done.stdout.splitlines()[-1])

    assert 1 <= count <= 4
    assert said.startswith(words)
    assert again
    assert "cell_without_a_wall" in done.stdout + done.stderr


HIDING = 'mount -t proc -o hidepid=2 proc /proc; exec "$@"'


@pytest.mark.skipif(os.getuid() != 0, reason="nobody but root mounts a /proc")
def test_cells_that_cannot_be_measured_are_named() -> None:
    """Where /proc hides them, limits on memory and CPU would be blind without a word."""
    command = ["unshare", "--mount", "sh", "-c", HIDING, "sh", *as_ordinary_user(TRIAL)]

    found = layers(command)

    assert [name for name in found if not found[name]["active"]] == ["metering"]
    assert "/proc/PID/status" in found["metering"]["detail"]
    assert "hidepid" in found["metering"]["remedy"]


def test_a_birth_without_a_process_names_the_reason() -> None:
    """`doctor` says what the kernel said."""
    done = subprocess.run(
        refusing(TRIAL, ("clone", 0)), capture_output=True, timeout=START_S, text=True, check=False
    )

    assert done.returncode != 0
    assert done.stderr.strip() == "no process can be started: Operation not permitted"


def test_doctor_says_the_same(tmp_path: Path) -> None:
    """An ordinary user that asks hears of each layer: its state, the reason and the remedy."""
    folder = ["--data-dir", "/tmp/cloudcode-none"]
    command = [*ENGINE, "doctor", "--json", "--strict", "--port", "0", *folder]

    done = subprocess.run(
        as_ordinary_user(refusing(command, ("unshare", NET))),
        capture_output=True,
        timeout=START_S,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        check=False,
    )
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}

    assert done.returncode == 1
    assert [checks[f"lockdown: {name}"]["ok"] for name in LAYERS] == [
        name != "namespaces" for name in LAYERS
    ]
    assert "net: Operation not permitted" in checks["lockdown: namespaces"]["detail"]
    assert checks["lockdown: namespaces"]["remedy"]
    assert checks["isolation: hardened"]["ok"]


@pytest.mark.parametrize("how", [(signal.SIGABRT, 0), (0, int(signal.SIGABRT))])
def test_an_abort_means_that_memory_was_short(how: tuple[int, int]) -> None:
    """By its signal, or, in a pid namespace, by an exit with its number; V8 says it that way."""
    number, status = how

    death = Death(signal=number, exit_code=status, peak_bytes=0)

    assert death.out_of_memory
