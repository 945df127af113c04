"""REST: budgets and usage under `/api/v1`."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from app import domain
from app.api.callers import Account, Admin, Here, StrictRoute
from app.api.fields import After, AgentId, Id, Limit, ModelName, Money
from app.api.models import In, ListOf, Out, UsageOut, page
from app.store.usage import Asked, Group, Used
from app.usecases import budgets, usage

router = APIRouter(prefix="/api/v1", route_class=StrictRoute)

Scope = Literal["user", "group", "agent", "session", "key"]
Period = Literal["hour", "day", "month", "total"]
FIRST, LAST = datetime(1970, 1, 1, tzinfo=UTC), datetime(3000, 1, 1, tzinfo=UTC)


def _utc(value: datetime) -> datetime:
    value = value if value.tzinfo else value.replace(tzinfo=UTC)
    if not FIRST <= value < LAST:
        raise ValueError("must be a time from 1970 to 2999")
    return value


Moment = Annotated[datetime, AfterValidator(_utc)]
Tokens = Annotated[int, Field(ge=0, le=10**15, strict=True)]
_ID: TypeAdapter[UUID] = TypeAdapter(Id)
_AGENT_ID: TypeAdapter[str] = TypeAdapter(AgentId)


def _text(money: Decimal | None) -> str | None:
    return None if money is None else domain.Usage(cost=money).money


class BudgetIn(In):
    """A new budget: tokens, money or both, for the user, group, agent, session or key with this `id`, in each period (UTC)."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": ["tokens"]}, {"required": ["money"]}]})

    scope: Scope
    id: Annotated[str, StringConstraints(min_length=1, max_length=100)] = Field(description="never a name")
    period: Period
    tokens: Tokens | None = None
    money: Money | None = Field(None, description="a decimal number, best as a string")

    @field_validator("id")
    @classmethod
    def _of_its_scope(cls, value: str, info: ValidationInfo) -> str:
        if info.data.get("scope") != "agent":
            return str(_ID.validate_python(value))
        try:
            return _AGENT_ID.validate_python(value)
        except ValidationError:
            raise ValueError("must be an agent's id") from None


class AmountOut(Out):
    """Tokens, prompt and completion together, and money as a decimal number; null where nothing is limited or shown."""

    tokens: int | None
    money: str | None


class BudgetOut(Out):
    """A budget and how it stands in its present period. Of shared ones what others used is for administrators only."""

    id: UUID
    scope: Scope
    scope_id: str
    period: Period
    tokens: int | None
    money: str | None
    used: AmountOut | None = Field(description="by calls that have ended")
    reserved: AmountOut | None = Field(description="for calls under way")
    left: AmountOut | None
    used_up: bool
    resets_at: datetime | None
    created_at: datetime | None

    @classmethod
    def of(cls, shown: budgets.Shown) -> BudgetOut:
        """A budget as the edge gives it."""
        standing, budget = shown.standing, shown.standing.budget
        used, held = standing.used, standing.held
        amounts = {
            "used": AmountOut(tokens=used.tokens, money=_text(used.money)),
            "reserved": AmountOut(tokens=held.tokens, money=_text(held.money)),
            "left": AmountOut(tokens=shown.tokens_left, money=_text(shown.money_left)),
        }
        return cls(
            id=budget.id,
            scope=budget.scope,
            scope_id=budget.scope_id,
            period=budget.period,
            tokens=budget.tokens,
            money=_text(budget.money),
            used_up=shown.used_up,
            resets_at=standing.resets_at,
            created_at=budget.created_at,
            **(amounts if shown.shows_use else dict.fromkeys(amounts)),
        )


@router.post("/budgets", status_code=201, tags=["budgets"])
async def create_budget(here: Here, caller: Admin, body: BudgetIn) -> BudgetOut:
    """Limit what a user, group, agent, session or key may use; what it has used in the present period already counts."""
    return BudgetOut.of(
        await budgets.create(
            here, caller, scope=body.scope, scope_id=body.id, period=body.period, tokens=body.tokens, money=body.money
        )
    )


@router.get("/budgets", tags=["budgets"])
async def list_budgets(here: Here, caller: Account, limit: Limit = 20, after: After = None) -> ListOf[BudgetOut]:
    """The budgets that apply to the caller; all of them for administrators."""
    return page(BudgetOut.of, await budgets.list_page(here, caller, after=after, limit=limit))


@router.delete("/budgets/{budget_id}", status_code=204, tags=["budgets"])
async def delete_budget(here: Here, caller: Admin, budget_id: Id) -> None:
    """Take a limit away."""
    await budgets.delete(here, caller, budget_id)


# Usage


class UsedOut(UsageOut):
    """What one user, session, agent, model or key used, or what was used on one day; `id` says which."""

    id: str
    name: str | None = Field(description="of a user who is still there")
    calls: int = Field(description="of language models")

    @classmethod
    def of(cls, used: Used) -> UsedOut:
        """A line of the report as the edge gives it."""
        usage = UsageOut.model_validate(used.usage)
        return cls(id=used.id, name=used.name, calls=used.calls, **usage.model_dump())


class UsageReport(Out):
    """A page of the report, in the order of the ids."""

    object: Literal["list"] = "list"
    data: list[UsedOut]
    first_id: str | None
    last_id: str | None
    has_more: bool


@router.get("/usage", tags=["budgets"])
async def report_usage(
    here: Here,
    caller: Account,
    group_by: Group = "day",
    since: Annotated[Moment | None, Query(alias="from", description="calls that ended then or later")] = None,
    until: Annotated[Moment | None, Query(alias="to", description="calls that ended before")] = None,
    user_id: Id | None = None,
    session_id: Id | None = None,
    agent_id: AgentId | None = None,
    model: ModelName | None = None,
    key_id: Id | None = None,
    limit: Limit = 20,
    after: Annotated[ModelName | None, Query(description="the id of the last one already seen")] = None,
) -> UsageReport:
    """Tokens and cost of the caller's calls of language models, or of everybody's for administrators, summed by group."""
    asked = Asked(group_by, since, until, user_id, session_id, agent_id, model, key_id)
    found = await usage.report(here, caller, asked, after=after, limit=limit)
    data = [UsedOut.of(used) for used in found.items]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return UsageReport(data=data, first_id=first, last_id=last, has_more=found.has_more)
