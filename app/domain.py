"""The nouns of the house as frozen values. No I/O, no framework.

They are structs, which are made and copied in a tenth of the time of a frozen dataclass.
"""

from __future__ import annotations

import os
import time
from base64 import b64encode
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from functools import cached_property
from hashlib import sha256
from typing import Any, Generic, Literal, TypeVar
from uuid import UUID

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace

T = TypeVar("T")

PRESET_ID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
"""How the ids of presets look; no agent's file may take one that looks so."""
MAX_TEXT = 1_000_000
"""The longest message content, in characters."""


def new_id() -> UUID:
    """A time-ordered id: UUID version 7 (RFC 9562, section 5.7), made here because PostgreSQL has it only from 18 on."""
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    return UUID(int=value & ~(0x3 << 62) | 0x2 << 62)


def id_text(id: UUID) -> str:
    """The id as `str` writes it, in a sixth of the time."""
    text: str = msgspec.to_builtins(id)
    return text


def now() -> datetime:
    """The present moment, with its time zone."""
    return datetime.now(UTC)


class Role(StrEnum):
    """What a user may do: administrators also manage users, groups and agents."""

    ADMIN = "admin"
    USER = "user"


class Scope(StrEnum):
    """What a credential may be used for, within what its user may do."""

    CHAT = "chat"
    ACCOUNT = "account"
    ADMIN = "admin"


class User(Struct, frozen=True):
    """An account."""

    id: UUID
    name: str
    role: Role = Role.USER
    status: Literal["active", "suspended"] = "active"
    created_at: datetime | None = None


class Principal(Struct, frozen=True):
    """A user as proved by a credential. `acts_for_all` is the local caller under `AUTH=open`, who proves nothing."""

    user: User
    scopes: frozenset[Scope]
    credential_id: UUID | None = None
    login_id: UUID | None = None
    acts_for_all: bool = False
    gives_way: bool = False
    """Whether what is asked may wait while people are answered."""
    reads: UUID | None = None
    """The other user whose chats an administrator reads with this request; see `usecases/reading.py`."""

    @property
    def owner(self) -> UUID | None:
        """Whose objects this caller sees: its user's or his whom it reads, or everybody's (None) when it acts for all."""
        return None if self.acts_for_all else self.reads or self.user.id

    @property
    def is_admin(self) -> bool:
        """Whether administrator's verbs are open to this credential."""
        return self.user.role is Role.ADMIN and Scope.ADMIN in self.scopes


class Credential(Struct, frozen=True):
    """An API key, or a token of a password login; the secret is shown once and never stored. `hint` is its last characters."""

    id: UUID
    user_id: UUID
    kind: Literal["key", "access", "refresh"]
    name: str
    hint: str
    scopes: frozenset[Scope]
    login_id: UUID | None = None
    created_at: datetime | None = None
    expires_at: datetime | None = None


class Group(Struct, frozen=True):
    """Users who may use the same agents; `*` stands for every agent."""

    id: UUID
    name: str
    agents: Sequence[str] = ()


class Invite(Struct, frozen=True):
    """A link for whoever is to have a new account, or a new password of the account `user_id`. Without a `name` he chooses one."""

    id: UUID
    created_by: UUID
    expires_at: datetime
    user_id: UUID | None = None
    name: str | None = None
    role: Role = Role.USER
    groups: Sequence[UUID] = ()
    created_at: datetime | None = None


class Act(Struct, frozen=True):
    """What an administrator did, and to what."""

    id: UUID
    action: str
    subject: str
    details: Mapping[str, Any]
    actor_id: UUID | None
    actor_name: str | None
    credential_id: UUID | None
    created_at: datetime


class Usage(Struct, frozen=True):
    """Tokens and money of one or more LLM calls. `estimated` marks counts the upstream did not give.

    `saved` is how much more it would have cost without the cache, or by the last model of a cascade.
    """

    prompt: int = 0
    completion: int = 0
    cached: int = 0
    reasoning: int = 0
    cost: Decimal = Decimal(0)
    estimated: bool = False
    saved: Decimal = Decimal(0)

    @property
    def total(self) -> int:
        """Prompt and completion tokens together."""
        return self.prompt + self.completion

    @property
    def money(self) -> str:
        """The cost as a plain decimal number: `0.0125`, never `1.25E-2`."""
        return _plain(self.cost)

    @property
    def money_saved(self) -> str:
        """What was saved, in the same form."""
        return _plain(self.saved)

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt + other.prompt,
            self.completion + other.completion,
            self.cached + other.cached,
            self.reasoning + other.reasoning,
            self.cost + other.cost,
            self.estimated or other.estimated,
            self.saved + other.saved,
        )


