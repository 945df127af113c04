"""The two transactions of every message: its beginning and its end.

Besides `usecases`, this is the one place that opens and commits transactions. An acknowledged message is on disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from sqlalchemy import Row, and_, func, literal, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.domain import Message, Outcome, Principal, Role, Run, Session, Step, now
from app.errors import AppError, Conflict, InvalidInput, NotAllowed, NotAuthenticated, NotFound, SessionBusy
from app.store import accounts, journal, messages, runs
from app.store import credentials as keys
from app.store.sessions import session_of
from app.store.tables import credentials, sessions, users


@dataclass(frozen=True, slots=True)
class BeginRun:
    """A message to be answered.

    `message` is new and joins the branch at its `parent_id`, or at the active leaf when `at_leaf`; with `again` it is stored
    already and is answered once more. `agents` are the ids of the agents that are loaded.
    """

    principal: Principal
    session_id: UUID
    run_id: UUID
    message: Message
    agents: frozenset[str]
    at_leaf: bool = True
    again: bool = False


@dataclass(frozen=True, slots=True)
class Begun:
    """What transaction 1 made."""

    session: Session
    message: Message
    run: Run


@dataclass(frozen=True, slots=True)
class FinishRun:
    """The end of a run: its final state, its answers in order, and its steps."""

    run: Run
    answers: Sequence[Message]
    steps: Sequence[Step] = ()
    credential_id: UUID | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


class Writer:
    """Writes for one replica."""

    def __init__(self, engine: AsyncEngine, replica: UUID) -> None:
        self._engine = engine
        self.replica = replica

    async def begin(self, wanted: BeginRun) -> Begun:
        """Transaction 1: every reason to refuse a message is found here, before anything is stored."""
        async with self._engine.begin() as db:
            row = await _locked(db, wanted)
            session = session_of(row)
            if await runs.is_active(db, session.id):
                raise SessionBusy
            message = await _place(db, wanted, row)
            run = Run(
                id=wanted.run_id,
                session_id=session.id,
                user_id=session.user.id,
                agent_id=session.agent_id,
                message_id=message.id or wanted.run_id,
            )
            await runs.add(db, run, replica=self.replica, credential_id=wanted.principal.credential_id)
            return Begun(session, message, run)

    async def finish(self, ending: FinishRun) -> Outcome | None:
        """Transaction 2: the answer, its steps, its cost and the final state, once. None when the run was lost or erased."""
        async with self._engine.begin() as db:
            query = select(sessions.c.next_seq).where(sessions.c.id == ending.run.session_id)
            next_seq = (await db.execute(query.with_for_update())).scalar()
            if next_seq is None:
                return None
            run = await runs.finish(db, ending.run, replica=self.replica)
            if run is None:
                return None
            answers = _numbered(ending, next_seq)
            if answers:
                await messages.add(db, run.user_id, answers)
                await _advance(db, run.session_id, next_seq + len(answers), answers[-1].id)
            await journal.add(db, run, ending.steps, credential_id=ending.credential_id)
            return Outcome(run, answers)


async def _locked(db: AsyncConnection, wanted: BeginRun) -> Row[Any]:
    """The session's row, locked, after every check of who asks for what."""
    caller = wanted.principal
    agent_known = sessions.c.agent_id.in_(wanted.agents)
    checks = [
        agent_known.label("agent_known"),
        accounts.may_use(sessions.c.user_id, sessions.c.agent_id).label("may_use"),
        _good(caller).label("good"),
    ]
    query = (
        select(sessions, users.c.name, users.c.role, users.c.status, *checks)
        .join_from(sessions, users, users.c.id == sessions.c.user_id)
        .where(sessions.c.id == wanted.session_id)
        .with_for_update(of=sessions)
    )
    if not caller.acts_for_all:
        query = query.where(sessions.c.user_id == caller.user.id)
    row = (await db.execute(query)).first()
    if refusal := _refusal(row):
        raise refusal
    assert row is not None  # noqa: S101 - _refusal has seen it
    return row


def _good(caller: Principal) -> Any:
    if caller.credential_id is None:
        return literal(True)
    return select(keys.is_good()).where(credentials.c.id == caller.credential_id).scalar_subquery()


def _refusal(row: Row[Any] | None) -> AppError | None:
    if row is None:
        return NotFound("session", param="session_id")
    if not row.good or row.status != "active":
        return NotAuthenticated()
    if not row.agent_known:
        return NotFound("agent", param="agent.id")
    if not row.may_use and row.role != Role.ADMIN:
        return NotAllowed("You may not use this agent.", param="agent.id")
    if row.archived_at is not None:
        return Conflict("The session is archived.", param="session_id")
    return None


async def _place(db: AsyncConnection, wanted: BeginRun, row: Row[Any]) -> Message:
    """Put the message into the tree, or find the one that is answered again."""
    if wanted.again:
        stored = await messages.in_session(db, wanted.message.id or wanted.run_id, row.id)
        if stored is None or stored.role != "user":
            raise NotFound("message", param="message_id")
        await _advance(db, row.id, row.next_seq, stored.id)
        return stored
    parent_id = row.leaf_id if wanted.at_leaf else wanted.message.parent_id
    if not wanted.at_leaf and parent_id and not await messages.in_session(db, parent_id, row.id):
        raise InvalidInput("parent_id: there is no such message in this session.", param="parent_id")
    message = replace(wanted.message, session_id=row.id, parent_id=parent_id, seq=row.next_seq)
    await messages.add(db, row.user_id, [message])
    await _advance(db, row.id, row.next_seq + 1, message.id)
    return message


async def _advance(db: AsyncConnection, session_id: UUID, next_seq: int, leaf_id: UUID | None) -> None:
    changes = {"next_seq": next_seq, "leaf_id": leaf_id, "updated_at": func.now()}
    await db.execute(update(sessions).where(and_(sessions.c.id == session_id)).values(**changes))


def _numbered(ending: FinishRun, next_seq: int) -> list[Message]:
    """The answers as a chain under the message they answer."""
    chain: list[Message] = []
    for offset, answer in enumerate(ending.answers):
        chain.append(
            replace(
                answer,
                parent_id=chain[-1].id if chain else ending.run.message_id,
                seq=next_seq + offset,
                session_id=ending.run.session_id,
                run_id=ending.run.id,
                agent_id=ending.run.agent_id,
                created_at=now(),
            )
        )
    return chain
