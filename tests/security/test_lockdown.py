"""What a locked-down cell can still do (run V8) and what it cannot (everything else).

Each test is a snippet that runs inside a real cell: forked from a real zygote, V8 initialised,
locked down, in a process of its own so that pytest stays clean. Its value comes back as JSON.
All of them run with a zygote of root and with one of an ordinary user, where the tests may.
"""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox.lockdown import Birth, Layer, lock_down, prepare, probe
from tests.standins.ordinary_user import ORDINARY_ID, as_ordinary_user

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the lockdown is Linux only")

# Runs as `python -I -c`. One request a line on stdin, one answer a line on stdout.
ZYGOTE = '''
import ctypes, errno, gc, json, linecache, mmap, os, platform, queue, random, resource, select
import signal, socket, struct, sys, threading, time, traceback
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from py_mini_racer import _dll
from sandbox.lockdown import Birth, adopt, cap_memory, lock_down, open_statm, prepare, spawn
from sandbox.lockdown import identity, landlock_unsafe, layer, namespaces_unsafe, seccomp_unsafe
from dataclasses import replace
from functools import partial

ctypes.CDLL(str(Path(_dll.__file__).with_name("libmini_racer.so")))
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
PREPARED = prepare()
adopt()
LEFT_OUT = layer.missing("seccomp", "left out by a test", "put it back")
NO_FILTER = replace(PREPARED, seccomp=LEFT_OUT)
NEIGHBOUR = socket.socket(socket.AF_UNIX)  # what a cell could reach if it shared the node's names
NEIGHBOUR.bind(b"\\0lockdown-%d" % os.getpid())
NEIGHBOUR.listen()
SHARED_KEY = os.getpid()
SHARED = libc.shmget(SHARED_KEY, 4096, 0o1600)
INHERITED = os.open("/etc/passwd", os.O_RDONLY)
os.set_inheritable(INHERITED, True)
ZYGOTE_PID = os.getpid()
os.environ["SECRET"] = "of the engine"
X86 = platform.machine() == "x86_64"
NUMBERS = {  # x86-64, arm64
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "mprotect": (10, 226), "ioctl": (16, 29),
    "madvise": (28, 233), "dup": (32, 23), "pipe2": (293, 59), "eventfd2": (290, 19),
    "socket": (41, 198), "connect": (42, 203), "accept4": (288, 242), "sendto": (44, 206),
    "sendmsg": (46, 211), "recvmsg": (47, 212), "bind": (49, 200), "socketpair": (53, 199),
    "setsockopt": (54, 208), "clone": (56, 220), "execve": (59, 221), "kill": (62, 129),
    "uname": (63, 160), "fcntl": (72, 25), "chdir": (80, 49), "getdents64": (217, 61),
    "ptrace": (101, 117), "setuid": (105, 146), "capset": (126, 91), "prctl": (157, 167),
    "chroot": (161, 51), "mount": (165, 40), "umount2": (166, 39), "init_module": (175, 105),
    "futex": (202, 98), "unlinkat": (263, 35), "mkdirat": (258, 34), "openat": (257, 56),
    "newfstatat": (262, 79), "tgkill": (234, 131), "clock_gettime": (228, 113),
    "unshare": (272, 97), "perf_event_open": (298, 241), "prlimit64": (302, 261),
    "setns": (308, 268), "process_vm_readv": (310, 270), "seccomp": (317, 277),
    "memfd_create": (319, 279), "bpf": (321, 280), "execveat": (322, 281),
    "userfaultfd": (323, 282), "keyctl": (250, 219), "shmget": (29, 194), "mq_open": (180, 180),
    "inotify_init1": (294, 26), "timer_create": (222, 107), "epoll_create1": (291, 20),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "clone3": (435, 435),
    "mmap": (9, 222), "getsockopt": (55, 209),
    "io_uring_setup": (425, 425), "openat2": (437, 437), "process_madvise": (440, 440),
}

def call(name, *arguments):
    """Make a raw system call; return its result, or the name of its errno."""
    ctypes.set_errno(0)
    number = ctypes.c_long(NUMBERS[name][0 if X86 else 1])
    returned = libc.syscall(number, *(
        ctypes.c_ulong(a) if isinstance(a, int) else a for a in arguments))
    return errno.errorcode[ctypes.get_errno()] if returned == -1 else returned

class Isolate:
    """One V8 isolate, driven as the cell does: through the C functions, with a callback."""

    def __init__(self):
        self.answers = queue.SimpleQueue()
        self.callback = _dll.MR_CALLBACK(self.answer)
        self.context = V8.mr_init_context(self.callback)

    def answer(self, _, raw):
        value, length, kind = raw.contents.value, raw.contents.len, raw.contents.type
        if kind == 3:
            self.answers.put(value.int_val)
        elif kind == 4:
            self.answers.put(value.double_val)
        elif kind == 202:
            self.answers.put("out of memory")
        elif kind == 204:
            self.answers.put("terminated")
        else:
            self.answers.put(ctypes.string_at(value.bytes_val, length).decode())

    def start(self, code):
        text = code.encode()
        handle = V8.mr_alloc_string_val(self.context, text, len(text), 5)
        return V8.mr_eval(self.context, handle, 1)

    def eval(self, code):
        self.start(code)
        return self.answers.get(timeout=15)

def be_a_cell(channel, request, birth):
    global V8, LAYERS, SOCKET, BIRTH
    SOCKET, BIRTH = channel, birth
    if request["v8"]:
        V8 = _dll.init_mini_racer(flags=("--single-threaded",))
    exec(request["before"], globals())
    if request["lock"] == "all":
        LAYERS = lock_down(PREPARED, channel.fileno(), birth=birth)
    elif request["lock"] == "without seccomp":
        LAYERS = lock_down(NO_FILTER, channel.fileno(), birth=birth)
    elif request["lock"] == "only namespaces":
        pid = birth.wait()
        LAYERS = namespaces_unsafe.settle(birth, lambda: identity.become_nobody_else(pid))
    elif request["lock"] == "only seccomp":
        LAYERS = (seccomp_unsafe.load_filter(PREPARED.seccomp),)
    elif request["lock"] == "only landlock":
        libc.prctl(38, 1, 0, 0, 0)
        LAYERS = (landlock_unsafe.deny_all(landlock_unsafe.count_threads()),)
    value = eval(request["code"], globals())
    channel.sendall(json.dumps(value).encode() + b"\\n")

def fork_plainly(live):
    pid = os.fork()
    if pid == 0:
        live(None)
    return pid

for line in sys.stdin:
    request = json.loads(line)
    ours, its = socket.socketpair()
    ours.settimeout(20)

    def live(birth):
        ours.close()
        try:
            be_a_cell(its, request, birth)
        except BaseException:
            its.sendall(json.dumps("raised " + traceback.format_exc()).encode() + b"\\n")
        finally:
            os._exit(0)

    alone = request["lock"] in ("none", "only seccomp", "only landlock")
    pid = (fork_plainly if alone else spawn)(live)
    its.close()
    said = b""
    try:
        while not said.endswith(b"\\n") and (piece := ours.recv(65536)):
            said += piece
            if said == b"ping":
                said = b""
                ours.sendall(b"pong")
            if said == b"look":  # the cell wants to be seen from outside
                said = b""
                print(json.dumps({"look": pid}), flush=True)
                ours.sendall(sys.stdin.readline().encode())
    except TimeoutError:
        os.kill(pid, signal.SIGKILL)
    ours.close()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    ended = f"killed {signal.Signals(-status).name}" if status < 0 else f"exit {status}"
    print(json.dumps(json.loads(said) if said else ended), flush=True)
libc.shmctl(SHARED, 0, None)
'''


