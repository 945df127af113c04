"""Runs done once more: one step anew and the rest from the journal, or all of it from the journal."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from uuid import UUID

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from app.agent.runner import Answer
from app.domain import Principal, Run, RunStatus, Step, canonical, new_id
from app.errors import Conflict, InvalidInput, LimitExceeded, NotAllowed, NotFound, Unavailable
from app.journal.replay import Done, Replay, ReplayDiverged, Rerun, readable, unfolded
from app.store import journal, messages, traces
from app.store.operations import BeginRun, Begun, IdempotencyKey, Repeated
from app.store.traces import ANSWER
from app.usecases import conduct, runs
from app.usecases.live import LiveRun
from app.usecases.platform import Platform

MAX_AT_ONCE = 10
"""How many reruns of one user one server does at once."""
CHANGES = {
    "llm": {"model", "params", "prompt", "input"},
    "prompt": {"prompt"},
    **{kind: {"input"} for kind in ("step", "tool", "retrieval", "ask", "now", "random")},
}
"""What may be changed of a step, by its kind."""


class Journal(Struct, frozen=True):
    """What is recorded of a run: its steps, their inputs by number, and what these name."""

    steps: Sequence[Done]
    inputs: Mapping[int, bytes]
    parts: Mapping[str, bytes]

    def told(self, step: Done) -> str:
        """The input of a step, for people."""
        return readable(self.inputs.get(step.seq), self.parts)

    def request(self) -> Mapping[str, Any] | None:
        """The request that the run answered, as far as it was recorded; its headers never are."""
        for step in self.steps:
            if step.kind == "request" and step.seq in self.inputs:
                return {"body": unfolded(msgspec.json.decode(self.inputs[step.seq]), self.parts), "headers": {}}
        return None


async def start(
    platform: Platform,
    principal: Principal,
    id: UUID,
    *,
    seq: int | None,
    changes: Mapping[str, Any],
    downstream: bool = False,
    live: bool = False,
    key: str | None = None,
) -> LiveRun | Run:
    """Begin a run that does another once more; without a `seq` nothing of it anew.

    It is the caller's, is metered like any, and leaves no message. `Conflict` while the other goes on, or when nothing is kept of it.
    Gives the run that is conducted here, or the one to follow that the idempotency `key` stands for already.
    """
    run = await runs.get(platform, principal, id)
    if not run.status.is_final:
        raise Conflict("The run has not ended yet.", param="run_id")
    if platform.draining.is_set() or len(platform.live) >= platform.max_runs:
        raise Unavailable("The server cannot begin another run at the moment.", retry_after=1)
    with _turn(platform, run.user_id):
        recorded, wanted = await _wanted(platform, principal, run, seq)
        _check(recorded, seq, changes)
        _check_arguments(principal, recorded, seq, changes)
        async with platform.engine.connect() as db:
            brings_all = await traces.brings_all(db, run)
        if key is not None:
            wish = canonical(["rerun", id, seq, changes, downstream, live])
            wanted = replace(wanted, key=IdempotencyKey(key, hashlib.sha256(wish).digest()))
        begun = await platform.writer.begin(wanted)
        if isinstance(begun, Repeated):
            return begun.run
        assert isinstance(begun, Begun)  # noqa: S101 - it takes no turn
        begun = replace(begun, ephemeral=brings_all, request=recorded.request())
        replay = Replay(recorded.steps, Rerun(seq, changes, downstream, live, recorded.told))
        return conduct.start(platform, begun, partial(_repeat, replay))


@contextmanager
def _turn(platform: Platform, user_id: UUID) -> Iterator[None]:
    """While a rerun begins it counts, too: each reads a whole journal."""
    going = sum(each.run.kind == "rerun" and each.run.user_id == user_id for each in platform.live.values())
    if going + platform.rerunning[user_id] >= MAX_AT_ONCE:
        raise LimitExceeded(f"{MAX_AT_ONCE} of your reruns go on already.", retry_after=5)
    platform.rerunning[user_id] += 1
    try:
        yield
    finally:
        platform.rerunning[user_id] -= 1
        if not platform.rerunning[user_id]:
            del platform.rerunning[user_id]


class Ended(Struct, frozen=True):
    """A rerun at its end: its answer, and the step that was done anew."""

    run: Run
    answer: str
    step: Step | None


async def ended(platform: Platform, begun: LiveRun | Run) -> Ended:
    """Wait for the end of a rerun, whoever conducts it. `Unavailable` when this server ends before."""
    if isinstance(begun, LiveRun):
        log, outcome = begun.log, await begun.log.ended()
    else:
        async with runs.following(platform, begun) as log:
            outcome = await log.ended()
    if outcome.run.status is RunStatus.QUEUED:
        raise Unavailable("The run goes on at another server.", retry_after=1)
    async with platform.engine.connect() as db:
        return Ended(outcome.run, log.answer(), await traces.redone(db, outcome.run))


async def _wanted(platform: Platform, principal: Principal, run: Run, seq: int | None) -> tuple[Journal, BeginRun]:
    async with platform.engine.connect() as db:
        recorded = await read(db, run)
        message = await messages.get(db, run.message_id, owner=None)
    if message is None:
        raise NotFound("message", param="run_id")
    wanted = BeginRun(
        principal,
        run.session_id,
        new_id(),
        message,
        platform.agents.ids,
        again=True,
        agent_id=run.agent_id,
        rerun=run,
        forked_at=seq,
        background=False,
    )
    return recorded, wanted


async def read(db: Any, run: Run) -> Journal:
    """What is recorded of a run. `Conflict` when nothing is, or is kept no longer."""
    steps = [step for step in await journal.completed(db, run.id) if step.kind != ANSWER]
    if not steps:
        raise Conflict("Nothing is recorded of what this run did.", param="run_id")
    bodies = await traces.values(db, run.session_id, {step.input for step in steps if step.input})
    inputs = {step.seq: bodies[step.input] for step in steps if step.input in bodies}
    return Journal(steps, inputs, await traces.unfolded(db, run.session_id, bodies.values()))


def _check(recorded: Journal, seq: int | None, changes: Mapping[str, Any]) -> None:
    """`InvalidInput` for a step that cannot be done anew, or not so."""
    if seq is None:
        if changes:
            raise InvalidInput("set: say which step it is for.", param="step")
        return
    step = next((step for step in recorded.steps if step.seq == seq), None)
    if step is None:
        raise InvalidInput("step: the run has no such step that was not cancelled.", param="step")
    for name in sorted(changes.keys() - CHANGES.get(step.kind, set())):
        raise InvalidInput(f"set.{name}: that is nothing a step of kind {step.kind} has.", param=f"set.{name}")
    if "model" in changes.get("params", {}):  # it would be asked for at the price of another
        raise InvalidInput("set.params.model: say it as set.model.", param="set.params.model")
    if step.kind == "ask" and "input" not in changes:
        raise InvalidInput("set.input: nobody is asked again, so give the answer.", param="set.input")
    if step.kind == "step" and not _are_arguments(changes.get("input", {})):
        raise InvalidInput('set.input: use {"args": […], "kwargs": {…}}.', param="set.input")
    if step.kind == "retrieval" and not isinstance(changes.get("input", {}), dict):
        raise InvalidInput('set.input: use {"query": …, "k": …}.', param="set.input")


def _check_arguments(principal: Principal, recorded: Journal, seq: int | None, changes: Mapping[str, Any]) -> None:
    """A function's arguments are its agent's: who chose them freely could have it read what is another user's."""
    is_step = any(step.seq == seq and step.kind == "step" for step in recorded.steps)
    if is_step and "input" in changes and not (principal.is_admin or principal.acts_for_all):
        raise NotAllowed("Only an administrator gives a function other arguments.", param="set.input")


def _are_arguments(given: Any) -> bool:
    if not isinstance(given, dict) or given.keys() - {"args", "kwargs"}:
        return False
    return isinstance(given.get("args", []), list) and isinstance(given.get("kwargs", {}), dict)


async def _repeat(replay: Replay, platform: Platform, begun: Begun, live: LiveRun) -> Answer:
    """Have the agent answer with its steps served. What it may not do fails the run, whatever the agent makes of it."""
    live.recorder.serve(replay)
    try:
        given = await conduct.answered(platform, begun, live)
    finally:
        if replay.diverged:
            raise replay.diverged
    if missed := replay.missed:
        raise ReplayDiverged(missed.path, "it did not come to the step that is to be done anew")
    live.recorder.serve(Replay())
    with live.recorder.step(ANSWER, ANSWER) as step:
        step.done(canonical(given.text))
    return given
