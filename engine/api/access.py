"""Who asks, and what they may do: from the bearer key to a project and its scopes.

Path:   each route of /v1 -> here -> catalogue (memory); raw routes call `authenticate` themselves
Never:  asks the database; compares keys (a hash is looked up, so timing tells nothing).
"""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Final
from urllib.parse import unquote_to_bytes

from fastapi import Depends, Security
from fastapi.dependencies.models import Dependant
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.datastructures import Headers
from starlette.requests import Request

from engine.api.platform import Catalogue, platform_of
from engine.errors import EngineError, Invalid, NotFound
from engine.projects import key_hash

KEY_CHARS_MAX: Final = 512  # of any key that an operator may have set
_NO_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_TOLERANT: Final = frozenset({"GET", "HEAD"})  # they change nothing


class Unauthorized(EngineError):
    """The caller's: no key, or one that opens nothing."""

    code = "unauthorized"


class ForbiddenScope(EngineError):
    """The caller's: the key is valid and lacks the scope; names what is needed and what is held."""

    code = "forbidden_scope"

    def __init__(self, needed: tuple[str, ...], held: frozenset[str]) -> None:
        super().__init__(
            f"this needs the scope {' or '.join(dict.fromkeys((*needed, 'admin')))}; "
            f"the key has {', '.join(sorted(held))}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Whose project a request works in, and with which rights."""

    project_id: str
    scopes: frozenset[str]
    key_id: str
    requests_per_minute: int = 0  # of the key; 0: without a limit

    def require(self, *needed: str) -> None:
        """Refuse unless the key has one of these scopes; `admin` is all of them.

        Raises:
            ForbiddenScope: it has none of them.
        """
        if "admin" not in self.scopes and not self.scopes.intersection(needed):
            raise ForbiddenScope(needed, self.scopes)


READ: Final = ("develop", "operate")
INVOKE: Final = ("develop", "operate")
DEVELOP: Final = ("develop",)
OPERATE: Final = ("operate",)
INGEST: Final = ("ingest",)
ADMIN: Final = ("admin",)


def authenticate(
    catalogue: Catalogue, authorization: str | None, project: str | None = None
) -> Access:
    """Return what the key in the header may do.

    Args:
        catalogue: knows the keys.
        authorization: the header Authorization.
        project: the header X-Project: only an admin key may name another project than its own.

    Raises:
        Unauthorized: no such key.
        ForbiddenScope: another project, and not an admin key.
        NotFound: there is no such project.
    """
    scheme, _, secret = (authorization or "").partition(" ")
    secret = secret.strip()
    if scheme.lower() != "bearer" or not 0 < len(secret) <= KEY_CHARS_MAX:
        raise Unauthorized("send the header Authorization: Bearer <API key>")
    key = catalogue.key(key_hash(secret))
    if key is None:
        raise Unauthorized("this API key does not exist, or was deleted")
    project_id = key.project_id
    if project:
        project = _decoded(project)
        asked = catalogue.project(project)
        if asked != project_id:
            if "admin" not in key.scopes:
                raise ForbiddenScope(ADMIN, key.scopes)
            if asked is None:
                raise NotFound("project", project)
            project_id = asked
    per_minute = key.requests_per_minute
    if per_minute is None and "admin" not in key.scopes:  # whoever sets limits can be let in
        per_minute = catalogue.allowances(key.project_id).key_requests_per_minute
    return Access(
        project_id=project_id,
        scopes=key.scopes,
        key_id=key.id,
        requests_per_minute=per_minute or 0,
    )


def _decoded(name: str) -> str:
    """Return a name as it was before it became a header, which holds no more than Latin-1.

    Percent-encoded UTF-8, as the command line sends it, or plain UTF-8; what is neither stays.
    """
    if _NO_ESCAPE.search(name):
        return name
    try:
        return unquote_to_bytes(name.encode("latin-1")).decode()
    except UnicodeError:
        return name


async def access_of(catalogue: Catalogue, headers: Headers) -> Access:
    """Return what `authenticate` does for these headers, also if another node has just made it."""
    asked = (headers.get("authorization"), headers.get("x-project"))
    try:
        return authenticate(catalogue, *asked)
    except (Unauthorized, NotFound):
        if not await catalogue.fresh():
            raise
        return authenticate(catalogue, *asked)


_bearer = HTTPBearer(
    auto_error=False,
    scheme_name="apiKey",
    description=(
        "An API key, `cck_...`. Scopes: `admin` (everything, in every project: name another with "
        "the header `X-Project`), `develop` (functions, triggers, secrets, connections), "
        "`operate` (devices, products, deliveries, keys), `ingest` (device writes). `develop` and "
        "`operate` may read everything and invoke."
    ),
)


def _scoped(needed: tuple[str, ...]) -> Callable[..., Awaitable[Access]]:
    async def access(
        request: Request,
        _documented: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
    ) -> Access:
        found = await access_of(platform_of(request).catalogue, request.headers)
        found.require(*needed)
        if request.method not in _TOLERANT:
            _check_query(request)
        return found

    return access


def _check_query(request: Request) -> None:
    """Refuse a parameter that the route does not know: a mistyped `dry_run` would act for real."""
    known = _parameters(request.scope["route"].dependant)
    for name in request.query_params:
        if name not in known:
            named = f"known are {', '.join(sorted(known))}" if known else "there are none here"
            raise Invalid(f"is not a known parameter; {named}", f"?{name[:80]}")


def _parameters(dependant: Dependant) -> set[str]:
    """Return the names that a route and what it depends on take from the query."""
    own = {field.alias for field in dependant.query_params}
    return own.union(*map(_parameters, dependant.dependencies))


Reader = Annotated[Access, Depends(_scoped(READ))]
Invoker = Annotated[Access, Depends(_scoped(INVOKE))]
Developer = Annotated[Access, Depends(_scoped(DEVELOP))]
Operator = Annotated[Access, Depends(_scoped(OPERATE))]
Admin = Annotated[Access, Depends(_scoped(ADMIN))]