class Zygote:
    """Forks cells in a process of its own, which runs as one user."""

    def __init__(self, process: subprocess.Popen[str], uid: int) -> None:
        self._process = process
        self.uid = uid

    def cell(self, code: str, *, lock: str = "all", v8: bool = True, before: str = "") -> Any:
        """Return what `code` is worth in a fresh cell, or `killed SIG...`."""
        request = json.dumps({"code": code, "lock": lock, "v8": v8, "before": before})
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(request + "\n")
        self._process.stdin.flush()
        value = json.loads(self._process.stdout.readline())
        while isinstance(value, dict) and "look" in value:
            self._process.stdin.write(json.dumps(look(value["look"])) + "\n")
            self._process.stdin.flush()
            value = json.loads(self._process.stdout.readline())
        return value


def look(pid: int) -> dict[str, Any]:
    """Return what the kernel tells others of a cell."""
    process = Path("/proc", str(pid))
    return {
        "pid": pid,
        "status": (process / "status").read_text(),
        "descriptors": sorted(int(one.name) for one in (process / "fd").iterdir()),
        "session": os.getsid(pid) == pid,
        "nice": os.getpriority(os.PRIO_PROCESS, pid),
        "uid_map": (process / "uid_map").read_text().split(),
        "shared": [
            kind
            for kind in ("user", "mnt", "net", "ipc", "uts", "pid")
            if (process / "ns" / kind).readlink() == Path("/proc/self/ns", kind).readlink()
        ],
        "oom_score_adj": (process / "oom_score_adj").read_text(),
        "root": [one.name for one in (process / "root").iterdir()],
    }


USERS = {"root": 0, "ordinary": ORDINARY_ID} if os.getuid() == 0 else {"self": os.getuid()}


@pytest.fixture(scope="module", params=USERS.values(), ids=USERS.keys())
def zygote(request: pytest.FixtureRequest) -> Iterator[Zygote]:
    inactive = [layer for layer in probe() if not layer.active]
    if inactive:
        pytest.skip(f"this machine lacks a layer: {inactive}")
    command = [sys.executable, "-I", "-c", ZYGOTE, str(ROOT)]
    if request.param:
        command = as_ordinary_user(command)
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Zygote(process, request.param)
        assert process.stdin is not None
        process.stdin.close()


# --- what works ------------------------------------------------------------------------------

