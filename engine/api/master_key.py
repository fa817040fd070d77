"""`/v1/admin/master-key`: changes the key that seals secrets, step by step. Admin keys only.

Never:  shows a key; what it calls `key` is a name that says whether two keys are equal.
"""

from typing import Annotated

from fastapi import APIRouter
from fastapi import Body as BodyOf
from pydantic import Field

from engine.api.access import Admin
from engine.api.openapi import problems
from engine.api.platform import PlatformHere
from engine.api.shapes import Body, Shown, example

router = APIRouter(prefix="/v1/admin", tags=["operations"])


class RotateAsked(Body):
    model_config = example({"begin": True, "keep_old": False})

    begin: bool = Field(True, description="Make a new key, if none is on its way.")
    keep_old: bool = Field(
        False, description="Leave the old key in the file: it opens old backups, and seals nothing."
    )


class RotateShown(Shown):
    phase: str = Field(description="accept | switch | reseal | verify | done")
    key: str = Field(description="Name of the key that seals; not the key.")
    others: list[str] = Field(description="Names of the keys that only open.")
    waits_for: list[str] = Field(description="Nodes that do not have the keys yet.")
    checked: int = Field(description="Values looked at in this pass ...")
    total: int = Field(description="... of so many.")
    resealed: int
    unreadable: list[str] = Field(description="Values that no key opens, nor did before: a few.")
    note: str = Field(description="What to do next, unless it is to go on.")


Rotate = Annotated[RotateAsked | None, BodyOf(examples=[{"begin": True}])]


@router.post("/master-key/rotate", responses=problems(409, 422, body=True))
async def rotate_master_key(platform: PlatformHere, _: Admin, body: Rotate = None) -> RotateShown:
    """Change the master key: one step, of some seconds. Call it again until the phase is `done`.

    With `begin` false it only goes on with what was begun.
    """
    begin, keep_old = (True, False) if body is None else (body.begin, body.keep_old)
    done = await platform.rotation.step(begin=begin, keep_old=keep_old)
    return RotateShown(
        phase=done.phase.value,
        key=done.key,
        others=list(done.others),
        waits_for=list(done.waits_for),
        checked=done.checked,
        total=done.total,
        resealed=done.resealed,
        unreadable=list(done.unreadable),
        note=done.note,
    )
