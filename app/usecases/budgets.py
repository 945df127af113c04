"""Budgets: set by administrators, seen by those they apply to."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from uuid import UUID

from app.domain import Page, Principal, new_id, now
from app.errors import Conflict, InvalidInput, NotFound
from app.store import audit, budgets
from app.store.budgets import Amount, Budget, Standing
from app.usecases.logins import require_admin
from app.usecases.platform import Platform

SHARED = frozenset({"group", "agent"})
"""The scopes of which many users use."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A budget as somebody may see it: what others used of a shared one is for administrators only."""

    standing: Standing
    shows_use: bool = True

    @property
    def id(self) -> UUID:
        """The budget's id."""
        return self.standing.id

    @property
    def used_up(self) -> bool:
        """Whether messages are refused for it."""
        budget, used = self.standing.budget, self.standing.used
        no_tokens = budget.tokens is not None and used.tokens >= budget.tokens
        return no_tokens or (budget.money is not None and used.money >= budget.money)

    @property
    def tokens_left(self) -> int | None:
        """How many tokens new calls may use; None when they are not limited."""
        limit = self.standing.budget.tokens
        return None if limit is None else max(0, limit - self._taken.tokens)

    @property
    def money_left(self) -> Decimal | None:
        """How much money new calls may cost; None when it is not limited."""
        limit = self.standing.budget.money
        return None if limit is None else max(Decimal(0), limit - self._taken.money)

    @property
    def _taken(self) -> Amount:
        return self.standing.used + self.standing.held


async def create(
    platform: Platform,
    principal: Principal,
    *,
    scope: str,
    scope_id: str,
    period: str,
    tokens: int | None,
    money: Decimal | None,
) -> Shown:
    """Limit what a user, group, agent, session or key may use in a period; what it has used in it already counts."""
    require_admin(principal)
    if tokens is None and money is None:
        raise InvalidInput("tokens: give tokens, money or both.", param="tokens")
    budget = Budget(new_id(), scope, scope_id, period, tokens, money, now())
    async with platform.engine.connect() as db:  # not in the transaction, whose first lock is the ledger's
        if not await budgets.exists(db, scope, scope_id):
            raise NotFound(scope, param="id")
    async with platform.engine.begin() as db:
        if not await budgets.add(db, budget, principal.user.id):
            raise Conflict("period: there is a budget for this already; delete it first.", param="period")
        limits = {"tokens": tokens, "money": None if money is None else str(money)}
        what = {"scope": scope, "scope_id": scope_id, "period": period} | limits
        await audit.add(db, principal, "budget.create", budget.id, what)
        found = await budgets.list_page(db, user_id=None, after=None, limit=1, id=budget.id)
    return Shown(found.items[0])


async def list_page(platform: Platform, principal: Principal, *, after: UUID | None, limit: int) -> Page[Shown]:
    """All budgets; for anybody but administrators those that apply to himself."""
    sees_all = principal.is_admin or principal.owner is None
    async with platform.engine.connect() as db:
        found = await budgets.list_page(db, user_id=None if sees_all else principal.user.id, after=after, limit=limit)
    return Page([Shown(item, sees_all or item.budget.scope not in SHARED) for item in found.items], found.has_more)


async def delete(platform: Platform, principal: Principal, id: UUID) -> None:
    """Take a limit away."""
    require_admin(principal)
    async with platform.engine.begin() as db:
        if not await budgets.remove(db, id):
            raise NotFound("budget", param="budget_id")
        await audit.add(db, principal, "budget.delete", id)