WORKS: dict[str, tuple[str, Any]] = {
    "several isolates": ("[Isolate().eval('6 * 7') for _ in range(4)]", [42] * 4),
    "an isolate after one was freed": (
        "(V8.mr_free_context(Isolate().context), Isolate().eval('1 + 1'))[1]",
        2,
    ),
    "a loop that gets optimised": (
        "Isolate().eval('let sum = 0; for (let k = 0; k < 1e7; k++) sum += k; sum')",
        49_999_995_000_000,
    ),
    "WebAssembly": (
        """Isolate().eval('''
            const code = new Uint8Array([0, 97, 115, 109, 1, 0, 0, 0, 1, 7, 1, 96, 2, 127, 127, 1,
              127, 3, 2, 1, 0, 7, 7, 1, 3, 97, 100, 100, 0, 0, 10, 9, 1, 7, 0, 32, 0, 32, 1, 106,
              11]);
            const { add } = new WebAssembly.Instance(new WebAssembly.Module(code)).exports;
            let sum = 0; for (let k = 0; k < 1e6; k++) sum = add(sum, 2); sum''')""",
        2_000_000,
    ),
    "a WebAssembly memory that grows": (
        (
            "Isolate().eval('const m = new WebAssembly.Memory({ initial: 1, maximum: 1000 });"
            " m.grow(99); m.buffer.byteLength')"
        ),
        6_553_600,
    ),
    "a heap of 100 MB": (
        (
            "Isolate().eval('const k = []; for (let i = 0; i < 200; i++)"
            " k.push(new Array(65536).fill(i)); k.length')"
        ),
        200,
    ),
    "a buffer outside of the heap": ("Isolate().eval('new Uint8Array(5e7).fill(3)[49999999]')", 3),
    "a hard heap limit": (
        (
            "[(one := Isolate()), V8.mr_set_hard_memory_limit(one.context, 100_000_000),"
            " one.eval('const s = []; for (;;) s.push({ a: [1, 2, s.length] })')][2]"
        ),
        "out of memory",
    ),
    "garbage collection": (
        (
            "[(one := Isolate()),"
            " one.eval('let t = []; for (let k = 0; k < 2e6; k++) t = [k, t[0]]; 0'),"
            " V8.mr_low_memory_notification(one.context), one.eval('t[0]')][3]"
        ),
        1_999_999,
    ),
    "stopping an endless loop": (
        (
            "[(one := Isolate()), (task := one.start('for (;;);')), time.sleep(0.02),"
            " V8.mr_cancel_task(one.context, task), one.answers.get(timeout=5)][4]"
        ),
        "terminated",
    ),
    "a stack overflow in JavaScript": (
        "Isolate().eval('(function f() { return f() + 1 })()').count('RangeError') > 0",
        True,
    ),
    "Date": ("Isolate().eval('new Date(0).toISOString()')", "1970-01-01T00:00:00.000Z"),
    "local time, which is UTC": ("Isolate().eval('String(new Date(2020, 6, 1).getHours())')", "0"),
    "Intl with a time zone": (
        (
            'Isolate().eval(\'new Intl.DateTimeFormat("de-DE", { timeZone: "Asia/Tokyo",'
            ' dateStyle: "full" }).format(new Date(0))\')'
        ),
        "Donnerstag, 1. Januar 1970",
    ),
    "Atomics.wait": (
        "Isolate().eval('Atomics.wait(new Int32Array(new SharedArrayBuffer(8)), 0, 0, 5)')",
        "timed-out",
    ),
    "the CPU clock of an isolate's thread": (
        (
            "[(one := Isolate()), one.eval('for (let k = 0; k < 1e7; k++); 0'),"
            " time.clock_gettime(time.pthread_getcpuclockid(threading.get_ident())) > 0][2]"
        ),
        True,
    ),
    "the socket": (
        "(SOCKET.settimeout(5), SOCKET.sendall(b'ping'), SOCKET.recv(9).decode())[2]",
        "pong",
    ),
    "a socket object made from the number": (
        "(repr(s := socket.socket(fileno=SOCKET.fileno())).count('family=1'), s.detach())[0]",
        1,
    ),
    "poll and select": (
        (
            "((p := select.poll()), p.register(SOCKET, select.POLLIN), p.poll(1),"
            " select.select([SOCKET], [], [], 0.001)[0])[2:]"
        ),
        [[], []],
    ),
    "Python threads": (
        (
            "((done := []), (ts := [threading.Thread(target=lambda: done.append(time.sleep(0.001)))"
            " for _ in range(4)]), [t.start() for t in ts], [t.join() for t in ts], len(done))[4]"
        ),
        4,
    ),
    "clocks": ("time.time() > 0 and time.monotonic() > 0 and time.thread_time() >= 0", True),
    "random bytes": ("len(os.urandom(8)) + len(random.SystemRandom().randbytes(8))", 16),
    "its own use of resources": (
        (
            "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 0"
            " and resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)"
        ),
        True,
    ),
    "an import, which is refused but does not kill": (
        "exec('try:\\n import wave\\nexcept ImportError:\\n FAILED = 1', globals()) or FAILED",
        1,
    ),
    "a traceback of source that it may not open": (
        (
            'exec(\'try:\\n exec(compile("1/0", "/etc/passwd", "exec"))\\n'
            "except ZeroDivisionError:\\n TEXT = traceback.format_exc()\\n"
            " sys.excepthook(*sys.exc_info())', globals()) or 'root:' in TEXT"
        ),
        False,
    ),
}
SLOW = {"a hard heap limit"}


@pytest.mark.parametrize(
    "what",
    [pytest.param(what, marks=pytest.mark.slow if what in SLOW else ()) for what in WORKS],
)
def test_still_works(zygote: Zygote, what: str) -> None:
    """Everything a cell needs once it has started is left to it."""
    code, expected = WORKS[what]

    value = zygote.cell(code)

    assert value == expected


# --- what does not ---------------------------------------------------------------------------

