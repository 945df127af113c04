"""What every call has in common, whether it asks for an answer or for embeddings: who makes it, what the cache calls it, its budgets."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Protocol
from uuid import UUID

from msgspec import Struct

from app.domain import Usage
from app.llm.cache import Cache
from app.llm.catalog import Catalog, Model, Price
from app.llm.route import Router
from app.llm.shelf import SHARED, Question

PROMPT_FACTOR, PROMPT_OVERHEAD = 2, 16
"""A prompt is reserved as so many times its local count, which for rows of digits is half of what a model counts, and a few more."""


class Reservations(Protocol):
    """Where budgets are kept."""

    async def reserve(
        self, run_id: UUID, budgets: Sequence[UUID], prompt: int, completion: int, price: Price | None
    ) -> Any:
        """Set aside a prompt of at most so many tokens, and an answer of up to `completion`: its `max_tokens` are what there is.

        A `LimitExceeded` when that is too little.
        """

    def settle(self, reservation: Any, tokens: int, money: Decimal) -> None:
        """The call has ended and used so much; nothing when it never began."""


class Caller(Struct, frozen=True):
    """For whom calls are made: whose budgets, whose entries of the cache, whose turn in the queue."""

    run_id: UUID
    owner: str
    session: str = ""
    agent: str = ""
    version: str = ""
    budgets: tuple[UUID, ...] = ()
    shares_cache: bool = False
    """Whether the agent's users share its cached answers."""
    again: bool = False
    """Whether the message is answered once more, so that another answer is wanted than the one before."""
    batch: bool = False


@dataclass(frozen=True, slots=True)
class Stages:
    """The stages of a process: what each needs."""

    catalog: Callable[[], Catalog]
    """The models as they are now."""
    router: Router
    cache: Cache
    reservations: Reservations | None
    secret: bytes = field(repr=False)
    """Keys the names of cached answers."""

    def question(self, model: Model, caller: Caller, version: str, body: bytes) -> Question:
        """What the cache is asked: whatever can change the answer to `body` is in its key."""
        scope = SHARED if caller.shares_cache else caller.owner
        servers = sorted(f"{spec.base_url} {spec.model}" for spec in model.endpoints)
        names = " ".join((model.alias, model.llm or "", *servers))
        key = cache_key(self.secret, scope=scope, agent=caller.agent, version=version, model=names, body=body)
        return Question(key, scope, caller.owner, caller.agent, caller.session, run=str(caller.run_id))

    async def reserve(self, caller: Caller, prompt: int, completion: int, price: Price) -> Any:
        """Have a prompt, counted here, and its answer set aside; None where no budget applies."""
        if self.reservations is None or not caller.budgets:
            return None
        prompt = prompt * PROMPT_FACTOR + PROMPT_OVERHEAD
        return await self.reservations.reserve(caller.run_id, caller.budgets, prompt, completion, price)

    def settle(self, reservation: Any, spent: Usage) -> None:
        """Give back what was set aside and not used."""
        if reservation is not None and self.reservations is not None:
            self.reservations.settle(reservation, spent.total, spent.cost)


def cache_key(secret: bytes, *, scope: str, agent: str, version: str, model: str, body: bytes) -> str:
    """The name of an answer: HMAC-SHA256 over all that can change it, each part after its length.

    `body` is the canonical JSON of messages, tools and parameters (or of a text to embed and its parameters). It is keyed
    so that whoever reads the store cannot try out what was asked.
    """
    parts = [*(part.encode("utf-8", "surrogatepass") for part in (scope, agent, version, model)), body]
    return hmac.digest(secret, b"".join(len(part).to_bytes(8, "big") + part for part in parts), "sha256").hex()
