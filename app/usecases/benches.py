"""Test benches: made of a suite and its rows, found again by the same order, compared. `bench_work` has their items answered."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from app.datasets import MAX_ROW, TOO_LONG, BadRow, Dataset, Row
from app.domain import Bench, BenchProgress, BenchStatus, Job, Page, Principal, SessionParams, new_id
from app.errors import Conflict, InvalidInput, NotAllowed, NotAuthenticated, NotFound, QuotaExceeded
from app.store import accounts, benches, jobs
from app.suites.scorers import Scorers
from app.suites.suite import (
    Cell,
    DatasetPart,
    Exact,
    JsonSchema,
    Numeric,
    Python,
    Regex,
    Similarity,
    Suite,
    asked,
    cells_of,
)
from app.usecases import agents, completions, files
from app.usecases.conduct import patiently
from app.usecases.creations import claim
from app.usecases.platform import Platform

MAX_ITEMS = 50_000_000
MAX_OPEN = 20
"""How many benches of a user may be on their way."""
SHARES = 4
"""How many jobs share a bench that was ordered over REST."""
LOADED = 20
"""How many blocks are stored together, at most."""
LOADED_BYTES = 4_000_000
"""How large they are together when no further one is added."""
PAGE = 1000
FINAL = (BenchStatus.STOPPED, BenchStatus.COMPLETED, BenchStatus.CANCELLED)


class Shown(Struct, frozen=True):
    """A bench, and how far it is."""

    bench: Bench
    progress: BenchProgress

    @property
    def id(self) -> UUID:
        """The bench's."""
        return self.bench.id


def suite_of(bench: Bench) -> Suite:
    """The suite of a bench as it was stored."""
    return Suite.model_validate(bench.suite)


def names_of(bench: Bench) -> list[str]:
    """What its agents are called, by their numbers."""
    return [cell.name for cell in cells_of(suite_of(bench))]


async def resolved(platform: Platform, principal: Principal, suite: Suite) -> list[Cell]:
    """The cells with the agents that answer, as the user may use them; an alias of a model is the platform's own agent."""
    found = []
    for cell in cells_of(suite):
        params = SessionParams(cell.model, cell.temperature)
        try:
            agent_id = cell.agent_id
            if await agents.find(platform, principal.owner, agent_id) is None:
                agent_id = completions.agent_of(platform, agent_id)
            if agent_id == completions.RELAY != cell.agent_id:
                params = SessionParams(cell.model or cell.agent_id, cell.temperature)
            chosen = await agents.choose(platform, principal.user, agent_id, cell.params, params)
        except (InvalidInput, NotFound, NotAllowed) as error:
            refusal = NotAllowed if isinstance(error, NotAllowed) else InvalidInput
            raise refusal(f"agents: {cell.name}: {error.message}", param="agents") from None
        found.append(
            replace(
                cell,
                agent_id=chosen.agent_id,
                params=chosen.agent_params,
                model=chosen.params.model,
                temperature=chosen.params.temperature,
            )
        )
    return found


def versions_of(platform: Platform, cells: Sequence[Cell]) -> Mapping[str, str]:
    """The code of the agents that answer, by its digests."""
    return {cell.agent_id: platform.agents.get(cell.agent_id).digest for cell in cells}


async def order(
    platform: Platform, principal: Principal, suite: Suite, dataset: Dataset, folder: Path, *, again: bool = False
) -> Bench:
    """The bench of this suite, these rows, and the agents as they are now: the one that there is, or else, or `again`, a new one, loaded.

    `folder` is where the suite's own Python is.
    """
    await _check_scorers(platform, suite, folder)
    cells = await resolved(platform, principal, suite)
    versions = versions_of(platform, cells)
    said = hashlib.sha256(suite.identity() + repr(sorted(versions.items())).encode())
    for each in suite.scorers:
        if isinstance(each, Python):
            said.update((folder / each.path).read_bytes())
    if suite.dataset.sessions is None:
        said.update(await asyncio.to_thread(dataset.map(_checking(suite)).digest))
    digest = said.digest()
    async with platform.engine.connect() as db:
        earlier = next(iter(await benches.latest(db, principal.user.id, digest=digest)), None)
    if earlier and earlier.status is not BenchStatus.LOADING and not again:
        return earlier
    if earlier and earlier.status is BenchStatus.LOADING:
        bench = earlier
    else:
        bench = _new(principal, suite, digest, versions, edition=earlier.edition + 1 if earlier else 1)
        async with platform.engine.begin() as db:
            if not await benches.add(db, bench):  # another process has begun it in this moment, and both load it
                bench = (await benches.latest(db, principal.user.id, digest=digest))[0]
    try:
        await load(platform, bench, dataset)
    except BaseException:
        async with platform.engine.begin() as db:
            await benches.erase(db, bench.id, owner=None, status=BenchStatus.LOADING)
        raise
    return await existing(platform, bench.id)


