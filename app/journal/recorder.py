"""Records the steps of one run, to be stored with its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal, NamedTuple

from app.domain import Step, Usage, now
from app.errors import AgentFailed, AppError

MAX_STEPS = 10_000
"""The most steps of one run."""
MAX_BYTES = 64_000_000
"""The most bytes of input and output one run may record."""

BYTES_PER_TOKEN = 4
"""Of JSON in most languages; only used for calls whose process died."""

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


@dataclass(slots=True)
class OpenStep:
    """A step while it happens; what is set here is recorded when it ends."""

    seq: int
    path: str
    kind: str
    name: str
    started_at: datetime
    input: bytes | None = None
    parts: Sequence[bytes] = ()
    model: str | None = None
    output: bytes | None = None
    usage: Usage = field(default_factory=Usage)
    status: Literal["completed", "partial", "failed", "cancelled"] = "completed"
    error: Mapping[str, Any] | None = None
    from_cache: bool = False
    prices: tuple[Decimal, Decimal] = (Decimal(0), Decimal(0))


class Recorder:
    """The steps of one run in the order they began. Those of its earlier attempts have the numbers up to `after`."""

    def __init__(self, after: int = 0) -> None:
        self._after = after
        self._opened = after
        self._bytes = 0
        self._steps: list[Step] = []
        self._open: dict[int, OpenStep] = {}

    @property
    def steps(self) -> Sequence[Step]:
        """The steps that have ended, in the order they began."""
        return sorted(self._steps, key=lambda step: step.seq)

    @property
    def usage(self) -> Usage:
        """The sum over all LLM calls."""
        return sum((step.usage for step in self._steps), Usage())

    @contextmanager
    def step(
        self, kind: str, name: str, *, input: bytes | None = None, parts: Sequence[bytes] = (), nested: bool = False
    ) -> Iterator[OpenStep]:
        """Record what happens inside as one step; an exception is recorded and raised on.

        `nested` makes it the parent of the steps begun inside; not for generators, whose context is their caller's.
        """
        if self._opened - self._after >= MAX_STEPS or self._bytes > MAX_BYTES:
            raise JournalFull
        self._opened += 1
        opened = OpenStep(self._opened, f"{_path.get()}/{name}", kind, name, now(), input, parts)
        self._open[opened.seq] = opened
        token = _path.set(opened.path) if nested else None
        try:
            yield opened
        except BaseException as error:
            opened.status, opened.error = _verdict(error)
            raise
        finally:
            if token:
                _path.reset(token)
            self._end(opened)

    def bill(self) -> list[Bill]:
        """The run's LLM calls until now, for whoever has to settle them when this process dies."""
        ended = [
            Bill(step.seq, step.model or step.name, *_counts(step.usage), step.usage.cost, ended=True)
            for step in self._steps
            if step.kind == "llm"
        ]
        going = [step for step in self._open.values() if step.kind == "llm"]
        return ended + [
            Bill(step.seq, step.name, sum(map(len, step.parts)) // BYTES_PER_TOKEN + 1, prices=step.prices)
            for step in going
        ]

    def _end(self, opened: OpenStep) -> None:
        self._open.pop(opened.seq, None)
        self._bytes += len(opened.input or b"") + len(opened.output or b"") + sum(map(len, opened.parts))
        self._steps.append(
            Step(
                seq=opened.seq,
                path=opened.path,
                kind=opened.kind,
                name=opened.name,
                status=opened.status,
                started_at=opened.started_at,
                ended_at=now(),
                input=opened.input,
                output=opened.output,
                parts=opened.parts,
                model=opened.model,
                usage=opened.usage,
                error=opened.error,
                from_cache=opened.from_cache,
            )
        )


def _counts(usage: Usage) -> tuple[int, int, int, int, bool]:
    return usage.prompt, usage.completion, usage.cached, usage.reasoning, usage.estimated


def _verdict(error: BaseException) -> tuple[Literal["failed", "cancelled"], Mapping[str, Any]]:
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return "cancelled", {"code": "cancelled"}
    if isinstance(error, AppError):
        return "failed", error.to_dict()
    return "failed", {"code": type(error).__name__}
