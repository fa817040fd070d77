"""What has to be done at the end of a run whatever happens: a mistake of ours costs one step.

Path:   dispatch, commit, breakers -> `tell_end` -> `Run.on_end`;  `attempt`: any step that may fail
Never:  raises: who is told last must not pay for who was told before.
"""

from collections.abc import Callable
from typing import Final, TypeVarTuple

import structlog

from engine.run import Run
from runtimes.contract import GuestError, Outcome

INTERNAL: Final = "Internal"  # the error of a run that the engine itself could not bring to its end
Arguments = TypeVarTuple("Arguments")
_log = structlog.get_logger()


def attempt(event: str, about: str, step: Callable[[*Arguments], None], *of: *Arguments) -> bool:
    """Do a step; return whether it went well, else it is in the log as `event`."""
    try:
        step(*of)
    except Exception:  # noqa: BLE001 - of one run, or of one cell: everybody else's go on
        _log.exception(event, about=about)
        return False
    return True


def tell_end(run: Run) -> None:
    """Call `on_end` of the messages that the run is made of, and its own, where there is one."""
    for one in run.messages:
        if one.on_end is not None:
            attempt("end_not_told", one.execution_id, one.on_end, one)
    if run.on_end is not None:
        attempt("end_not_told", run.execution_id, run.on_end, run)


def give_up(run: Run) -> None:
    """Have a run that could not be settled end as failed, with nothing that its guest has made."""
    run.outcome = Outcome.FAILED
    run.error = GuestError(name=INTERNAL, message="the engine could not settle this run")
    run.result, run.limit = b"null", None
    run.effects, run.transcript, run.log, run.log_dropped = [], [], [], 0
    for one in (run, *run.messages):
        one.retried = False