async def _check_scorers(platform: Platform, suite: Suite, folder: Path | None) -> None:
    scorers = Scorers(suite, folder)
    async with platform.checking:
        try:
            await scorers.check()
        finally:
            await scorers.close()


def _new(principal: Principal, suite: Suite, digest: bytes, versions: Mapping[str, str], edition: int = 1) -> Bench:
    return Bench(
        new_id(),
        principal.user.id,
        suite.name,
        digest,
        suite.model_dump(mode="json", by_alias=True),
        edition=edition,
        versions=versions,
        credential_id=None if principal.login_id else principal.credential_id,
    )


async def load(platform: Platform, bench: Bench, dataset: Dataset) -> None:
    """Store the rows in blocks, whose contents are the same whoever stores them, and then let it run."""
    suite = suite_of(bench)
    each = suite.repeats * len(cells_of(suite))
    dataset = dataset.map(_checking(suite))
    parts, number, rows = _parts(dataset, suite.block_rows), 0, 0
    while some := await asyncio.to_thread(next, parts, None):
        rows += sum(map(len, some))
        if rows * each > MAX_ITEMS:
            raise InvalidInput(f"dataset: a bench has at most {MAX_ITEMS} items.", param="dataset")
        await _add_blocks(platform, bench, number, some, each)
        number += len(some)
    if not rows:
        raise InvalidInput("dataset: it has no rows.", param="dataset")
    async with platform.engine.begin() as db:
        since = (BenchStatus.LOADING,)
        await benches.move(db, bench.id, to=BenchStatus.RUNNING, since=since, rows=rows, skipped=dataset.skipped)


def _parts(dataset: Dataset, size: int) -> Iterator[list[list[bytes]]]:
    """The rows as msgpack, in blocks of `size`; each time those that are stored together."""
    packed = map(msgspec.msgpack.encode, dataset)
    part: list[list[bytes]] = []
    while block := list(islice(packed, size)):
        part.append(block)
        if len(part) == LOADED or sum(len(row) for each in part for row in each) >= LOADED_BYTES:
            yield part
            part = []
    if part:
        yield part


async def _add_blocks(
    platform: Platform, bench: Bench, number: int, blocks: Sequence[Sequence[bytes]], each: int
) -> None:
    async def add() -> None:
        async with platform.engine.begin() as db:
            await benches.add_blocks(db, bench.id, number, blocks, each)

    await patiently(add)


def _checking(suite: Suite) -> Callable[[Row], Row]:
    """What makes sure that a row has what is asked, and what is expected where a scorer wants that."""
    wants = {
        each.column or suite.dataset.expected
        for each in suite.scorers
        if isinstance(each, Exact | Numeric | Similarity)
        or (isinstance(each, Regex) and each.pattern is None)
        or (isinstance(each, JsonSchema) and each.schema_ is None)
    }

    def check(row: Row) -> Row:
        if suite.dataset.input not in row:
            raise BadRow("it is missing", suite.dataset.input)
        try:
            asked(row[suite.dataset.input])
        except ValueError as error:
            raise BadRow(str(error), suite.dataset.input) from None
        for column in sorted(wants):
            if row.get(column) is None:
                raise BadRow("it is missing", column)
        _check_size(row)
        return row

    return check


def _check_size(row: Row) -> None:
    """`BadRow` for one that cannot be stored: integers of msgpack have 64 bits."""
    try:
        size = len(msgspec.msgpack.encode(row))
    except OverflowError:
        raise BadRow("it has a number that is too large") from None
    except (TypeError, ValueError, RecursionError):
        raise BadRow("it has what cannot be stored") from None
    if size > MAX_ROW:
        raise BadRow(TOO_LONG)


async def create(platform: Platform, principal: Principal, suite: Suite, *, key: str | None = None) -> Shown:
    """Order a bench over REST, which jobs load and have answered. Its rows are given, or in a file, or sessions of the user."""
    if suite.dataset.path is not None:
        raise InvalidInput("dataset.path: over REST a data set is a file, rows, or sessions.", param="dataset.path")
    await _check_scorers(platform, suite, None)
    if suite.dataset.file_id is not None:
        await files.open(platform, principal, file_id(suite.dataset))
    versions = versions_of(platform, await resolved(platform, principal, suite))
    bench = _new(principal, suite, b"", versions)
    bench = replace(bench, digest=bench.id.bytes)
    async with platform.engine.begin() as db:
        if await accounts.lock_user(db, bench.user_id) is None:
            raise NotAuthenticated
        made = await claim(db, bench.user_id, key, bench.id, "bench", bench.suite)
        if made == bench.id:
            if await benches.unended(db, bench.user_id) >= MAX_OPEN:
                raise QuotaExceeded(f"You have {MAX_OPEN} benches on their way, the most a user may have.")
            await benches.add(db, bench)
            await jobs.add(db, [Job(new_id(), "bench_load", bench.user_id, bench.id)])
    return await get(platform, principal, made)


