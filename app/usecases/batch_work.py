"""What jobs do for a batch: read its file, answer its requests shard by shard, write its files. Each may be begun again after a crash.

An answered request is stored at once and never asked again. One whose process died before that is asked under the same idempotency key,
so that an answer which a run has stored is found there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing, nullcontext
from functools import partial
from typing import Any
from uuid import UUID

import msgspec
from msgspec import Struct

from app.domain import Batch, BatchStatus, File, Job, Principal, Scope, new_id, now
from app.errors import ContentLost, NotFound, must_exist
from app.store import accounts, batches, jobs
from app.store.batches import Item
from app.usecases import files
from app.usecases.batch_lines import Requests, Tokens
from app.usecases.conduct import patiently
from app.usecases.jobs import Kind
from app.usecases.platform import Platform

SHARD = 200
"""How many requests one job answers."""
AT_ONCE = 32
"""How many requests of a shard are under way at once; the endpoints of language models have limits of their own. All are where a model's
server has batches, in which they wait together."""
LAST_SECONDS = 600.0
"""How long what is under way may go on when the batch was cancelled (OpenAI: "up to 10 minutes")."""
PART = 20
"""How many requests are stored, or written, together, ..."""
PART_BYTES = 1_000_000
"""... unless they are longer."""
LARGE_BYTES = 250_000
LARGE_AT_ONCE = 4
"""How many requests of more than `LARGE_BYTES` a shard has in memory."""
LOOK_SECONDS = 2.0
"""How often a shard looks whether its batch was cancelled."""
TURN_SECONDS = 60.0
"""After so long a shard gives way to other jobs: one whose model is away would keep them from being done for a day."""
MAX_WAIT = 60.0
"""The longest pause before a request is made again that found no room, in seconds."""
MEDIA_TYPE = "application/jsonl"


class Answered(Struct, frozen=True):
    """An answer of the protocol: its HTTP status and body; `retry_after` seconds the same request may do better, if it is known."""

    status: int
    body: bytes
    retry_after: float | None = None


Ask = Callable[[Platform, Principal, str, bytes, str], Awaitable[Answered]]
"""Answers a request: who asks, the endpoint, the body, and the idempotency key under which it is asked."""


async def validate(platform: Platform, id: UUID) -> None:
    """Read the file; when all of its lines are requests, have them answered.

    Another worker may have come so far meanwhile, or this one before it died: what has begun to be answered is not ended here.
    """
    batch = await _open(platform, id, BatchStatus.VALIDATING, BatchStatus.CANCELLING)
    if batch is None:
        return
    if batch.status is BatchStatus.CANCELLING:
        await _end(platform, batch, BatchStatus.CANCELLED)
        return
    if now() > batch.expires_at:
        await _end(platform, batch, BatchStatus.EXPIRED)
        return
    requests = Requests(batch.endpoint)
    last = 0
    try:
        file = await files.open(platform, await _principal(platform, batch), batch.input_file_id)
        async with aclosing(files.content(platform, file)) as pieces, aclosing(requests.read(pieces)) as found:
            async for part in _parts(found):
                last = part[-1].line
                await _add_items(platform, id, part)
    except (NotFound, ContentLost) as error:
        message = error.message if isinstance(error, ContentLost) else "The file was deleted before it was read."
        requests.errors.append({"code": "invalid_input_file", "line": None, "message": message, "param": None})
    if requests.errors:
        await _end(platform, batch, BatchStatus.FAILED, errors=requests.errors)
    else:
        await _begin(platform, batch, last)


async def _begin(platform: Platform, batch: Batch, last: int) -> None:
    """Have one job answer every shard of lines up to the last."""
    shards = {new_id(): after for after in range(0, last, SHARD)}
    async with platform.engine.begin() as db:
        if await accounts.lock_user(db, batch.user_id) is None:  # before his batch, as who erases him does
            return
        total = await batches.count_items(db, batch.id)
        since = (BatchStatus.VALIDATING,)
        moved = await batches.move(db, batch.id, to=BatchStatus.IN_PROGRESS, at=_second(), since=since, total=total)
        if moved:
            await batches.add_shards(db, batch.id, shards)
            await jobs.add(db, [Job(new_id(), "batch_shard", batch.user_id, shard) for shard in shards])
    if not moved:  # cancelled meanwhile, or begun by another worker
        await _end(platform, batch, BatchStatus.CANCELLED)


async def answer_shard(ask: Ask, platform: Platform, shard: UUID) -> bool:
    """Answer the requests of a shard as far as they are not; the last shard has the files written. False when others go on with it."""
    async with platform.engine.connect() as db:
        found = await batches.get_shard(db, shard)
    if found is None:
        return True
    batch, after = found
    if batch.status is BatchStatus.IN_PROGRESS and now() <= batch.expires_at:
        work = _Shard(platform, batch, ask)
        await work.answer(range(after + 1, after + 1 + SHARD))
        if work.leaves_off:
            return False
    await end_shard(platform, shard)
    return True


async def end_shard(platform: Platform, shard: UUID) -> None:
    """A shard has ended, whether or not all of it was answered."""
    async with platform.engine.begin() as db:
        found = await batches.get_shard(db, shard)
        if found is None or await accounts.lock_user(db, found[0].user_id) is None:  # before his batch
            return
        batch = found[0]
        if not await batches.end_shard(db, batch.id, shard):
            return
        since = (BatchStatus.IN_PROGRESS,)
        await batches.move(db, batch.id, to=BatchStatus.FINALIZING, at=_second(), since=since)
        await jobs.add(db, [Job(new_id(), "batch_end", batch.user_id, batch.id)])


class _Shard:
    """The requests of one shard, so many at once."""

    def __init__(self, platform: Platform, batch: Batch, ask: Ask) -> None:
        self._platform = platform
        self._batch = batch
        self._ask = ask
        self._over = asyncio.Event()
        self._turn_ends = time.monotonic() + TURN_SECONDS
        self._large = asyncio.Semaphore(LARGE_AT_ONCE)
        self._workers: list[asyncio.Task[None]] = []

    @property
    def leaves_off(self) -> bool:
        """Whether the rest is for another worker, or for another turn."""
        return self._platform.draining.is_set() or time.monotonic() > self._turn_ends

    async def answer(self, lines: range) -> None:
        """Answer them until there are none left, its turn is over, or the batch's end has come."""
        principal = await _principal(self._platform, self._batch)
        async with self._platform.engine.connect() as db:
            waiting = iter(await batches.open_items(db, self._batch.id, lines))

        async def work() -> None:
            for line, size in waiting:
                async with self._large if size > LARGE_BYTES else nullcontext():
                    if self._over.is_set() or self.leaves_off:
                        return
                    await self._answer(principal, line)

        has_batches = any(spec.batch for model in self._platform.catalog().models.values() for spec in model.endpoints)
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self._watch())
            self._workers = [group.create_task(work()) for _ in range(SHARD if has_batches else AT_ONCE)]
            await asyncio.wait(self._workers)
            watching.cancel()

    async def _watch(self) -> None:
        """See whether the batch is cancelled, or its time or its turn is over."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            batch = await _open(self._platform, self._batch.id, BatchStatus.IN_PROGRESS)
            is_over = batch is None or now() > batch.expires_at
            if is_over or self.leaves_off:
                self._over.set()
            if is_over:
                await asyncio.sleep(LAST_SECONDS)
                for worker in self._workers:
                    worker.cancel()

    async def _answer(self, principal: Principal, line: int) -> None:
        """Answer one request; where there is no room for it now, later."""
        async with self._platform.engine.connect() as db:
            request = await batches.request(db, self._batch.id, line)
        if request is None:
            return
        key = f"batch {self._batch.id} {line}"
        pause = 1.0
        while not self._over.is_set():
            answered = await self._ask(self._platform, principal, self._batch.endpoint, request, key)
            if answered.retry_after is None:
                await self._keep(line, answered)
                return
            pause = min(MAX_WAIT, max(answered.retry_after, pause * 2))
            await _either(self._over, pause)

    async def _keep(self, line: int, answered: Answered) -> None:
        async def keep() -> None:
            async with self._platform.engine.begin() as db:
                await batches.answer(
                    db,
                    self._batch.id,
                    line,
                    status=answered.status,
                    request_id=new_id(),
                    body=answered.body,
                )

        await patiently(keep)


async def _either(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass


async def write_files(platform: Platform, id: UUID) -> None:
    """Write what was answered well into one file, and the rest into another, and end the batch."""
    batch = await _open(platform, id, BatchStatus.FINALIZING, BatchStatus.CANCELLING)
    if batch is None:
        return
    tokens = Tokens()
    output = await _write(platform, batch, tokens, well=True)
    errors = await _write(platform, batch, tokens, well=False)
    async with platform.engine.begin() as db:
        completed, failed = (await batches.counts(db, [id])).get(id, (0, 0))
        moved = await batches.move(
            db,
            id,
            to=_end_of(batch, completed + failed),
            at=_second(),
            since=(batch.status,),
            completed=completed,
            failed=batch.total - completed,
            usage=tokens.given(),
            output_file_id=output and output.id,
            error_file_id=errors and errors.id,
        )
        if moved:
            await batches.erase_items(db, id)


def _end_of(batch: Batch, answered: int) -> BatchStatus:
    if batch.status is BatchStatus.CANCELLING:
        return BatchStatus.CANCELLED
    is_late = answered < batch.total and now() > batch.expires_at
    return BatchStatus.EXPIRED if is_late else BatchStatus.COMPLETED


async def _write(platform: Platform, batch: Batch, tokens: Tokens, *, well: bool) -> File | None:
    """One of the files, once: a job that is begun again finds what it has written before; None where it would be empty."""
    async with platform.engine.connect() as db:
        if not await batches.any_answer(db, batch.id, well=well):
            return None
    principal = await _principal(platform, batch)
    name = f"batch_{batch.id.hex}_{'output' if well else 'error'}.jsonl"
    async with files.uploading(platform, principal, is_owed=True) as upload:
        async with aclosing(_written(platform, batch, tokens, well=well)) as pieces:
            await upload.take(pieces)
        return await upload.keep(
            name, "batch_output", media_type=MEDIA_TYPE, expires_seconds=batch.output_expires_seconds, key=name
        )


async def _written(platform: Platform, batch: Batch, tokens: Tokens, *, well: bool) -> AsyncGenerator[bytes, None]:
    after = 0
    while True:
        async with platform.engine.connect() as db:
            part = await batches.answers(db, batch.id, well=well, after=after, limit=PART)
        if not part:
            return
        for item in part:
            tokens.add(item.answer or b"{}")
        yield b"".join(line_of(batch, item) for item in part)
        after = part[-1].line


def line_of(batch: Batch, item: Item) -> bytes:
    """A request's line in a file of answers: the same however often it is written."""
    line = {"id": f"batch_req_{batch.id.hex}_{item.line}", "custom_id": item.custom_id, "response": None, "error": None}
    if item.request_id is None or item.answer is None:
        code = "batch_cancelled" if batch.status is BatchStatus.CANCELLING else "batch_expired"
        return _encoded(
            line | {"error": {"code": code, "message": "The batch ended before this request was answered."}}
        )
    answer = {"status_code": item.status, "request_id": item.request_id.hex, "body": msgspec.Raw(item.answer)}
    return _encoded(line | {"response": answer})


