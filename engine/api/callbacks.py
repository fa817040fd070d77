"""`/v1/callbacks`: where providers tell what became of messages. No key: their signature is it.

Path:   a provider -> edge (leaves the body alone) -> here -> engine.callbacks -> the connector
Never:  trusts the header Host: what Twilio signs is the URL that it was told, our public one
"""

from typing import Final

import structlog
from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

from engine.api.edge import read_body
from engine.api.openapi import problems
from engine.api.platform import Platform, PlatformHere
from engine.callbacks import take
from engine.connectors.contract import Callback, CallbackRefused
from engine.errors import EngineError
from engine.quotas import CALLBACK_BYTES_MAX

router = APIRouter(tags=["connections"])

_HOOK: Final = "/v1/callbacks/{project_id}/{connection}"
_ERRORS: Final = problems(403, 404, 408, 413, public=True)
_log = structlog.get_logger()


class NotTheProviders(EngineError):
    """The caller's: the callback is not signed as the provider signs."""

    code = "callback_refused"


@router.post(_HOOK, status_code=204, response_class=Response, responses=_ERRORS)
async def take_news(
    platform: PlatformHere, request: Request, project_id: str, connection: str
) -> Response:
    """Take what a provider tells of many messages, as SendGrid's event webhook does.

    The body is the provider's own, and so is the signature in its headers.
    """
    return await _take(platform, request, project_id, connection, None)


@router.post(_HOOK + "/{delivery_id}", status_code=204, response_class=Response, responses=_ERRORS)
async def take_news_of_one(
    platform: PlatformHere, request: Request, project_id: str, connection: str, delivery_id: str
) -> Response:
    """Take what a provider tells of one message, as Twilio's status callback does."""
    return await _take(platform, request, project_id, connection, delivery_id)


async def _take(
    platform: Platform, request: Request, project_id: str, name: str, delivery_id: str | None
) -> Response:
    body = await read_body(
        request.headers, request.receive, CALLBACK_BYTES_MAX, limit_name="callback_bytes"
    )
    if body is None:
        return Response(status_code=204)  # the caller left
    callback = Callback(
        url=platform.settings.public_url + _as_sent(request),
        headers=dict(request.headers.items()),
        body=body,
        delivery_id=delivery_id,
    )
    try:
        known = await take(platform, project_id, name, callback)
    except CallbackRefused as error:
        _log.warning("callback_refused", project_id=project_id, connection=name, reason=str(error))
        raise NotTheProviders("the provider's signature is missing or wrong") from None
    if not known:
        raise HTTPException(404)
    return Response(status_code=204)


def _as_sent(request: Request) -> str:
    """Return path and query byte for byte: a signature is over them."""
    path: bytes = request.scope.get("raw_path") or request.url.path.encode()
    query: bytes = request.scope["query_string"]
    return (path.split(b"?")[0] + (b"?" + query if query else b"")).decode("latin-1")
