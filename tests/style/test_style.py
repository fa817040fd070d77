"""The rules of this code base that a program can check; README.md and DECISIONS.md say why.

Each test lists every place that breaks its rule. An exception stands in a table here, with its
reason; one that is no longer needed fails too.
"""

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from engine import deliveries, jobs
from engine.api.problems import KINDS
from engine.settings import Settings

ROOT: Final = Path(__file__).parents[2]
OURS: Final = ("engine", "sandbox", "runtimes", "jobs")
HEADER_LINES_MAX: Final = 8
FILE_LINES_MAX: Final = 700
TEST_FILE_LINES_MAX: Final = 1_400  # a list of facts that do not depend on each other

ARROWS: Final[Mapping[str, tuple[str, ...]]] = {
    "engine": ("engine", "jobs", "sandbox", "runtimes.contract"),
    "sandbox": ("sandbox", "runtimes"),
    "runtimes": ("runtimes",),
    "jobs": ("jobs",),
}

# Where a library may be imported: folders end with a slash.
HOMES: Final[Mapping[str, tuple[str, ...]]] = {
    "fastapi": ("engine/api/",),
    "starlette": ("engine/api/",),
    "uvicorn": ("engine/serve.py", "engine/api/server.py"),
    "pydantic": ("engine/api/", "engine/settings.py", "engine/cli/serve.py"),
    "pydantic_settings": ("engine/settings.py",),
    "prometheus_client": ("engine/api/metrics.py",),
    "typer": ("engine/cli/",),
    "rich": ("engine/cli/",),
    "sqlalchemy": ("engine/store/",),
    "alembic": ("engine/store/",),
    "psycopg": ("engine/store/",),
    "httpcore": ("engine/egress.py",),
    "cryptography": ("engine/vault.py", "engine/connectors/"),  # the latter: signatures
    "redis": ("jobs/",),
    "rq": ("jobs/",),
    "croniter": ("jobs/",),
    "py_mini_racer": ("runtimes/javascript/", "sandbox/zygote_unsafe.py"),
    "wasmtime": ("runtimes/webassembly/",),
    "tree_sitter": ("runtimes/javascript/",),
    "tree_sitter_typescript": ("runtimes/javascript/",),
    "pyseccomp": ("sandbox/lockdown/seccomp_unsafe.py",),
}
# The rules of the control plane hand functions to the journal; this is the type of their argument.
TYPE_OF_CHANGES: Final = ("sqlalchemy", "Connection")

UNSAFE_MODULES: Final = frozenset({"ctypes", "cffi", "mmap", "multiprocessing", "pyseccomp"})
UNSAFE_CALLS: Final = frozenset(
    {"fork", "forkpty", "vfork", "posix_spawn", "prctl", "syscall", "seccomp", "preexec_fn"}
)
NAMES_THAT_SAY_NOTHING: Final = frozenset({"utils", "util", "helpers", "common", "manager", "misc"})
PICKLES: Final = frozenset({"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill"})
ADAPTERS: Final = frozenset(
    {"Database", "Journal", "Sandbox", "Dispatcher", "Outbox", "Egress", "Broker"}
)
MUTABLE: Final = frozenset(
    {"list", "dict", "set", "bytearray", "defaultdict", "deque", "Counter", "OrderedDict"}
)
MUTATORS: Final = frozenset(
    {"append", "extend", "insert", "add", "update", "setdefault", "pop", "popitem", "remove",
     "discard", "clear", "sort", "reverse", "appendleft", "popleft"}
)  # fmt: skip

