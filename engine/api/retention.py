"""`/v1/projects/{project}/retention`: what is kept, what there is, what would go."""

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import Field

from engine.api.access import Operator, Reader
from engine.api.openapi import problems
from engine.api.platform import Platform, PlatformHere
from engine.api.projects import project_of
from engine.api.shapes import Body, Shown, example
from engine.clock import iso
from engine.retention_rules import DAY_MS, Keep, Kind, check_rule, defaults, keeps
from engine.retention_usage import usage
from engine.store.retention import Rule, put_rules, rules_of

router = APIRouter(tags=["operations"])


class Limits(Body):
    """What is kept of one kind: the newest that fit. What is left out, or null, is no limit."""

    rows: int | None = Field(None, description="At most so many rows, 1 or more.")
    bytes: int | None = Field(None, description="At most so many bytes, 1 or more.")
    age_days: float | None = Field(
        None, description="Not older; 0: for ever; left out or null: as the settings say."
    )


class RetentionNew(Body):
    """A kind that is left out is kept as the settings say."""

    model_config = example({"executions": {"rows": 1_000_000}, "values": {"age_days": 365}})

    executions: Limits | None = None
    logs: Limits | None = Field(None, description="Of executions, which stay.")
    events: Limits | None = Field(None, description="With the input of the runs they caused.")
    values: Limits | None = Field(None, description="By their datetime.")
    jobs: Limits | None = Field(None, description="That have ended.")
    dead_letters: Limits | None = None
    deliveries: Limits | None = Field(None, description="That have ended.")
    schedule_fires: Limits | None = Field(None, description="By age alone.")


class Amount(Shown):
    rows: int
    bytes: int
    complete: bool = Field(description="false: at least so much; counting it all takes too long.")


class AmountThere(Amount):
    oldest_at: str | None


class KindShown(Shown):
    rows: int | None
    bytes: int | None
    age_days: float | None = Field(description="null: for ever.")
    source: str = Field(description="project | settings: who has said so.")
    usage: AmountThere | None = Field(None, description="What there is; only if asked for.")
    would_delete: Amount | None = Field(None, description="What of it would go now.")


class RetentionShown(Shown):
    project: str
    dry_run: bool = Field(description="true: nothing was changed.")
    executions: KindShown
    logs: KindShown
    events: KindShown
    values: KindShown
    jobs: KindShown
    dead_letters: KindShown
    deliveries: KindShown
    schedule_fires: KindShown


WithUsage = Annotated[
    bool, Query(description="Also count what there is and what would go: seconds, if it is much.")
]
DryRun = Annotated[
    bool, Query(description="Change nothing; show what would be kept so, and what would go.")
]


@router.get("/v1/projects/{project}/retention", responses=problems(404, 422))
async def show_retention(
    platform: PlatformHere, access: Reader, project: str, *, usage: WithUsage = False
) -> RetentionShown:
    """Show how much of what the project keeps. `current` is the key's own project."""
    project_id = await project_of(platform, access, project)
    rules = await platform.database.read(rules_of, project_id)
    return await _shown(platform, project_id, rules, count=usage, dry_run=False)


@router.put("/v1/projects/{project}/retention", responses=problems(404, 422, body=True))
async def put_retention(
    platform: PlatformHere,
    access: Operator,
    project: str,
    body: RetentionNew,
    *,
    dry_run: DryRun = False,
) -> RetentionShown:
    """Say how much of what the project keeps, in place of all that was said before.

    What is too much goes within minutes, for good: ask with `dry_run=true` first. What has not
    ended, and the events that it needs, stay whatever the rule.
    """
    project_id = await project_of(platform, access, project)
    rules = {
        kind.value: check_rule(kind, rows=limits.rows, size=limits.bytes, age_days=limits.age_days)
        for kind in Kind
        if (limits := getattr(body, kind.value)) is not None
    }
    if not dry_run:
        await platform.journal.run(put_rules, project_id, rules)
    return await _shown(platform, project_id, rules, count=dry_run, dry_run=dry_run)


async def _shown(
    platform: Platform, project_id: str, rules: dict[str, Rule], *, count: bool, dry_run: bool
) -> RetentionShown:
    kept = keeps(defaults(platform.settings), rules)
    kinds: dict[str, Any] = {}
    for kind, keep in kept.items():  # one after the other: it is nobody's hurry
        counted = await _counted(platform, project_id, kind, keep) if count else {}
        kinds[kind.value] = KindShown(
            rows=keep.rows,
            bytes=keep.bytes,
            age_days=None if keep.age_ms is None else round(keep.age_ms / DAY_MS, 3),
            source="project" if keep.own else "settings",
            **counted,
        )
    return RetentionShown(project=project_id, dry_run=dry_run, **kinds)


async def _counted(platform: Platform, project_id: str, kind: Kind, keep: Keep) -> dict[str, Any]:
    found = await usage(platform.database, project_id, kind, keep, platform.clock())
    oldest_at = None if found.oldest_ms is None else iso(found.oldest_ms)
    return {
        "usage": AmountThere(
            rows=found.rows, bytes=found.bytes, complete=found.complete, oldest_at=oldest_at
        ),
        "would_delete": Amount(
            rows=found.over_rows, bytes=found.over_bytes, complete=found.complete
        ),
    }
