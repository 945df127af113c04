"""What goes in and comes out of the REST routes, as pydantic models; together they are the OpenAPI document."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, Generic, Literal, TypeVar
from uuid import UUID

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from app import domain
from app.api.fields import (
    AgentId,
    Id,
    JsonObject,
    JsonValue,
    ModelName,
    Name,
    PerhapsEmpty,
    Secret,
    Temperature,
    Text,
    Title,
    UserRef,
)
from app.api.parts import Parts
from app.domain import Role, RunStatus, Scope

T = TypeVar("T", bound=BaseModel)


class In(BaseModel):
    """What comes in: unknown fields are refused by name."""

    model_config = ConfigDict(extra="forbid")


class Out(BaseModel):
    """What goes out, made from the domain's values."""

    model_config = ConfigDict(from_attributes=True)


class ListOf(Out, Generic[T]):
    """A page of a list."""

    object: Literal["list"] = "list"
    data: list[T]
    first_id: UUID | None = None
    last_id: UUID | None = None
    has_more: bool = False


def page(make: Callable[[Any], T], found: domain.Page[Any]) -> ListOf[T]:
    """A page of domain values as the edge gives it, each made by `make`."""
    data = [make(item) for item in found.items]
    ids = [item.id for item in found.items]
    return ListOf(
        data=data, first_id=ids[0] if ids else None, last_id=ids[-1] if ids else None, has_more=found.has_more
    )


class UsageOut(Out):
    """Tokens and cost. `estimated` marks counts the upstream did not give."""

    prompt: int
    completion: int
    cached: int
    reasoning: int
    total: int
    cost: str = Field(validation_alias=AliasChoices("money", "cost"), description="a decimal number")
    estimated: bool
    saved: str = Field(
        "0", validation_alias=AliasChoices("money_saved", "saved"), description="by the cache and by cascades"
    )


# Accounts


class UserIn(In):
    """A new account."""

    name: Name
    role: Role = Role.USER
    password: Secret | None = None


class UserChange(In):
    """Any of role, status and password."""

    role: Role | None = None
    status: Literal["active", "suspended"] | None = None
    password: Secret | None = None


class PasswordChange(In):
    """One's own password."""

    old_password: Secret
    new_password: Secret


class UserOut(Out):
    """An account."""

    id: UUID
    name: str
    role: Role
    status: Literal["active", "suspended"]
    created_at: datetime | None = None


class KeyIn(In):
    """A new API key; without `scopes` it can do what the credential that makes it can."""

    name: Name
    scopes: list[Scope] | None = Field(None, max_length=10)
    days: int | None = Field(None, ge=1, le=3650, description="days until it expires; without it, it does not")


class KeyOut(Out):
    """An API key; `hint` is the end of its secret."""

    id: UUID
    name: str
    hint: str
    scopes: list[Scope]
    created_at: datetime | None = None
    expires_at: datetime | None = None


class NewKeyOut(KeyOut):
    """A key with its secret, which is shown this once."""

    key: str


class TokensOut(BaseModel):
    """The answer to a login (RFC 6749, section 5.1)."""

    access_token: str
    token_type: Literal["bearer"] = "bearer"  # noqa: S105 - a kind, not a secret
    expires_in: int
    refresh_token: str


class RefreshIn(In):
    """A refresh token to exchange."""

    refresh_token: Secret


class GroupIn(In):
    """A new group."""

    name: Name


class GroupOut(Out):
    """A group and the agents it may use; `*` stands for all."""

    id: UUID
    name: str
    agents: list[str]


# Sessions and messages

Mode = Literal["realtime", "background", "batch"]


class SessionParamsIn(In):
    """What holds for one session, whichever agent answers."""

    model: ModelName | None = None
    temperature: Temperature | None = None
    busy: Literal["reject", "queue", "interrupt"] | None = None
    mode: Mode | None = None
    summary: bool | None = Field(None, description="whether turns that no longer fit into the history are summarised")

    def to_domain(self) -> domain.SessionParams:
        """The same as a domain value."""
        return domain.SessionParams(**self.model_dump())


class SessionParamsOut(Out):
    """What holds for one session, whichever agent answers."""

    model: str | None
    temperature: float | None
    busy: Literal["reject", "queue", "interrupt"] | None
    mode: Mode | None
    summary: bool | None


class AgentChoice(In):
    """An agent and its parameters."""

    id: AgentId
    params: JsonObject = Field(default_factory=dict)


class SessionIn(In):
    """A new session."""

    agent: AgentChoice
    session_params: SessionParamsIn = Field(default_factory=SessionParamsIn)
    title: Title | None = None
    user_id: UserRef | None = Field(
        None, description="for whom; the caller by default, another user only by an administrator"
    )


class SessionChange(In):
    """Any of these; what is left out stays."""

    title: Title | None = None
    session_params: SessionParamsIn | None = None
    agent: AgentChoice | None = None
    archived: bool | None = None
    leaf_id: Id | None = Field(None, description="the message whose branch becomes the active one")

    def changes(self) -> dict[str, Any]:
        """What was given, in the words of the use case."""
        given = self.model_fields_set
        found: dict[str, Any] = {name: getattr(self, name) for name in ("title",) if name in given}
        found |= {name: getattr(self, name) for name in ("archived", "leaf_id") if getattr(self, name) is not None}
        if self.session_params is not None:
            found["params"] = self.session_params.model_dump(exclude_unset=True)
        if self.agent is not None:
            found["agent_id"] = self.agent.id
            if "params" in self.agent.model_fields_set:
                found["agent_params"] = self.agent.params
        return found


