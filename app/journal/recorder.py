"""Records the steps of one run, to be stored with its answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from decimal import Decimal
from hashlib import sha256
from typing import Any, Literal, NamedTuple

from app.domain import Step, Usage, Value, now
from app.errors import AgentFailed, AppError
from app.journal.replay import Done, Replay, Verdict, failure, suspension

MAX_STEPS = 10_000
"""The most steps of one run."""
MAX_BYTES = 64_000_000
"""The most bytes of input and output one run may record."""

BYTES_PER_TOKEN = 4
"""Of JSON in most languages; only used for calls whose process died."""

NEW: Verdict = "do"

_path: ContextVar[str] = ContextVar("step_path", default="")


class Bill(NamedTuple):
    """What one LLM call came to, as far as it is known: exactly when it has ended, else estimated from its input."""

    seq: int
    model: str
    prompt: int
    completion: int = 0
    cached: int = 0
    reasoning: int = 0
    estimated: bool = True
    cost: Decimal = Decimal(0)
    ended: bool = False
    prices: tuple[Decimal, Decimal] = (Decimal(0), Decimal(0))
    """Of a call that goes on: for a million tokens of its prompt and of its answer."""


class JournalFull(AgentFailed):
    """The run has recorded more steps than this server keeps."""

    code = "journal_full"


class OpenStep(Step, kw_only=True):
    """A step while it happens; what is set here until it ends is recorded.

    Whoever takes it looks at `served` first: what it gave before, in the place of what it would do. When it has done it, it says so by
    `done`, and looks again: a rerun may hand on what was recorded.
    """

    prices: tuple[Decimal, Decimal] = (Decimal(0), Decimal(0))
    owes_nothing: Callable[[], bool] = bool
    """Whether it is another process that will pay for what goes on, should this one die."""
    served: bytes | None = None
    failure: Exception | None = None
    """What it failed with before, which is raised at its end."""
    changes: Mapping[str, Any] = {}
    """What a rerun wants otherwise: `model`, `params`, `prompt`, `input`."""
    handed_on: Done | None = None

    def done(self, output: bytes | None) -> None:
        """It happened, and gave this."""
        self.output = output
        if self.handed_on is not None:
            self.served = self.handed_on.output


class Recorder:
    """The steps of one run in the order they began. Those of its earlier attempts have the numbers up to `after`, and are served from
    `replay`.
    """

    def __init__(self, after: int = 0, replay: Replay | None = None) -> None:
        self._lock = threading.Lock()
        """Steps of an agent in a thread begin there, others of its run on the loop."""
        self._after = after
        self._replay = replay
        self._opened = after
        self._bytes = 0
        self._steps: list[Step] = []
        self._open: dict[int, OpenStep] = {}

    @property
    def can_wait(self) -> bool:
        """Whether a run that is ended by a question begins anew with the answer."""
        return not self._is_rerun

    @property
    def steps(self) -> Sequence[Step]:
        """The steps that have ended, in the order they began."""
        return sorted(self._steps, key=lambda step: step.seq)

    def since(self, number: int) -> Sequence[Step]:
        """The steps that have ended, but for so many that ended first."""
        return self._steps[number:]

    @property
    def marks(self) -> int:
        """How many steps have begun and how many have ended, together: whether there is news for the bill."""
        return self._opened + len(self._steps)

    @property
    def usage(self) -> Usage:
        """The sum over all LLM calls."""
        return sum((step.usage for step in self._steps), Usage())

    def serve(self, replay: Replay) -> None:
        """From now on steps that are in the journal are served from there."""
        self._replay = replay

    def path(self, name: str) -> str:
        """Where a step of this name would stand: its own name after those of the steps around it."""
        return f"{_path.get()}/{name}"

    def step(
        self, kind: str, name: str, *, input: bytes | None = None, parts: Sequence[Value] = (), nested: bool = False
    ) -> _Recording:
        """`with` this, what happens inside is recorded as one step; an exception is recorded and raised on.

        One that happened before is served: what it gave is in `served`, and what it failed with is raised. `nested` makes it the parent
        of the steps begun inside; not for generators, whose context is their caller's.
        """
        path, found, verdict = self.path(name), None, NEW
        with self._lock:
            if self._replay is not None:
                digest = sha256(input).digest() if input else b""
                verdict, found = self._replay.find(kind, path, digest, input, parts)
            is_kept = verdict != "serve" or self._is_rerun
            if is_kept and (self._opened - self._after >= MAX_STEPS or self._bytes > MAX_BYTES):
                raise JournalFull
            self._opened += is_kept
            seq = self._opened
        step = OpenStep(seq, path, kind, name, "completed", now(), input=input, parts=parts)
        if found is not None:
            self._recall(step, found, verdict)
        return _Recording(self, step, nested, verdict, is_kept)

    def _recall(self, step: OpenStep, found: Done, verdict: Verdict) -> None:
        """Tell a step what is recorded of it."""
        rerun = self._replay.rerun if self._replay is not None else None
        hands_on = verdict == "redo" and rerun is not None and not rerun.downstream
        if verdict == "redo" and rerun is not None:
            step.changes = rerun.changes
        if hands_on:
            step.handed_on = found
        if verdict == "serve":
            step.served, step.model = found.output, found.model
            step.status, step.error = "failed" if found.error else "completed", found.error
        if found.error and (verdict == "serve" or hands_on):
            step.failure = failure(found.error)

    @property
    def _is_rerun(self) -> bool:
        """Whether what is served is recorded too, for it is another run's."""
        return self._replay is not None and self._replay.rerun is not None

    def bill(self) -> list[Bill]:
        """The run's LLM calls until now, for whoever has to settle them when this process dies."""
        ended = [
            Bill(step.seq, step.model or step.name, *_counts(step.usage), step.usage.cost, ended=True)
            for step in self._steps
            if step.kind == "llm" and step.status != "replayed"
        ]
        going = [step for step in self._open.values() if step.kind == "llm" and step.served is None]
        return ended + [_bill_so_far(step) for step in going]

    def begin(self, step: OpenStep) -> None:
        """From now on it is billed as one that goes on."""
        self._open[step.seq] = step

    def redone(self) -> None:
        """The step that was to happen anew has ended."""
        if self._replay is not None:
            self._replay.redone()

    def end(self, step: OpenStep) -> None:
        """It is what it is."""
        del self._open[step.seq]
        step.ended_at = now()
        self._bytes += len(step.input or b"") + len(step.output or b"") + sum([len(part.body) for part in step.parts])
        self._steps.append(step)