# The loops: where whatever goes wrong is told to someone, and the next turn goes on.
CATCH_ALLS: Final[Mapping[str, str]] = {
    "engine/api/edge.py": "the loop of requests of the control plane: answered 500 and logged",
    "engine/api/hot.py": "the loop of requests of the data plane: answered 500 and logged",
    "engine/backlog.py": "the loop that looks for work: it must outlive whatever the store does",
    "engine/breakers.py": "a trial: the store's troubles and ours must not lose its run",
    "engine/changes.py": "the loop that follows the feed: likewise",
    "engine/cli/doctor.py": "whatever a database driver raises is the finding",
    "engine/ends.py": "the end of a run, and of a cell's turn: each is one's own, and is logged",
    "engine/hostcalls/broker.py": "the loop of host calls: a guest must not hang on our mistake",
    "engine/idle_cells.py": "the loop of looks: without it a cell could work unasked for good",
    "engine/memory_budget.py": "the loop of looks: without it cells would fill the machine",
    "engine/nodes.py": "the loop of heartbeats: without it the node would claim on as a ghost",
    "engine/outbox.py": "the loop of sends: a bug in one connector stops no other",
    "engine/queue_room.py": "the count of queues: the numbers of before have to do meanwhile",
    "engine/scheduler.py": "the loop of due times: one bad turn must not stop all schedules",
    "engine/store/journal.py": "a change's own exception goes to its caller, alone",
    "engine/usage.py": "the loop of CPU budgets: without it none is used up, and none lifted",
    "jobs/redis_bus.py": "the loops of messages between nodes: they begin anew, and log it",
    "jobs/rq_node.py": "whoever takes a ticket has lost that one alone",
    "jobs/rq_tickets.py": "the loop of tickets going out: its thread outlives our mistake",
    "jobs/rq_worker.py": "the loop of tickets coming in: its thread outlives whatever Redis does",
    "runtimes/javascript/v8_unsafe.py": "C would drop what a callback raises, and its answer",
    "runtimes/webassembly/guest.py": "the loop of a guest's thread: the cell ends, and says so",
    "runtimes/webassembly/wasmtime_unsafe.py": "nothing may fly through Wasmtime's frames",
    "sandbox/child.py": "the loop of the cell: the engine logs it and replaces the cell",
    "sandbox/supervisor.py": "the loop of a cell's frames: whatever a lie meets ends that cell",
}
READS_ENVIRONMENT: Final[Mapping[str, str]] = {
    "runtimes/webassembly/wasmtime_unsafe.py": "tells Wasmtime, which has no other way to be told",
    "sandbox/lockdown/process_unsafe.py": "empties it, before a guest runs",
}
NAMES_ADAPTERS: Final[Mapping[str, str]] = {
    "engine/wiring.py": "its job",
    "engine/cli/doctor.py": "looks at the database while no engine runs",
    "engine/cli/migrate.py": "changes its tables while no engine runs",
}
BARE_TIMEOUTS: Final[Mapping[str, str]] = {
    "engine/api/declarations.py": "the name in bodies, as elsewhere; its value carries the unit",
    "engine/egress.py": "the signatures of httpcore's network backend",
}
SLEEPS: Final[Mapping[str, str]] = {
    "engine/cli/logs.py": "a person's terminal waits before it connects again",
}
TOO_LONG: Final[Mapping[str, str]] = {}
STDLIB_NAMES: Final[Mapping[str, str]] = {
    "engine/api/platform.py": "what `engine.wiring` opens is called a platform everywhere",
}


@dataclass(frozen=True)
class Source:
    """One parsed file; `path` is relative to the repository."""

    path: str
    text: str
    tree: ast.Module

    def nodes(self) -> list[ast.AST]:
        return _nodes(self)

    def imports(self) -> Iterator[tuple[int, str, str]]:
        """Yield (line, module, name) of every import, wherever it stands; name: "" for modules."""
        for node in self.nodes():
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name, "") for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{self.path}:{node.lineno}: a relative import"
                yield from ((node.lineno, node.module or "", alias.name) for alias in node.names)


@cache
def _nodes(source: Source) -> list[ast.AST]:
    return list(ast.walk(source.tree))


