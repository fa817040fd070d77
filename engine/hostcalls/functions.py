"""The host call `function.call`: another function of the project runs once this run has succeeded.

Path:   broker -> here -> Run.effects; commit -> run_queue, and the backlog
Never:  runs anything now: a run that fails has called nobody.
"""

from collections import Counter

import msgspec

from engine.catalogue import Catalogue
from engine.causality import CalledTooDeep, CausalBudgetExceeded, path_below
from engine.errors import HostCallRefused, NotFound
from engine.events import check_text
from engine.handlers import asked_handler
from engine.ids import new_id
from engine.quotas import CALL_DEPTH_MAX, PARAMS_BYTES_MAX
from engine.run import CallEffect, Run
from engine.runner import LimitReached, spend_bytes
from runtimes.contract import LimitHit, Outcome


class _Call(msgspec.Struct):
    function: str
    payload: msgspec.Raw = msgspec.Raw(b"null")
    handler: str | None = None


class Functions:
    """What a run may ask of the other functions of its project."""

    def __init__(self, catalogue: Catalogue, counts: Counter[str]) -> None:
        """`counts` is of `engine.metrics`."""
        self._catalogue = catalogue
        self._counts = counts

    def call(self, run: Run, arguments: bytes, _call: int) -> dict[str, str]:
        """Buffer a call; the answer names the execution that it will be."""
        asked = msgspec.json.decode(arguments, type=_Call)
        function = self._catalogue.function(run.project_id, asked.function)
        if function is None:
            raise NotFound("function", asked.function[:80])
        payload = bytes(asked.payload)
        if len(payload) > PARAMS_BYTES_MAX:
            raise HostCallRefused(
                f"the payload has {len(payload)} bytes; the most is {PARAMS_BYTES_MAX}"
            )
        check_text(payload, "/payload")
        path = path_below(run.path, run.version.function)
        if run.depth >= CALL_DEPTH_MAX:
            self._counts["loops_stopped"] += 1
            raise CalledTooDeep(run.depth, path)
        if run.free_budget <= 0:
            self._counts["loops_stopped"] += 1
            raise CausalBudgetExceeded(path, *run.share)
        spend_bytes(run, len(arguments))
        count = 1 + sum(isinstance(effect, CallEffect) for effect in run.effects)
        most = run.limits.function_calls
        if count > most:
            hit = LimitHit(name="function_calls", value=most, used=count)
            raise LimitReached(Outcome.EFFECTS_EXCEEDED, hit)
        execution_id = new_id("exe")
        version = function.choose(execution_id)
        handlers = tuple(name for name in version.handlers if name != "fetch")
        if not handlers:
            raise HostCallRefused(f"{asked.function} has no handler but fetch, which needs HTTP")
        handler = asked_handler(handlers, asked.handler, "/handler")
        effect = CallEffect(
            execution_id=execution_id, version=version, handler=handler, payload=payload
        )
        run.effects.append(effect)
        return {"execution_id": execution_id}
