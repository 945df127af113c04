"""REST: what runs did, and doing it once more, under `/api/v1/runs` and `/api/v1/values`."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Path, Query
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field

from app.api.callers import Chat, Here, Reader, StrictRoute
from app.api.fields import After, AgentId, Content, Id, JsonObject, Key, Limit, ModelName, Money, UserRef, check_json
from app.api.models import In, ListOf, Out, RunOut, UsageOut, page
from app.domain import Principal, RunStatus
from app.errors import NotFound
from app.store.traces import Wanted
from app.usecases import lineage, reruns, sessions, traces
from app.usecases.platform import Platform

router = APIRouter(prefix="/api/v1", route_class=StrictRoute)

Seq = Annotated[int, Path(ge=1, le=2**31 - 1, description="the number of the step")]
Sought = Annotated[str, Query(min_length=1, max_length=1000)]
Hash = Annotated[str, Path(pattern="^[0-9a-f]{64}$", description="the SHA-256 of a value, in hexadecimal digits")]


def _storable(value: Any) -> Any:
    check_json(value)
    return value


class StepOut(Out):
    """An act in a run. Its place in the tree is its path; the hashes name its values."""

    seq: int
    path: str
    kind: str
    name: str
    model: str | None
    status: Literal["completed", "partial", "failed", "cancelled", "replayed"]
    usage: UsageOut
    from_cache: bool
    error: dict[str, Any] | None
    started_at: datetime
    ended_at: datetime | None
    input_hash: str | None
    output_hash: str | None


class StepsOut(BaseModel):
    """Steps in the order they began."""

    object: Literal["list"] = "list"
    data: list[StepOut]
    last_seq: int | None = Field(description="what to ask for the following with, as `after`")
    has_more: bool


class ValueOut(Out):
    """A step's input or output, with what it names by hash in the place of the names."""

    object: Literal["value"] = "value"
    hash: str
    value: Any


class ChangesIn(In):
    """What is to be otherwise in a step: a model's call has `model`, `params`, `prompt` and `input`, its messages; others `input`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"prompt": "Say it in one sentence."}]})

    model: ModelName | None = Field(None, description="another language model")
    params: JsonObject | None = Field(None, description="options of the call, such as `temperature`")
    prompt: Content | None = Field(
        None, description="in the place of the last message of the user, or of a prompt's template"
    )
    input: Annotated[Any, AfterValidator(_storable)] = Field(
        None, description="messages, arguments, or a person's answer"
    )


class RerunIn(In):
    """How a run is done once more."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"step": 2, "set": {"model": "big"}, "downstream": True}]}
    )

    step: int | None = Field(
        None, ge=1, le=2**31 - 1, description="the step that is done anew; without it the run is replayed"
    )
    set: ChangesIn = Field(default_factory=ChangesIn, description="what is to be otherwise in it")
    downstream: bool = Field(False, description="whether what depends on the step happens anew too")
    tools: Literal["recorded", "live"] = Field("recorded", description="whether functions and tools may be called")


class RerunOut(RunOut):
    """The new run, with its answer and the step that was done anew."""

    answer: str
    step: StepOut | None


class DifferenceOut(Out):
    """What two runs did otherwise; `same` is how many of their steps are equal."""

    object: Literal["difference"] = "difference"
    runs: tuple[RunOut, RunOut]
    answers: tuple[str, str]
    same: int
    changed: list[traces.Change]


class LineageOut(Out):
    """Where a value came from and went, as far as the caller's runs tell: with `complete` false not all of them were looked through."""

    object: Literal["lineage"] = "lineage"
    hash: str
    producers: list[lineage.Place]
    consumers: list[lineage.Place]
    complete: bool


class WhyOut(BaseModel):
    """The step that said a sentence first, and behind it those it had it from; nothing when none is known to have said it."""

    object: Literal["why"] = "why"
    data: list[lineage.Source]


def _step(step: Any) -> StepOut:
    hashes = {name: value.hex() if (value := getattr(step, name)) else None for name in ("input_hash", "output_hash")}
    fields = {name: getattr(step, name) for name in StepOut.model_fields}
    return StepOut.model_validate(fields | hashes)


async def _owner(here: Platform, caller: Principal, user: UUID | str | None) -> UUID | None:
    if user == "all":
        return None
    return caller.owner if user is None else (await sessions.resolve_user(here, caller, user)).id


