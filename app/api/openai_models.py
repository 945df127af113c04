"""What the routes of OpenAI's protocol take: liberal in form, strict in size.

Null is as good as nothing, and fields that are not known are left to the agent. The rest is brought to one form: content is a text or
a list of parts, `developer` is `system`, and the old `functions` are tools.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from app.agent.request import OpenAIRequest
from app.api.fields import Id, ModelName, check_json
from app.api.parts import parts_of
from app.domain import MAX_TEXT, id_text
from app.llm.messages import ROLES
from app.llm.options import MAX_TOOLS
from app.usecases.calls import names_of

MAX_MESSAGES = 5000
MAX_CHOICES = 8
"""How many answers one request may ask for, each of which is a run."""
MAX_INPUTS = 2048
"""How many texts one request may have embedded; as many as OpenAI's API takes."""
MAX_DEPTH = 64
"""Of a request: the schema of an answer is nested itself."""
Json: TypeAlias = dict[str, Any]


def checked(value: Any) -> Any:
    """A body that is not nested too deep, and of which all can be stored."""
    check_json(value, MAX_DEPTH)
    return value


_MEANT = {**{role: role for role in ROLES}, "developer": "system", "function": "tool"}
"""The role that each stands for."""


def _message(message: Json, index: int) -> Json:
    """One message in the form that agents and servers are given."""
    role, content = message.get("role"), message.get("content")
    role = _MEANT.get(role) if isinstance(role, str) else None
    if role is None:
        raise ValueError(f"[{index}].role must be one of {', '.join(sorted((*ROLES, 'function')))}")
    kept: Json = {"role": role, "content": _content(content, index)}
    if isinstance(name := message.get("name"), str) and name and role != "tool":
        kept["name"] = name[:64]
    if role == "assistant" and (calls := _calls(message, index)):
        kept["tool_calls"] = calls
    if role == "tool":
        kept["tool_call_id"] = str(message.get("tool_call_id") or message.get("name") or "")[:256]
    return kept


def _content(content: Any, index: int) -> str | list[Json]:
    if content is None:
        return ""
    if isinstance(content, list):
        if all(isinstance(part, str) for part in content):
            content = "".join(content)
        elif all(isinstance(part, dict) and isinstance(part.get("type"), str) for part in content):
            if all(part["type"] == "text" and isinstance(part.get("text"), str) for part in content):
                content = "".join(part["text"] for part in content)
            else:
                return parts_of(content, f"[{index}].content")
    if not isinstance(content, str):
        raise ValueError(f"[{index}].content must be a text, a list of parts, or null")
    if len(content) > MAX_TEXT:
        raise ValueError(f"[{index}].content must have at most {MAX_TEXT} characters")
    return content


def _calls(message: Json, index: int) -> list[Json]:
    """The calls of tools in a message of the assistant, the old `function_call` among them, whose id is its name."""
    calls = message.get("tool_calls") or []
    if not calls and isinstance(old := message.get("function_call"), dict):
        calls = [{"id": str(old.get("name") or ""), "type": "function", "function": old}]
    if not (isinstance(calls, list) and all(isinstance(call, dict) for call in calls)):
        raise ValueError(f"[{index}].tool_calls must be a list of calls")
    return calls


def messages_of(messages: list[Json]) -> list[Json]:
    """Messages in the form that agents and servers are given; `ValueError` names the first bad one by its place."""
    return [_message(message, index) for index, message in enumerate(messages)]


def _stop(value: Any) -> Any:
    return value or None


def _prompts(value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not (isinstance(texts, list) and texts and all(isinstance(text, str) and text for text in texts)):
        raise ValueError("must be a text or a list of texts that are not empty; tokens are not taken")
    if any(len(text) > MAX_TEXT for text in texts):
        raise ValueError(f"must have at most {MAX_TEXT} characters")
    return texts


_MESSAGE: Json = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": {"enum": ["developer", "system", "user", "assistant", "tool", "function"]},
        "content": {
            "anyOf": [
                {"type": "string"},
                {
                    "type": "array",
                    "items": {"type": "object", "required": ["type"], "properties": {"type": {"type": "string"}}},
                },
                {"type": "null"},
            ]
        },
        "name": {"type": ["string", "null"]},
        "tool_calls": {"type": ["array", "null"], "items": {"type": "object"}},
        "tool_call_id": {"type": ["string", "null"]},
    },
}


_FUNCTION: Json = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "description": {"type": ["string", "null"]},
        "parameters": {"type": ["object", "null"], "description": "a JSON Schema"},
    },
}
_TOOL: Json = {"type": "object", "properties": {"type": {"const": "function"}, "function": _FUNCTION}}
_NAMED: Json = {"type": "object", "properties": {"name": {"type": "string"}}}
_CHOSEN: Json = {"type": "object", "properties": {"type": {"const": "function"}, "function": _NAMED}}
_FORMAT: Json = {
    "type": "object",
    "properties": {
        "type": {"enum": ["text", "json_object", "json_schema"]},
        "json_schema": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "schema": {"type": "object"}, "strict": {"type": "boolean"}},
        },
    },
}
Function = Annotated[Json, WithJsonSchema(_FUNCTION)]
Tool = Annotated[Json, WithJsonSchema(_TOOL)]


