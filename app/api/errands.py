"""REST: the tasks of seed 004 under `/api/v1/agents/tasks`: create, assign, execute, watch."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from app.api.callers import Chat, Here, StrictRoute
from app.api.fields import After, Content, Id, Key, Limit, Title
from app.api.models import AgentChoice, AgentOfSession, In, ListOf, Out, SessionParamsIn, UsageOut, page
from app.domain import Errand
from app.usecases import errands
from app.usecases.platform import Platform

router = APIRouter(prefix="/api/v1/agents/tasks", route_class=StrictRoute, tags=["tasks"])
MAX_INTEGER = 2**31 - 1
EXAMPLE: dict[str, Any] = {"name": "Greeting", "input": "Say good morning.", "agent": {"id": "fake_echo_agent"}}
Status = Literal["created", "assigned", "queued", "running", "waiting", "completed", "partial", "failed", "cancelled"]


class AssignIn(In):
    """An agent, or a preset, and what its session is to have."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"agent": {"id": "fake_echo_agent"}}]})

    agent: AgentChoice
    session_params: SessionParamsIn = Field(default_factory=SessionParamsIn)


class TaskIn(In):
    """Something to be done in the background."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    name: Title
    input: Content
    agent: AgentChoice | None = None
    session_params: SessionParamsIn = Field(default_factory=SessionParamsIn)


class TaskItem(BaseModel):
    """A task as it stands: `created` without an agent, `assigned` with one, then the state of its last run. The run has its events."""

    id: UUID
    name: str
    status: Status
    agent: AgentOfSession | None
    session_id: UUID | None
    run_id: UUID | None
    runs: int = Field(description="how often it was executed")
    error: dict[str, Any] | None
    usage: UsageOut | None
    created_at: datetime | None
    executed_at: datetime | None
    ended_at: datetime | None

    @classmethod
    def of(cls, errand: Errand, **more: Any) -> Self:
        """A task as the edge gives it."""
        run, session = errand.run, errand.session
        return cls(
            id=errand.id,
            name=errand.name,
            status=errand.status,
            agent=AgentOfSession.of(session) if session else None,
            session_id=session.id if session else None,
            run_id=run.id if run else None,
            runs=errand.runs,
            error=dict(run.error) if run and run.error else None,
            usage=UsageOut.model_validate(run.usage) if run else None,
            created_at=errand.created_at,
            executed_at=run.created_at if run else None,
            ended_at=run.ended_at if run else None,
            **more,
        )


class TaskOut(TaskItem):
    """A task with what was asked, and what was answered: `result` is null until the last run has ended, and then all that it said."""

    input: str
    result: str | None


class Entry(Out):
    """An act of the last run: a call of a language model or tool, or another step; `execution` is the run itself."""

    seq: int
    kind: str
    name: str
    status: str
    started_at: datetime | None
    ended_at: datetime | None
    model: str | None = None
    usage: UsageOut
    from_cache: bool = False
    error: dict[str, Any] | None = None


class LogOut(BaseModel):
    """A page of a log. Entry 0 is the run as it stands; the others are its steps, which are there once it has ended."""

    object: Literal["list"] = "list"
    data: list[Entry]
    has_more: bool


async def _whole(here: Platform, errand: Errand) -> TaskOut:
    return TaskOut.of(errand, input=errand.content, result=await errands.result(here, errand))


@router.post("", status_code=201)
async def create_task(here: Here, caller: Chat, body: TaskIn, idempotency_key: Key = None) -> TaskOut:
    """Write down a task, for an agent or for one that is assigned later. Nothing is done before it is executed."""
    agent = body.agent
    made = await errands.create(
        here,
        caller,
        name=body.name,
        content=body.input,
        agent_id=agent.id if agent else None,
        agent_params=agent.params if agent else {},
        params=body.session_params.to_domain(),
        key=idempotency_key,
    )
    return await _whole(here, made)


@router.get("")
async def list_tasks(here: Here, caller: Chat, limit: Limit = 20, after: After = None) -> ListOf[TaskItem]:
    """The caller's tasks, the newest first."""
    return page(TaskItem.of, await errands.list_page(here, caller, after=after, limit=limit))


@router.get("/{task_id}")
async def get_task(here: Here, caller: Chat, task_id: Id) -> TaskOut:
    """A task, its status and its result."""
    return await _whole(here, await errands.get(here, caller, task_id))


@router.get("/{task_id}/log")
async def get_task_log(
    here: Here, caller: Chat, task_id: Id, limit: Limit = 50, after: Annotated[int, Query(ge=-1, le=MAX_INTEGER)] = -1
) -> LogOut:
    """What was done in the last run, from the journal. While it goes on, `/api/v1/runs/{run_id}/events` tells what it says."""
    errand = await errands.get(here, caller, task_id)
    data = [_execution(errand)] if errand.run and after < 0 else []
    steps = await errands.steps(here, errand, after=max(after, 0), limit=limit - len(data))
    return LogOut(data=[*data, *map(Entry.model_validate, steps.items)], has_more=steps.has_more)


@router.post("/{task_id}/assign")
async def assign_task(here: Here, caller: Chat, task_id: Id, body: AssignIn) -> TaskOut:
    """Give a task to an agent, or to another one while it is not being executed and not completed."""
    assigned = await errands.assign(
        here,
        caller,
        task_id,
        agent_id=body.agent.id,
        agent_params=body.agent.params,
        params=body.session_params.to_domain(),
    )
    return await _whole(here, assigned)


@router.post("/{task_id}/execute", status_code=202)
async def execute_task(here: Here, caller: Chat, task_id: Id) -> TaskOut:
    """Have the agent do it in the background. One that failed, broke off or was cancelled can be executed once more."""
    return await _whole(here, await errands.execute(here, caller, task_id))


@router.post("/{task_id}/cancel")
async def cancel_task(here: Here, caller: Chat, task_id: Id) -> TaskOut:
    """End the execution early; what was said so far is the result."""
    return await _whole(here, await errands.cancel(here, caller, task_id))


@router.delete("/{task_id}", status_code=204)
async def delete_task(here: Here, caller: Chat, task_id: Id) -> None:
    """Erase a task with its session and everything in it."""
    await errands.delete(here, caller, task_id)


def _execution(errand: Errand) -> Entry:
    run = errand.run
    assert run is not None  # noqa: S101 - asked for by who has seen it
    return Entry(
        seq=0,
        kind="execution",
        name=run.agent_id,
        status=run.status,
        started_at=run.created_at,
        ended_at=run.ended_at,
        usage=UsageOut.model_validate(run.usage),
        error=dict(run.error) if run.error else None,
    )
