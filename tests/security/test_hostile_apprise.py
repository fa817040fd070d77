"""URLs, servers and plugins of Apprise that want more than to send a message.

The connection's checks refuse most of the URLs at once. Here they go past those checks to the
process itself, which has to hold alone.
"""

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from ipaddress import ip_network

import psutil
import pytest

from engine.connectors import CONNECTORS, apprise_child
from engine.connectors.apprise_processes import AppriseProcesses
from engine.connectors.contract import Answer, Outgoing, Refused, Retry, Sent, check_connection
from engine.egress import Egress
from engine.errors import Invalid
from tests.conftest import Engine
from tests.standins.provider import Reply
from tests.standins.providers.apprise import TOPIC, StandIn

pytestmark = pytest.mark.slow  # a process is started in most of them

APPRISE = CONNECTORS["apprise"]


@pytest.fixture
def ntfy() -> Iterator[StandIn]:
    with StandIn() as stand_in:
        yield stand_in


@pytest.fixture
async def outside() -> AsyncIterator[Egress]:
    """Nothing inside is allowed."""
    egress = Egress(())
    yield egress
    await egress.close()


@pytest.fixture
async def inside() -> AsyncIterator[Egress]:
    """This machine is allowed, as an operator may."""
    egress = Egress([ip_network("127.0.0.0/8")])
    yield egress
    await egress.close()


async def send(egress: Egress, url: str, timeout_ms: int = 5_000, body: str = "hello") -> Answer:
    return await APPRISE.send(
        egress,
        Outgoing(
            action="send",
            message={"body": body},
            credentials={"url": url},
            settings={},
            delivery_id="dlv_1",
            attempt=1,
            now_ms=1_700_000_000_500,
            timeout_ms=timeout_ms,
        ),
    )


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "LOCALHOST.",
        "127.1",
        "2130706433",
        "0x7f000001",
        "017700000001",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "0.0.0.0",
    ],
)
async def test_this_machine_is_not_reached(ntfy: StandIn, outside: Egress, host: str) -> None:
    """However it is spelt, and by whichever name: the address is what is checked."""
    port = ntfy.url.rpartition(":")[2]

    answers = [await send(outside, f"{way}://{host}:{port}/{TOPIC}") for way in ("ntfy", "json")]

    assert ntfy.asked == []
    for answer in answers:  # Retry: a name server that does not know it may yet
        assert isinstance(answer, Refused) or "resolved" in answer.error, answer


@pytest.mark.parametrize(
    ("host", "word"),
    [
        ("169.254.169.254", "metadata"),
        ("[fd00:ec2::254]", "metadata"),
        ("10.0.0.5", "private"),
        ("192.168.1.1", "private"),
        ("100.64.0.1", "CGNAT"),
    ],
)
async def test_networks_inside_are_not_reached(outside: Egress, host: str, word: str) -> None:
    """The error says why, and what the operator can do; a metric counts it."""
    answer = await send(outside, f"json://{host}/latest/meta-data")

    assert isinstance(answer, Refused)
    assert word in answer.error
    assert "CLOUDCODE_EGRESS_ALLOW=" in answer.error
    assert outside.blocked["address"] == 1


async def test_a_redirect_leads_nowhere(ntfy: StandIn, inside: Egress) -> None:
    """Neither to what is forbidden nor to what is allowed."""
    with StandIn() as elsewhere:
        for target in (elsewhere.url, "http://169.254.169.254/"):
            ntfy.then(Reply(status=307, headers={"Location": target}))
            answer = await send(inside, ntfy.address(query="?redirect=yes"))
            assert isinstance(answer, Refused), answer

        assert elsewhere.asked == []
    assert len(ntfy.asked) == 2


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "syslog://",
        "dbus://",
        "gnome://",
        "windows://",
        "macosx://",
        "rsyslog://127.0.0.1/local0",
        "mailto://user:password@127.0.0.1",
        "mqtt://127.0.0.1/topic",
        "nostr://127.0.0.1",
        "memory://",
        "include://127.0.0.1/config",
        "nothing://at/all",
    ],
)
async def test_only_services_are_sent_to(inside: Egress, url: str) -> None:
    """Not this machine's own, nor other protocols: at PUT, and in the process."""
    with pytest.raises(Invalid, match="not one of the services"):
        check_connection(APPRISE, {"url": url}, {})

    answer = await send(inside, url)

    assert isinstance(answer, Refused), answer


