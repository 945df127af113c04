"""What a run did before, served again when it begins anew: after a crash, after a person's answer, and when a step of it is rerun.

A step is known by what it is, never by its place: the path of the steps around it, its name, the digest of its input, and which of its
equals it is. A place would change with the first two steps that run side by side.
"""

from __future__ import annotations

import builtins
import difflib
import json
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from msgspec import Struct, field

from app import errors
from app.domain import Value
from app.errors import AppError, Conflict

PURE = frozenset({"request", "prompt", "postprocess"})
"""Kinds of steps that nothing but their input decides, and that change nothing: they may happen again whatever is recorded."""
ACTING = frozenset({"step", "tool"})
"""Kinds of steps that may have effects outside the run; so has `knowledge.add`."""
SHOWN_LINES = 24
UNFOLDED_BYTES = 32_000_000
"""How much a value grows when what it names is put in the place of the names; further names stay."""
COMPARED_LINES = 2000
"""How many lines from the first difference on are compared: what is popular in both makes the comparison quadratic."""
SHOWN_WIDTH = 200
"""How much of a difference of inputs is shown."""


class Done(Struct, frozen=True):
    """A step that was recorded before. `output` is None where its result has no form in JSON: it has to happen again."""

    seq: int
    path: str
    kind: str
    input: bytes
    """The SHA-256 of its input, or nothing where that has no form in JSON."""
    output: bytes | None
    status: str = "completed"
    error: Mapping[str, Any] | None = None
    model: str | None = None

    @property
    def is_known(self) -> bool:
        """Whether what came of it can be served."""
        return self.output is not None or self.error is not None or self.kind in PURE


class Rerun(Struct, frozen=True):
    """How a run is done once more: every step is served, but the one numbered `seq`, which happens anew with what is in `changes`.

    With `downstream` so does what depends on it; else what it gave before is handed on in the place of what it gives now. With
    `live` functions and tools are called whose input, or result, is not in the journal.
    """

    seq: int | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    downstream: bool = False
    live: bool = False
    told: Callable[[Done], str] = lambda _: ""
    """The input of a recorded step, for people."""


class ReplayDiverged(Conflict):
    """The run does something else than what is recorded of it."""

    code = "replay_diverged"

    def __init__(self, path: str, difference: str) -> None:
        super().__init__(f"At {path} the run does something else than what is recorded of it:\n{difference}")
        self.path = path
        self.difference = difference

    def to_dict(self) -> dict[str, Any]:
        """With the step's path, and the difference of its input from the recorded one."""
        return {**super().to_dict(), "path": self.path, "difference": self.difference}


class Suspended(BaseException):
    """The run waits for a person. It is no `Exception`, so that an agent's own handlers let it pass."""

    def __init__(self, question: str, schema: dict[str, Any], seconds: float, seq: int) -> None:
        super().__init__(question)
        self.question = question
        self.schema = schema
        self.seconds = seconds
        self.seq = seq
        """The number of its step, which has no output yet."""


def suspension(error: BaseException) -> Suspended | None:
    """The question that ended something, also out of a task group."""
    if isinstance(error, BaseExceptionGroup):
        return next(filter(None, map(suspension, error.exceptions)), None)
    return error if isinstance(error, Suspended) else None


Verdict = Literal["serve", "redo", "do"]


