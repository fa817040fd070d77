"""What native code in a cell tries, and what becomes of it: the table that the tests run.

An attempt is Python, with the words of `native_unsafe.words`. All are harmless where nothing stops
them: signals are 0, what would be changed is not there. `same_without` says why the attempt goes
the same way without the lockdown; all others prove by going another way what has stopped them.
"""

from dataclasses import dataclass
from typing import Any, Final

from runtimes.contract import CellKind

KILLED: Final = "SIGSYS"  # by the filter on system calls: the whole cell, at once
NO_NODE_MEMORY: Final = "ENOMEM"


_BY_SUPERVISOR: Final = {"same_without": "RLIMIT_DATA is set when the cell is ready"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One row. `contained` is what the code is worth, or the signal that ends the cell."""

    name: str
    group: str
    code: str
    contained: Any
    hardened: Any = None  # where a hardened cell answers otherwise
    same_without: str = ""

    def contained_in(self, kind: CellKind) -> Any:
        return self.contained if self.hardened is None or not kind.hardened else self.hardened


def _group(
    group: str, *rows: tuple[str, str, Any] | tuple[str, str, Any, dict[str, Any]]
) -> tuple[Attempt, ...]:
    made = []
    for name, code, contained, *more in rows:
        extra: dict[str, Any] = more[0] if more else {}  # type: ignore[assignment]
        made.append(Attempt(name=name, group=group, code=code, contained=contained, **extra))
    return tuple(made)


def _killed(group: str, **calls: str) -> tuple[Attempt, ...]:
    """Return a row for each system call that ends the cell: its name, and its arguments."""
    return _group(
        group, *((name.replace("_", " "), f"call({call})", KILLED) for name, call in calls.items())
    )


FILES: Final = _group(
    "files",
    ("a file by its path", "call('openat', AT_FDCWD, b'/etc/passwd', 0)", "EACCES"),
    ("a file by the older call", "open('/etc/shadow').read()[:5]", "raised PermissionError"),
    ("a file upwards from here", "call('openat', AT_FDCWD, b'../../etc/passwd', 0)", "EACCES"),
    (
        "a file through /proc/self/root",
        "open('/proc/self/root/etc/passwd').read()[:5]",
        "raised PermissionError",
    ),
    (
        "a path without reading (O_PATH)",
        "call('openat', AT_FDCWD, b'/', os.O_PATH | os.O_DIRECTORY)",
        "EACCES",
    ),
    (
        "a file without a name (O_TMPFILE)",
        "call('openat', AT_FDCWD, b'/tmp', os.O_TMPFILE | os.O_RDWR, 0o600)",
        "EACCES",
    ),
    ("a new file", "call('openat', AT_FDCWD, b'/tmp/breach-none/new', 0o101, 0o600)", "EACCES"),
    ("its own memory as a file", "call('openat', AT_FDCWD, b'/proc/self/mem', 2)", "EACCES"),
    ("its own memory map", "call('openat', AT_FDCWD, b'/proc/self/maps', 0)", "EACCES"),
    (
        "the environment that the zygote began with",
        "call('openat', AT_FDCWD, b'/proc/%d/environ' % told['zygote'], 0)",
        "EACCES",
    ),
    (
        "the memory of the zygote",
        "call('openat', AT_FDCWD, b'/proc/%d/mem' % told['zygote'], 2)",
        "EACCES",
    ),
    (
        "the descriptors of another cell",
        "call('openat', AT_FDCWD, b'/proc/%d/fd' % told['sibling'], 0)",
        "EACCES",
    ),
    ("the machine's memory", "call('openat', AT_FDCWD, b'/dev/kmsg', 0)", "EACCES"),
    ("a list of a folder", "len(os.listdir('/')) > 0", "raised PermissionError"),
    ("a list of processes", "len(os.listdir('/proc')) > 0", "raised PermissionError"),
    ("whether a file exists (stat)", "os.path.exists('/etc/passwd')", False),
    ("whether a file exists (access)", "call('access', b'/etc/passwd', 0)", "EACCES"),
    (
        "whether a file exists (faccessat2)",
        "call('faccessat2', AT_FDCWD, b'/etc/passwd', 0, 0)",
        "EACCES",
    ),
    (
        "whether a file exists (statx)",
        "call('statx', AT_FDCWD, b'/etc/passwd', 0, 0xFFF, buffer(256))",
        "EACCES",
    ),
    (
        "where a link leads",
        "call('readlinkat', AT_FDCWD, b'/proc/self/exe', buffer(99), 99)",
        "EACCES",
    ),
    ("where it is", "call('getcwd', buffer(999), 999)", "EACCES"),
    ("how full a disk is", "call('statfs', b'/', buffer(256))", "EACCES"),
    (
        "a module of Python that is not loaded",
        "__import__('wave').__name__",
        "raised ModuleNotFoundError",
    ),
) + _killed(
    "files",
    a_file_by_openat2="'openat2', AT_FDCWD, b'/etc/passwd', buffer(24), 24",
    a_file_by_creat="'creat', b'/tmp/breach-none/new', 0o600",
    the_handle_of_a_file="'name_to_handle_at', AT_FDCWD, b'/etc/passwd', buffer(8), buffer(4), 0",
    a_file_by_its_handle="'open_by_handle_at', AT_FDCWD, buffer(16), 0",
    entries_of_a_descriptor="'getdents64', 0, buffer(999), 999",
    another_folder="'chdir', b'/'",
    another_folder_by_descriptor="'fchdir', 0",
    another_root="'chroot', b'/'",
    a_new_folder="'mkdirat', AT_FDCWD, b'/tmp/breach-none/folder', 0o700",
    a_device_node="'mknodat', AT_FDCWD, b'/tmp/breach-none/node', 0o20666, 0x101",
    a_hard_link="'linkat', AT_FDCWD, b'/breach-none', AT_FDCWD, b'/breach-none2', 0",
    a_symbolic_link="'symlinkat', b'/etc', AT_FDCWD, b'/tmp/breach-none/link'",
    another_name="'renameat2', AT_FDCWD, b'/breach-none', AT_FDCWD, b'/breach-none2', 0",
    the_end_of_a_file="'unlinkat', AT_FDCWD, b'/breach-none', 0",
    a_shorter_file="'truncate', b'/breach-none', 0",
    other_rights="'fchmodat', AT_FDCWD, b'/breach-none', 0o777",
    another_owner="'fchownat', AT_FDCWD, b'/breach-none', 0, 0, 0",
    other_times="'utimensat', AT_FDCWD, b'/breach-none', 0, 0",
    an_extended_attribute="'setxattr', b'/breach-none', b'user.x', b'x', 1, 0",
    news_of_files="'inotify_init1', 0",
    news_of_all_files="'fanotify_init', 0, 0",
    a_copy_between_descriptors="'sendfile', sock, 0, 0, 1",
    pages_of_a_pipe="'splice', 0, 0, sock, 0, 1, 0",
    file_locks="'flock', 0, 8",
    writing_everything_to_disk="'syncfs', 0",
)

DESCRIPTORS: Final = _group(
    "descriptors",
    (
        "any descriptor but its socket and three that lead nowhere",
        "[n for n in range(4096) if call('fcntl', n, 1) != 'EBADF' and n != sock]",
        [0, 1, 2],
    ),
    (
        "what its standard streams lead to",
        "os.read(0, 9).hex()",
        "",
        {"same_without": "the zygote's standard input is empty as well"},
    ),
    (
        "a way to the engine's terminal (TIOCSTI)",
        "call('ioctl', 0, 0x5412, buffer(b'x', 1))",
        "ENOTTY",
        {"same_without": "there is no terminal in a test"},
    ),
    ("what waits in its socket (FIONREAD)", "call('ioctl', sock, 0x541B, buffer(8))", "ENOTTY"),
    (
        "who is at the other end of its socket (SO_PEERCRED)",
        "call('getsockopt', sock, 1, 17, buffer(12), buffer(struct.pack('I', 12), 4))",
        KILLED,
    ),
    (
        "a handle of the engine, by its socket (SO_PEERPIDFD)",
        "call('getsockopt', sock, 1, 77, buffer(8), buffer(struct.pack('I', 4), 4))",
        KILLED,
    ),
    ("signals from its socket (FIOASYNC)", "call('ioctl', sock, 0x5452, buffer(8))", "ENOTTY"),
) + _killed(
    "descriptors",
    a_copy="'dup', sock",
    a_copy_at_a_place="'dup2', sock, 7",
    a_copy_at_a_place_and_closed_later="'dup3', sock, 7, 0o2000000",
    a_copy_by_fcntl="'fcntl', sock, 0, 9",
    an_owner_for_signals="'fcntl', sock, 8, os.getpid()",
    a_lease="'fcntl', 0, 1024, 0",
    a_pipe="'pipe2', buffer(8), 0",
    a_counter="'eventfd2', 0, 0",
    a_timer="'timerfd_create', 0, 0",
    signals_as_a_file="'signalfd4', -1, buffer(8), 8, 0",
    an_event_queue="'epoll_create1', 0",
    descriptors_that_somebody_sends="'recvmsg', sock, buffer(56), 0x40",
    descriptors_to_somebody="'sendmsg', sock, buffer(56), 0",
    many_messages_at_once="'recvmmsg', sock, 0, 0, 0, 0",
    the_descriptor_of_another="'pidfd_getfd', 0, 0, 0",
    secret_memory="'memfd_secret', 0",
    asynchronous_reads="'io_setup', 0, buffer(8)",
)

_SOCKETS: Final = {
    "a TCP socket": "2, 1, 0",
    "a UDP socket": "2, 2, 0",
    "an IPv6 socket": "10, 1, 0",
    "a raw socket": "2, 3, 1",
    "a packet socket": "17, 3, 0x300",
    "a Unix socket": "1, 1, 0",
    "a netlink socket": "16, 3, 0",
    "a socket to the hypervisor": "40, 1, 0",
    "a socket for the kernel's cryptography": "38, 5, 0",
}
NETWORK: Final = _group(
    "network",
    *((name, f"call('socket', {which})", KILLED) for name, which in _SOCKETS.items()),
    ("the address of a name (DNS)", "len(socket.getaddrinfo(b'localhost', 80)) > 0", KILLED),
    (
        "an abstract socket of this machine",
        "socket.socket(socket.AF_UNIX).connect_ex(chr(0) + 'breach-none')",
        KILLED,
    ),
    ("the engine's own port", "socket.create_connection((b'127.0.0.1', 8700), 1)", KILLED),
    (
        "the interfaces of this machine (SIOCGIFCONF)",
        "call('ioctl', sock, 0x8912, buffer(16))",
        "ENOTTY",
        {"same_without": "a Unix socket of the kernel answers the same"},
    ),
    ("out-of-band data on its socket", "call('sendto', sock, b'x', 1, 1, 0, 0)", KILLED),
    ("an address on its socket", "call('sendto', sock, b'', 0, 0x40, buffer(16), 2)", KILLED),
) + _killed(
    "network",
    another_end_for_its_socket="'connect', sock, buffer(2), 2",
    a_name_for_its_socket="'bind', sock, buffer(2), 2",
    a_server_on_its_socket="'listen', sock, 1",
    a_client_of_its_socket="'accept4', sock, 0, 0, 0",
    an_option_of_its_socket="'setsockopt', sock, 1, 7, buffer(4), 4",
    a_pair_of_sockets="'socketpair', 1, 1, 0, buffer(8)",
    another_host_name="'sethostname', b'x', -1",
    another_domain_name="'setdomainname', b'x', -1",
    the_name_of_this_machine="'uname', buffer(999)",
)

PROCESSES: Final = _group(
    "processes",
    ("fork", "os.fork() > 0 or os._exit(0)", KILLED),
    ("a child by clone", "call('clone', 17, 0, 0, 0, 0) or os._exit(0)", KILLED),
    (
        "a child that is root in namespaces of its own",
        "call('clone', 0x10000000 | 17, 0, 0, 0, 0) or os._exit(0)",
        KILLED,
    ),
    (
        "a thread in a network of its own",
        "call('clone', 0x3D0F00 | 0x40000000, 0, 0, 0, 0)",
        KILLED,
    ),
    (
        "a process that shares its memory, and outlives it",
        "call('clone', 0x8100, 0, 0, 0, 0) or os._exit(0)",
        KILLED,
    ),
    ("a child by clone3", "call('clone3', buffer(64), 64)", "ENOSYS"),
    ("a program by posix_spawn", "os.posix_spawn('/bin/true', ['true'], {}) > 0", KILLED),
    ("a shell", "os.system('true')", KILLED),
    (
        "a CPU clock of the zygote",
        "call('clock_gettime', (~told['zygote'] << 3 | 2) & 0xFFFFFFFF, buffer(16))",
        KILLED,
    ),
) + _killed(
    "processes",
    a_program="'execve', b'/bin/true', 0, 0",
    a_program_by_its_descriptor="'execveat', 0, b'', 0, 0, 0x1000",
    tracing_the_zygote="'ptrace', 0x4206, told['zygote'], 1, 0",
    tracing_another_cell="'ptrace', 7, told['sibling'], 0, 0",
    reading_registers_of_another="'ptrace', 12, told['sibling'], 0, 0",
    reading_the_memory_of_the_zygote="'process_vm_readv', told['zygote'], 0, 0, 0, 0, 0",
    writing_the_memory_of_another_cell="'process_vm_writev', told['sibling'], 0, 0, 0, 0, 0",
    advice_for_memory_of_another="'process_madvise', -1, 0, 0, 0, 0",
    a_handle_of_the_zygote="'pidfd_open', told['zygote'], 0",
    a_signal_by_a_handle="'pidfd_send_signal', -1, 0, 0, 0",
    a_signal_to_the_zygote="'kill', told['zygote'], 0",
    a_signal_to_another_cell="'kill', told['sibling'], 0",
    a_signal_to_its_group="'kill', 0, 0",
    a_signal_to_everybody="'kill', -1, 0",
    a_signal_to_a_thread="'tkill', told['zygote'], 0",
    a_signal_to_a_thread_of_another="'tgkill', told['sibling'], told['sibling'], 0",
    a_signal_with_a_forged_sender="'rt_sigqueueinfo', told['zygote'], 0, buffer(128)",
    a_signal_with_a_forged_sender_to_a_thread=(
        "'rt_tgsigqueueinfo', told['sibling'], told['sibling'], 0, buffer(128)"
    ),
    limits_of_another="'prlimit64', told['sibling'], 7, 0, buffer(16)",
    priority_of_another="'setpriority', 0, told['sibling'], 5",
    its_own_priority="'setpriority', 0, 0, -20",
    disk_priority="'ioprio_set', 1, told['sibling'], 0x6000",
    cores_of_another="'sched_setaffinity', told['sibling'], 0, 0",
    real_time_scheduling="'sched_setscheduler', 0, 1, buffer(4)",
    a_deadline_scheduler="'sched_setattr', 0, buffer(48), 0",
    a_group_of_another="'setpgid', 0, told['zygote']",
    a_session_of_its_own="'setsid', ",
    news_of_children="'waitid', 0, 0, 0, 4, 0",
    comparing_kernel_objects="'kcmp', told['zygote'], told['sibling'], 0, 0, 0",
    moving_pages_of_another="'move_pages', told['sibling'], 0, 0, 0, 0, 0",
    the_futexes_of_another="'get_robust_list', told['sibling'], buffer(8), buffer(8)",
)

PRIVILEGES: Final = _group(
    "privileges",
    ("no death with its parent (PR_SET_PDEATHSIG)", "call('prctl', 1, 0, 0, 0, 0)", "EINVAL"),
    ("being dumpable (PR_SET_DUMPABLE)", "call('prctl', 4, 1, 0, 0, 0)", "EINVAL"),
    (
        "a tracer (PR_SET_PTRACER)",
        "call('prctl', 0x59616D61, -1, 0, 0, 0)",
        "EINVAL",
        {"same_without": "this kernel has no Yama"},
    ),
    (
        "another map of its memory (PR_SET_MM)",
        "call('prctl', 35, 1, 0, 0, 0)",
        "EINVAL",
        {"same_without": "the address is none"},
    ),
    ("orphans of others (PR_SET_CHILD_SUBREAPER)", "call('prctl', 36, 1, 0, 0, 0)", "EINVAL"),
    (
        "a filter by prctl",
        "call('prctl', 22, 2, 0, 0, 0)",
        "EINVAL",
        {"same_without": "a filter at address 0 is none"},
    ),
    ("ambient capabilities", "call('prctl', 47, 4, 0, 0, 0)", "EINVAL"),
    ("its own environment", "[*os.environ]", []),
    (
        "more memory (RLIMIT_DATA)",
        "raised = 0\nresource.setrlimit(resource.RLIMIT_DATA, (1 << 40, 1 << 40))\nanswer = 1",
        "raised ValueError",
        _BY_SUPERVISOR,
    ),
    (
        "outliving the death signal of the filter",
        "signal.signal(signal.SIGSYS, signal.SIG_IGN)\nanswer = call('socket', 2, 1, 0)",
        KILLED,
    ),
    (
        "a forbidden call from another thread",
        (
            "found = []\nwork = lambda: found.append(call('socket', 2, 1, 0))\n"
            "thread = threading.Thread(target=work)\nthread.start()\nthread.join()\nanswer = found"
        ),
        KILLED,
    ),
) + _killed(
    "privileges",
    another_user="'setuid', 0",
    another_group="'setgid', 0",
    three_users="'setresuid', 0, 0, 0",
    more_groups="'setgroups', 0, 0",
    a_user_for_files="'setfsuid', 0",
    capabilities="'capset', buffer(8), buffer(24)",
    its_own_limits="'prlimit64', 0, 7, buffer(16), 0",
    its_own_limits_by_the_older_call="'setrlimit', 7, 0",
    a_user_namespace="'unshare', 0x10000000",
    a_mount_namespace="'unshare', 0x20000",
    a_namespace_of_another="'setns', -1, 0",
    a_filter_of_its_own="'seccomp', 1, 0, 0",
    answering_its_own_system_calls="'seccomp', 1, 8, buffer(16)",
    a_ruleset_of_landlock="'landlock_create_ruleset', 0, 0, 1",
    another_personality="'personality', 0xFFFFFFFF",
    a_key_ring="'keyctl', 0, 0, 0",
    a_key="'add_key', b'user', b'x', b'x', 1, -3",
    a_key_of_another="'request_key', b'user', b'breach-none', 0, 0",
    ports_of_the_machine="'ioperm', 0, 1, 0",
    all_ports_of_the_machine="'iopl', 0",
    another_segment_table="'modify_ldt', 0, 0, 0",
    another_base_of_its_thread="'arch_prctl', 0x1003, buffer(8)",
)

KERNEL: Final = _killed(
    "kernel",
    mount="'mount', b'none', b'/breach-none', b'tmpfs', 0, 0",
    umount="'umount2', b'/breach-none', 0",
    a_new_root="'pivot_root', b'/breach-none', b'/breach-none'",
    a_detached_tree="'open_tree', -1, b'', 0",
    a_moved_mount="'move_mount', -1, b'', -1, b'', 0",
    a_file_system="'fsopen', b'none', 0",
    attributes_of_a_mount="'mount_setattr', -1, b'', 0, 0, 0",
    a_list_of_mounts="'listmount', 0, 0, 0, 0",
    a_module_of_the_kernel="'init_module', 0, 0, b''",
    a_module_from_a_file="'finit_module', -1, b'', 0",
    the_end_of_a_module="'delete_module', b'breach-none', 0o4000",
    another_kernel="'kexec_load', 0, 0, 0, -1",
    a_restart="'reboot', 0, 0, 0, 0",
    swap="'swapon', b'/breach-none', 0",
    no_swap="'swapoff', b'/breach-none'",
    the_time="'settimeofday', 0, 0",
    a_clock="'clock_settime', 99, buffer(16)",
    the_speed_of_a_clock="'clock_adjtime', 99, buffer(208)",
    accounting="'acct', b'/breach-none'",
    the_log_of_the_kernel="'syslog', 10, 0, 0",
    a_program_in_the_kernel="'bpf', 0, 0, 0",
    performance_counters="'perf_event_open', buffer(128), 0, -1, -1, 0",
    a_ring_of_io_uring="'io_uring_setup', 1, buffer(120)",
    entering_io_uring="'io_uring_enter', -1, 0, 0, 0, 0",
    page_faults_as_messages="'userfaultfd', 1",
    quotas="'quotactl', 0, 0, 0, 0",
    a_timer_of_the_kernel="'timer_create', 0, 0, buffer(8)",
    an_alarm="'setitimer', 0, buffer(32), 0",
    messages="'mq_open', b'breach', 0, 0, 0",
    a_queue="'msgget', 0x1234567, 0",
    semaphores="'semget', 0x1234567, 1, 0",
    shared_memory="'shmget', 0x1234567, 4096, 0",
    a_futex_with_priority="'futex', buffer(8), 6, 0, 0, 0, 0",
    many_futexes="'futex_waitv', 0, 0, 0, 0, 0",
    memory_of_a_node="'mbind', 0, 0, 0, 0, 0, 0",
    pages_of_a_node="'set_mempolicy', 0, 0, 0",
) + _group(
    "kernel",
    ("a system call of the x32 ABI", "libc.syscall(ctypes.c_long(0x40000000 + 39))", KILLED),
    (
        "a 32-bit system call in machine code",
        "run_machine_code(bytes.fromhex('b814000000cd80c3'))",
        KILLED,
    ),
    (
        "poisoned memory",
        "call('madvise', 0, 0, 100)",
        "EINVAL",
        {"same_without": "no page is named"},
    ),
    ("probing of memory barriers", "call('membarrier', 0, 0, 0)", "ENOSYS"),
)

PAGE_OUT: Final = "call('madvise', call('mmap', 0, 4096, 3, 0x22, -1, 0), 4096, 21)"
_FILLED: Final = "answer = made if isinstance(made, str) else fill(made, 64 * MIB) or 'had'"
MEMORY: Final = _group(
    "memory",
    (
        "pages that can be written and run",
        "call('mmap', 0, 4096, 7, 0x22, -1, 0) != 0",
        True,
        {"hardened": KILLED, "same_without": "V8 itself needs them, but in a hardened cell"},
    ),
    (
        "written pages that become code",
        "call('mprotect', call('mmap', 0, 4096, 3, 0x22, -1, 0), 4096, 5)",
        0,
        {"hardened": KILLED, "same_without": "as above"},
    ),
    (
        "written pages that become code, with a key",
        "call('pkey_mprotect', call('mmap', 0, 4096, 3, 0x22, -1, 0), 4096, 7, -1)",
        0,
        {"hardened": KILLED, "same_without": "as above"},
    ),
    ("the page at address 0", "call('mmap', 0, 4096, 3, 0x32, -1, 0)", "EPERM"),
    ("16 GiB at once", "call('mmap', 0, 16 << 30, 3, 0x22, -1, 0)", NO_NODE_MEMORY, _BY_SUPERVISOR),
    (
        "16 GiB by small steps",
        "made = [call('mmap', 0, 64 * MIB, 3, 0x22, -1, 0) for _ in range(256)]\nanswer = made[-1]",
        NO_NODE_MEMORY,
        _BY_SUPERVISOR,
    ),
    (
        "16 GiB that are made writable later",
        "call('mprotect', call('mmap', 0, 16 << 30, 1, 0x22, -1, 0), 16 << 30, 3)",
        NO_NODE_MEMORY,
        _BY_SUPERVISOR,
    ),
    (
        "16 GiB by growth",
        "call('mremap', call('mmap', 0, 4096, 3, 0x22, -1, 0), 4096, 16 << 30, 1)",
        NO_NODE_MEMORY,
        _BY_SUPERVISOR,
    ),
    (
        "the program break, 16 GiB on",
        "at = call('brk', 0)\nanswer = call('brk', at + (16 << 30)) == at",
        True,
        {"same_without": "other mappings stand in the way as well"},
    ),
    (
        "shared memory without a file",
        "made = call('mmap', 0, 1 << 30, 3, 0x21, -1, 0)\n" + _FILLED,
        KILLED,
    ),
    (
        "shared memory, asked for by the newer flag",
        "made = call('mmap', 0, 1 << 30, 3, 0x23, -1, 0)\n" + _FILLED,
        KILLED,
        {"same_without": "that flag needs a file"},
    ),
    (
        "a mapping that grows down",
        "made = call('mmap', 0, 1 << 30, 3, 0x122, -1, 0)\n" + _FILLED,
        KILLED,
    ),
    ("huge pages of the machine", "call('mmap', 0, 2 * MIB, 3, 0x40022, -1, 0)", KILLED),
    ("locked memory", "call('mlock', 0, 4096)", KILLED),
    ("another order of a file's pages", "call('remap_file_pages', 0, 0, 0, 0, 0)", KILLED),
    ("a shadow stack", "call('map_shadow_stack', 0, 4096, 0)", KILLED),
    ("memory in a file without a name", "call('memfd_create', b'x', 0)", "ENOSYS"),
    (
        "files without a name that are filled, mapped and closed, again and again",
        (
            "kept = b'x' * MIB\nfor _ in range(16):\n    fd = call('memfd_create', b'x', 3)\n"
            "    if isinstance(fd, str):\n        answer = fd\n        break\n"
            "    call('write', fd, kept, MIB)\n    answer = call('mmap', 0, MIB, 1, 2, fd, 0)\n"
            "    os.close(fd)"
        ),
        "ENOSYS",
    ),
    ("memory paged out to the node's disk", PAGE_OUT, "EINVAL"),
    (
        "page tables for nothing: addresses without end, to look at",
        (
            "size = 16 << 40\nat = call('mmap', 0, size, 1, 0x4022, -1, 0)\n"
            "answer = at if isinstance(at, str) else look(at, 1 << 34, 2 * MIB) or 'had'"
        ),
        "ENOMEM",
    ),
    (
        "threads without end",
        (
            "made = 0\nholds = threading.Event()\nthreading.stack_size(64 * 1024)\n"
            "try:\n    while made < 500:\n"
            "        threading.Thread(target=holds.wait, daemon=True).start()\n        made += 1\n"
            "except RuntimeError:\n    pass\nanswer = made < 500"
        ),
        True,
        {"same_without": "not tried: it would take threads of all others"},
    ),
    ("descriptors without end", "[socket.socket(fileno=os.dup(sock)) for _ in range(99)]", KILLED),
)

ATTEMPTS: Final = FILES + DESCRIPTORS + NETWORK + PROCESSES + PRIVILEGES + KERNEL + MEMORY
