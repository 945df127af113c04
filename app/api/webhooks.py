"""REST: webhooks under `/api/v1/webhooks`: who is told of runs, batches and benches that have ended."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter
from pydantic import ConfigDict, Field, StringConstraints

from app.api.callers import Chat, Here, StrictRoute
from app.api.fields import After, Id, Key, Limit
from app.api.models import In, ListOf, Out, page
from app.usecases import webhooks

router = APIRouter(prefix="/api/v1/webhooks", route_class=StrictRoute, tags=["webhooks"])
EXAMPLE: dict[str, Any] = {"url": "https://example.org/hook", "events": ["run.completed", "run.failed"]}
Event = Literal[
    "run.completed",
    "run.partial",
    "run.failed",
    "run.cancelled",
    "run.waiting",
    "batch.completed",
    "batch.failed",
    "batch.expired",
    "batch.cancelled",
    "bench.completed",
    "bench.stopped",
    "bench.failed",
    "bench.cancelled",
]
Events = Annotated[list[Event], Field(min_length=1, max_length=50)]
Url = Annotated[str, StringConstraints(min_length=1, max_length=2000)]
Runs = Annotated[
    Literal["background", "all"],
    Field(description="of which runs: those that nobody waits for, tasks and schedules among them, or all"),
]


class WebhookIn(In):
    """An address of the internet that takes a POST, and what it is told of."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    url: Url
    events: Events
    runs: Runs = "background"


class WebhookChange(In):
    """Any of these; what is left out stays."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"enabled": True}]})

    url: Url | None = None
    events: Events | None = None
    runs: Runs | None = None
    enabled: bool | None = Field(None, description="whether it is told anything")


class WebhookOut(Out):
    """A webhook. `failures` are the attempts since the last one that was heard: after too many it is disabled, until enabled again."""

    id: UUID
    url: str
    events: list[Event]
    runs: Literal["background", "all"]
    enabled: bool
    failures: int
    last_error: str | None
    last_at: datetime | None = Field(description="when the last attempt was made")
    disabled_at: datetime | None
    created_at: datetime | None


class NewWebhook(WebhookOut):
    """A webhook with the secret that signs what it is told: shown once, and null where a request was repeated."""

    secret: str | None = Field(examples=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"])


@router.post("", status_code=201)
async def create_webhook(here: Here, caller: Chat, body: WebhookIn, idempotency_key: Key = None) -> NewWebhook:
    """Have an address told of what ends, signed as Standard Webhooks has it. The secret is shown once."""
    made, secret = await webhooks.create(
        here, caller, url=body.url, events=body.events, runs=body.runs, key=idempotency_key
    )
    return NewWebhook(**WebhookOut.model_validate(made).model_dump(), secret=secret)


@router.get("")
async def list_webhooks(here: Here, caller: Chat, limit: Limit = 20, after: After = None) -> ListOf[WebhookOut]:
    """The caller's webhooks, in the order they were made."""
    return page(WebhookOut.model_validate, await webhooks.list_page(here, caller, after=after, limit=limit))


@router.get("/{webhook_id}")
async def get_webhook(here: Here, caller: Chat, webhook_id: Id) -> WebhookOut:
    """A webhook, and how its last attempt went."""
    return WebhookOut.model_validate(await webhooks.get(here, caller, webhook_id))


@router.patch("/{webhook_id}")
async def update_webhook(here: Here, caller: Chat, webhook_id: Id, body: WebhookChange) -> WebhookOut:
    """Change a webhook, or enable one again. What it was to be told before it was disabled is dropped; its secret stays."""
    return WebhookOut.model_validate(
        await webhooks.update(here, caller, webhook_id, body.model_dump(exclude_none=True))
    )


@router.delete("/{webhook_id}", status_code=204)
async def delete_webhook(here: Here, caller: Chat, webhook_id: Id) -> None:
    """Tell it nothing more, not even what it was to be told already."""
    await webhooks.delete(here, caller, webhook_id)
