"""Functions as they are shown: with what is live and what was uploaded last."""

from dataclasses import dataclass

from sqlalchemy import Connection

from engine.store.deployments import Share, live_deployment, live_deployments
from engine.store.functions import (
    Function,
    Version,
    VersionSummary,
    find_function,
    latest_summaries,
    latest_version,
    list_functions,
)
from engine.store.pages import Page, Paged


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionView:
    function: Function
    live: tuple[Share, ...]
    latest: VersionSummary


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeFunctionView(FunctionView):
    latest: Version  # with its code


def view_functions(connection: Connection, project_id: str, page: Page) -> Paged[FunctionView]:
    """Return a page of functions: three statements however many there are."""
    found = list_functions(connection, project_id, page)
    ids = [function.id for function in found.items]
    live, latest = live_deployments(connection, ids), latest_summaries(connection, ids)
    views = tuple(
        FunctionView(
            function=function,
            live=live[function.id].versions if function.id in live else (),
            latest=latest[function.id],
        )
        for function in found.items
        if function.id in latest  # else it was deleted between the statements
    )
    return Paged(views, found.next_cursor)


def view_function(connection: Connection, project_id: str, asked: str) -> WholeFunctionView | None:
    """Return the function with this name or id."""
    function = find_function(connection, project_id, asked)
    if function is None:
        return None
    latest, live = latest_version(connection, function.id), live_deployment(connection, function.id)
    if latest is None:
        return None
    return WholeFunctionView(function=function, live=live.versions if live else (), latest=latest)