def _texts(maximum: int) -> WithJsonSchema:
    text = {"type": "string", "minLength": 1, "maxLength": MAX_TEXT}
    return WithJsonSchema({"anyOf": [text, {"type": "array", "items": text, "minItems": 1, "maxItems": maximum}]})


Messages = Annotated[
    list[Annotated[Json, WithJsonSchema(_MESSAGE)]],
    Field(min_length=1, max_length=MAX_MESSAGES),
    AfterValidator(messages_of),
]
Prompts = Annotated[
    list[str], Field(min_length=1, max_length=MAX_CHOICES), BeforeValidator(_prompts), _texts(MAX_CHOICES)
]
Inputs = Annotated[list[str], Field(min_length=1, max_length=MAX_INPUTS), BeforeValidator(_prompts), _texts(MAX_INPUTS)]
Stop = Annotated[
    Annotated[str, Field(max_length=1000)]
    | Annotated[list[Annotated[str, Field(max_length=1000)]], Field(max_length=4)]
    | None,
    BeforeValidator(_stop),
]


class StreamOptions(BaseModel):
    """Whether the last frame tells the usage."""

    include_usage: bool | None = None


class _Sampling(BaseModel):
    model_config = ConfigDict(extra="allow")

    model: ModelName
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    max_tokens: int | None = Field(None, ge=1, le=10_000_000)
    stop: Stop = None
    seed: int | None = None
    presence_penalty: float | None = Field(None, ge=-2, le=2, allow_inf_nan=False)
    frequency_penalty: float | None = Field(None, ge=-2, le=2, allow_inf_nan=False)
    logit_bias: dict[str, float] | None = None
    user: str | None = Field(None, max_length=200)
    session_id: Id | None = Field(None, description="a session of the caller that is to be continued")

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def request(self) -> Json:
        """The request in its one form, as JSON, without what was null."""
        every = {**self.__dict__, **(self.__pydantic_extra__ or {})}
        names = sorted(self.model_fields_set - _ABOUT_THE_FORM)  # all others are null
        given = {name: every[name] for name in names if every[name] is not None}
        given["stream"] = bool(self.stream)
        if self.session_id is not None:
            given["session_id"] = id_text(self.session_id)
        return given


_ABOUT_THE_FORM = frozenset({"n", "stream_options"})
"""What is no affair of the agent's."""


class ChatIn(_Sampling):
    """A chat to be completed. `model` is the id of an agent, or an alias of a language model."""

    messages: Messages
    max_completion_tokens: int | None = Field(None, ge=1, le=10_000_000)
    tools: list[Tool] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | Annotated[Json, WithJsonSchema(_CHOSEN)] | None = None
    parallel_tool_calls: bool | None = None
    response_format: Annotated[Json, WithJsonSchema(_FORMAT)] | None = None
    reasoning_effort: str | None = Field(None, min_length=1, max_length=20)
    functions: list[Function] | None = Field(None, max_length=MAX_TOOLS, description="the old form of tools")
    function_call: Literal["none", "auto"] | Annotated[Json, WithJsonSchema(_NAMED)] | None = None
    instructions: str | None = Field(None, max_length=MAX_TEXT, description="a system message for this answer alone")

    @property
    def speaks_of_functions(self) -> bool:
        """Whether the old form is used, in which the answer is then given too."""
        return bool(self.functions) and not self.tools

    @property
    def tool_names(self) -> frozenset[str]:
        """The names of the tools that the answer may call."""
        if self.functions and self.speaks_of_functions:
            return names_of([{"function": function} for function in self.functions])
        return names_of(self.tools)

    def request(self) -> Json:
        """The request in its one form."""
        body = super().request()
        functions, choice = body.pop("functions", None), body.pop("function_call", None)
        if self.speaks_of_functions and functions:
            body["tools"] = [{"type": "function", "function": function} for function in functions]
            if choice is not None:
                body["tool_choice"] = choice if isinstance(choice, str) else {"type": "function", "function": choice}
        if not body.get("tools"):
            for name in ("tools", "tool_choice", "parallel_tool_calls"):
                body.pop(name, None)
        return body


class CompletionIn(_Sampling):
    """A text to be completed: each prompt is a message of the user."""

    prompt: Prompts
    echo: bool | None = None

    def request_of(self, prompt: str) -> Json:
        """The request for one of the prompts."""
        foreign = OpenAIRequest.model_fields.keys() - CompletionIn.model_fields.keys() | {"prompt", "echo"}
        body = {name: value for name, value in self.request().items() if name not in foreign}
        return body | {"messages": [{"role": "user", "content": prompt}]}


class EmbeddingsIn(BaseModel):
    """Texts to be embedded, by an alias of a language model."""

    model: ModelName
    input: Inputs
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(
        None, ge=1, le=100_000, description="how long a vector is to be, where the model can"
    )
    user: str | None = Field(None, max_length=200)


ChatBody = Annotated[ChatIn, BeforeValidator(checked)]
CompletionBody = Annotated[CompletionIn, BeforeValidator(checked)]