class _Recording:
    """One step from its beginning to its end: a context manager, written out because every call of a model pays for it."""

    __slots__ = ("_how", "_is_kept", "_nested", "_recorder", "_step", "_token")

    def __init__(self, recorder: Recorder, step: OpenStep, nested: bool, how: Verdict, is_kept: bool) -> None:
        self._recorder, self._step, self._nested = recorder, step, nested
        self._how, self._is_kept = how, is_kept

    def __enter__(self) -> OpenStep:
        step = self._step
        if self._is_kept:
            self._recorder.begin(step)
        if self._how == "serve" and step.failure is not None and step.served is None:
            self._end()
            raise step.failure
        self._token = _path.set(step.path) if self._nested else None
        return step

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._token:
            _path.reset(self._token)
        if error is not None and self._how != "serve":
            self._step.status, self._step.error = _verdict(error)
        self._end()
        if error is None and self._step.failure is not None:
            raise self._step.failure

    def _end(self) -> None:
        if self._how == "serve":
            self._step.status, self._step.output = "replayed", self._step.served
        if self._is_kept:
            self._recorder.end(self._step)
        if self._how == "redo":
            self._recorder.redone()


def _bill_so_far(step: OpenStep) -> Bill:
    if step.owes_nothing():
        return Bill(step.seq, step.name, 0, estimated=False, ended=True)
    tokens = sum(len(part.body) for part in step.parts) // BYTES_PER_TOKEN + 1
    return Bill(step.seq, step.name, tokens, prices=step.prices)


def _counts(usage: Usage) -> tuple[int, int, int, int, bool]:
    return usage.prompt, usage.completion, usage.cached, usage.reasoning, usage.estimated


def _verdict(error: BaseException) -> tuple[Literal["failed", "cancelled", "partial"], Mapping[str, Any] | None]:
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return "cancelled", {"code": "cancelled"}
    if isinstance(error, AppError):
        return "failed", error.to_dict()
    if suspension(error):
        return "partial", None
    return "failed", {"code": type(error).__name__}
