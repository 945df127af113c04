"""Where a value or a sentence comes from, as far as the journal tells."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain import Principal, Run, Step
from app.errors import NotFound
from app.store import traces
from app.usecases import runs
from app.usecases.platform import Platform

MAX_RUNS = 500
"""How many runs are looked through for the makers and users of a value."""
SECONDS = 2.0
"""How long is looked, at most: what was not looked at is unknown."""
MAX_DEPTH = 5
"""How far back a sentence is followed."""
MAX_SOURCES = 100
"""How many steps a sentence is followed to."""
SHORTEST = 12
"""A text of fewer characters, unless it is a whole message, is taken to be somewhere by chance."""
SHOWN = 300
"""How much of a text is shown, in characters."""


@dataclass(frozen=True, slots=True)
class Place:
    """A step that made or used a value."""

    run_id: UUID
    seq: int
    path: str
    kind: str
    name: str


class Lineage(Struct, frozen=True):
    """The steps that made a value and that were given it; `complete` when all runs that may have were looked through."""

    hash: str
    producers: Sequence[Place]
    consumers: Sequence[Place]
    complete: bool


@dataclass(frozen=True, slots=True)
class Source:
    """A step whose output has a text, the numbers of those that made what it was given, and what of that no step is known for."""

    seq: int
    path: str
    kind: str
    name: str
    text: str
    sources: Sequence[int]
    unknown: Sequence[str]


async def of_value(platform: Platform, principal: Principal, name: bytes) -> Lineage:
    """The steps of the caller's runs that made a value, and that were given it, whole or as a part."""
    producers: list[Place] = []
    consumers: list[Place] = []
    async with platform.engine.connect() as db:
        scopes = await traces.scopes_with(db, principal.user.id, name)
        if not scopes:
            raise NotFound("value", param="hash")
        found = await traces.runs_in(db, scopes, MAX_RUNS + 1)
        is_complete, deadline = len(found) <= MAX_RUNS, time.monotonic() + SECONDS
        for run in found[:MAX_RUNS]:
            if time.monotonic() > deadline:
                is_complete = False
                break
            steps = (await traces.steps_of(db, [run]))[run.id]
            given = await _given(db, run, steps)
            for step in steps:
                place = Place(run.id, step.seq, step.path, step.kind, step.name)
                if step.output_hash == name:
                    producers.append(place)
                if step.input_hash == name or name.hex() in given.get(step.seq, {}):
                    consumers.append(place)
    return Lineage(name.hex(), producers, consumers, is_complete)


async def _given(db: AsyncConnection, run: Run, steps: Sequence[Step]) -> Mapping[int, Mapping[str, bytes]]:
    """What each step was given, part by part, by names."""
    names = {step.input_hash for step in steps if step.input_hash}
    inputs = await traces.values(db, run.session_id, names)
    parts = await traces.unfolded(db, run.session_id, inputs.values())
    return {
        step.seq: _parts(inputs[step.input_hash], parts)
        for step in steps
        if step.input_hash and step.input_hash in inputs
    }


def _parts(body: bytes, parts: Mapping[str, bytes]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    bodies = [body]
    while bodies:
        new = {name: parts[name] for each in bodies for name in traces.names_in(each) if name in parts}
        bodies = [new[name] for name in new.keys() - found.keys()]
        found |= new
    return found


class _Acts:
    """The steps of one run with the texts that went in and came out of them."""

    def __init__(self, steps: Sequence[Step], given: Mapping[int, Sequence[str]], made: Mapping[int, str]) -> None:
        self._steps, self._given, self._made = steps, given, made

    def first_with(self, text: str) -> list[Source]:
        """The first step that gave a text, and behind it all that it had it from."""
        found: dict[int, Source] = {}
        deadline = time.monotonic() + SECONDS
        first = deque([(step, text, 0) for step in self._steps if text in self._made.get(step.seq, "")][:1])
        known = {step.seq for step, *_ in first}
        while first and time.monotonic() < deadline:
            step, said, depth = first.popleft()
            makers = {part: self._makers(part, step.seq) for part in self._given.get(step.seq, ())}
            sources = {maker.seq: maker for each in makers.values() for maker in each}
            unknown = [_cut(part) for part, each in makers.items() if not each]
            found[step.seq] = Source(step.seq, step.path, step.kind, step.name, _cut(said), sorted(sources), unknown)
            if depth < MAX_DEPTH:
                new = [seq for seq in sources if seq not in known][: MAX_SOURCES - len(known)]
                first += [(sources[seq], self._made[seq], depth + 1) for seq in new]
                known.update(new)
        return list(found.values())

    def _makers(self, part: str, before: int) -> list[Step]:
        """The steps before one whose whole output stands in a part of its input."""
        return [
            step
            for step in self._steps
            if step.seq < before
            and (made := self._made.get(step.seq, "").strip())
            and (made == part or (len(made) >= SHORTEST and made in part))
        ]


async def why(platform: Platform, principal: Principal, id: UUID, text: str) -> Sequence[Source]:
    """The step of a run of the caller that said a text first, with what it was given; nothing when none is known to have."""
    run = await runs.get(platform, principal, id)
    async with platform.engine.connect() as db:
        steps = [
            step for step in (await traces.steps_of(db, [run]))[run.id] if step.status in ("completed", "replayed")
        ]
        given = await _given(db, run, steps)
        inputs = await traces.values(db, run.session_id, {step.input_hash for step in steps if step.input_hash})
        outputs = await traces.values(db, run.session_id, {step.output_hash for step in steps if step.output_hash})
    told: dict[int, list[str]] = {}
    made: dict[int, str] = {}
    for step in steps:
        if step.input_hash and step.input_hash in inputs:
            leaves = [body for body in given[step.seq].values() if not traces.names_in(body)]
            told[step.seq] = [_text(body) for body in leaves or [inputs[step.input_hash]]]
        if step.output_hash and step.output_hash in outputs:
            made[step.seq] = _text(outputs[step.output_hash])
    return await asyncio.to_thread(_Acts(steps, told, made).first_with, text.strip())


def _text(body: bytes) -> str:
    """A value as a text: a message's content, a call's answer, a text itself; else its JSON."""
    try:
        value = json.loads(body)
    except ValueError:
        return body.decode(errors="replace")
    if isinstance(value, dict):
        for name in ("content", "text"):
            if isinstance(value.get(name), str):
                return str(value[name])
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} …"