@cache
def sources(*folders: str) -> tuple[Source, ...]:
    found = []
    for folder in folders:
        for file in sorted((ROOT / folder).rglob("*.py")):
            text = file.read_text()
            found.append(Source(file.relative_to(ROOT).as_posix(), text, ast.parse(text)))
    assert found, folders
    return tuple(found)


def ours() -> tuple[Source, ...]:
    return sources(*OURS)


def is_within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def name_of(node: ast.AST) -> str:
    """Return the last part of a name or a dotted name."""
    return getattr(node, "id", None) or getattr(node, "attr", "")


def called(source: Source, names: frozenset[str]) -> list[int]:
    """Return the lines where something of that name is called."""
    return [
        node.lineno
        for node in source.nodes()
        if isinstance(node, ast.Call) and name_of(node.func) in names
    ]


def against(found: Mapping[str, list[int]], allowed: Mapping[str, str]) -> list[str]:
    """Return what breaks a rule, and the exceptions from it that nobody needs."""
    broken = [
        f"{path}:{line}" for path, lines in found.items() if path not in allowed for line in lines
    ]
    return broken + [f"{path}: no exception needed" for path in allowed if not found.get(path)]


def test_arrows_between_packages() -> None:
    """engine -> jobs, engine -> sandbox -> runtimes; nothing points back."""
    broken = [
        f"{source.path}:{line}: {module}"
        for source in ours()
        for line, module, _ in source.imports()
        if is_within(module, OURS) and not is_within(module, ARROWS[source.path.split("/", 1)[0]])
    ]

    assert broken == []


def test_one_library_has_one_home() -> None:
    """What a library can do to us is seen by reading one folder."""
    broken = [
        f"{source.path}:{line}: {module}"
        for source in ours()
        for line, module, name in source.imports()
        if (homes := HOMES.get(module.split(".", 1)[0])) is not None
        and not source.path.startswith(homes)
        and (module, name) != TYPE_OF_CHANGES
    ]

    assert broken == []


def test_what_can_break_the_process_stands_in_unsafe_files() -> None:
    """Fork, foreign functions and system calls by number: only in files ending `_unsafe.py`."""
    broken = []
    for source in ours():
        if source.path.endswith("_unsafe.py"):
            continue
        broken += [
            f"{source.path}:{line}: {module}"
            for line, module, name in source.imports()
            if module.split(".", 1)[0] in UNSAFE_MODULES or name in UNSAFE_CALLS
        ]
        broken += [f"{source.path}:{line}" for line in called(source, UNSAFE_CALLS)]

    assert broken == []


def test_module_names_say_something_and_shadow_nothing() -> None:
    """No `utils.py`, and none that is read as a module of the standard library."""
    files = [Path(source.path) for source in ours()]
    names = {
        file.as_posix(): file.parent.name if file.stem == "__init__" else file.stem
        for file in files
    }

    assert [path for path, name in names.items() if name in NAMES_THAT_SAY_NOTHING] == []
    shadows = {path: [1] for path, name in names.items() if name in sys.stdlib_module_names}
    assert against(shadows, STDLIB_NAMES) == []


def test_only_settings_read_the_environment() -> None:
    """By `BaseSettings`; the command line may name variables for its own options."""
    found = {
        source.path: [
            node.lineno
            for node in source.nodes()
            if name_of(node) in {"environ", "environb", "getenv", "putenv", "unsetenv"}
            or (isinstance(node, ast.alias) and node.name in {"environ", "getenv"})
        ]
        for source in ours()
        if source.path != "engine/settings.py"
    }
    settings = [source.path for source in ours() if "BaseSettings" in source.text]
    options = [
        source.path
        for source in ours()
        for node in source.nodes()
        if isinstance(node, ast.keyword) and node.arg == "envvar"
    ]

    assert against(found, READS_ENVIRONMENT) == []
    assert settings == ["engine/settings.py"]
    assert all(path.startswith("engine/cli/") for path in options)