KILLED = "killed SIGSYS"
PAGE_OF_ITS_OWN = "call('mmap', 0, 4096, 3, 0x22, -1, 0)"
FORBIDDEN: dict[str, tuple[str, str]] = {
    # Files: refused softly, because Python and V8 try to open some themselves.
    "open a file for read": ("call('openat', -100, b'/etc/passwd', 0)", "EACCES"),
    "open a file for write": (
        "call('openat', -100, b'/tmp', os.O_TMPFILE | os.O_RDWR, 0o600)",
        "EACCES",
    ),
    "open a file through Python": ("type(open('/etc/passwd')).__name__", "raised PermissionError"),
    "list /": ("len(os.listdir('/'))", "raised PermissionError"),
    "read /proc/1/environ": ("call('openat', -100, b'/proc/1/environ', 0)", "EACCES"),
    "read its own memory map": ("call('openat', -100, b'/proc/self/maps', 0)", "EACCES"),
    "learn whether a file exists": (
        "call('newfstatat', -100, b'/etc/passwd', ctypes.create_string_buffer(256), 0)",
        "EACCES",
    ),
    "read an inherited descriptor": (
        "call('read', INHERITED, ctypes.create_string_buffer(9), 9)",
        "EBADF",
    ),
    "openat2": ("call('openat2', -100, b'/etc/passwd', (ctypes.c_uint64 * 3)(), 24)", KILLED),
    "make a folder": ("call('mkdirat', -100, b'/tmp/lockdown-none/folder', 0o700)", KILLED),
    "remove a file": ("call('unlinkat', -100, b'/tmp/lockdown-none', 0)", KILLED),
    "change folder": ("call('chdir', b'/')", KILLED),
    # Network.
    "a TCP socket": ("call('socket', 2, 1, 0)", KILLED),
    "a UDP socket": ("call('socket', 2, 2, 0)", KILLED),
    "an IPv6 socket": ("call('socket', 10, 1, 0)", KILLED),
    "a unix socket": ("call('socket', 1, 1, 0)", KILLED),
    "a netlink socket": ("call('socket', 16, 3, 0)", KILLED),
    "a socket pair": ("call('socketpair', 1, 1, 0, (ctypes.c_int * 2)())", KILLED),
    "connect": ("call('connect', SOCKET.fileno(), struct.pack('H', 1), 2)", KILLED),
    "bind": ("call('bind', SOCKET.fileno(), struct.pack('H', 1), 2)", KILLED),
    "accept": ("call('accept4', SOCKET.fileno(), None, None, 0)", KILLED),
    "pass a descriptor": ("call('sendmsg', SOCKET.fileno(), bytes(56), 0)", KILLED),
    "take a descriptor": ("call('recvmsg', SOCKET.fileno(), bytes(56), 0x40)", KILLED),
    "out-of-band data": ("SOCKET.send(b'x', socket.MSG_OOB)", KILLED),
    "a socket option": ("SOCKET.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 9999)", KILLED),
    "who is at the other end of its socket": (
        "SOCKET.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)",
        KILLED,
    ),
    "a handle of the engine by its socket": ("SOCKET.getsockopt(1, 77)", KILLED),  # SO_PEERPIDFD
    # Processes.
    "fork": ("os.fork() or os._exit(0)", KILLED),
    "a process by clone": (
        "call('clone', signal.SIGCHLD, None, None, None, None) or os._exit(0)",
        KILLED,
    ),
    "a thread in new namespaces": ("call('clone', 0x3D0F00 | 1 << 28, None, None)", KILLED),
    "clone3": ("call('clone3', (ctypes.c_uint64 * 8)(), 0)", "ENOSYS"),
    "execve": ("call('execve', b'/bin/true', None, None)", KILLED),
    "execve of a file in memory": (
        "call('execveat', call('memfd_create', b'x', 0), b'', None, None, 0x1000)",
        KILLED,
    ),
    "ptrace": ("call('ptrace', 0, 0, None, None)", KILLED),
    "kill the parent": ("call('kill', ZYGOTE_PID, 0)", KILLED),
    "tgkill the parent": ("call('tgkill', ZYGOTE_PID, ZYGOTE_PID, 0)", KILLED),
    "open the parent as a pidfd": ("call('pidfd_open', ZYGOTE_PID, 0)", KILLED),
    "read the parent's memory": (
        "call('process_vm_readv', ZYGOTE_PID, None, 0, None, 0, 0)",
        KILLED,
    ),
    "the parent's CPU clock": (
        "call('clock_gettime', (~ZYGOTE_PID << 3 | 2) & 0xFFFFFFFF, (ctypes.c_long * 2)())",
        KILLED,
    ),
    "change another's limits": (
        "call('prlimit64', ZYGOTE_PID, 7, None, (ctypes.c_long * 2)())",
        KILLED,
    ),
    "raise its own limits": ("call('prlimit64', 0, 7, (ctypes.c_long * 2)(9, 9), None)", KILLED),
    "raise its own limit of memory": (
        (
            "(resource.setrlimit(resource.RLIMIT_DATA, (1 << 33, 1 << 33)),"
            " call('prlimit64', 0, 2, (ctypes.c_long * 2)(1 << 34, 1 << 34), None))[1]"
        ),
        "EPERM",
    ),
    # The kernel.
    "mount": ("call('mount', b'none', b'/lockdown-none', b'tmpfs', 0, None)", KILLED),
    "umount": ("call('umount2', b'/lockdown-none', 0)", KILLED),
    "chroot": ("call('chroot', b'/')", KILLED),
    "unshare": ("call('unshare', 1 << 28)", KILLED),
    "setns": ("call('setns', -1, 0)", KILLED),
    "bpf": ("call('bpf', 0, None, 0)", KILLED),
    "io_uring_setup": ("call('io_uring_setup', 1, ctypes.create_string_buffer(120))", KILLED),
    "userfaultfd": ("call('userfaultfd', 1)", KILLED),
    "perf_event_open": ("call('perf_event_open', bytes(128), 0, -1, -1, 0)", KILLED),
    "a kernel module": ("call('init_module', None, 0, b'')", KILLED),
    "keyctl": ("call('keyctl', 0, 0, 0)", KILLED),
    "shared memory": ("call('shmget', 0, 0, 0)", KILLED),
    "inotify": ("call('inotify_init1', 0)", KILLED),
    "epoll": ("call('epoll_create1', 0)", KILLED),
    "a pipe": ("call('pipe2', (ctypes.c_int * 2)(), 0)", KILLED),
    "setuid": ("call('setuid', os.getuid())", KILLED),
    "prctl": ("call('prctl', 4, 1, 0, 0, 0)", "EINVAL"),
    "any ioctl but one": (
        "call('ioctl', SOCKET.fileno(), 0x541B, ctypes.create_string_buffer(8))",
        "ENOTTY",
    ),
    "a file in memory": ("call('memfd_create', b'x', 3)", "ENOSYS"),
    "a seal": ("call('fcntl', SOCKET.fileno(), 1033, 15)", KILLED),
    "memory paged out": (f"call('madvise', {PAGE_OF_ITS_OWN}, 4096, 21)", "EINVAL"),
    "memory merged with others'": (f"call('madvise', {PAGE_OF_ITS_OWN}, 4096, 12)", "EINVAL"),
    "poison memory": ("call('madvise', 0, 0, 100)", "EINVAL"),
    "a futex with priority inheritance": (
        "call('futex', (ctypes.c_int * 1)(), 6, 0, None)",
        KILLED,
    ),
    "signals from a descriptor": ("call('fcntl', SOCKET.fileno(), 8, os.getpid())", KILLED),
}
SAME_WITHOUT = {
    "read /proc/1/environ",  # a container denies it to its root too
    "clone3",  # EINVAL there
    "poison memory",  # needs a capability that only root has
    "raise its own limit of memory",  # likewise
}


