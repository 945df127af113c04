"""What the writer is asked to store, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from msgspec import Struct

from app.domain import MemoryChange, Message, Outcome, Preset, Principal, Run, Session, Step
from app.errors import AppError
from app.store.gather import Held


class BeginRun(Struct, frozen=True):
    """A message to be answered.

    `message` is new and joins the branch at its `parent_id`, or at the active leaf when `at_leaf`; with `again` it is stored
    already and is answered once more. What is said `before` it in the same request stands above it in the branch. `agents` are the ids
    of the agents that are loaded.
    """

    principal: Principal
    session_id: UUID
    run_id: UUID
    message: Message
    agents: frozenset[str]
    at_leaf: bool = True
    again: bool = False
    key: IdempotencyKey | None = None
    agent_id: str | None = None
    """The agent that is to answer; a session of another refuses the message, unless it came through the Responses API."""
    ephemeral: bool = False
    """Whether the session is made with the message, of `agent_id` and for this request."""
    preset: Preset | None = None
    """The preset that `agent_id` was chosen by; an ephemeral session copies it."""
    agent_params: Mapping[str, Any] | None = None
    """The agent's parameters in an ephemeral session that is of no preset."""
    request: Mapping[str, Any] | None = None
    """What came with the message through the OpenAI protocol, as JSON; for whoever conducts the run."""
    before: Sequence[Message] = ()
    echo: Mapping[str, Any] | None = None
    """What a stored response repeats of its request; None for a run that is no response to be found again."""
    rerun: Run | None = None
    """The run whose steps this one is served; it takes no turn in the session, and leaves nothing there."""
    forked_at: int | None = None
    """The number of its step that is done anew."""
    background: bool | None = None
    """Whether a job conducts the run; None leaves it to the session."""
    batch: bool | None = None
    """Whether its calls of language models are in mode batch; None leaves it to the session, and to who asks."""


class IdempotencyKey(Struct, frozen=True):
    """The caller's key for a message, and what identifies the message it was given for."""

    key: str
    fingerprint: bytes


class Begun(Struct, frozen=True):
    """What transaction 1 made: a run to conduct; or one that waits its turn, and which run it interrupts."""

    session: Session
    message: Message
    run: Run
    credential_id: UUID | None = None
    interrupts: UUID | None = None
    budgets: tuple[UUID, ...] = ()
    """The budgets that its calls are taken from."""
    again: bool = False
    """Whether its message was answered before."""
    ephemeral: bool = False
    """Whether the request brings its own history, of which the session has but the message."""
    request: Mapping[str, Any] | None = None
    attempt: int = 1
    """How often it was begun, this time included: a worker has taken it up, or a person has answered it."""
    said: Sequence[tuple[str, str]] = ()
    """What it had said before it asked a person: content types and texts."""
    gives_way: bool = False
    """Whether its calls may wait while others are answered."""
    batch: bool | None = None

    @property
    def in_batch(self) -> bool:
        """Whether its calls of language models are in mode batch."""
        return self.gives_way or self.session.params.mode == "batch" if self.batch is None else self.batch


class Repeated(Struct, frozen=True):
    """The idempotency key stands for a run that there is already."""

    run: Run


class Finished(Struct, frozen=True):
    """What transaction 2 made: how the run ended, and the session's next run, which the writer's replica now conducts."""

    outcome: Outcome
    promoted: Begun | None = None
    stored: bool = True
    """False when the database was away for so long that the answer was only shown."""


class Promote(Struct, frozen=True):
    """Begin the session's next queued run, whose turn it should have been already; or only that of a `job`, if it is the next."""

    session_id: UUID
    job: UUID | None = None


class RecordSteps(Struct, frozen=True):
    """Steps of a run that goes on, for whoever has to begin it anew. They are charged at its end, or when it is handed on."""

    run: Run
    steps: Sequence[Step]

    @property
    def session_id(self) -> UUID:
        """The session that is locked for it."""
        return self.run.session_id


class AnswerRun(Struct, frozen=True):
    """A person's answer, as JSON, to the question for which a run waits: the run has its turn again."""

    session_id: UUID
    run_id: UUID
    answer: Any
    key: IdempotencyKey | None = None
    """Of the message that is the answer."""


class Asks(Struct, frozen=True):
    """The session's run waits for a person, so that the message is to be its answer."""

    run_id: UUID


class FinishRun(Struct, frozen=True):
    """The end of a run: its final state, its answers in order, its steps; and whether to `promote` the session's next run.

    A background run may be queued again instead. `lost` says that the worker that conducted it died.
    """

    run: Run
    answers: Sequence[Message]
    steps: Sequence[Step] = ()
    credential_id: UUID | None = None
    promote: bool = True
    lost: bool = False
    pending: Mapping[str, Any] | None = None
    """What a run keeps that waits for a person: its question, and what is needed to begin it anew."""
    memories: Sequence[MemoryChange] = ()
    """What the agent remembers otherwise since its last answer; it hangs on the last one of these."""

    @property
    def session_id(self) -> UUID:
        """The session that is locked for it."""
        return self.run.session_id


Op = BeginRun | FinishRun | Promote | AnswerRun | RecordSteps
Result = Begun | Repeated | Asks | Finished | AppError | Held | None