def _plain(amount: Decimal) -> str:
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


ANSWER_TYPES = frozenset({"text", "code", "result"})
"""The content types that make up an answer; all others are shown beside it."""
SPEAKER = "speaker"
"""The content type of a name: what follows is a message of its own, by whoever has it."""


class Chunk(Struct, frozen=True):
    """A piece of an answer while it streams."""

    content: str
    content_type: str = "text"


class Value(Struct, gc=False):
    """A step's input or output, or a part of it, under its SHA-256; in hexadecimal digits, by its `name`, other values know it.

    That of a message is sent and recorded with every turn, so what has been found out about it is kept in it: how many `tokens` it costs,
    once it is known to be good for a prompt, and the latest `run` of names, with its value, that ended with it.
    """

    body: bytes
    digest: bytes
    name: str
    raw: msgspec.Raw
    """The body as a part of a larger JSON."""
    tokens: int = 0
    run: tuple[Sequence[str], Value] | None = None

    @classmethod
    def of(cls, body: bytes) -> Value:
        """These bytes as a value."""
        digest = sha256(body).digest()
        return cls(body, digest, digest.hex(), msgspec.Raw(body))


BESIDE = {"assistant": "tool_calls", "tool": "tool_call_id"}
"""What a message of the OpenAI protocol has besides its content, by role."""
MESSAGE_TYPES = {"user": "human", "assistant": "ai", "system": "system", "tool": "tool"}


class Summary(Struct, frozen=True):
    """What was said on a branch in few words, as the run `run_id` had it made; about so many `tokens`."""

    content: str
    tokens: int
    run_id: UUID


class Message(Struct, frozen=True, dict=True):
    """Role and content; when stored, a node in its session's tree (`parent_id`), numbered by `seq`."""

    role: str
    content: str
    parts: Sequence[Mapping[str, Any]] = ()
    name: str | None = None
    id: UUID | None = None
    additional_kwargs: Mapping[str, Any] = field(default_factory=dict)
    session_id: UUID | None = None
    parent_id: UUID | None = None
    seq: int | None = None
    run_id: UUID | None = None
    agent_id: str | None = None
    tokens: int = 0
    state: Mapping[str, Any] | None = None
    rating: int | None = None
    comment: str | None = None
    created_at: datetime | None = None
    summary: Summary | None = None
    """Of the branch up to here, where a window of it begins with this message."""

    @property
    def type(self) -> str:
        """The role in the words of seed 003: `human`, `ai`, `system` or `tool`."""
        return MESSAGE_TYPES[self.role]

    @cached_property
    def value(self) -> Value:
        """The message as the OpenAI protocol has it, in canonical JSON: made once, though it is sent and recorded with every turn."""
        return Value.of(canonical(self.to_openai()))

    @classmethod
    def system(cls, content: str, **fields: Any) -> Message:
        """A message that instructs the model."""
        return cls("system", content, **fields)

    @classmethod
    def user(cls, content: str, **fields: Any) -> Message:
        """A message from the person."""
        return cls("user", content, **fields)

    @classmethod
    def assistant(cls, content: str, **fields: Any) -> Message:
        """A message from an agent or model."""
        return cls("assistant", content, **fields)

    @classmethod
    def image(cls, source: str | bytes, text: str = "", *, media_type: str = "image/png", **fields: Any) -> Message:
        """A message from the person with a picture, given by its address or as bytes of `media_type`, and a text beside it."""
        url = source if isinstance(source, str) else f"data:{media_type};base64,{b64encode(source).decode()}"
        return cls._with({"type": "image_url", "image_url": {"url": url}}, text, fields)

    @classmethod
    def audio(cls, source: bytes, text: str = "", *, format: str = "wav", **fields: Any) -> Message:
        """A message from the person with sound, which is `wav` or `mp3`, and a text beside it."""
        part = {"type": "input_audio", "input_audio": {"data": b64encode(source).decode(), "format": format}}
        return cls._with(part, text, fields)

    @classmethod
    def _with(cls, part: Mapping[str, Any], text: str, fields: Mapping[str, Any]) -> Message:
        beside = [{"type": "text", "text": text}] if text else []
        return cls("user", text, parts=[*beside, part], **fields)

    def to_openai(self) -> dict[str, Any]:
        """The message as the OpenAI protocol has it."""
        body: dict[str, Any] = {"role": self.role, "content": list(self.parts) if self.parts else self.content}
        if self.name:
            body["name"] = self.name
        beside = BESIDE.get(self.role)
        if beside and self.additional_kwargs.get(beside):
            body[beside] = self.additional_kwargs[beside]
        return body