def outcome(value: object) -> object:
    """Shorten what an attempt came to: `raised` keeps only the exception's name."""
    text = str(value)
    return f"raised {text.splitlines()[-1].split(':')[0]}" if text.startswith("raised") else value


@pytest.mark.parametrize("what", FORBIDDEN)
def test_is_denied(zygote: Zygote, what: str) -> None:
    """Whatever native code in the cell tries beyond its socket fails, or ends the cell."""
    code, expected = FORBIDDEN[what]

    value = zygote.cell(code)

    assert outcome(value) == expected


@pytest.mark.parametrize("what", [what for what in FORBIDDEN if what not in SAME_WITHOUT])
def test_is_denied_by_the_lockdown(zygote: Zygote, what: str) -> None:
    """The same attempt goes another way without the lockdown, so the test above proves it."""
    code, expected = FORBIDDEN[what]

    value = zygote.cell(code, lock="none", v8=False)

    assert outcome(value) != expected


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="these ABIs are x86 only")
@pytest.mark.parametrize("number", [0x4000_0000, 0x4000_0000 + 59], ids=["read", "execve"])
def test_the_x32_abi_kills(zygote: Zygote, number: int) -> None:
    """The numbers of the x32 ABI do not slip past a filter written for x86-64."""
    value = zygote.cell(f"libc.syscall(ctypes.c_long({number}), 0, 0, 0)")

    assert value == KILLED


# --- each wall by itself ---------------------------------------------------------------------


def test_every_layer_says_that_it_stands(zygote: Zygote) -> None:
    """What `lock_down` reports is what `probe` promised for this machine."""
    value = zygote.cell("[(one.name, one.active) for one in LAYERS]")

    assert value == [[layer.name, layer.active] for layer in probe()]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("call('openat', -100, b'/etc/passwd', 0)", "EACCES"),
        ("call('openat', -100, b'/', 0o200000)", "EACCES"),
        ("call('openat', -100, b'/proc/self/environ', 0)", "EACCES"),
        ("call('mkdirat', -100, b'/tmp/lockdown-folder', 0o700)", "EACCES"),
        ("socket.socket().connect(('127.0.0.1', 9))", "raised PermissionError"),
        ("call('kill', ZYGOTE_PID, 0)", "EPERM"),
    ],
)
def test_landlock_denies_alone(zygote: Zygote, code: str, expected: str) -> None:
    """Should the filter on system calls ever have a hole, Landlock still holds."""
    value = zygote.cell(code, lock="only landlock", v8=False)

    assert outcome(value) == expected


def test_landlock_says_when_a_thread_escapes_it(zygote: Zygote) -> None:
    """Landlock binds the calling thread only, so an earlier thread is reported, not ignored."""
    early = "threading.Thread(target=time.sleep, args=(1,), daemon=True).start()"

    value = zygote.cell("LAYERS[0].detail", lock="only landlock", v8=False, before=early)

    assert value == "binds 1 of 2 threads: the others ran before it"


