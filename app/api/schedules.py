"""REST: schedules under `/api/v1/schedules`: what is said to agents again and again, by the clock."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from app.api.callers import Chat, Here, StrictRoute
from app.api.fields import After, Content, Id, Key, Limit, Title
from app.api.models import AgentChoice, In, ListOf, SessionParamsIn, SessionParamsOut, page
from app.domain import Schedule
from app.usecases import schedules

router = APIRouter(prefix="/api/v1/schedules", route_class=StrictRoute, tags=["schedules"])
EXAMPLE: dict[str, Any] = {
    "name": "Morning",
    "cron": "30 7 * * MON-FRI",
    "timezone": "Europe/Berlin",
    "agent": {"id": "fake_echo_agent"},
    "input": "Say good morning.",
}
Cron = Annotated[
    str,
    StringConstraints(min_length=9, max_length=200),
    Field(description="minute, hour, day of month, month, day of week; as Debian's cron reads them"),
]
Timezone = Annotated[
    str, StringConstraints(min_length=1, max_length=64), Field(description="a name of the IANA database")
]


class ScheduleIn(In):
    """What is to be said when: to an agent, or preset, in a new session each time, or in the session of `session_id`."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    name: Title
    cron: Cron
    timezone: Timezone = "UTC"
    input: Content
    agent: AgentChoice | None = None
    session_params: SessionParamsIn = Field(default_factory=SessionParamsIn)
    session_id: Id | None = None


class AgentOfSchedule(BaseModel):
    """The agent, or preset, that each new session is begun with."""

    id: str
    params: dict[str, Any]


class ScheduleOut(BaseModel):
    """A schedule. `next_at` is null while it is paused; `error` tells why there was no run the last time."""

    id: UUID
    name: str
    cron: str
    timezone: str
    input: str
    agent: AgentOfSchedule | None
    session_params: SessionParamsOut
    session_id: UUID | None
    paused: bool
    next_at: datetime | None
    last_at: datetime | None = Field(description="the time that came last")
    run_id: UUID | None = Field(description="its run, which a job begins")
    runs: int = Field(description="how many times have come")
    error: dict[str, Any] | None
    created_at: datetime | None

    @classmethod
    def of(cls, schedule: Schedule) -> ScheduleOut:
        """A schedule as the edge gives it."""
        agent = schedule.agent_id
        return cls(
            id=schedule.id,
            name=schedule.name,
            cron=schedule.cron,
            timezone=schedule.timezone,
            input=schedule.input,
            agent=AgentOfSchedule(id=agent, params=dict(schedule.agent_params)) if agent else None,
            session_params=SessionParamsOut.model_validate(schedule.params),
            session_id=schedule.session_id,
            paused=schedule.next_at is None,
            next_at=schedule.next_at,
            last_at=schedule.last_at,
            run_id=schedule.run_id,
            runs=schedule.runs,
            error=dict(schedule.error) if schedule.error else None,
            created_at=schedule.created_at,
        )


@router.post("", status_code=201)
async def create_schedule(here: Here, caller: Chat, body: ScheduleIn, idempotency_key: Key = None) -> ScheduleOut:
    """Have something said at the times of a cron expression, once a minute at most. Each time is a background run."""
    made = await schedules.create(
        here,
        caller,
        name=body.name,
        cron=body.cron,
        timezone=body.timezone,
        content=body.input,
        session_id=body.session_id,
        agent_id=body.agent.id if body.agent else None,
        agent_params=body.agent.params if body.agent else {},
        params=body.session_params.to_domain(),
        key=idempotency_key,
    )
    return ScheduleOut.of(made)


@router.get("")
async def list_schedules(here: Here, caller: Chat, limit: Limit = 20, after: After = None) -> ListOf[ScheduleOut]:
    """The caller's schedules, in the order they were made."""
    return page(ScheduleOut.of, await schedules.list_page(here, caller, after=after, limit=limit))


@router.get("/{schedule_id}")
async def get_schedule(here: Here, caller: Chat, schedule_id: Id) -> ScheduleOut:
    """A schedule, when it is due next, and its last run."""
    return ScheduleOut.of(await schedules.get(here, caller, schedule_id))


@router.post("/{schedule_id}/pause")
async def pause_schedule(here: Here, caller: Chat, schedule_id: Id) -> ScheduleOut:
    """Begin no more runs until it is resumed; what it has begun goes on."""
    return ScheduleOut.of(await schedules.pause(here, caller, schedule_id))


@router.post("/{schedule_id}/resume")
async def resume_schedule(here: Here, caller: Chat, schedule_id: Id) -> ScheduleOut:
    """Go on with the next time from now."""
    return ScheduleOut.of(await schedules.resume(here, caller, schedule_id))


@router.delete("/{schedule_id}", status_code=204)
async def delete_schedule(here: Here, caller: Chat, schedule_id: Id) -> None:
    """Begin no more runs. What it has begun goes on, and its sessions stay."""
    await schedules.delete(here, caller, schedule_id)