TITLE_LENGTH = 60


def first_words(content: str) -> str | None:
    """What a session is called that nobody has named: the first line of its first message, or its beginning."""
    line = next((line for line in content[:2000].splitlines() if line.strip()), "")
    words = " ".join("".join(each if each.isprintable() else " " for each in line).split())
    return (words if len(words) <= TITLE_LENGTH else f"{words[: TITLE_LENGTH - 1].rstrip()}…") or None


def canonical(value: object) -> bytes:
    """A value as JSON with sorted keys: equal values have equal bytes. `ValueError` or `TypeError` for what JSON cannot express."""
    return msgspec.json.encode(value, order="sorted")


class SessionParams(Struct, frozen=True):
    """What a user sets for one session, whichever agent answers. `None` leaves the agent's or the model's own default."""

    model: str | None = None
    temperature: float | None = None
    busy: Literal["reject", "queue", "interrupt"] | None = None
    """What a message does that comes while another is being answered: refused (by default), queued, or in its place."""
    mode: Literal["realtime", "background", "batch"] | None = None
    """Whether messages are answered at once (by default), or by a job, while nobody waits; in `batch` with calls of language models in
    that mode."""
    summary: bool | None = None
    """Whether turns that no longer fit into the history are summarised; as the agent has it by default."""


class Session(Struct, frozen=True):
    """One conversation of a user with an agent."""

    id: UUID
    user: User
    agent_id: str
    agent_params: Mapping[str, Any] = field(default_factory=dict)
    params: SessionParams = field(default_factory=SessionParams)
    title: str | None = None
    participants: Sequence[str] = ()
    leaf_id: UUID | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None
    archived_at: datetime | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    """What a client of the Conversations API keeps with it."""
    preset_id: UUID | None = None
    """The preset it was begun with, whose agent, parameters and defaults it has copied."""


class Preset(Struct, frozen=True):
    """A named configuration of an agent: what sessions that are begun with it start from. Its id is an agent's id to users."""

    id: UUID
    owner: User
    name: str
    agent_id: str
    agent_params: Mapping[str, Any] = field(default_factory=dict)
    params: SessionParams = field(default_factory=SessionParams)
    description: str = ""
    shared_with: Sequence[str] = ()
    """The names of the groups that may use it; its owner may anyhow."""
    created_at: datetime | None = None
    updated_at: datetime | None = None


class RunStatus(StrEnum):
    """The states of a run; all but the first three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"
    COMPLETED = "completed"
    PARTIAL = "partial"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether nothing can follow."""
        return self not in (RunStatus.QUEUED, RunStatus.RUNNING, RunStatus.WAITING)


class Run(Struct, frozen=True):
    """One message being answered."""

    id: UUID
    session_id: UUID
    user_id: UUID
    agent_id: str
    message_id: UUID
    status: RunStatus = RunStatus.RUNNING
    kind: str = "chat"
    usage: Usage = field(default_factory=Usage)
    cancel_requested: bool = False
    error: Mapping[str, Any] | None = None
    created_at: datetime | None = None
    ended_at: datetime | None = None
    layout: Sequence[tuple[str, int]] | None = None
    """Types and lengths of what was said, when it was not text alone."""
    background: bool = False
    """Whether a job conducts it, and not the server that took the message."""
    question: Mapping[str, Any] | None = None
    """What it asks a person while it waits: `question`, the JSON `schema` of the answer, and when that `expires_at`."""
    parent_id: UUID | None = None
    """The run whose steps it is served, when it is a rerun of kind `rerun`."""
    forked_at: int | None = None
    """The number of the step there that it does anew; None when it does none."""


class Errand(Struct, frozen=True):
    """Something an agent is to do in the background; seed 004 calls it a task.

    Its id is also that of the message which its runs answer. It has a session once it has an agent; `run` is the last one.
    """

    id: UUID
    user_id: UUID
    name: str
    content: str
    session: Session | None = None
    run: Run | None = None
    runs: int = 0
    """How often it was executed."""
    created_at: datetime | None = None

    @property
    def status(self) -> str:
        """`created` without an agent, `assigned` with one, and then the state of its last run."""
        if self.run is not None:
            return self.run.status.value
        return "assigned" if self.session else "created"


