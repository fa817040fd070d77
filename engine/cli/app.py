"""The command line: global options, and one table of every verb with an example.

Path:   __main__ -> here -> session.command_of -> a verb in its own file
"""

from dataclasses import dataclass, field
from importlib import metadata
from inspect import Parameter
from typing import Annotated, Final

import typer
from rich.markup import escape

from engine.cli import (
    admin,
    breakers,
    connections,
    deliveries,
    devices,
    doctor,
    events,
    functions,
    history,
    invoke,
    jobs,
    keys,
    kv,
    logs,
    migrate,
    projects,
    schedules,
    serve,
    usage,
    vault,
)
from engine.cli import deploy as deploying
from engine.cli.session import Session, Verb, command_of

URL: Final = "http://127.0.0.1:8700"

GROUPS: Final = {
    "functions": "Deployed code.",
    "trigger": "What makes a function run.",
    "schedule": "Functions that run by the clock.",
    "executions": "Runs.",
    "jobs": "Runs for later, tried again when they fail.",
    "dlq": "Dead letters: runs that failed at every attempt they had.",
    "breakers": "What is held back for what it did: functions, and devices of functions.",
    "deliveries": "Messages sent to providers, and what to do about them.",
    "products": "Kinds of device.",
    "devices": "Devices and their values.",
    "kv": "The key-value store that functions share.",
    "secret": "Secrets for functions.",
    "connections": "Providers: their credentials, and whether they work.",
    "connection": "An older name of `connections`.",
    "projects": "Tenants: how their code is walled in, and what each may use.",
    "keys": "API keys: what each may do, and how often.",
    "admin": "For whoever runs the engine: nodes, queues, stuck work, how much is kept.",
    "admin retention": "How much of what a project keeps.",
    "admin tickets": "What tells nodes of work.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One verb: its place (`functions list`), what does it, examples that work as they stand."""

    place: str
    verb: Verb
    examples: tuple[str, ...]
    parameters: list[Parameter] | None = field(default=None)


def _command(
    place: str, verb: Verb, *examples: str, parameters: list[Parameter] | None = None
) -> Command:
    return Command(place=place, verb=verb, examples=examples, parameters=parameters)


COMMANDS: Final = (
    _command(
        "serve",
        serve.serve,
        "cloudcode serve",
        "cloudcode serve --port 8080 --data-dir /var/lib/cloudcode --isolation-required strict",
        parameters=serve.options(),
    ),
    _command(
        "worker",
        serve.worker,
        "cloudcode worker --database-url postgresql://cloudcode@db/cloudcode "
        "--redis-url redis://queue:6379/0",
        parameters=serve.options(),
    ),
    _command(
        "migrate",
        migrate.migrate,
        "cloudcode migrate",
        "cloudcode migrate --to 0003 --database-url postgresql://cloudcode@db/cloudcode",
        parameters=migrate.parameters(),
    ),
    _command(
        "deploy",
        deploying.deploy,
        "cloudcode deploy examples/alarms.ts --product weather --on write --key temp",
        "cloudcode deploy ./my-function --message 'fix rounding' --percent 10",
        "cloudcode deploy examples/forecast.js --host api.example.com --var UNIT=celsius",
        "cloudcode deploy alarm.wasm --product weather --handler afterStore",
        "cloudcode deploy redact.wasm --arg -n --io text --fuel 50000000",
    ),
    _command(
        "invoke",
        invoke.invoke,
        """cloudcode invoke hello '{"name": "Ada"}'""",
        "cloudcode invoke report @params.json --async",
    ),
    _command(
        "logs",
        logs.logs,
        "cloudcode logs exe_0194f0c2a1b07c3e8d2f6a5b4c3d2e1f",
        "cloudcode logs --function alarms --limit 5",
    ),
    _command(
        "tail",
        logs.tail,
        "cloudcode tail alarms",
        "cloudcode tail alarms --json | jq .status",
    ),
    _command(
        "doctor",
        doctor.doctor,
        "cloudcode doctor",
        "cloudcode doctor --strict --json",
        parameters=doctor.parameters(),
    ),
    _command("rollback", functions.rollback, "cloudcode rollback alarms"),
    _command("limits", history.limits, "cloudcode limits --json"),
    _command("usage", usage.usage, "cloudcode usage", "cloudcode usage --month 2026-11 --json"),
    _command("functions list", functions.functions_list, "cloudcode functions list"),
    _command("functions show", functions.functions_show, "cloudcode functions show alarms"),
    _command(
        "functions versions", functions.functions_versions, "cloudcode functions versions alarms"
    ),
    _command("functions delete", functions.functions_delete, "cloudcode functions delete alarms"),
    _command(
        "trigger add",
        functions.trigger_add,
        "cloudcode trigger add alarms --product weather --key temp",
        "cloudcode trigger add counter --product meters --order device --lateness 5",
    ),
    _command("trigger list", functions.trigger_list, "cloudcode trigger list --product weather"),
    _command(
        "trigger delete",
        functions.trigger_delete,
        "cloudcode trigger delete trg_0194f0c2a1b07c3e8d2f6a5b4c3d2e1f",
    ),
    _command(
        "explain",
        events.explain,
        "cloudcode explain evt_0194f0c2a1b07c3e8d2f6a5b4c3d2e1f",
    ),
    _command(
        "events",
        events.events_list,
        "cloudcode events --device dev_0194f0c2a1b07c3e8d2f6a5b4c3d2e1f --limit 10",
    ),
    _command(
        "schedule create",
        schedules.schedule_create,
        "cloudcode schedule create report --cron '0 7 * * MON-FRI' --timezone Europe/Madrid",
        """cloudcode schedule create poll --every 30s --payload '{"unit": 7}'""",
        "cloudcode schedule create greet --cron '0 7 * * *' --product weather",
    ),
    _command("schedule list", schedules.schedule_list, "cloudcode schedule list --function report"),
    _command("schedule show", schedules.schedule_show, "cloudcode schedule show morning-report"),
    _command(
        "schedule preview",
        schedules.schedule_preview,
        "cloudcode schedule preview morning-report --limit 20",
        "cloudcode schedule preview --cron '30 2 * * *' --timezone Europe/Madrid",
    ),
    _command(
        "schedule pause",
        schedules.schedule_pause,
        "cloudcode schedule pause morning-report --reason 'the plant is closed'",
    ),
    _command(
        "schedule resume", schedules.schedule_resume, "cloudcode schedule resume morning-report"
    ),
    _command(
        "schedule trigger",
        schedules.schedule_trigger,
        "cloudcode schedule trigger morning-report --force",
    ),
    _command(
        "schedule backfill",
        schedules.schedule_backfill,
        "cloudcode schedule backfill morning-report --from 2026-03-01 --to 2026-03-08 --dry-run",
    ),
    _command(
        "schedule delete", schedules.schedule_delete, "cloudcode schedule delete morning-report"
    ),
    _command(
        "executions list",
        history.executions_list,
        "cloudcode executions list --function alarms --status failed --limit 5",
    ),
    _command(
        "executions show",
        history.executions_show,
        "cloudcode executions show exe_0194f0c2a1b07c3e8d2f6a5b4c3d2e1f",
    ),
    _command(
        "replay",
        jobs.replay,
        "cloudcode replay exe_0194f0c2a1b07c3e8d2f6a5b4c3d2e1f",
        "cloudcode replay --function alarms --status failed --since 2010-10-29T00:00:00Z --dry-run",
    ),
    _command(
        "cancel",
        jobs.cancel,
        "cloudcode cancel exe_0194f0c2a1b07c3e8d2f6a5b4c3d2e1f",
        "cloudcode cancel --function alarms --status queued",
    ),
    _command(
        "jobs create",
        jobs.jobs_create,
        """cloudcode jobs create report '{"day": "2010-10-29"}' --delay 5m --key report-29""",
        "cloudcode jobs create resize @image.json --queue images --priority low --max-attempts 5",
    ),
    _command(
        "jobs list", jobs.jobs_list, "cloudcode jobs list --queue images --status dead_lettered"
    ),
    _command(
        "jobs show",
        jobs.jobs_show,
        "cloudcode jobs show job_0194f0c2a1b07c3e8d2f6a5b4c3d2e1f --wait 10",
    ),
    _command(
        "jobs cancel",
        jobs.jobs_cancel,
        "cloudcode jobs cancel job_0194f0c2a1b07c3e8d2f6a5b4c3d2e1f",
    ),
    _command("dlq list", jobs.dlq_list, "cloudcode dlq list --function report"),
    _command("dlq show", jobs.dlq_show, "cloudcode dlq show dlq_0194f0c2a1b07c3e8d2f6a5b4c3d2e1f"),
    _command(
        "dlq edit",
        jobs.dlq_edit,
        """cloudcode dlq edit dlq_0194f0c2a1b07c3e8d2f6a5b4c3d2e1f '{"day": "2010-10-30"}'""",
    ),
    _command(
        "dlq redrive",
        jobs.dlq_redrive,
        "cloudcode dlq redrive dlq_0194f0c2a1b07c3e8d2f6a5b4c3d2e1f",
        "cloudcode dlq redrive --function report --dry-run",
        "cloudcode dlq redrive --breaker brk_0194f0c2a1b07c3e8d2f6a5b4c3d2e1f",
    ),
    _command(
        "dlq delete",
        jobs.dlq_delete,
        "cloudcode dlq delete dlq_0194f0c2a1b07c3e8d2f6a5b4c3d2e1f",
        "cloudcode dlq delete --queue images --since 2010-10-29T00:00:00Z --dry-run",
    ),
    _command(
        "breakers list",
        breakers.breakers_list,
        "cloudcode breakers list",
        "cloudcode breakers list --function alarms --json",
    ),
    _command(
        "breakers show",
        breakers.breakers_show,
        "cloudcode breakers show brk_0194f0c2a1b07c3e8d2f6a5b4c3d2e1f",
    ),
    _command(
        "breakers close",
        breakers.breakers_close,
        "cloudcode breakers close brk_0194f0c2a1b07c3e8d2f6a5b4c3d2e1f",
    ),
    _command(
        "breakers redrive",
        breakers.breakers_redrive,
        "cloudcode breakers redrive brk_0194f0c2a1b07c3e8d2f6a5b4c3d2e1f",
        "cloudcode breakers redrive brk_0194f0c2a1b07c3e8d2f6a5b4c3d2e1f --dry-run",
    ),
    _command(
        "deliveries list",
        deliveries.deliveries_list,
        "cloudcode deliveries list --connection ALERTS",
        "cloudcode deliveries list --state failed --since 2h",
    ),
    _command(
        "deliveries show",
        deliveries.deliveries_show,
        "cloudcode deliveries show dlv_0194f0c2a1b07c3e8d2f6a5b4c3d2e1f",
    ),
    _command(
        "deliveries resend",
        deliveries.deliveries_resend,
        "cloudcode deliveries resend dlv_0194f0c2a1b07c3e8d2f6a5b4c3d2e1f",
        "cloudcode deliveries resend --connection SMS --state cancelled --dry-run",
    ),
    _command(
        "deliveries cancel",
        deliveries.deliveries_cancel,
        "cloudcode deliveries cancel dlv_0194f0c2a1b07c3e8d2f6a5b4c3d2e1f",
        "cloudcode deliveries cancel --connection SMS --state held",
    ),
    _command(
        "deliveries hold",
        deliveries.deliveries_hold,
        "cloudcode deliveries hold --connection SMS",
    ),
    _command(
        "deliveries release",
        deliveries.deliveries_release,
        "cloudcode deliveries release --connection SMS --recipient +15558675310",
    ),
    _command(
        "deliveries recover",
        deliveries.deliveries_recover,
        "cloudcode deliveries recover --since 2h --dry-run",
        "cloudcode deliveries recover --since 2010-10-29T00:00:00Z --connection SMS",
    ),
    _command("products add", devices.products_add, "cloudcode products add weather"),
    _command("products list", devices.products_list, "cloudcode products list"),
    _command(
        "devices add",
        devices.devices_add,
        "cloudcode devices add roof --product weather --timezone America/Los_Angeles",
    ),
    _command("devices list", devices.devices_list, "cloudcode devices list --product weather"),
    _command(
        "devices write",
        devices.devices_write,
        "cloudcode devices write dev_0194f0c2a1b07c3e8d2f6a5b4c3d2e1f temp=71.5 door=open",
    ),
    _command(
        "devices read",
        devices.devices_read,
        "cloudcode devices read dev_0194f0c2a1b07c3e8d2f6a5b4c3d2e1f temp --limit 10",
    ),
    _command(
        "kv put",
        kv.kv_put,
        "cloudcode kv put last-report 2010-10-29",
        """cloudcode kv put limits '{"hot": 75}' --namespace config --ttl-seconds 86400""",
    ),
    _command("kv get", kv.kv_get, "cloudcode kv get limits --namespace config"),
    _command("kv list", kv.kv_list, "cloudcode kv list --prefix last- --limit 500"),
    _command("kv delete", kv.kv_delete, "cloudcode kv delete last-report"),
    _command(
        "secret put",
        vault.secret_put,
        "cloudcode secret put API_TOKEN",
        "cloudcode secret put API_TOKEN < token.txt",
        "cloudcode secret put API_TOKEN --function report < token.txt",
    ),
    _command("secret list", vault.secret_list, "cloudcode secret list"),
    _command("secret delete", vault.secret_delete, "cloudcode secret delete API_TOKEN --force"),
    _command(
        "connections put",
        connections.connections_put,
        "cloudcode connections put SMS --kind twilio --from-file twilio.json",
        "cloudcode connections put ALERTS --kind slack < slack.json",
        "cloudcode connections put SMS --kind twilio --keep-credentials "
        """--settings '{"guard": {"per_day": 500}}' --function alarms""",
    ),
    _command("connections list", connections.connections_list, "cloudcode connections list"),
    _command("connections show", connections.connections_show, "cloudcode connections show SMS"),
    _command(
        "connections test",
        connections.connections_test,
        "cloudcode connections test SMS",
        """cloudcode connections test ALERTS --message '{"text": "It works."}'""",
    ),
    _command(
        "connections enable", connections.connections_enable, "cloudcode connections enable SMS"
    ),
    _command(
        "connections delete", connections.connections_delete, "cloudcode connections delete SMS"
    ),
    _command("connections kinds", connections.connections_kinds, "cloudcode connections kinds"),
    _command(
        "connection put",
        connections.connections_put,
        "cloudcode connection put ALERTS --kind slack --credentials slack.json",
    ),
    _command("connection list", connections.connections_list, "cloudcode connection list"),
    _command(
        "connection delete", connections.connections_delete, "cloudcode connection delete ALERTS"
    ),
    _command("projects list", projects.projects_list, "cloudcode projects list"),
    _command(
        "projects create",
        projects.projects_create,
        "cloudcode projects create greenhouses",
        "cloudcode projects create lab --isolation hardened --concurrency 20",
    ),
    _command("projects show", projects.projects_show, "cloudcode projects show greenhouses --json"),
    _command(
        "projects set",
        projects.projects_set,
        "cloudcode projects set greenhouses --isolation hardened",
        "cloudcode projects set lab --concurrency 50 --cpu-seconds-per-minute 20 --queued default",
    ),
    _command("keys list", keys.keys_list, "cloudcode keys list --project greenhouses"),
    _command(
        "keys create",
        keys.keys_create,
        "cloudcode keys create 'gateway 7' --scope ingest",
        "cloudcode keys create ci --scope develop --scope operate --requests-per-minute 600",
    ),
    _command(
        "keys set",
        keys.keys_set,
        "cloudcode keys set key_0194f0c2a1b07c3e8d2f6a5b4c3d2e1f --requests-per-minute 600",
        "cloudcode keys set key_0194f0c2a1b07c3e8d2f6a5b4c3d2e1f --requests-per-minute default",
    ),
    _command(
        "keys delete",
        keys.keys_delete,
        "cloudcode keys delete key_0194f0c2a1b07c3e8d2f6a5b4c3d2e1f",
    ),
    _command("admin nodes", admin.nodes, "cloudcode admin nodes"),
    _command("admin queues", admin.queues, "cloudcode --project greenhouses admin queues"),
    _command("admin stuck", admin.stuck, "cloudcode admin stuck --json"),
    _command(
        "admin release",
        admin.release,
        "cloudcode admin release exe_0194f0c2a1b07c3e8d2f6a5b4c3d2e1f",
        "cloudcode admin release node_0194f0c2a1b07c3e8d2f6a5b4c3d2e1f --dry-run",
    ),
    _command(
        "admin tickets reissue",
        admin.tickets_reissue,
        "cloudcode admin tickets reissue",
    ),
    _command(
        "admin rotate-key",
        admin.rotate_key,
        "cloudcode admin rotate-key",
        "cloudcode admin rotate-key --keep-old --json",
    ),
    _command(
        "admin retention show",
        admin.retention_show,
        "cloudcode admin retention show",
        "cloudcode --project greenhouses admin retention show --no-usage",
    ),
    _command(
        "admin retention set",
        admin.retention_set,
        "cloudcode admin retention set executions.rows=1M logs.age_days=7 --dry-run",
        "cloudcode admin retention set values.bytes=20G events=default",
    ),
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(metadata.version("cloudcode-engine"))
        raise typer.Exit


def build() -> typer.Typer:
    """Return the whole command line, ready to be called."""
    root = _typer("Cloud code for devices: deploy functions, feed them events, read what they did.")
    root.callback(
        epilog=_examples("cloudcode serve", "cloudcode --url http://box:8700 functions list")
    )(_global_options)
    groups = {name: _typer(text) for name, text in GROUPS.items()}
    for command in COMMANDS:
        group, _, name = command.place.rpartition(" ")
        home = groups[group] if group else root
        home.command(name, epilog=_examples(*command.examples))(
            command_of(command.verb, command.parameters)
        )
    for place, app in groups.items():
        parent, _, name = place.rpartition(" ")
        (groups[parent] if parent else root).add_typer(app, name=name)
    return root


def _global_options(
    context: typer.Context,
    url: Annotated[str, typer.Option(envvar="CLOUDCODE_URL", help="Where the engine is.")] = URL,
    key: Annotated[
        str, typer.Option(envvar="CLOUDCODE_KEY", help="API key.", show_default=False)
    ] = "",
    project: Annotated[
        str,
        typer.Option(
            envvar="CLOUDCODE_PROJECT",
            help="With an admin key: another project than the key's own.",
            show_default=False,
        ),
    ] = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="JSON on stdout; messages stay on stderr.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it and end.")
    ] = False,
) -> None:
    del version
    context.obj = Session(url=url, key=key, project=project, as_json=as_json)


def _typer(text: str) -> typer.Typer:
    return typer.Typer(
        help=text,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,  # would print local variables, keys among them
        rich_markup_mode="rich",
    )


def _examples(*lines: str) -> str:
    # A blank line keeps each on a line of its own in Typer's epilog.
    return "\n\n".join(("Examples:", *(escape(line) for line in lines)))
