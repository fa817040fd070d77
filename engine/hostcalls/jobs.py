"""The host call `job.progress`: a job says how far it is, for whoever asks meanwhile.

Path:   broker -> here -> store.jobs, through the journal
Never:  an effect: it is there at once, and also of an attempt that fails later.
"""

import asyncio
from functools import partial
from typing import Final

import msgspec

from engine.clock import Clock
from engine.jobs import progress_json
from engine.run import Run
from engine.store.jobs import keep_progress
from engine.store.journal import Commit, Journal

EVERY_S: Final = 0.5  # of one run; the last word of each span is the one that is stored


class _Progress(msgspec.Struct):
    value: float
    message: str | None = None


class _Span:
    """What a run has said since its last word was stored."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.losses = run.losses
        self.word: str | None = None


class Jobs:
    """What a job may say about itself."""

    def __init__(self, journal: Journal, clock: Clock) -> None:
        self._journal = journal
        self._clock = clock
        self._spans: dict[str, _Span] = {}

    def progress(self, run: Run, arguments: bytes, _call: int) -> None:
        """Keep how far the run's job is; of a run that is no job's, nothing is kept."""
        said = msgspec.json.decode(arguments, type=_Progress)
        word = progress_json(said.value, said.message or "", self._clock())
        if run.version.redaction is not None:
            word = run.version.redaction.json(word.encode()).decode()
        if run.job_id is None:
            return
        span = self._spans.get(run.execution_id)
        if span is None:
            self._store(run, word)
        else:
            span.word = word

    def _store(self, run: Run, word: str) -> None:
        assert run.job_id is not None
        change = partial(
            keep_progress, job_id=run.job_id, execution_id=run.execution_id, progress=word
        )
        self._journal.submit(Commit(change=change))
        self._spans[run.execution_id] = _Span(run)
        asyncio.get_running_loop().call_later(EVERY_S, self._over, run.execution_id)

    def _over(self, execution_id: str) -> None:
        span = self._spans.pop(execution_id)
        run = span.run
        if span.word is not None and run.outcome is None and run.losses == span.losses:
            self._store(run, span.word)