class JobState(StrEnum):
    """The states of a job. `waiting`: what it is for has not got its turn yet; `queued`: any worker may take it."""

    WAITING = "waiting"
    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Job(Struct, frozen=True):
    """Work that any worker does. `attempt` counts the times it was taken and fences what an earlier taker writes.

    `lost` counts the attempts whose worker died.
    """

    id: UUID
    kind: str
    owner_id: UUID
    subject_id: UUID
    state: JobState = JobState.QUEUED
    attempt: int = 0
    lost: int = 0


class Webhook(Struct, frozen=True):
    """Where a user wants to be told of what has ended. `runs` says which: those in the background, or all.

    `failures` are the attempts since the last one that was heard, the latest at `last_at`; after too many it is disabled, until its
    owner enables it again.
    """

    id: UUID
    user_id: UUID
    url: str
    events: Sequence[str]
    runs: Literal["background", "all"] = "background"
    failures: int = 0
    last_error: str | None = None
    last_at: datetime | None = None
    disabled_at: datetime | None = None
    created_at: datetime | None = None

    @property
    def enabled(self) -> bool:
        """Whether it is told anything."""
        return self.disabled_at is None


class Delivery(Struct, frozen=True):
    """One event for one webhook: its id and `body` are the same at each of the `attempts`."""

    id: UUID
    webhook: Webhook
    body: str
    secret: bytes
    attempts: int = 0
    is_wanted: bool = True
    """Whether its webhook and its user are as they should be, and it has not ended."""
    created_at: datetime | None = None


class Schedule(Struct, frozen=True):
    """What is said again and again, at the times of `cron` in a time zone: in one session, or to an agent in a new one each time.

    Without `next_at` it is paused. `run_id` is the run of the last time, `last_at`; `error` why that time there was none.
    """

    id: UUID
    user_id: UUID
    name: str
    cron: str
    timezone: str
    input: str
    session_id: UUID | None = None
    agent_id: str | None = None
    agent_params: Mapping[str, Any] = field(default_factory=dict)
    params: SessionParams = field(default_factory=SessionParams)
    credential_id: UUID | None = None
    next_at: datetime | None = None
    run_id: UUID | None = None
    runs: int = 0
    last_at: datetime | None = None
    error: Mapping[str, Any] | None = None
    created_at: datetime | None = None


class Remembered(Struct, frozen=True):
    """An entry of an agent's memory as it is stored: on the answer `message_id`. One of the user's has no session."""

    id: UUID
    role: str
    content: str
    memory_id: str
    score: float
    importance: float
    tags: Sequence[str]
    created_at: datetime
    used_at: datetime
    uses: int
    expires_at: datetime | None = None
    term: str = "short"
    beside: Mapping[str, Any] = field(default_factory=dict)
    session_id: UUID | None = None
    message_id: UUID | None = None
    agent_id: str = ""


class MemoryChange(Struct, frozen=True):
    """What has become of an entry of an agent's memory; without one it was forgotten. `known` says that it was stored before."""

    id: UUID
    of_user: bool
    known: bool
    entry: Remembered | None = None
    agent_id: str = ""
    """Whose it is, when it is not the run's agent's."""


class Step(Struct):
    """One recorded act in a run. Input and output are kept by the hash of their bytes, as are `parts`, which the input names by hash.

    It is written until it ends, and never after.
    """

    seq: int
    path: str
    kind: str
    name: str
    status: Literal["completed", "partial", "failed", "cancelled", "replayed"]
    started_at: datetime
    ended_at: datetime | None = None
    input: bytes | None = None
    output: bytes | None = None
    parts: Sequence[Value] = ()
    model: str | None = None
    usage: Usage = field(default_factory=Usage)
    error: Mapping[str, Any] | None = None
    from_cache: bool = False
    input_hash: bytes | None = None
    output_hash: bytes | None = None
    """The names of its values, where it comes from the store without them."""


class Outcome(Struct, frozen=True):
    """How a run ended: its final state and the messages it gave."""

    run: Run
    messages: Sequence[Message] = ()

    @property
    def text(self) -> str:
        """What was said; of several speakers each after its name, as a paragraph."""
        if len(self.messages) == 1:
            return self.messages[0].content
        return "\n\n".join(f"{each.name}: {each.content}" if each.name else each.content for each in self.messages)