@router.get("/runs", tags=["runs"])
async def find_runs(
    here: Here,
    caller: Chat,
    agent: Annotated[AgentId | None, Query(description="of this agent")] = None,
    model: Annotated[
        ModelName | None, Query(description="that called this language model, by the name its server has")
    ] = None,
    status: Annotated[RunStatus | None, Query(description="in this state")] = None,
    kind: Annotated[
        Literal["chat", "rerun"] | None, Query(description="messages that were answered, or reruns")
    ] = None,
    user: Annotated[UserRef | None, Query(description="of this user, or of `all`: for administrators")] = None,
    since: Annotated[AwareDatetime | None, Query(description="begun then or later")] = None,
    until: Annotated[AwareDatetime | None, Query(description="begun before")] = None,
    cost: Annotated[Money | None, Query(description="that cost so much or more")] = None,
    text: Annotated[Sought | None, Query(description="with this text in a step's input or output")] = None,
    limit: Limit = 20,
    after: After = None,
) -> ListOf[RunOut]:
    """Runs, the newest first: the caller's own; for an administrator also others', without what was said in them.

    With a `text` a page may have fewer than `limit` though more follow: go on after `last_id`.
    """
    wanted = Wanted(await _owner(here, caller, user), agent, model, status, kind, since, until, cost)
    found, last = await traces.list_page(here, caller, wanted, text=text, after=after, limit=limit)
    made = page(RunOut.model_validate, found)
    return made.model_copy(update={"last_id": last})


@router.get("/runs/{run_id}/steps", tags=["runs"])
async def list_steps(
    here: Here,
    caller: Reader,
    run_id: Id,
    limit: Annotated[int, Query(ge=1, le=1000, description="how many at most")] = 100,
    after: Annotated[int, Query(ge=0, le=2**31 - 1, description="the number of the last one already seen")] = 0,
) -> StepsOut:
    """What a run did, in the order it began. Of one that goes on, what has ended so far."""
    found = await traces.steps_page(here, caller, run_id, after=after, limit=limit)
    data = [_step(step) for step in found.items]
    return StepsOut(data=data, last_seq=data[-1].seq if data else None, has_more=found.has_more)


@router.get("/runs/{run_id}/steps/{seq}/input", tags=["runs"])
async def get_step_input(here: Here, caller: Reader, run_id: Id, seq: Seq) -> ValueOut:
    """What went into a step: a model's messages, a function's arguments."""
    return await _value(here, caller, run_id, seq, "input")


@router.get("/runs/{run_id}/steps/{seq}/output", tags=["runs"])
async def get_step_output(here: Here, caller: Reader, run_id: Id, seq: Seq) -> ValueOut:
    """What came out of a step."""
    return await _value(here, caller, run_id, seq, "output")


async def _value(here: Platform, caller: Principal, run_id: UUID, seq: int, side: str) -> ValueOut:
    found = await traces.value(here, caller, run_id, seq, side)
    if found is None:
        raise NotFound("value", param="seq")
    return ValueOut.model_validate(found)


@router.post("/runs/{run_id}/rerun", tags=["runs"])
async def rerun(here: Here, caller: Chat, run_id: Id, body: RerunIn, idempotency_key: Key = None) -> RerunOut:
    """Do a run once more: the step, and with `downstream` what depends on it, anew, all else from the journal. Gives the run's end.

    Without `downstream` what the step gave before is handed on, so that nothing else changes. A step whose input is not in the journal
    and does not depend on the one that is done anew ends the run as `replay_diverged`, with the difference; so does a function or tool,
    unless `tools` are `live`. The new run is metered, and leaves no message in the session. Requests with the same `Idempotency-Key` are
    one run, for a day.
    """
    given = body.set.model_dump(exclude_unset=True)
    changes = {name: value for name, value in given.items() if value is not None or name == "input"}
    live = body.tools == "live"
    begun = await reruns.start(
        here,
        caller,
        run_id,
        seq=body.step,
        changes=changes,
        downstream=body.downstream,
        live=live,
        key=idempotency_key,
    )
    ended = await reruns.ended(here, begun)
    fields = RunOut.model_validate(ended.run).model_dump()
    return RerunOut(**fields, answer=ended.answer, step=_step(ended.step) if ended.step else None)


@router.get("/runs/{run_id}/diff", tags=["runs"])
async def diff_runs(
    here: Here, caller: Chat, run_id: Id, other: Annotated[Id, Query(description="the run it is compared with")]
) -> DifferenceOut:
    """What two runs did otherwise: their answers, and the steps that differ in input or output, with tokens, cost and time."""
    return DifferenceOut.model_validate(await traces.diff(here, caller, run_id, other))


@router.get("/runs/{run_id}/why", tags=["runs"])
async def explain_text(
    here: Here, caller: Reader, run_id: Id, text: Annotated[Sought, Query(description="a sentence of the answer")]
) -> WhyOut:
    """Where a sentence comes from: the steps that said it first, and what they were given that other steps had made."""
    return WhyOut(data=list(await lineage.why(here, caller, run_id, text)))


@router.get("/values/{hash}", tags=["runs"])
async def trace_value(here: Here, caller: Chat, hash: Hash) -> LineageOut:
    """The steps of the caller's runs that made a value, and that were given it. A value of another user is unknown."""
    return LineageOut.model_validate(await lineage.of_value(here, caller, bytes.fromhex(hash)))