def test_only_the_wiring_names_concrete_adapters() -> None:
    """Everyone else is handed what was opened, and never opens a second one."""
    found = {source.path: called(source, ADAPTERS) for source in ours()}

    assert against(found, NAMES_ADAPTERS) == []


def test_a_timeout_has_a_unit() -> None:
    """`timeout` alone does not say whether it is seconds; `answer_s`, `wall_ms` do."""
    found: dict[str, list[int]] = {}
    for source in ours():
        lines = found[source.path] = []
        for node in source.nodes():
            if isinstance(node, ast.arg):
                bare = node.arg == "timeout"
            elif isinstance(node, ast.AnnAssign):
                bare = name_of(node.target) == "timeout"
            else:
                stored = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
                bare = stored and name_of(node) == "timeout"
            lines += [node.lineno] if bare else []  # type: ignore[attr-defined]

    assert against(found, BARE_TIMEOUTS) == []


def test_everything_is_caught_at_the_loops_alone() -> None:
    """`except Exception` elsewhere would hide our own mistakes."""
    everything = {"Exception", "BaseException"}
    found = {}
    for source in ours():
        handlers = [node for node in source.nodes() if isinstance(node, ast.ExceptHandler)]
        found[source.path] = [
            node.lineno
            for node in handlers
            if node.type is None or any(name_of(part) in everything for part in ast.walk(node.type))
        ]
        found[source.path] += [
            node.lineno
            for node in source.nodes()
            if isinstance(node, ast.Call)
            and name_of(node.func) == "suppress"
            and any(name_of(argument) in everything for argument in node.args)
        ]

    assert against(found, CATCH_ALLS) == []
    assert {path: lines for path, lines in found.items() if len(lines) > 1} == {}


def test_nothing_is_pickled() -> None:
    """What is read back could run code: between processes goes JSON."""
    broken = [
        f"{source.path}:{line}: {module}"
        for source in ours()
        for line, module, _ in source.imports()
        if module.split(".", 1)[0] in PICKLES
    ]

    assert broken == []


def test_no_thread_sleeps() -> None:
    """It would hold up everything else on the loop; a wait has a deadline and can be cancelled."""
    found = {}
    for source in ours():
        found[source.path] = [line for line, *what in source.imports() if what == ["time", "sleep"]]
        found[source.path] += [
            node.lineno
            for node in source.nodes()
            if isinstance(node, ast.Attribute)
            and node.attr == "sleep"
            and name_of(node.value) == "time"
        ]

    assert against(found, SLEEPS) == []


def test_modules_hold_no_state() -> None:
    """A list, dict or set of a module is `Final` and is never changed; nothing is `global`."""
    broken = []
    for source in ours():
        tables = set()
        for node in source.tree.body:
            if not isinstance(node, ast.Assign | ast.AnnAssign) or not _is_mutable(node.value):
                continue
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = {name_of(target) for target in targets} - {"__all__"}
            tables |= names
            if not (isinstance(node, ast.AnnAssign) and "Final" in ast.unparse(node.annotation)):
                broken += [f"{source.path}:{node.lineno}: {name} is not Final" for name in names]
        broken += [
            f"{source.path}:{node.lineno}: {name}"  # type: ignore[attr-defined]
            for node in source.nodes()
            if (name := _changed(node)) == "global" or name in tables
        ]

    assert broken == []


def _is_mutable(value: ast.expr | None) -> bool:
    displays = ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp
    called_one = isinstance(value, ast.Call) and name_of(value.func) in MUTABLE
    return isinstance(value, displays) or called_one


def _changed(node: ast.AST) -> str | None:
    """Return the name of the thing that this changes in place."""
    if isinstance(node, ast.Global):
        return "global"
    if isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
        return getattr(node.value, "id", None)
    if isinstance(node, ast.AugAssign):
        return getattr(node.target, "id", None)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return getattr(node.func.value, "id", None) if node.func.attr in MUTATORS else None
    return None