class AgentOfSession(BaseModel):
    """The session's agent and its parameters; and the preset that they were copied from, if there was one."""

    id: str
    params: dict[str, Any]
    preset_id: UUID | None = Field(None, exclude_if=lambda value: value is None)

    @classmethod
    def of(cls, session: domain.Session) -> AgentOfSession:
        """The agent of a session."""
        return cls(id=session.agent_id, params=dict(session.agent_params), preset_id=session.preset_id)


class SessionOut(BaseModel):
    """A conversation. `leaf_id` is the last message of its active branch."""

    id: UUID
    user_id: UUID
    title: str | None
    agent: AgentOfSession
    session_params: SessionParamsOut
    leaf_id: UUID | None
    created_at: datetime | None
    updated_at: datetime | None
    archived_at: datetime | None
    usage: UsageOut | None = None

    @classmethod
    def of(cls, session: domain.Session, usage: domain.Usage | None = None) -> SessionOut:
        """A session as the edge gives it."""
        return cls(
            id=session.id,
            user_id=session.user.id,
            title=session.title,
            agent=AgentOfSession.of(session),
            session_params=SessionParamsOut.model_validate(session.params),
            leaf_id=session.leaf_id,
            created_at=session.created_at,
            updated_at=session.updated_at,
            archived_at=session.archived_at,
            usage=UsageOut.model_validate(usage) if usage else None,
        )


class SendIn(In):
    """A message. `parent_id` edits: the message follows that one (null: nothing) instead of the active branch's last."""

    content: PerhapsEmpty = Field(description="the text; only beside `parts` it may be empty")
    stream: bool = False
    additional_kwargs: JsonObject = Field(default_factory=dict)
    parent_id: Id | None = None
    parts: Parts | None = Field(
        None,
        description="pictures, sounds and files that go along, as OpenAI's chat completions have them. The text goes before them, "
        "unless they have text of their own: then they are the whole message, and theirs is `content`",
        examples=[[{"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}]],
    )
    mode: Mode | None = Field(
        None,
        description="`background` leaves it to a job, `batch` too, with batches of language models; the session's by default",
    )

    @property
    def background(self) -> bool | None:
        """Whether a job is to answer; None leaves it to the session."""
        return None if self.mode is None else self.mode != "realtime"

    @property
    def batch(self) -> bool | None:
        """Whether calls of language models are in mode batch; None leaves it to the session."""
        return None if self.mode is None else self.mode == "batch"


class RegenerateIn(In):
    """How to answer once more."""

    stream: bool = False


class MessageOut(Out):
    """A node in its session's tree; `seq` numbers all messages of the session without gaps."""

    id: UUID
    session_id: UUID
    parent_id: UUID | None
    seq: int
    role: Literal["user", "assistant", "system", "tool"]
    type: Literal["human", "ai", "system", "tool"]
    content: str
    name: str | None
    run_id: UUID | None
    agent_id: str | None
    parts: list[dict[str, Any]] = Field(
        [],
        exclude_if=lambda value: not value,
        description="the whole of a message that is more than text; a search leaves them out",
    )
    additional_kwargs: dict[str, Any]
    rating: int | None
    comment: str | None
    created_at: datetime | None


class FeedbackIn(In):
    """A thumb and a comment; what is left out stays, null takes it back."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    rating: Literal[-1, 1] | None = None
    comment: Text | None = None


class SpokenOut(BaseModel):
    """What one speaker said."""

    id: UUID
    name: str | None
    content: str


class AnswerOut(BaseModel):
    """The answer to a message. `additional_kwargs.create_at` is when it was made; `.status` stands there when it is not complete.

    Of several speakers `content` has what each said after its name; their messages follow one another, and `message_id` is the last.
    """

    content: str
    messages: list[SpokenOut] | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="each message, where speakers have names",
        examples=[[{"id": "0199a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b", "name": "writer", "content": "Hello"}]],
    )
    type: Literal["ai"] = "ai"
    additional_kwargs: dict[str, Any]
    run_id: UUID
    message_id: UUID | None
    usage: UsageOut


class AcceptedOut(BaseModel):
    """A message that is answered in the background: its run, which tells how it goes."""

    run_id: UUID
    session_id: UUID
    message_id: UUID
    status: RunStatus


class AnswerIn(In):
    """A person's answer: text, or JSON that fits the question's schema."""

    answer: JsonValue
    stream: bool = False


class RunOut(Out):
    """A message being answered, or answered."""

    id: UUID
    session_id: UUID
    agent_id: str
    message_id: UUID
    kind: str
    status: RunStatus
    usage: UsageOut
    background: bool
    parent_id: UUID | None = Field(description="the run that a rerun repeats")
    forked_at: int | None = Field(description="the step of it that the rerun has done anew")
    question: dict[str, Any] | None = Field(description="what a waiting run asks: `question`, `schema`, `expires_at`")
    error: dict[str, Any] | None
    created_at: datetime | None
    ended_at: datetime | None


class AgentOut(Out):
    """An agent of a file; or, with `error`, a file that could not be loaded (an older version may still be in use)."""

    kind: Literal["plugin"] = "plugin"
    id: str | None
    description: str
    params_schema: dict[str, Any] | None
    source: str
    error: str | None = None