class File(Struct, frozen=True):
    """What a user has uploaded, or a batch has written. Its content is in the object store, under the same id.

    `size` is in bytes.
    """

    id: UUID
    user_id: UUID
    name: str
    purpose: str
    size: int
    sha256: bytes
    media_type: str
    created_at: datetime
    expires_at: datetime | None = None


class FileLimits(Struct, frozen=True):
    """How large a file may be, in bytes, and how many files and bytes a user may keep, with what is being uploaded."""

    bytes: int
    user_files: int
    user_bytes: int


class Passage(Struct, frozen=True):
    """A piece of what an agent keeps for a user to look things up in, the `position`-th of its text or file.

    `score` says how near it is to what was searched for, from -1 to 1. Only in a list of one's own it has `agent_id` and `created_at`.
    """

    id: UUID
    content: str
    position: int = 0
    meta: Mapping[str, Any] = field(default_factory=dict)
    file_id: UUID | None = None
    score: float = 0.0
    agent_id: str = ""
    created_at: datetime | None = None

    def scored(self, score: float) -> Passage:
        """The same, as a search found it."""
        return replace(self, score=score)

    def to_dict(self) -> dict[str, Any]:
        """As it is recorded."""
        found = {"id": str(self.id), "content": self.content, "position": self.position, "meta": dict(self.meta)}
        return found | {"file_id": str(self.file_id) if self.file_id else None, "score": self.score}


class BatchStatus(StrEnum):
    """The states of a batch, by their names in OpenAI's protocol."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether nothing can follow."""
        return self in (BatchStatus.FAILED, BatchStatus.COMPLETED, BatchStatus.EXPIRED, BatchStatus.CANCELLED)


class Batch(Struct, frozen=True):
    """Many requests in a file, answered when there is room, into another file.

    `errors` are the lines that are no requests, for which it failed. `times` tells when it took each of its states.
    """

    id: UUID
    user_id: UUID
    endpoint: str
    input_file_id: UUID
    status: BatchStatus
    created_at: datetime
    expires_at: datetime
    credential_id: UUID | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    times: Mapping[str, int] = field(default_factory=dict)
    total: int = 0
    completed: int = 0
    failed: int = 0
    usage: Mapping[str, int] | None = None
    errors: Sequence[Mapping[str, Any]] = ()
    output_file_id: UUID | None = None
    error_file_id: UUID | None = None
    output_expires_seconds: int | None = None
    """How long its files are kept."""


class BenchStatus(StrEnum):
    """The states of a test bench. One that `stopped` goes on when it is begun again, and so does one with failures that are tried anew."""

    LOADING = "loading"
    RUNNING = "running"
    STOPPED = "stopped"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    FAILED = "failed"


class Bench(Struct, frozen=True):
    """Rows put to agents, and what their answers are worth. `digest` tells whether another start is the same, and `edition` which time.

    `suite` is what was ordered, as JSON; `versions` the code of each agent that it began with. An item is one row put once to one agent.
    """

    id: UUID
    user_id: UUID
    name: str
    digest: bytes
    suite: Mapping[str, Any]
    status: BenchStatus = BenchStatus.LOADING
    edition: int = 1
    reason: str | None = None
    """Why it stopped or failed."""
    versions: Mapping[str, str] = field(default_factory=dict)
    credential_id: UUID | None = None
    rows: int = 0
    skipped: int = 0
    """Broken rows that were left out."""
    created_at: datetime | None = None
    ended_at: datetime | None = None


class BenchProgress(Struct, frozen=True):
    """How far a bench is: items in all, stored, and of these failed; the sum of all scores, and what they have cost."""

    items: int = 0
    done: int = 0
    failed: int = 0
    score: float = 0.0
    cost: Decimal = Decimal(0)


class BenchResult(Struct, frozen=True):
    """What became of one item: its answer, `failed` with an error, or `unscored` when a scorer failed. `key` is that of equal rows.

    `seconds` is how long the answer took, that of the scorers not included.
    """

    cell: int
    row: int
    repeat: int
    key: int
    status: Literal["completed", "failed", "unscored"]
    answer: str | None = None
    score: float | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    error: Mapping[str, Any] | None = None
    usage: Usage = field(default_factory=Usage)
    seconds: float = 0.0
    from_cache: bool = False
    run_id: UUID | None = None


class Page(Struct, Generic[T], frozen=True):
    """A slice of a list, and whether more follows."""

    items: Sequence[T]
    has_more: bool