@pytest.mark.parametrize(
    "query",
    [
        "verify=no",
        "VERIFY=no",
        "%76erify=no",
        "redirect=yes",
        "retry=5",
        "wait=9",
        "optional=yes",
        "overflow=split",
        "attach=/etc/passwd",
        "attach=file:///etc/passwd",
        "template=/etc/passwd",
        "keyfile=/etc/passwd",
        "tag=all",
    ],
)
def test_options_that_change_what_a_delivery_is_are_refused(query: str) -> None:
    """When the connection is put."""
    with pytest.raises(Invalid, match="not possible here"):
        check_connection(APPRISE, {"url": f"ntfys://host/topic?{query}"}, {})


async def test_such_options_do_nothing_in_the_process(ntfy: StandIn, inside: Egress) -> None:
    """A failure stays one; it is one request; long text stays one message."""
    ntfy.then(Reply(status=500))

    failed = await send(inside, ntfy.address(query="?optional=yes&retry=3&wait=0"))
    split = await send(inside, ntfy.address(query="?overflow=split"), body="x" * 20_000)

    assert isinstance(failed, Retry)
    assert isinstance(split, Refused)
    assert len(ntfy.asked) == 1


@pytest.mark.parametrize(
    "url",
    [
        "workflow://{host}/workflow/signature/?template=/etc/passwd",
        "workflow://{host}/workflow/signature/?template=file:///etc/passwd",
        "onebot://{host}/?template=/etc/passwd",
        "fcm://project/device?mode=oauth2&keyfile=/etc/passwd",
    ],
)
async def test_no_file_of_this_machine_is_read(ntfy: StandIn, inside: Egress, url: str) -> None:
    """Plugins read templates and keys from paths; here they cannot."""
    answer = await send(inside, url.format(host=ntfy.url.removeprefix("http://")))

    assert isinstance(answer, Refused | Retry), answer
    assert not any(b"root:" in asked.body for asked in ntfy.asked)
    assert "root:" not in answer.error


async def test_certificates_are_always_checked(inside: Egress, ntfy: StandIn) -> None:
    """`verify=no` does not get a connection to what is not TLS, or not trusted."""
    port = ntfy.url.rpartition(":")[2]

    answer = await send(inside, f"ntfys://127.0.0.1:{port}/{TOPIC}?verify=no")

    assert answer == Retry(None, None, "no TLS connection to the provider")


async def test_a_huge_answer_is_not_read(ntfy: StandIn, inside: Egress) -> None:
    """The process stays small, and takes the next message."""
    ntfy.then(Reply(body=b"x" * 30_000_000))

    answer = await send(inside, ntfy.address())
    (pid,) = inside.companion(AppriseProcesses).pids

    assert answer == Sent(200)
    assert psutil.Process(pid).memory_info().rss < 150_000_000
    assert await send(inside, ntfy.address()) == Sent(200)


async def test_a_huge_message_is_one_answer(ntfy: StandIn, inside: Egress) -> None:
    """As large as a message may be; whether it is taken is the service's to say."""
    answer = await send(inside, ntfy.url.replace("http", "json"), body="☃" * 80_000)

    assert isinstance(answer, Refused)  # the stand-in is no receiver of custom JSON
    assert len(ntfy.asked) == 1


async def test_slow_servers_do_not_outlast_their_time(ntfy: StandIn, inside: Egress) -> None:
    """Silence, and a byte now and then: the process says so itself, and lives on."""
    await send(inside, ntfy.address())
    before = inside.companion(AppriseProcesses).pids
    ntfy.then(Reply(fault="hang"), Reply(fault="trickle", body=b"x" * 50))

    answers = [await send(inside, ntfy.address(), timeout_ms=400) for _ in range(2)]

    assert answers == [Retry(None, None, "the provider did not answer in time")] * 2
    assert inside.companion(AppriseProcesses).pids == before


