"""How much of a budget a call gets, in tokens and in money."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as some

from app.errors import LimitExceeded, QuotaExceeded, RateLimited
from app.store.budgets import Amount, Budget, Standing, end_of, refusal
from app.store.reserve import MIN_COMPLETION, Reservation, Reserver, Wanted, cost, decide

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


@dataclass(frozen=True)
class Price:
    prompt: Decimal = Decimal("0.1")
    completion: Decimal = Decimal("0.4")
    cached: Decimal = Decimal("0.05")


def standing(tokens: int | None = None, money: str | None = None, used: int = 0, held: int = 0) -> Standing:
    limit = Decimal(money) if money is not None else None
    budget = Budget(uuid4(), "user", str(uuid4()), "hour", tokens, limit)
    return Standing(budget, NOON, Amount(used, Decimal(used)), Amount(held, Decimal(held)))


def wanted(prompt: int, completion: int, price: Price | None = None) -> Wanted:
    return Wanted(uuid4(), (), prompt, completion, price)


def granted(call: Wanted, *standings: Standing) -> int:
    decided = decide(call, standings)
    assert isinstance(decided, Reservation), decided
    return decided.max_tokens


def test_a_call_gets_what_it_wants_or_what_is_left() -> None:
    assert granted(wanted(100, 500)) == 500
    assert granted(wanted(100, 500), standing(1000)) == 500
    assert granted(wanted(100, 500), standing(1000, used=600)) == 300
    assert granted(wanted(100, 500), standing(1000, held=700), standing(5000)) == 200


def test_money_buys_as_many_tokens_as_the_price_says() -> None:
    price = Price(Decimal(1), Decimal(2))
    assert granted(wanted(1000, 5000, price), standing(money="0.005")) == 2000
    assert granted(wanted(1000, 5000), standing(money="0.005")) == 5000
    assert granted(wanted(1000, 5000, Price(Decimal(0), Decimal(0), Decimal(0))), standing(money="0")) == 5000
    assert cost(1000, 2000, price) == Decimal("0.005")
    assert cost(1, 0, Price(cached=Decimal("0.3"))) == Decimal("3e-7"), "the dearest that a prompt can be"
    assert isinstance(decide(wanted(5001, 0, price), [standing(money="0.005")]), QuotaExceeded)


def test_less_than_the_least_answer_is_refused_unless_no_more_is_wanted() -> None:
    assert granted(wanted(100, 500), standing(100 + MIN_COMPLETION)) == MIN_COMPLETION
    assert isinstance(decide(wanted(100, 500), [standing(99 + MIN_COMPLETION)]), QuotaExceeded)
    assert granted(wanted(100, 1), standing(101)) == 1
    assert granted(wanted(100, 0), standing(100)) == 0
    assert isinstance(decide(wanted(100, 0), [standing(99)]), QuotaExceeded)


def test_what_only_calls_under_way_hold_is_worth_trying_again() -> None:
    refused = decide(wanted(100, 500), [standing(1000, held=990)])
    assert isinstance(refused, RateLimited)
    assert refused.retry_after
    assert isinstance(decide(wanted(100, 500), [standing(1000, held=990), standing(50)]), QuotaExceeded)


@given(some.integers(0, 2000), some.integers(0, 2000), some.integers(0, 3000), some.integers(0, 3000))
def test_no_budget_is_overshot(used: int, held: int, prompt: int, completion: int) -> None:
    budgets = [standing(2000, used=used, held=held), standing(money="0.001")]
    price = Price()
    decided = decide(wanted(prompt, completion, price), budgets)
    if isinstance(decided, LimitExceeded):
        return
    assert used + held + prompt + decided.max_tokens <= 2000
    assert cost(prompt, decided.max_tokens, price) <= Decimal("0.001")
    assert min(MIN_COMPLETION, completion) <= decided.max_tokens <= completion


@pytest.mark.parametrize(
    ("period", "start", "end"),
    [
        ("hour", NOON, datetime(2026, 1, 31, 13, tzinfo=UTC)),
        ("day", datetime(2026, 3, 29, tzinfo=UTC), datetime(2026, 3, 30, tzinfo=UTC)),
        ("month", datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC)),
        ("month", datetime(2026, 2, 1, tzinfo=UTC), datetime(2026, 3, 1, tzinfo=UTC)),
        ("month", datetime(2026, 12, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)),
        ("total", datetime(1970, 1, 1, tzinfo=UTC), None),
    ],
)
def test_a_period_ends_where_the_next_begins(period: str, start: datetime, end: datetime | None) -> None:
    assert end_of(period, start) == end


def applying(scope: str, period: str, starts_at: str, *, used_up: bool = True) -> dict[str, object]:
    return {"id": str(uuid4()), "scope": scope, "period": period, "starts_at": starts_at, "used_up": used_up}


def test_a_refusal_names_the_budget_that_is_free_again_last() -> None:
    hour = applying("user", "hour", "2026-01-31T12:00:00+00:00")
    month = applying("group", "month", "2026-01-01T00:00:00+00:00")
    assert refusal(None) is None
    assert refusal([applying("user", "total", "1970-01-01T00:00:00+00:00", used_up=False)]) is None
    refused = refusal([hour, month])
    assert refused is not None
    assert refused.status == 429
    assert refused.code == "insufficient_quota"
    again = "it is free again at 2026-02-01 00:00 UTC."
    assert refused.message == f"The budget of a group you are in for this month is used up; {again}"
    refused = refusal([hour, month, applying("key", "total", "1970-01-01T00:00:00+00:00")])
    assert refused is not None
    assert refused.message == "The budget of this key is used up."


async def _nowhere() -> None:
    raise AssertionError("no connection is needed")


async def test_without_a_budget_nothing_is_asked() -> None:
    reserver = Reserver(_nowhere)
    reservation = await reserver.reserve(UUID(int=1), [], 10, 500)
    assert reservation.max_tokens == 500
    reserver.settle(reservation, 10, Decimal(1))
    reserver.release(reservation)
