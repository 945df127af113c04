"""What a run did before, served again when it begins anew: after a crash, after a person's answer, and when a step of it is rerun.

A step is known by what it is, never by its place: the path of the steps around it, its name, the digest of its input, and which of its
equals it is. A place would change with the first two steps that run side by side.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from msgspec import Struct


class Done(Struct, frozen=True):
    """A step that was recorded as completed. `output` is None where its result has no form in JSON: it has to happen again."""

    seq: int
    path: str
    kind: str
    input: bytes
    """The SHA-256 of its input, or nothing where that has no form in JSON."""
    output: bytes | None


class Replay:
    """The completed steps of a run, each to be served once."""

    def __init__(self, steps: Iterable[Done] = ()) -> None:
        self._steps: dict[tuple[str, str, bytes], deque[Done]] = {}
        for step in sorted(steps, key=lambda step: step.seq):
            if step.output is not None:
                self._steps.setdefault((step.kind, step.path, step.input), deque()).append(step)

    def __bool__(self) -> bool:
        """Whether there is anything left to serve."""
        return bool(self._steps)

    def take(self, kind: str, path: str, input: bytes) -> bytes | None:
        """The output of the first equal step that was not served yet; None when there is none, and it has to happen."""
        equals = self._steps.get((kind, path, input))
        if not equals:
            return None
        found = equals.popleft()
        if not equals:
            del self._steps[kind, path, input]
        return found.output