def test_every_file_says_where_it_stands() -> None:
    """A header of a few lines: what a reader needs before the first line of code.

    The tree of a file's errors is part of it, and not counted.
    """
    broken = []
    for source in ours():
        header = (ast.get_docstring(source.tree) or "").splitlines()
        lines = [line for line in header if not line.lstrip().startswith(("|-", "`-"))]
        if not 1 <= len(lines) <= HEADER_LINES_MAX:
            broken.append(source.path)

    assert broken == []


def test_no_file_is_too_long_to_be_read() -> None:
    """What has grown beyond this holds more than one concept."""
    found = {}
    for source in sources(*OURS, "tests", "examples", "benchmarks"):
        is_test = source.path.startswith("tests/")
        lines_max = TEST_FILE_LINES_MAX if is_test else FILE_LINES_MAX
        lines_count = source.text.count("\n")
        found[source.path] = [lines_count] if lines_count > lines_max else []

    assert against(found, TOO_LONG) == []


def test_every_test_states_its_fact() -> None:
    """The docstring is the promise; the body is how it is kept."""
    broken = [
        f"{source.path}:{node.lineno}: {node.name}"
        for source in sources("tests")
        for node in source.nodes()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and Path(source.path).name.startswith("test_")
        and not ast.get_docstring(node)
    ]

    assert broken == []


def test_our_own_code_is_not_mocked() -> None:
    """A double is a small adapter that keeps the port's promises; `monkeypatch` sets limits."""
    broken = [
        f"{source.path}:{line}"
        for source in sources("tests")
        for line, module, name in source.imports()
        if "mock" in f"{module}.{name}".split(".")
    ]

    assert broken == []


def test_the_readme_has_every_setting() -> None:
    """An operator looks there first."""
    readme = (ROOT / "README.md").read_text()
    names = [f"CLOUDCODE_{name.upper()}" for name in Settings.model_fields]

    assert [name for name in names if f"`{name}`" not in readme] == []


def test_the_readme_has_every_error_code() -> None:
    """A caller who gets one can look it up."""
    readme = (ROOT / "README.md").read_text()

    assert [code for code in KINDS if f"`{code}`" not in readme] == []


def test_the_readme_draws_life_cycles_as_they_are() -> None:
    """Jobs and deliveries: every step that the tables allow, and no other."""
    readme = (ROOT / "README.md").read_text()
    diagrams = re.findall(r"```mermaid\nstateDiagram-v2\n(.*?)```", readme, re.DOTALL)
    drawn = [set(re.findall(r"^ +(\w+) --> (\w+)", text, re.MULTILINE)) for text in diagrams]

    assert drawn == [
        {(before.value, after.value) for before, afters in table.items() for after in afters}
        for table in (jobs.NEXT, deliveries.NEXT)
    ]


def test_nothing_names_the_place_where_it_was_written() -> None:
    """The repository stands by itself."""
    # Written in pieces, so that this file does not name them.
    pieces = [
        ("/", "work/"),
        ("/", "farm/"),
        (".", "library"),
        ("..", "/shared"),
        ("issue", " #"),
        ("user-", "requests"),
        ("conventions", ".md"),
        ("thethings-", "contract"),
    ]
    places = ["".join(parts) for parts in pieces]
    broken = []
    for file in _files_of_the_repository():
        try:
            text = file.read_text()
        except UnicodeDecodeError:
            continue
        broken += [f"{file.relative_to(ROOT)}: {place}" for place in places if place in text]

    assert broken == []


def _files_of_the_repository() -> Iterator[Path]:
    """Yield what could be committed: no caches, environments or data."""
    kept_dots = {".ci", ".gitignore", ".github", ".dockerignore"}
    left_out = {"__pycache__", "dist", "results", "cloudcode-data"}
    folders = [ROOT]
    while folders:
        for entry in sorted(folders.pop().iterdir()):
            if entry.name in left_out or (entry.name[0] == "." and entry.name not in kept_dots):
                continue
            if entry.is_dir():
                folders.append(entry)
            else:
                yield entry
