"""A question to a person: the run ends there, and begins anew with the answer in its journal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from pydantic import BaseModel, TypeAdapter, ValidationError

from app.agent.plain import canonical
from app.errors import AgentFailed, InvalidInput
from app.journal.recorder import Recorder
from app.journal.replay import Suspended

T = TypeVar("T")

MAX_QUESTION = 10_000
"""The longest question, in characters."""
MAX_SECONDS = 30 * 86_400.0
"""The longest time a run waits for an answer."""
NOT_UNDERSTOOD = "I could not read your answer: {problem}. {question}"


def ask(recorder: Recorder, show: Callable[[str, str], None], question: str, schema: type[T], seconds: float) -> T:
    """The answer, when the journal has it; else `Suspended`. One that does not fit the schema is asked for again.

    `show` shows question and answer beside what the agent says.
    """
    if not question or len(question) > MAX_QUESTION:
        raise InvalidInput(f"question must have 1 to {MAX_QUESTION} characters.", param="question")
    if not 0 < seconds <= MAX_SECONDS:
        raise InvalidInput(f"timeout must be more than 0 and at most {MAX_SECONDS:.0f} seconds.", param="timeout")
    adapter = TypeAdapter(schema)
    shape = adapter.json_schema()
    given = canonical({"question": question, "schema": shape}) or b""
    shown = question
    while True:
        show("question", shown)
        with recorder.step("ask", "ask", input=given) as step:
            if step.served is None and "input" in step.changes:
                step.done(msgspec.json.encode(step.changes["input"], order="sorted"))
            answered = step.output if step.served is None else step.served
            if answered is None:
                step.status = "partial"
        if answered is None and not recorder.can_wait:
            raise AgentFailed("Only a running server can ask a person, and a rerun asks nobody.")
        if answered is None:
            raise Suspended(shown, shape, seconds, step.seq)
        answer = msgspec.json.decode(answered)
        show("answer", answer if isinstance(answer, str) else answered.decode())
        try:
            return _read(adapter, schema, answer)
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False)[0]["msg"]
            shown = NOT_UNDERSTOOD.format(problem=problem, question=question)


def _read(adapter: TypeAdapter[T], schema: Any, answer: Any) -> T:
    """The answer as the schema has it. What a person types may be the JSON of it, or the value of its only field: `yes`."""
    if isinstance(answer, str) and schema is not str:
        tries: list[Any] = [answer]
        if isinstance(schema, type) and issubclass(schema, BaseModel) and len(schema.model_fields) == 1:
            tries.append({next(iter(schema.model_fields)): answer.strip()})
        for value in tries:
            try:
                return adapter.validate_python(value)
            except ValidationError:
                continue
        return adapter.validate_json(answer)
    return adapter.validate_python(answer)