def test_seccomp_binds_a_thread_that_was_there_before(zygote: Zygote) -> None:
    """The filter is put on all threads, so an early one cannot be used to get around it."""
    early = (
        "go = threading.Event(); out = queue.SimpleQueue();"
        "threading.Thread(target=lambda: (go.wait(), out.put(call('socket', 2, 1, 0)))).start()"
    )

    value = zygote.cell("(go.set(), out.get())[1]", lock="only seccomp", v8=False, before=early)

    assert value == KILLED


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("call('chroot', b'/')", "EPERM"),
        ("call('prctl', 39, 0, 0, 0, 0)", 1),  # no_new_privs
        ("call('prctl', 3, 0, 0, 0, 0)", 0),  # dumpable
        ("os.environ.get('SECRET', 'gone')", "gone"),
        ("ctypes.c_void_p.in_dll(libc, 'environ').value or 0", 0),
        ("resource.getrlimit(resource.RLIMIT_NOFILE)", [8, 8]),
        ("resource.getrlimit(resource.RLIMIT_FSIZE)", [0, 0]),
        ("resource.getrlimit(resource.RLIMIT_MEMLOCK)", [0, 0]),
        ("resource.getrlimit(resource.RLIMIT_NPROC)", [384, 384]),
        ("resource.getrlimit(resource.RLIMIT_STACK)", [8 << 20, 8 << 20]),
        ("resource.getrlimit(resource.RLIMIT_DATA)", [-1, -1]),  # until the cell is ready
        ("[s.name for s in signal.valid_signals() if signal.getsignal(s)]", []),
    ],
)
def test_privileges_are_gone_by_themselves(zygote: Zygote, code: str, expected: object) -> None:
    """Capabilities, environment and limits do not lean on seccomp either."""
    value = zygote.cell(code, lock="without seccomp", v8=False)

    assert value == expected


# --- seen from outside -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def seen(zygote: Zygote) -> dict[str, Any]:
    value: dict[str, Any] = zygote.cell(
        "(SOCKET.sendall(b'look'), json.loads(SOCKET.makefile('rb').readline())"
        " | {'socket': SOCKET.fileno()})[1]"
    )
    return value


@pytest.mark.parametrize(
    "line",
    [
        "CapEff:\t0000000000000000",
        "CapPrm:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "SigBlk:\t0000000000000000",
    ],
)
def test_the_kernel_confirms(seen: dict[str, Any], line: str) -> None:
    """What the kernel says of the cell is what was asked of it."""
    assert line in seen["status"].splitlines()


def test_no_signal_is_ignored(seen: dict[str, Any]) -> None:
    """Whatever the engine's own parent ignored; but for 32 and 33, which are the C library's."""
    ignored = next(row for row in seen["status"].splitlines() if row.startswith("SigIgn:"))

    assert int(ignored.split()[1], 16) & ~0x180000000 == 0


def test_only_the_socket_is_open(seen: dict[str, Any]) -> None:
    """Beside its socket the cell holds the three standard streams, which lead nowhere."""
    assert seen["descriptors"] == [0, 1, 2, seen["socket"]]


def test_the_cell_leads_its_own_session(seen: dict[str, Any]) -> None:
    """A signal to the engine's terminal or group does not reach cells, and they yield to it."""
    assert seen["session"]
    assert seen["nice"] == 5


def test_the_kernel_takes_it_first_when_memory_is_short(seen: dict[str, Any]) -> None:
    """Before the engine, and before whatever else the machine runs."""
    assert seen["oom_score_adj"] == "1000\n"


def test_its_user_is_its_own(zygote: Zygote, seen: dict[str, Any]) -> None:
    """Root gives each cell a user that nobody else is; an ordinary user has only itself to give."""
    outside = str(zygote.uid or 2_100_000_000 + seen["pid"])
    ids = [row.split()[1:] for row in seen["status"].splitlines() if row[:4] in ("Uid:", "Gid:")]

    assert ids == [[outside] * 4] * 2
    assert seen["uid_map"] == ["65534", outside, "1"]


def test_it_is_in_no_group_of_ours(seen: dict[str, Any]) -> None:
    """What a group of the engine's user may do, a cell may not."""
    assert "Groups:" in [row.strip() for row in seen["status"].splitlines()]


def test_it_shares_no_namespace(seen: dict[str, Any]) -> None:
    """Six kinds of them; each cell has its own of every one, and is the first process there."""
    assert seen["shared"] == []
    assert f"NSpid:\t{seen['pid']}\t1" in seen["status"].splitlines()


def test_its_root_is_empty(seen: dict[str, Any]) -> None:
    """There is no file system to escape into."""
    assert seen["root"] == []


# --- what namespaces and identity deny by themselves -------------------------------------------