class Replay:
    """The recorded steps of a run, each to be served once. With a `rerun` a step that is not among them is an error."""

    def __init__(self, steps: Iterable[Done] = (), rerun: Rerun | None = None) -> None:
        self.rerun = rerun
        self.diverged: ReplayDiverged | None = None
        """What the run did first that it may not: whatever its agent makes of the error, the run has failed."""
        self.missed: Done | None = None
        """The step that is to happen anew, as long as it has not ended."""
        self._inside: str | None = None
        """How the paths of the steps inside it begin, while it happens."""
        self._steps: dict[tuple[str, str, bytes], deque[Done]] = {}
        every = sorted(steps, key=lambda step: step.seq)
        known = {(step.kind, step.path, step.input) for step in every if step.is_known}
        for step in every:
            is_redone = rerun is not None and step.seq == rerun.seq
            if is_redone:
                self.missed = step
            elif not step.is_known and (rerun is None or (step.kind, step.path, step.input) in known):
                continue  # of an attempt that came no further
            self._steps.setdefault((step.kind, step.path, step.input), deque()).append(step)

    def take(self, kind: str, path: str, digest: bytes) -> Done | None:
        """The first equal step that was not served yet; None when there is none."""
        equals = self._steps.get((kind, path, digest))
        if not equals:
            return None
        found = equals.popleft()
        if not equals:
            del self._steps[kind, path, digest]
        return found

    def find(
        self, kind: str, path: str, digest: bytes, input: bytes | None, parts: Sequence[Value] = ()
    ) -> tuple[Verdict, Done | None]:
        """Whether a step is served, happens, or happens anew in the place of the recorded one. `ReplayDiverged` where it may not happen."""
        found = self.take(kind, path, digest)
        if self.rerun is None:
            return ("serve", found) if found else ("do", None)
        if found and found.seq == self.rerun.seq:
            self._inside = f"{path}/"
            return "redo", found
        if found and self._is_around(found):
            return "do", None
        if found and found.is_known:
            return "serve", found
        if self._may_happen(kind, path, found):
            return "do", None
        self.diverged = self.diverged or self._difference(kind, path, found, input, parts)
        raise self.diverged

    def redone(self) -> None:
        """The step that was to happen anew has ended: from now on others may depend on it."""
        self.missed = self._inside = None

    def _is_around(self, step: Done) -> bool:
        """Whether the step that is to happen anew is inside this one, of whose equals it is the last before it."""
        inner = self.missed
        if inner is None or not inner.path.startswith(f"{step.path}/") or inner.seq < step.seq:
            return False
        equals = self._steps.get((step.kind, step.path, step.input))
        return not equals or equals[0].seq > inner.seq

    def _may_happen(self, kind: str, path: str, found: Done | None) -> bool:
        assert self.rerun is not None  # noqa: S101 - asked of reruns only
        if self.diverged:
            return False
        is_inside = self._inside is not None and path.startswith(self._inside)
        follows = is_inside or (self.missed is None and self.rerun.seq is not None and self.rerun.downstream)
        if kind in ACTING or path.endswith("/knowledge.add"):
            return self.rerun.live and (follows or found is not None)
        return follows

    def _difference(
        self, kind: str, path: str, found: Done | None, input: bytes | None, parts: Sequence[Value]
    ) -> ReplayDiverged:
        if found:
            return ReplayDiverged(path, "its result is not recorded, for it has no form in JSON")
        left = [step for equals in self._steps.values() for step in equals if (step.kind, step.path) == (kind, path)]
        now = readable(input, {part.digest.hex(): part.body for part in parts})
        if not left:
            return ReplayDiverged(
                path, f"nothing of that kind ({kind}) is left in its journal; it asks for\n{_cut(now.splitlines())}"
            )
        told = self.rerun.told(min(left, key=lambda step: step.seq)) if self.rerun else ""
        pair = _from_difference(told.splitlines(), now.splitlines())
        lines = difflib.unified_diff(*pair, "recorded", "now", lineterm="", n=1)
        return ReplayDiverged(path, _cut(list(lines)))


def _from_difference(told: Sequence[str], now: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """The lines of both from where they differ, and one before."""
    pairs = enumerate(zip(told, now, strict=False))
    equal = next((at for at, (one, other) in pairs if one != other), min(len(told), len(now)))
    chosen = slice(max(equal - 1, 0), equal + COMPARED_LINES)
    return told[chosen], now[chosen]


def readable(input: bytes | None, parts: Mapping[str, bytes]) -> str:
    """An input as indented JSON, with what it names by hash in the place of the names."""
    return "" if input is None else json.dumps(unfolded(json.loads(input), parts), ensure_ascii=False, indent=1)


def unfolded(value: Any, parts: Mapping[str, bytes]) -> Any:
    """A value with what it names by hash in the place of the names.

    A text that was embedded is a value as it is: its author may have written names of others into it, many times over.
    """
    return _Unfolding(parts).of(value)


class _Unfolding:
    def __init__(self, parts: Mapping[str, bytes]) -> None:
        self._parts = parts
        self._room = UNFOLDED_BYTES

    def of(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self.of(item) for key, item in value.items()}
        if isinstance(value, list):
            items: list[Any] = []
            for item in value:
                part = self._part(item)
                if (
                    isinstance(part, list)
                    and part
                    and all(isinstance(name, str) and name in self._parts for name in part)
                ):
                    items += self.of(part)  # a run of names
                else:
                    items.append(self.of(part) if isinstance(part, list | dict) and part is item else part)
            return items
        return value

    def _part(self, item: Any) -> Any:
        body = self._parts.get(item) if isinstance(item, str) else None
        if body is None or len(body) > self._room:
            return item
        self._room -= len(body)
        try:
            return json.loads(body)
        except ValueError:
            return body.decode(errors="replace")


def failure(recorded: Mapping[str, Any]) -> Exception:
    """An error as it was recorded: the platform's own, or one of Python's by its name."""
    code, message = str(recorded.get("code", "")), recorded.get("message")
    known = getattr(builtins, code, None)
    if message is None and isinstance(known, type) and issubclass(known, Exception):
        return known()
    kind = _KINDS.get(code, AppError)
    made = kind.__new__(kind)
    AppError.__init__(made, message, param=recorded.get("param"), retry_after=recorded.get("retry_after"))
    if kind is AppError:
        vars(made).update(code=code or AppError.code, status=recorded.get("status", AppError.status))
    return made


_KINDS: Mapping[str, type[AppError]] = {
    kind.code: kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, AppError)
}


def _cut(lines: Sequence[str]) -> str:
    shown = [line if len(line) <= SHOWN_WIDTH else f"{line[:SHOWN_WIDTH]} …" for line in lines[:SHOWN_LINES]]
    return "\n".join(shown + ["…"] * (len(lines) > SHOWN_LINES))
