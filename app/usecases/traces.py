"""What runs did: lists of runs, their steps and values, the difference of two, and where a value or a sentence comes from."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeVar
from uuid import UUID

from msgspec import Struct
from msgspec.structs import replace
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain import Page, Principal, Run, Step
from app.errors import Conflict, NotAllowed, must_exist
from app.journal.replay import unfolded
from app.store import traces
from app.store.traces import Wanted
from app.usecases import runs
from app.usecases.platform import Platform

T = TypeVar("T")

SCANNED = 50
"""How many runs are searched for a text at once."""
SCAN_SECONDS = 2.0
"""How long a text is searched for before the page is given as far as it came."""


async def list_page(
    platform: Platform, principal: Principal, wanted: Wanted, *, text: str | None, after: UUID | None, limit: int
) -> tuple[Page[Run], UUID | None]:
    """Runs, the newest first: the caller's own, or for an administrator those of one user or, without `owner`, of all.

    Others' are given without what was said in them. With a `text` only those that have it in the input or output of a step, or in
    their answer; such a page may be short. Beside the page: after which run it is continued.
    """
    if wanted.owner != principal.user.id and not (principal.is_admin or principal.acts_for_all):
        raise NotAllowed("Only an administrator sees the runs of others.", param="user")
    async with platform.engine.connect() as db:
        if text is None:
            found = await traces.list_page(db, wanted, after=after, limit=limit)
            items = [_seen(run, principal) for run in found.items]
            return Page(items, found.has_more), items[-1].id if items else None
        if wanted.owner != principal.user.id and not principal.acts_for_all:
            raise NotAllowed("Texts are searched for in one's own runs only.", param="text")
        return await _with_text(db, wanted, text, after, limit)


def _seen(run: Run, principal: Principal) -> Run:
    if principal.owner in (None, run.user_id):
        return run
    return replace(run, question=None, error={"code": run.error.get("code", "")} if run.error else None)


async def _with_text(
    db: AsyncConnection, wanted: Wanted, text: str, after: UUID | None, limit: int
) -> tuple[Page[Run], UUID | None]:
    deadline, found = time.monotonic() + SCAN_SECONDS, list[Run]()
    needle = json.dumps(text, ensure_ascii=False)[1:-1].casefold()
    while True:
        page = await traces.list_page(db, wanted, after=after, limit=SCANNED)
        for run in page.items:
            after = run.id
            if await _has(db, run, needle):
                found.append(run)
                if len(found) == limit:
                    return Page(found, True), after
            if time.monotonic() > deadline:
                return Page(found, page.has_more or run is not page.items[-1]), after
        if not page.has_more:
            return Page(found, False), after


async def _has(db: AsyncConnection, run: Run, needle: str) -> bool:
    steps = (await traces.steps_of(db, [run]))[run.id]
    bodies = await traces.values(db, run.session_id, _names(steps))
    parts = await traces.unfolded(db, run.session_id, bodies.values())
    if any(needle in body.decode(errors="replace").casefold() for body in (*bodies.values(), *parts.values())):
        return True
    return needle in json.dumps(await _answer(db, run), ensure_ascii=False).casefold()


async def _answer(db: AsyncConnection, run: Run) -> str:
    return "".join(message.content for message in (await traces.answers_of(db, [run])).get(run.id, ()))


def _names(steps: Sequence[Step]) -> set[bytes]:
    return {name for step in steps for name in (step.input_hash, step.output_hash) if name}


async def steps_page(platform: Platform, principal: Principal, id: UUID, *, after: int, limit: int) -> Page[Step]:
    """The steps of a run of the caller. Of one that goes on, those that have ended: all where it is conducted, elsewhere the stored."""
    run = await runs.get(platform, principal, id)
    async with platform.engine.connect() as db:
        found = await traces.steps_page(db, run, after=after, limit=limit)
    live = platform.live.get(id)
    if live is None:
        return found
    known = {step.seq: step for step in live.recorder.steps if step.seq > after}
    known |= {step.seq: step for step in found.items}
    steps = [known[seq] for seq in sorted(known)]
    return Page(steps[:limit], len(steps) > limit or found.has_more)


class Shown(Struct, frozen=True):
    """A value, with what it names by hash in the place of the names."""

    hash: str
    value: Any


async def value(platform: Platform, principal: Principal, id: UUID, seq: int, side: str) -> Shown | None:
    """The input or the output of a step of a run of the caller; None where it has none."""
    run = await runs.get(platform, principal, id)
    async with platform.engine.connect() as db:
        step = must_exist(await traces.step(db, run, seq), "step", param="seq")
        name = step.input_hash if side == "input" else step.output_hash
        return await _value(db, run.session_id, name) if name else None


async def _value(db: AsyncConnection, scope: UUID, name: bytes) -> Shown | None:
    body = (await traces.values(db, scope, [name])).get(name)
    if body is None:
        return None
    return Shown(name.hex(), _readable(body, await traces.unfolded(db, scope, [body])))


def _readable(body: bytes, parts: Mapping[str, bytes]) -> Any:
    try:
        return unfolded(json.loads(body), parts)
    except ValueError:
        return body.decode(errors="replace")


# Two runs


@dataclass(frozen=True, slots=True)
class Change:
    """A step of one run or of both; `seq` is its number in each."""

    path: str
    kind: str
    name: str
    seq: tuple[int | None, int | None]
    same_input: bool
    same_output: bool
    tokens: tuple[int, int]
    cost: tuple[Decimal, Decimal]
    seconds: tuple[float, float]


class Difference(Struct, frozen=True):
    """What two runs did otherwise, the first and the second of each pair; `same` is how many steps were equal in all."""

    runs: tuple[Run, Run]
    answers: tuple[str, str]
    same: int
    changed: Sequence[Change]


async def diff(platform: Platform, principal: Principal, one: UUID, other: UUID) -> Difference:
    """Compare two runs of the caller: of the steps of one kind and path those with the same input, then the rest in order."""
    pair = await runs.get(platform, principal, one), await runs.get(platform, principal, other)
    if not all(run.status.is_final for run in pair):
        raise Conflict("A run has not ended yet.", param="other")
    async with platform.engine.connect() as db:
        found = await traces.steps_of(db, pair)
        answers = [await _answer(db, run) for run in pair]
    steps = [[step for step in found[run.id] if step.kind != traces.ANSWER] for run in pair]
    changes = [_change(*matched) for matched in _matched(*steps)]
    changed = [each for each in changes if not (each.same_input and each.same_output and None not in each.seq)]
    return Difference(pair, (answers[0], answers[1]), len(changes) - len(changed), changed)


def _matched(ours: Sequence[Step], theirs: Sequence[Step]) -> list[tuple[Step | None, Step | None]]:
    left = {step.seq: step for step in theirs}
    pairs: dict[int, Step] = {}
    for is_close in (True, False):
        same: dict[Any, deque[Step]] = {}
        for step in left.values():
            same.setdefault(_likeness(step, is_close), deque()).append(step)
        for step in ours:
            matches = same.get(_likeness(step, is_close))
            if step.seq not in pairs and matches:
                pairs[step.seq] = match = matches.popleft()
                del left[match.seq]
    return [*((step, pairs.get(step.seq)) for step in ours), *((None, step) for step in left.values())]


def _likeness(step: Step, is_close: bool) -> tuple[Any, ...]:
    return (step.kind, step.path, step.input_hash) if is_close else (step.kind, step.path)


def _change(ours: Step | None, theirs: Step | None) -> Change:
    step = ours or theirs
    assert step is not None  # noqa: S101 - one of a pair is there
    both = (ours, theirs)
    return Change(
        step.path,
        step.kind,
        step.name,
        (ours.seq if ours else None, theirs.seq if theirs else None),
        ours is not None and theirs is not None and ours.input_hash == theirs.input_hash,
        ours is not None and theirs is not None and ours.output_hash == theirs.output_hash,
        _each(both, lambda step: step.usage.total, 0),
        _each(both, lambda step: step.usage.cost, Decimal(0)),
        _each(both, _seconds, 0.0),
    )


def _each(both: tuple[Step | None, Step | None], of: Callable[[Step], T], none: T) -> tuple[T, T]:
    one, other = both
    return of(one) if one else none, of(other) if other else none


def _seconds(step: Step) -> float:
    return (step.ended_at - step.started_at).total_seconds() if step.ended_at else 0.0