def file_id(part: DatasetPart) -> UUID:
    """The file that a data set names, as the protocol does; `NotFound` when it names none."""
    try:
        return UUID((part.file_id or "").removeprefix("file-"))
    except ValueError:
        raise NotFound("file", param="dataset.file_id") from None


async def existing(platform: Platform, id: UUID, owner: UUID | None = None) -> Bench:
    async with platform.engine.connect() as db:
        bench = await benches.get(db, id, owner=owner)
    if bench is None:
        raise NotFound("bench", param="bench_id")
    return bench


async def get(platform: Platform, principal: Principal, id: UUID) -> Shown:
    """A bench of the caller."""
    return (await _shown(platform, [await existing(platform, id, principal.owner)]))[0]


async def find(platform: Platform, principal: Principal, name: str, before: int = 0) -> Bench:
    """A bench of the caller by its id, or the last of that name; or of its name the one so many `before` it."""
    try:
        return await existing(platform, UUID(name), principal.owner)
    except ValueError:
        async with platform.engine.connect() as db:
            found = await benches.latest(db, principal.user.id, name=name, limit=before + 1)
    if len(found) <= before:
        raise NotFound(f"bench as {name}" + (f", {before} before the last" if before else ""), param="bench")
    return found[before]


async def list_page(platform: Platform, principal: Principal, *, after: UUID | None, limit: int) -> Page[Shown]:
    """The caller's benches, the newest first."""
    async with platform.engine.connect() as db:
        found = await benches.list_page(db, owner=principal.owner, after=after, limit=limit)
    return Page(await _shown(platform, found.items), found.has_more)


async def _shown(platform: Platform, found: Sequence[Bench]) -> list[Shown]:
    async with platform.engine.connect() as db:
        progress = await benches.progress(db, [bench.id for bench in found])
    return [Shown(bench, progress[bench.id]) for bench in found]


async def cancel(platform: Platform, principal: Principal, id: UUID) -> Shown:
    """Begin no more of its items. What is under way is stored."""
    await existing(platform, id, principal.owner)
    since = (*benches.OPEN, BenchStatus.STOPPED)
    async with platform.engine.begin() as db:
        moved = await benches.move(db, id, to=BenchStatus.CANCELLED, since=since)
    shown = await get(platform, principal, id)
    if not moved and shown.bench.status is not BenchStatus.CANCELLED:
        raise Conflict(f"A bench that is {shown.bench.status} cannot be cancelled.", param="bench_id")
    return shown


async def resume(platform: Platform, principal: Principal, id: UUID, *, failed: bool, with_jobs: bool = True) -> Bench:
    """Let a bench go on that stopped or was cancelled; with `failed` also ask again what failed."""
    bench = await existing(platform, id, principal.owner)
    async with platform.engine.begin() as db:
        if await accounts.lock_user(db, bench.user_id) is None:
            raise NotAuthenticated
        if failed and bench.status in (*FINAL, BenchStatus.RUNNING):
            await benches.retry(db, id, suite_of(bench).block_rows)
        since = FINAL if failed else (BenchStatus.STOPPED, BenchStatus.CANCELLED)
        if await benches.move(db, id, to=BenchStatus.RUNNING, since=since) and with_jobs:
            await add_shares(db, bench)
    return await existing(platform, id, principal.owner)


async def add_shares(db: Any, bench: Bench) -> None:
    """Have some jobs work on a bench."""
    await jobs.add(db, [Job(new_id(), "bench", bench.user_id, bench.id) for _ in range(SHARES)])


async def delete(platform: Platform, principal: Principal, id: UUID) -> None:
    """Erase a bench with its rows and results."""
    async with platform.engine.begin() as db:
        if not await benches.erase(db, id, owner=principal.owner):
            raise NotFound("bench", param="bench_id")


class SessionAnswers:
    """The answers in the sessions of a user, read page by page from whatever thread asks; made on the event loop."""

    def __init__(self, platform: Platform, user_id: UUID) -> None:
        self._platform, self._user_id = platform, user_id
        self._loop = asyncio.get_running_loop()

    def answers(self, feedback: str, agent: str | None) -> Iterator[Row]:
        """See `Sessions`. Not on the event loop itself, which it would wait for."""
        ratings = {"up": [1], "down": [-1]}.get(feedback)
        after: UUID | None = None
        while rows := asyncio.run_coroutine_threadsafe(self._page(ratings, agent, after), self._loop).result():
            yield from rows
            after = UUID(rows[-1]["id"])

    async def _page(self, rating: Sequence[int] | None, agent: str | None, after: UUID | None) -> list[Row]:
        async with self._platform.engine.connect() as db:
            return await benches.answers(db, self._user_id, rating=rating, agent=agent, after=after, limit=PAGE)
