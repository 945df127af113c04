"""What every use case is given: the opened house."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from app.agent.documents import Documents
from app.agent.loader import Agents
from app.agent.mcp_servers import Servers
from app.agent.sandbox import Box
from app.domain import FileLimits, Principal
from app.llm.cache import Cache
from app.llm.call import CallPath
from app.llm.catalog import Catalog, Model
from app.llm.run import Door
from app.metrics import Metrics
from app.store.milvus import MilvusVectors
from app.store.redis import Client
from app.store.reserve import Reserver
from app.store.runs import Sought
from app.store.spans import Spans
from app.store.writer import Writer
from app.tasks import Tasks
from app.usecases.courier import Courier
from app.usecases.live import LiveJob, LiveRun, Seen
from app.usecases.objects import ObjectStore
from app.usecases.passwords import Passwords
from app.usecases.principals import Principals
from app.usecases.rates import Rates
from app.usecases.relay import Relay
from app.usecases.together import Together
from app.usecases.turns import Turns
from app.usecases.windows import Pauses, Windows

WAITING_IMPORTS = 8
"""How many bodies of imports may be held while another is read."""


@dataclass(frozen=True)
class Platform:
    """The parts that a composition root has opened and will close. `live` are the runs this process conducts.

    `proofs` are who secrets prove, by digest, and `resumes` the runs that are to be followed, each looked up together.
    """

    engine: AsyncEngine
    writer: Writer
    agents: Agents
    calls: CallPath
    catalog: Callable[[], Catalog]
    relay: Relay
    reserver: Reserver
    rates: Rates
    cache: Cache
    proofs: Together[bytes, Principal]
    resumes: Together[Sought, Seen]
    redis: Client | None
    objects: ObjectStore
    file_limits: FileLimits
    run_timeout: float
    is_away: Callable[[Model], bool]
    """Whether all endpoints of a language model failed a moment ago."""
    admin_reads_chats: bool = False
    """Whether administrators may read what others said."""
    max_passages: int = 20_000
    """How many passages of knowledge a user may have."""
    imports: Turns = field(
        default_factory=lambda: Turns(1, WAITING_IMPORTS, "Too many imports are on their way.", retry_after=10)
    )
    """Whose import is read: what it becomes takes much more memory than its text."""
    documents: Documents = field(default_factory=Documents)
    checking: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(2))
    """Room for orders of benches whose patterns and schemas are looked at, each by a process of its own."""
    passwords: Passwords = field(default_factory=Passwords)
    tasks: Tasks = field(default_factory=Tasks)
    live: dict[UUID, LiveRun] = field(default_factory=dict)
    jobs: dict[UUID, LiveJob] = field(default_factory=dict)
    """What this process does besides runs."""
    max_runs: int = 2000
    draining: asyncio.Event = field(default_factory=asyncio.Event)
    windows: Windows = field(default_factory=Windows)
    pauses: Pauses = field(default_factory=Pauses)
    rerunning: Counter[UUID] = field(default_factory=Counter)
    """How many reruns of each user are about to begin here."""
    principals: Principals = field(default_factory=Principals)
    toolboxes: Servers | None = None
    box: Box = field(default_factory=lambda: Box(enabled=False))
    """Where agents run code."""
    vectors: MilvusVectors | None = None
    """Where passages are searched; without it by pgvector."""
    door: Door | None = None
    """Where frameworks inside of a run reach its LLM."""
    metrics: Metrics = field(default_factory=Metrics)
    courier: Courier = field(default_factory=Courier)
    """Who sends what webhooks are told."""
    spans: Spans | None = None
    """Who is told of runs that have ended."""
