"""Sets tokens and money aside for LLM calls before they are sent, so that however many begin at once, no budget is overshot.

The calls of a process that wait are decided together, one after the other, under the locks of their budgets. These transactions do not
wait for the disk (`synchronous_commit` off): what a crash of PostgreSQL itself can take of them are the reservations of its last moments,
for calls that are then under way; the ledger, which is written to the disk, charges them when their runs end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from decimal import ROUND_UP, Decimal
from uuid import UUID

import asyncpg

from app.domain import new_id
from app.errors import LimitExceeded, QuotaExceeded, RateLimited, Unavailable
from app.llm.catalog import Price
from app.store.budgets import STANDING, Amount, Standing, sentence, standing_of, start_of
from app.store.database import is_passing
from app.store.gather import Connector, Gatherer

MIN_COMPLETION = 16
"""With fewer tokens left for its answer a call is refused; one that wants fewer gets them. (OpenAI's least `max_output_tokens`.)"""
RETRY_SECONDS = 1.0
MAX_WAITING = 4096
SECONDS = 10.0
"""How long a call waits for a database that is away."""
PATIENCE = 30.0
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0
"""Seconds between two looks at what calls under way have given back, here or elsewhere."""
MILLION = 1_000_000
GRAIN = Decimal("1e-9")
"""The smallest money that is stored."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """What was set aside for one call, which may ask for an answer of `max_tokens`."""

    id: UUID
    max_tokens: int
    budgets: tuple[UUID, ...] = ()


@dataclass(slots=True)
class Wanted:
    """A call that wants to begin. `prompt` is the most its prompt can be."""

    run_id: UUID
    budgets: tuple[UUID, ...]
    prompt: int
    completion: int
    price: Price | None = None
    id: UUID = field(default_factory=new_id)
    tried: bool = False


@dataclass(frozen=True, slots=True)
class Ended:
    """A call that has ended, and what it used; nothing when it never began."""

    reservation: Reservation
    used: Amount

    @property
    def budgets(self) -> tuple[UUID, ...]:
        """The budgets that are locked for it."""
        return self.reservation.budgets


def cost(prompt: int, completion: int, price: Price | None) -> Decimal:
    """What so many tokens cost at most, rounded up to what can be stored."""
    if price is None:
        return Decimal(0)
    return ((prompt * _dearest(price) + completion * price.completion) / MILLION).quantize(GRAIN, ROUND_UP)


def _dearest(price: Price) -> Decimal:
    """What a token of the prompt costs at most."""
    return max(price.prompt, price.cached)


def room(wanted: Wanted, standing: Standing, *, alone: bool = False) -> int:
    """How long an answer the budget allows, up to what is wanted; negative when the prompt is too much for it.

    With `alone` as if no other call was under way.
    """
    taken = standing.used if alone else standing.used + standing.held
    most, price = wanted.completion, wanted.price
    if standing.budget.tokens is not None:
        most = min(most, standing.budget.tokens - taken.tokens - wanted.prompt)
    if standing.budget.money is not None and price is not None:
        left = (standing.budget.money - taken.money) * MILLION - wanted.prompt * _dearest(price)
        if left < 0 < _dearest(price) + price.completion:
            return -1
        if price.completion > 0:
            most = min(most, int(left / price.completion))
    return most


def decide(wanted: Wanted, standings: Iterable[Standing]) -> Reservation | LimitExceeded:
    """A reservation that all of these budgets allow, or why there is none."""
    least = min(MIN_COMPLETION, wanted.completion)
    most = wanted.completion
    for standing in standings:
        if room(wanted, standing, alone=True) < least:
            scope, period = standing.budget.scope, standing.budget.period
            if room(wanted, replace(standing, used=Amount()), alone=True) < least:
                return QuotaExceeded(sentence(scope, period, None, "is too small for this call"))
            return QuotaExceeded(sentence(scope, period, standing.resets_at, "has too little left for this call"))
        most = min(most, room(wanted, standing))
    if most < least:
        return RateLimited("Calls under way hold what is left of a budget.", retry_after=RETRY_SECONDS)
    return Reservation(wanted.id, most, wanted.budgets)


LOCK = "SELECT id FROM budgets WHERE id = ANY($1::uuid[]) ORDER BY id FOR NO KEY UPDATE"
STATE = f"{STANDING} WHERE b.id = ANY($1::uuid[])"
FORGET = "DELETE FROM reservations WHERE id = ANY($1::uuid[])"
END = f"""
UPDATE reservations r SET tokens = w.tokens, money = w.money, starts_at = {start_of("b.period", "statement_timestamp()")}
FROM unnest($1::uuid[], $2::bigint[], $3::numeric[]) AS w(id, tokens, money), budgets b
WHERE r.id = w.id AND b.id = r.budget_id"""  # noqa: S608 - a constant
RESERVE = """
INSERT INTO reservations (id, budget_id, run_id, tokens, money)
SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::bigint[], $5::numeric[])"""


class Reserver:
    """Reserves for the calls of one process. `run()` does the work and belongs in a task."""

    def __init__(self, connect: Connector, *, patience: float = PATIENCE) -> None:
        """`patience` is how many seconds a call waits for others to give back what they hold."""
        self._patience = patience
        self._gatherer: Gatherer[Wanted | Ended, Reservation | None] = Gatherer(
            connect, write, name="reservations", seconds=SECONDS, abandoned=self._abandoned
        )

    async def run(self) -> None:
        """Reserve and settle, batch after batch, until cancelled."""
        await self._gatherer.run()

    async def reserve(
        self, run_id: UUID, budgets: Sequence[UUID], prompt: int, completion: int, price: Price | None = None
    ) -> Reservation:
        """Set aside a `prompt` of at most so many tokens and an answer of up to `completion`, of all of these budgets.

        The answer is cut to what they have left. `QuotaExceeded` when that is too little, `RateLimited` when it only is so because of
        calls under way, and stays so. Every reservation has to be given to `settle` or `release` by whoever got it.
        """
        wanted = Wanted(run_id, tuple(budgets), prompt, completion, price)
        if not budgets:
            return Reservation(wanted.id, completion)
        if self._gatherer.waiting >= MAX_WAITING:
            raise Unavailable("More calls are waiting than the server can decide.", retry_after=RETRY_SECONDS)
        loop = asyncio.get_running_loop()
        deadline, pause = loop.time() + self._patience, FIRST_PAUSE
        while True:
            try:
                reservation = await self._gatherer.put(wanted)
                break
            except RateLimited:
                if loop.time() + pause > deadline:
                    raise
            except Exception as error:
                if is_passing(error):
                    raise Unavailable(
                        "The database is not available at the moment.", retry_after=RETRY_SECONDS
                    ) from None
                raise
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        assert reservation is not None  # noqa: S101 - only what has ended has no result
        return reservation

    def settle(self, reservation: Reservation, tokens: int, money: Decimal) -> None:
        """The call has ended and used so much. Written with the next batch; until the run ends it counts as used."""
        if reservation.budgets:
            self._gatherer.post(Ended(reservation, Amount(tokens, money)))

    def release(self, reservation: Reservation) -> None:
        """The call never began."""
        self.settle(reservation, 0, Decimal(0))

    def _abandoned(self, _op: Wanted | Ended, reservation: Reservation | None) -> None:
        if reservation is not None:
            self.release(reservation)


async def write(db: asyncpg.Connection, ops: Sequence[Wanted | Ended]) -> Sequence[Reservation | LimitExceeded | None]:
    """Write what calls used, and decide and write what others want, in one transaction."""
    ended = [op for op in ops if isinstance(op, Ended)]
    wanted = [op for op in ops if isinstance(op, Wanted)]
    forgotten = [op.reservation.id for op in ended if op.used == Amount()] + [op.id for op in wanted if op.tried]
    for op in wanted:
        op.tried = True  # from now on it may be stored without our hearing of it
    async with db.transaction():
        await db.execute("SET LOCAL synchronous_commit = off")
        await db.fetch(LOCK, sorted({id for op in ops for id in op.budgets}))
        if forgotten:
            await db.execute(FORGET, forgotten)
        if used := [(op.reservation.id, op.used.tokens, op.used.money) for op in ended if op.used != Amount()]:
            await db.execute(END, *map(list, zip(*used, strict=True)))
        standings = {row["id"]: standing_of(row) for row in await db.fetch(STATE, _budgets_of(wanted))}
        decided = {op.id: _reserved(op, standings) for op in wanted}
        if rows := [row for op in wanted for row in _rows(op, decided[op.id], standings)]:
            await db.execute(RESERVE, *map(list, zip(*rows, strict=True)))
    return [decided[op.id] if isinstance(op, Wanted) else None for op in ops]


def _budgets_of(wanted: Sequence[Wanted]) -> list[UUID]:
    return list({id for op in wanted for id in op.budgets})


def _reserved(wanted: Wanted, standings: dict[UUID, Standing]) -> Reservation | LimitExceeded:
    """Decide, and let those that are decided after see it. A budget that was deleted meanwhile allows everything."""
    applying = [standings[id] for id in wanted.budgets if id in standings]
    decided = decide(wanted, applying)
    if isinstance(decided, Reservation):
        for standing in applying:
            held = standing.held + _amount(wanted, decided)
            standings[standing.id] = replace(standing, held=held)
    return decided


def _amount(wanted: Wanted, reservation: Reservation) -> Amount:
    return Amount(wanted.prompt + reservation.max_tokens, cost(wanted.prompt, reservation.max_tokens, wanted.price))


def _rows(
    wanted: Wanted, decided: Reservation | LimitExceeded, standings: dict[UUID, Standing]
) -> list[tuple[UUID, UUID, UUID, int, Decimal]]:
    if isinstance(decided, LimitExceeded):
        return []
    amount = _amount(wanted, decided)
    return [(decided.id, id, wanted.run_id, amount.tokens, amount.money) for id in wanted.budgets if id in standings]
