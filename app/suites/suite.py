"""A suite: which rows are put to which agents, how often, and what scores their answers."""

from __future__ import annotations

import itertools
import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Struct
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from app.domain import MAX_TEXT, Message, canonical
from app.errors import InvalidInput

MAX_CELLS = 200
MAX_REPEATS = 1000
MAX_ROWS_GIVEN = 1000
BLOCK = 200
"""About how many items a process takes at once: so much is asked again that a process had not stored when it died, at most."""


def _no_control(value: str) -> str:
    if not value.isprintable():
        raise ValueError("must have visible characters only")
    return value


Name = Annotated[str, StringConstraints(min_length=1, max_length=100), AfterValidator(_no_control)]
Column = Annotated[str, StringConstraints(min_length=1, max_length=100)]
Long = Annotated[str, StringConstraints(min_length=1, max_length=20_000)]
Share = Annotated[float, Field(ge=0, le=1)]


class Part(BaseModel):
    """A table of a suite: a field that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SessionsOf(Part):
    """The answers in one's own sessions."""

    feedback: Literal["up", "down", "any"] = "any"
    agent: Name | None = None


class DatasetPart(Part):
    """Where the rows are, and which of their columns is asked and which expected."""

    path: Annotated[str, Field(min_length=1, max_length=1000)] | None = None
    """Of a file or folder, from the suite's own folder; or `s3://BUCKET/PREFIX`."""
    file_id: Name | None = None
    """Of an uploaded file, over REST."""
    rows: Annotated[tuple[dict[str, Any], ...], Field(min_length=1, max_length=MAX_ROWS_GIVEN)] | None = None
    sessions: SessionsOf | None = None
    input: Column = "input"
    """The column with what is asked: a text, or the messages of a conversation."""
    expected: Column = "expected"
    skip_bad: bool = False

    @model_validator(mode="after")
    def _one_source(self) -> DatasetPart:
        given = [name for name in ("path", "file_id", "rows", "sessions") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("name one of path, file_id, rows and sessions")
        return self


class AgentPart(Part):
    """An agent, a preset or an alias of a language model, and what its sessions have; `vary` makes one of each combination."""

    id: Name
    name: Name | None = None
    params: dict[str, Any] = Field(default_factory=dict)
    model: Name | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    vary: dict[str, Annotated[list[Any], Field(min_length=1, max_length=50)]] = Field(
        default_factory=dict, max_length=5
    )
    """Values to try of `model`, `temperature`, or a parameter of the agent."""


class Scoring(Part):
    """What all scorers have in common. `column` is what the answer is held against, by default what the data set says."""

    name: Name | None = None
    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    column: Column | None = None


class Exact(Scoring):
    """1 when the answer is what was expected."""

    kind: Literal["exact"]
    ignore_case: bool = False


class Regex(Scoring):
    """1 when the pattern, or else the one that the row expects, is found in the answer."""

    kind: Literal["regex"]
    pattern: Long | None = None


class JsonSchema(Scoring):
    """1 when the answer is JSON that fits the schema, or else the one that the row expects."""

    kind: Literal["json_schema"]
    schema_: dict[str, Any] | None = Field(None, alias="schema")


class Numeric(Scoring):
    """1 when the last number of the answer is the expected one, within a tolerance: absolute, or as a share of what was expected."""

    kind: Literal["numeric"]
    tolerance: Annotated[float, Field(ge=0)] = 0.0
    relative: Annotated[float, Field(ge=0)] = 0.0


class Similarity(Scoring):
    """How near the embeddings of answer and expectation are, from 0 to 1; with a threshold 1 or 0."""

    kind: Literal["similarity"]
    model: Name | None = None
    threshold: Share | None = None


class Judge(Scoring):
    """What a language model thinks of the answer, from 0 to 1."""

    kind: Literal["judge"]
    model: Name | None = None
    instructions: Long = (
        "Does the answer say what is expected? Other words and more detail are fine, contradictions are not."
    )


class Python(Scoring):
    """A function `(row, answer) -> float | bool` of a file, from the suite's own folder. Not over REST."""

    kind: Literal["python"]
    path: Annotated[str, Field(min_length=1, max_length=1000)]
    function: Name = "score"


KINDS = ("exact", "regex", "json_schema", "numeric", "similarity", "judge", "python")
Scorer = Annotated[Exact | Regex | JsonSchema | Numeric | Similarity | Judge | Python, Field(discriminator="kind")]


class Limits(Part):
    """What may be changed between two starts of one bench."""

    concurrency: Annotated[int, Field(ge=1, le=2000)] = 32
    """Items under way at once in one process; the endpoints of language models have limits of their own."""
    money: Annotated[float, Field(gt=0)] | None = None
    """The bench stops when it has cost so much; what is under way then is still paid for."""
    seconds: Annotated[float, Field(gt=0, le=86_400)] = 600.0
    """How long one answer may take."""


class Suite(Part):
    """A test bench: every row to every agent, `repeats` times."""

    name: Name
    dataset: DatasetPart
    agents: Annotated[tuple[AgentPart, ...], Field(min_length=1, max_length=50)]
    scorers: Annotated[tuple[Scorer, ...], Field(max_length=20)] = ()
    repeats: Annotated[int, Field(ge=1, le=MAX_REPEATS)] = 1
    cache: Literal["on", "off", "refresh"] = "on"
    """Whether equal calls of language models are answered from the cache; repeats never share an answer."""
    journal: bool = False
    """Whether each item is a run with its steps, to be looked at and taken again; it costs about three times the work."""
    mode: Literal["realtime", "batch"] = "realtime"
    """Whether calls of language models are in mode batch; it may be changed between two starts, for it changes no answer."""
    limits: Limits = Field(default_factory=Limits)

    @model_validator(mode="after")
    def _few_cells(self) -> Suite:
        many = sum(math.prod(map(len, agent.vary.values())) for agent in self.agents)
        if many > MAX_CELLS:  # none of them is made then
            raise ValueError(f"agents: {many} combinations are more than {MAX_CELLS}")
        names = [cell.name for cell in cells_of(self)]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"agents: two are called {twice}: give each a name")
        return self

    @property
    def block_rows(self) -> int:
        """How many rows make a block of about `BLOCK` items."""
        return max(1, BLOCK // (self.repeats * len(cells_of(self))))

    def identity(self) -> bytes:
        """What makes two starts the same bench, as JSON: all but limits and mode, and where the rows are, for which their digest stands."""
        kept = self.model_dump(
            mode="json", by_alias=True, exclude={"limits": True, "mode": True, "dataset": {"path", "rows", "file_id"}}
        )
        return canonical(kept)


class Cell(Struct, frozen=True):
    """An agent with its parameters: a column of the table of results."""

    number: int
    name: str
    agent_id: str
    params: Mapping[str, Any]
    model: str | None = None
    temperature: float | None = None


def cells_of(suite: Suite) -> list[Cell]:
    """Every combination that is put to the test."""
    made: list[Cell] = []
    for agent in suite.agents:
        for values in itertools.product(*agent.vary.values()):
            varied = dict(zip(agent.vary, values, strict=True))
            told = ", ".join(f"{name}={value}" for name, value in varied.items())
            model, temperature = varied.pop("model", agent.model), varied.pop("temperature", agent.temperature)
            name = " ".join(part for part in (agent.name or agent.id, told) if part)
            made.append(Cell(len(made), name, agent.id, {**agent.params, **varied}, model, temperature))
    return made


def asked(value: Any) -> list[Message]:
    """What an item asks: its last message is the user's. `ValueError` when it is neither a text nor messages."""
    if isinstance(value, str):
        if not 0 < len(value) <= MAX_TEXT:
            raise ValueError(f"it has to have 1 to {MAX_TEXT} characters")
        return [Message.user(value)]
    if not isinstance(value, list) or not value:
        raise ValueError("it is neither a text nor a list of messages")
    said = []
    for message in value:
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if role not in ("system", "user", "assistant") or not isinstance(content, str) or len(content) > MAX_TEXT:
            raise ValueError("a message has a role (system, user, assistant) and a content")
        said.append(Message(role, content))
    if said[-1].role != "user":
        raise ValueError("the last message is not the user's")
    return said


def read_suite(path: Path) -> Suite:
    """The suite in a TOML file; `InvalidInput` names the field at fault."""
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read ({error.strerror}).", param="suite") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path.name} is no TOML: {error}.", param="suite") from None
    try:
        return Suite.model_validate(given)
    except ValidationError as error:
        raise InvalidInput(f"{path.name}: {_sentence(error.errors(include_url=False))}", param="suite") from None


def _sentence(problems: Sequence[Any]) -> str:
    problem = next((each for each in problems if each["type"] == "extra_forbidden"), problems[0])
    loc = [each for each in problem["loc"] if each not in KINDS]
    place = "".join(f"[{each}]" if isinstance(each, int) else f".{each}" for each in loc).lstrip(".")
    why = {"extra_forbidden": "there is no such field", "missing": "it is missing"}.get(problem["type"])
    text = why or str(problem["msg"]).removeprefix("Value error, ")
    return f"{place}: {text}." if place else f"{text}."
