"""A process that spends at random: it reserves, gives up, settles, forgets to, and ends its runs as transaction 2 does.

`python -m tests.spender URL SEED PLACES`; a place is what a run is charged to: user, session, agent and its budgets, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any
from uuid import UUID

import asyncpg

from app.domain import new_id, now
from app.errors import QuotaExceeded, RateLimited
from app.store.budgets import charge
from app.store.database import connector
from app.store.reserve import Reserver
from app.tasks import Tasks

RUNS = 40
SPEND = """
INSERT INTO ledger (run_id, seq, user_id, session_id, agent_id, model, prompt_tokens, cost, created_at)
SELECT $1, n, $2, $3, $4, 'small', t, t * 0.001, $6 FROM unnest($5::int[]) WITH ORDINALITY AS w(t, n)
ON CONFLICT DO NOTHING RETURNING run_id, seq"""


async def finish(
    db: asyncpg.Connection, run_id: UUID, place: dict[str, Any], tokens: Sequence[int], moment: Any = None
) -> int:
    """Transaction 2 as far as budgets are concerned; how many rows the ledger got."""
    async with db.transaction():
        await db.fetch(
            "SELECT FROM sessions s JOIN users u ON u.id = s.user_id WHERE s.id = $1 FOR SHARE OF u FOR UPDATE OF s",
            place["session"],
        )
        rows = await db.fetch(
            SPEND, run_id, place["user"], place["session"], place["agent"], list(tokens), moment or now()
        )
        await charge(db, [(row["run_id"], row["seq"]) for row in rows], [run_id])
    return len(rows)


async def _spend(url: str, seed: int, places: Sequence[dict[str, Any]]) -> None:
    chance, tasks, connect = random.Random(seed), Tasks(), connector(url)
    reserver = Reserver(connect, patience=0)
    tasks.start(reserver.run(), name="reserver")
    await asyncio.gather(*(_spender(connect, reserver, chance, places) for _ in range(6)))
    db = await connect()
    for _ in range(2):  # when the second is there, what was abandoned before the first is released
        for place in places:
            last = new_id()
            await reserver.reserve(last, place["budgets"], 0, 0)
            await finish(db, last, place, [])
    await db.close()
    await tasks.close()


async def _spender(
    connect: Callable[[], Any], reserver: Reserver, chance: random.Random, places: Sequence[dict[str, Any]]
) -> None:
    db = await connect()
    for _ in range(RUNS // 6):
        place, run_id = chance.choice(places), new_id()
        used = [await _call(reserver, chance, run_id, place["budgets"]) for _ in range(chance.randint(1, 3))]
        await finish(db, run_id, place, [tokens for tokens in used if tokens])
    await db.close()


async def _call(reserver: Reserver, chance: random.Random, run_id: UUID, budgets: Sequence[UUID]) -> int:
    """One call; the tokens it used."""
    prompt, patience = chance.randint(1, 20), chance.choice([0.001, 0.003, 5, 5, 5])
    try:
        reservation = await asyncio.wait_for(reserver.reserve(run_id, budgets, prompt, 50, Price), patience)
    except (TimeoutError, RateLimited, QuotaExceeded):
        return 0
    await asyncio.sleep(chance.uniform(0, 0.01))
    tokens = chance.randint(0, prompt + reservation.max_tokens)
    if chance.random() < 0.7:
        reserver.settle(reservation, tokens, tokens * Price.prompt / 1_000_000)
    return tokens


class Price:
    """A thousandth for each token."""

    prompt = completion = cached = Decimal(1000)


if __name__ == "__main__":
    given = json.loads(sys.argv[3])
    for one in given:
        one |= {"user": UUID(one["user"]), "session": UUID(one["session"]), "budgets": [*map(UUID, one["budgets"])]}
    asyncio.run(_spend(sys.argv[1], int(sys.argv[2]), given))