ACTIONS = {
    "read a file": "open('/etc/passwd')",
    "read a file by a detour": "open(sys.prefix + '/lib/../../../../../../../../etc/passwd')",
    "write a file": "open('/tmp/x', 'w')",
    "write beside Python": "open(sys.prefix + '/x', 'w')",
    "list a folder": "os.listdir('/')",
    "remove a file": "os.remove('/tmp/x')",
    "start a program": "subprocess.run(['/bin/true'])",
    "start a shell": "os.system('true')",
    "become a program": "os.execv('/bin/true', ['true'])",
    "fork": "os.fork()",
    "kill": "os.kill(os.getppid(), 0)",
    "load a library": "__import__('ctypes').CDLL(None)",
    "make a Unix socket": "socket.socket(socket.AF_UNIX)",
    "make a pair of sockets": "socket.socketpair()",
    "listen": "socket.socket().bind(('127.0.0.1', 0))",
    "send a datagram": "socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('1.1.1.1', 53))",
    "connect by name": "socket.socket().connect(('localhost', 1))",
    "connect inside": "socket.socket().connect(('10.0.0.5', 1))",
    "connect by IPv6": "socket.socket(socket.AF_INET6).connect(('::1', 1))",
    "connect by a mapped address": (
        "socket.socket(socket.AF_INET6).connect(('::ffff:127.0.0.1', 1))"
    ),
    "connect to a link": "socket.socket(socket.AF_INET6).connect(('fe80::1%lo', 1))",
    "look up what is closed": "socket.getaddrinfo('closed.example', 443)",
    "ask over urllib": "__import__('urllib.request').request.urlopen('http://127.0.0.1:1/')",
}
PLAY = """
import json, os, runpy, socket, subprocess, sys, urllib.request
child = runpy.run_path({path!r})
sys.addaudithook(child["Seal"](child["Wire"](), child["Reach"](deny_hosts=("closed.example",))))
told = {{}}
for name, action in json.loads({actions!r}).items():
    try:
        eval(action)
        told[name] = "done"
    except child["Forbidden"]:
        told[name] = "refused"
    except BaseException as error:
        told[name] = repr(error)
print(json.dumps(told))
"""


def test_what_a_plugin_may_not_do() -> None:
    """Each of these is refused by the audit hook itself, not by chance."""
    code = PLAY.format(path=apprise_child.__file__, actions=json.dumps(ACTIONS))

    told = json.loads(subprocess.check_output([sys.executable, "-I", "-c", code]))

    assert told == dict.fromkeys(ACTIONS, "refused")


def test_a_killed_engine_leaves_no_process(
    own_engine: Callable[..., Engine], ntfy: StandIn
) -> None:
    """Not even one that is in the middle of a message."""
    engine = own_engine()
    engine.ok("PUT", "/v1/connections/NTFY", ntfy.connection())
    engine.deploy(
        "f", "export default { async job(p, env) { await env.NTFY.send({body: 'x'}); } };"
    )
    ntfy.then(Reply(fault="hang"))
    engine.invoke("f")
    engine.until(lambda: ntfy.asked)
    (child,) = children(engine)

    engine.kill()

    psutil.wait_procs([child], timeout=5)
    assert not child.is_running()


def test_a_stopped_engine_leaves_no_process(
    own_engine: Callable[..., Engine], ntfy: StandIn
) -> None:
    """An idle one is ended and waited for."""
    engine = own_engine()
    engine.ok("PUT", "/v1/connections/NTFY", ntfy.connection())
    engine.deploy(
        "f", "export default { async job(p, env) { await env.NTFY.send({body: 'x'}); } };"
    )
    engine.invoke("f")
    engine.until(lambda: ntfy.accepted)
    (child,) = children(engine)

    engine.stop()

    assert not child.is_running()


def children(engine: Engine) -> list[psutil.Process]:
    below = psutil.Process(engine.process.pid).children(recursive=True)
    return [one for one in below if any("apprise_child" in part for part in one.cmdline())]