CONNECTED = "socket.socket(socket.AF_UNIX).connect(b'\\0lockdown-%d' % ZYGOTE_PID)"
# What, and what it comes to where nothing else holds. Without them it goes another way.
APART: dict[str, tuple[str, object]] = {
    "user": ("[*os.getresuid(), *os.getresgid()]", [65534] * 6),
    "become root": ("os.setuid(0)", "raised OSError"),  # there is none: EINVAL, not EPERM
    "the host's name": ("socket.gethostname()", "cell"),
    "interfaces": (
        (
            "[(name, socket.socket().connect_ex(('127.0.0.1', 9))) for _, name in"
            " socket.if_nameindex()]"
        ),
        [["lo", 101]],  # ENETUNREACH: it is down
    ),
    "an abstract socket of another process": (CONNECTED, "raised ConnectionRefusedError"),
    "memory shared by its key": ("libc.shmget(SHARED_KEY, 0, 0) == SHARED", False),
    "the zygote": ("call('kill', ZYGOTE_PID, 0)", "ESRCH"),
    "every process that it may signal": ("call('kill', -1, 0)", "ESRCH"),
    "how the zygote is scheduled": (
        "os.sched_getscheduler(ZYGOTE_PID)",
        "raised ProcessLookupError",
    ),
    "its number": ("(os.getpid(), os.getppid())", [1, 0]),
    "/": ("os.listdir('/')", []),
    "a file": ("call('openat', -100, b'/etc/passwd', 0)", "ENOENT"),
    "a file from above": ("call('openat', -100, b'../../../../etc/passwd', 0)", "ENOENT"),
    "/proc": ("call('openat', -100, b'/proc/self/status', 0)", "ENOENT"),
    "any change to /": ("call('unlinkat', -100, b'/lockdown-none', 0)", "EROFS"),
}


@pytest.mark.parametrize("what", APART)
def test_namespaces_deny_alone(zygote: Zygote, what: str) -> None:
    """Without any other wall a cell finds no file, no network, no other process and no name."""
    code, expected = APART[what]

    value = zygote.cell(code, lock="only namespaces", v8=False)

    assert outcome(value) == expected


@pytest.mark.parametrize("what", APART)
def test_namespaces_are_what_denies(zygote: Zygote, what: str) -> None:
    """The same goes another way without them."""
    code, expected = APART[what]

    value = zygote.cell(code, lock="none", v8=False)

    assert outcome(value) != expected


THREADS = (
    "def start_threads(most):\n"
    "    for count in range(most):\n"
    "        try:\n"
    "            threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    "        except RuntimeError:\n"
    "            return count\n"
    "    return most\n"
)


def test_a_bomb_of_threads_hits_the_wall_of_its_cell(zygote: Zygote) -> None:
    """A cell has no more threads than isolates need; without the lockdown there is no such wall."""
    value = zygote.cell("start_threads(500)", before=THREADS, v8=False)
    without = zygote.cell("start_threads(500)", lock="none", before=THREADS, v8=False)

    assert value == 383
    assert without == 500


def test_a_bomb_of_threads_is_no_other_cells_business(zygote: Zygote) -> None:
    """Also where cells share their user outside, each is counted by itself."""
    two_cells = f"""
{THREADS}
counts = []
first, its_first = socket.socketpair()
second, its_second = socket.socketpair()
middle = os.fork()
if middle == 0:
    adopt()
    for channel in (its_first, its_second):
        def live(birth):
            lock_down(NO_FILTER, channel.fileno(), birth=birth)
            channel.send(b"%d" % start_threads(200))
            time.sleep(60)
            os._exit(0)
        spawn(live)
    time.sleep(60)
counts = [int(first.recv(9)), int(second.recv(9))]
os.kill(middle, signal.SIGKILL)
os.waitpid(middle, 0)
"""

    value = zygote.cell("counts", lock="none", before=two_cells, v8=False)

    assert value == [200, 200]


def test_memory_is_capped_by_what_the_cell_has_when_it_is_ready(zygote: Zygote) -> None:
    """Beyond its size then it gets so many bytes more, whoever started it, and then none."""
    ready = "lock_down = partial(lock_down, statm=(statm := open_statm()))"
    code = (
        "[cap_memory(LAYERS, statm, 100 << 20) == LAYERS,"
        " len(bytearray(60 << 20)) >> 20, bytearray(200 << 20)]"
    )

    value = zygote.cell(code, before=ready, v8=False)

    assert outcome(value) == "raised MemoryError"


# --- life and death --------------------------------------------------------------------------


def test_a_cell_without_parent_does_not_start(zygote: Zygote) -> None:
    """A zygote that died before the death signal was armed is noticed."""
    dead = """
child = os.fork()
if child == 0:
    os._exit(0)
PREPARED = replace(PREPARED, zygote=os.pidfd_open(child))
os.waitpid(child, 0)
"""

    value = zygote.cell("'alive'", before=dead, v8=False)

    assert value == "exit 70"


def test_a_cell_that_no_zygote_knows_does_not_start(zygote: Zygote) -> None:
    """Its pid was never told, so nobody could end it: it ends itself."""
    forgotten = "birth.gate, closed = os.pipe(); os.close(closed)"

    value = zygote.cell("'alive'", before=f"birth = BIRTH; {forgotten}", v8=False)

    assert value == "exit 70"


def test_a_birth_that_takes_too_long_is_given_up(zygote: Zygote) -> None:
    """The zygote has others to serve: it ends what stands between, and says so."""
    slow = """
namespaces_unsafe.BIRTH_MS = 100
namespaces_unsafe._make_pid_namespace = lambda _birth: time.sleep(60)
try:
    spawn(print)
except OSError as error:
    SAID = errno.errorcode[error.errno]
"""

    value = zygote.cell("SAID", lock="none", v8=False, before=slow)

    assert value == "ETIMEDOUT"


