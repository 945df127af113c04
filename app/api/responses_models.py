"""What the Responses and Conversations API take: as liberal in form and strict in size as `openai_models`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    WithJsonSchema,
    field_validator,
)

from app.agent.request import OpenAIRequest
from app.api.fields import Content, ModelName
from app.api.openai_models import ChatIn, Json, checked
from app.llm.options import MAX_TOOLS
from app.usecases.calls import names_of

MAX_ITEMS = 1000
MAX_METADATA = 16
"""Pairs of metadata, and below the longest key and value, in characters: OpenAI's own bounds."""

FOREIGN = OpenAIRequest.model_fields.keys() | ChatIn.model_fields.keys()
"""Fields of chat completions: those that a request for a response does not have too mean nothing in it."""

MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64)]
Metadata = Annotated[
    dict[MetadataKey, Annotated[str, StringConstraints(max_length=512)]], Field(max_length=MAX_METADATA)
]
ResponseId = Annotated[str, StringConstraints(max_length=100)]


def _input(value: Any) -> Any:
    return [{"role": "user", "content": value}] if isinstance(value, str) and value else value


def _only_function(value: Any) -> Any:
    if isinstance(value, dict) and not (value.get("type") == "function" and isinstance(value.get("name"), str)):
        raise ValueError("must be none, auto, required, or a function by its name")
    return value


_CONTENT: Json = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "array",
            "items": {"type": "object", "properties": {"type": {"type": "string"}, "text": {"type": "string"}}},
        },
    ]
}
_ITEM: Json = {
    "type": "object",
    "properties": {
        "type": {"enum": ["message", "function_call", "function_call_output", "item_reference", "reasoning"]},
        "role": {"enum": ["developer", "system", "user", "assistant"]},
        "content": _CONTENT,
        "id": {"type": "string"},
        "call_id": {"type": "string"},
        "name": {"type": "string"},
        "arguments": {"type": "string"},
        "output": _CONTENT,
    },
    "examples": [{"role": "user", "content": "Hello"}],
}
Item = Annotated[Json, WithJsonSchema(_ITEM)]
Items = Annotated[list[Item], Field(min_length=1, max_length=MAX_ITEMS)]
Input = Annotated[
    Items,
    BeforeValidator(_input),
    WithJsonSchema(
        {
            "anyOf": [{"type": "string", "minLength": 1}, {"type": "array", "items": _ITEM, "minItems": 1}],
            "examples": ["Hello"],
        }
    ),
]
Tool = Annotated[
    Json,
    WithJsonSchema(
        {
            "type": "object",
            "required": ["type", "name"],
            "properties": {
                "type": {"const": "function"},
                "name": {"type": "string"},
                "description": {"type": ["string", "null"]},
                "parameters": {"type": ["object", "null"], "description": "a JSON Schema"},
                "strict": {"type": ["boolean", "null"]},
            },
        }
    ),
]
Choice = Annotated[
    Json,
    WithJsonSchema(
        {
            "type": "object",
            "required": ["type", "name"],
            "properties": {"type": {"const": "function"}, "name": {"type": "string"}},
        }
    ),
]


class Reasoning(BaseModel):
    """How much a model is to think."""

    model_config = ConfigDict(extra="ignore")

    effort: str | None = Field(None, min_length=1, max_length=20)


class TextFormat(BaseModel):
    """The form of the answer."""

    model_config = ConfigDict(extra="allow")

    type: Literal["text", "json_object", "json_schema"] = "text"


class TextConfig(BaseModel):
    """How the text is to be."""

    model_config = ConfigDict(extra="ignore")

    format: TextFormat | None = None


class ConversationRef(BaseModel):
    """A conversation by its id."""

    id: ResponseId