def _encoded(line: dict[str, Any]) -> bytes:
    return msgspec.json.encode(line) + b"\n"


async def fail(platform: Platform, id: UUID, *, begun: bool) -> None:
    """End a batch that cannot go on. Without `begun` one that is being answered does."""
    if batch := await _open(platform, id, *batches.OPEN):
        message = "Every worker that tried this has died, or it failed in the server."
        told = {"code": "server_error", "line": None, "message": message, "param": None}
        await _end(platform, batch, BatchStatus.FAILED, begun=begun, errors=[told])


# Steps


async def _open(platform: Platform, id: UUID, *states: BatchStatus) -> Batch | None:
    """The batch, if it is in one of these states."""
    async with platform.engine.connect() as db:
        batch = await batches.get(db, id, owner=None)
    return batch if batch and batch.status in states else None


async def _principal(platform: Platform, batch: Batch) -> Principal:
    """Who asks; `NotFound` when the user was erased, and the batch with him."""
    async with platform.engine.connect() as db:
        user = must_exist(await accounts.get_user(db, id=batch.user_id), "batch")
    return Principal(user, frozenset({Scope.CHAT}), batch.credential_id, gives_way=True)


async def _end(platform: Platform, batch: Batch, to: BatchStatus, *, begun: bool = False, **changes: object) -> None:
    """End a batch that has no files, and forget its requests; with `begun` also one that has begun to be answered."""
    async with platform.engine.begin() as db:
        if await batches.move(db, batch.id, to=to, at=_second(), since=batches.OPEN, begun=begun, **changes):
            await batches.erase_items(db, batch.id)


async def _add_items(platform: Platform, id: UUID, items: list[Item]) -> None:
    async with platform.engine.begin() as db:
        await batches.add_items(db, id, items)


async def _parts(items: AsyncGenerator[Item, None]) -> AsyncGenerator[list[Item], None]:
    part: list[Item] = []
    size = 0
    async for item in items:
        part.append(item)
        size += len(item.request)
        if len(part) == PART or size > PART_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


KINDS: Mapping[str, Kind] = {
    "batch": Kind(validate, partial(fail, begun=False)),
    "batch_end": Kind(write_files, partial(fail, begun=True)),
}
"""What jobs do for batches, but for their requests."""


def shards(ask: Ask) -> Mapping[str, Kind]:
    """And for these."""
    return {"batch_shard": Kind(partial(answer_shard, ask), end_shard)}


def _second() -> int:
    return int(now().timestamp())