def test_a_birth_that_fails_names_the_reason(zygote: Zygote) -> None:
    """What the process between meets reaches whoever asked for the cell."""
    full = """
def refuse(_birth):
    raise OSError(errno.ENOMEM, "full")
namespaces_unsafe._make_pid_namespace = refuse
try:
    spawn(print)
except OSError as error:
    SAID = errno.errorcode[error.errno]
"""

    value = zygote.cell("SAID", lock="none", v8=False, before=full)

    assert value == "ENOMEM"


def test_without_proc_no_user_namespace_is_made_by_halves(zygote: Zygote) -> None:
    """One without its maps would leave the cell a user that may nothing, without a word."""
    before = """
import contextlib
@contextlib.contextmanager
def without_proc(failed):
    failed["user"] = "/proc: none"
    yield -1
namespaces_unsafe._own_proc = without_proc
own = os.readlink("/proc/self/ns/user")
birth = Birth(gate=-1, privileged=False)
namespaces_unsafe._make_pid_namespace(birth)
SAME = own == os.readlink("/proc/self/ns/user")
"""

    value = zygote.cell("(SAME, birth.mapped)", lock="none", v8=False, before=before)

    assert value == [True, False]


def test_on_an_unknown_machine_the_root_stays_and_that_is_said(zygote: Zygote) -> None:
    """Nobody knows the number of pivot_root there: that part is missing, the others stand."""
    unknown = "namespaces_unsafe.PIVOT_ROOT = {}"

    value = zygote.cell("LAYERS[0].detail", lock="only namespaces", v8=False, before=unknown)

    assert value == "mount: Function not implemented (stands: user, net, ipc, uts, pid)"


def test_a_cell_dies_with_its_parent(zygote: Zygote) -> None:
    """When the zygote goes, so does every cell, whatever it is busy with."""
    between = """
ours, its = socket.socketpair()
reading, writing = os.pipe()
middle = os.fork()
if middle == 0:
    adopt()
    def live(birth):
        lock_down(PREPARED, its.fileno(), birth=birth)
        its.send(b"!")
        time.sleep(60)
        os._exit(0)
    cell = spawn(live)
    ours.recv(1)
    os.write(writing, b"%d" % cell)
    os._exit(0)
orphan = int(os.read(reading, 20))
os.waitpid(middle, 0)
"""

    pid = zygote.cell("orphan", lock="none", v8=False, before=between)

    assert gone(pid)


def gone(pid: int) -> bool:
    """Wait up to two seconds for the end of a process that is not our child."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([process], [], [], 2)[0])
    finally:
        os.close(process)


def test_an_abort_is_told_apart_from_an_attack(zygote: Zygote) -> None:
    """The first process of a pid namespace is deaf to its own SIGABRT: it exits with its number."""
    value = zygote.cell("os.abort()")

    assert value == f"exit {int(signal.SIGABRT)}"


FAULTS = {  # machine code and how it ends
    "ud2": (b"\x0f\x0b", signal.SIGILL),  # V8's own last word when it finds itself broken
    "int3": (b"\xcc", signal.SIGTRAP),  # likewise
    "a write to nowhere": (b"\xc6\x04\x25\x00\x00\x00\x00\x00", signal.SIGSEGV),
}


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="machine code of x86-64")
@pytest.mark.parametrize("what", FAULTS)
def test_a_fault_ends_the_first_process_too(zygote: Zygote, what: str) -> None:
    """Faults are not signals that it is deaf to."""
    code, number = FAULTS[what]
    prepared = (
        f"page = mmap.mmap(-1, 4096, prot=7); page.write({code!r});"
        "address = ctypes.addressof(ctypes.c_char.from_buffer(page))"
    )

    value = zygote.cell("ctypes.CFUNCTYPE(None)(address)()", before=prepared, v8=False)

    assert value == f"killed {number.name}"


def test_it_is_fast(zygote: Zygote) -> None:
    """Locking down is a part of the 30 ms that a cell takes to start; its own time, of the CPU."""
    timed = "started = time.process_time()"

    used_s = min(
        zygote.cell("time.process_time() - started", before=timed, v8=False) for _ in range(5)
    )

    assert used_s < 0.02


def test_probe_changes_nothing() -> None:
    """Asking what the machine can do leaves the asker as it was."""
    before = Path("/proc/self/status").read_text().split("CapInh")[1].split("Cpus_allowed")[0]

    probe()

    after = Path("/proc/self/status").read_text().split("CapInh")[1].split("Cpus_allowed")[0]
    assert after == before


def test_a_missing_library_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a layer cannot stand, the report says what would bring it up."""
    monkeypatch.setitem(sys.modules, "pyseccomp", None)

    seccomp = prepare().seccomp

    assert seccomp == Layer(
        name="seccomp",
        active=False,
        detail="pyseccomp is not installed",
        remedy="pip install pyseccomp",
    )


def test_another_platform_has_no_walls_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Off Linux nothing is applied and nothing raises; every layer is reported as missing."""
    monkeypatch.setattr(sys, "platform", "darwin")

    layers = lock_down(prepare(), 3, birth=Birth(gate=-1, privileged=False))

    assert [layer.active for layer in layers] == [False] * 7
    assert layers == probe()