class ResponseIn(BaseModel):
    """A request for a response. `model` is the id of an agent, or an alias of a language model."""

    model_config = ConfigDict(extra="allow")

    model: ModelName
    input: Input = Field(description="a text, or a list of items")
    instructions: Content | None = None
    previous_response_id: ResponseId | None = None
    conversation: ResponseId | ConversationRef | None = None
    stream: bool | None = None
    store: bool | None = None
    background: bool | None = None
    tools: list[Tool] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: Annotated[Literal["none", "auto", "required"] | Choice | None, AfterValidator(_only_function)] = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    max_output_tokens: int | None = Field(None, ge=1, le=10_000_000)
    metadata: Metadata | None = None
    user: str | None = Field(None, max_length=200)
    truncation: Literal["auto", "disabled"] | None = None
    prompt: None = Field(None, description="not supported: send the instructions themselves")

    @field_validator("tools")
    @classmethod
    def _functions(cls, tools: list[Json] | None) -> list[Json] | None:
        for index, tool in enumerate(tools or ()):
            if tool.get("type") != "function" or not isinstance(tool.get("name"), str):
                raise ValueError(
                    f"[{index}] must be of the type function, with a name: there are no tools of the house"
                )
        return tools

    @property
    def conversation_id(self) -> str | None:
        """The conversation that is continued."""
        return self.conversation.id if isinstance(self.conversation, ConversationRef) else self.conversation

    @property
    def tool_names(self) -> frozenset[str]:
        """The names of the tools that the answer may call."""
        return names_of(chat_tools(self.tools))

    def request(self, messages: list[Json]) -> Json:
        """The request in the form of chat completions, as agents see it, without what was null."""
        body = {name: value for name, value in (self.model_extra or {}).items() if name not in FOREIGN}
        body |= {"model": self.model, "messages": messages, "stream": bool(self.stream)}
        given: Json = {
            name: getattr(self, name) for name in ("instructions", "temperature", "top_p", "user", "metadata")
        }
        given |= {
            "max_completion_tokens": self.max_output_tokens,
            "reasoning_effort": self.reasoning.effort if self.reasoning else None,
            "response_format": _format(self.text.format if self.text else None),
        }
        if self.tools:
            given |= {"tools": chat_tools(self.tools), "parallel_tool_calls": self.parallel_tool_calls}
            choice = self.tool_choice
            given["tool_choice"] = (
                {"type": "function", "function": {"name": choice["name"]}} if isinstance(choice, dict) else choice
            )
        return body | {name: value for name, value in given.items() if value is not None}

    def echo(self) -> Json:
        """What the response repeats of the request."""
        names = ("model", "instructions", "previous_response_id", "temperature", "top_p", "max_output_tokens", "user")
        kept: Json = {name: value for name in names if (value := getattr(self, name)) is not None}
        kept |= {"background": bool(self.background), "metadata": self.metadata or {}}
        kept |= {"tools": self.tools or [], "tool_choice": self.tool_choice or "auto"}
        kept["parallel_tool_calls"] = self.parallel_tool_calls is not False
        if self.conversation_id is not None:
            kept["conversation"] = self.conversation_id
        if self.text and self.text.format:
            kept["format"] = self.text.format.model_dump(exclude_none=True)
        if self.reasoning and self.reasoning.effort:
            kept["effort"] = self.reasoning.effort
        return kept


def chat_tools(tools: list[Json] | None) -> list[Json]:
    """Tools in the form of chat completions."""
    names = ("name", "description", "parameters", "strict")
    return [
        {"type": "function", "function": {name: tool[name] for name in names if tool.get(name) is not None}}
        for tool in tools or ()
    ]


def _format(format: TextFormat | None) -> Json | None:
    if format is None or format.type == "text":
        return None
    body = format.model_dump(exclude_none=True)
    return {"type": body.pop("type"), "json_schema": body} if format.type == "json_schema" else {"type": format.type}


class ConversationIn(BaseModel):
    """A new conversation, and what was said in it before."""

    items: list[Item] | None = Field(None, max_length=MAX_ITEMS)
    metadata: Metadata | None = None


class ConversationChange(BaseModel):
    """What is kept with a conversation, instead of what was kept."""

    metadata: Metadata | None = None


class ItemsIn(BaseModel):
    """What is to be added to a conversation."""

    items: Items


class ConversationOut(BaseModel):
    """A conversation."""

    id: str
    object: Literal["conversation"]
    created_at: int
    metadata: dict[str, str]


class DeletedOut(BaseModel):
    """What is no more."""

    id: str
    object: Literal["response", "conversation.deleted"]
    deleted: bool


class ItemsOut(BaseModel):
    """A page of items."""

    object: Literal["list"]
    data: list[Json]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ItemOut(BaseModel):
    """An item: a message, a call of a tool, its result, or reasoning."""

    model_config = ConfigDict(extra="allow")

    id: str
    type: Literal["message", "function_call", "function_call_output", "reasoning"]
    status: Literal["in_progress", "completed", "incomplete"]


class ResponseOut(BaseModel):
    """A response, with all that it repeats of its request."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    model: str
    output: list[ItemOut]
    error: Json | None
    incomplete_details: Json | None
    usage: Json | None


ResponseBody = Annotated[ResponseIn, BeforeValidator(checked)]
ConversationBody = Annotated[ConversationIn, BeforeValidator(checked)]
ChangeBody = Annotated[ConversationChange, BeforeValidator(checked)]
ItemsBody = Annotated[ItemsIn, BeforeValidator(checked)]
