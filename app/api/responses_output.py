"""What a run says, as the items and events of the Responses API.

One item is open at a time: thinking, text, or a call. An event's sequence number counts what was said before it, in characters and
events, so that the same log gives the same numbers however it was cut into chunks, in whichever process.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from uuid import UUID

from app.api.openai_models import Json
from app.domain import ANSWER_TYPES, SPEAKER, Outcome, RunStatus
from app.journal.log import Event
from app.usecases.calls import Call, Calls


class Output:
    """The items of one response as they come, and the events that tell of them."""

    def __init__(self, run_id: UUID, tools: frozenset[str]) -> None:
        self.items: list[Json] = []
        self.number = 0
        """The next sequence number."""
        self._hex = run_id.hex
        self._calls = Calls(run_id, tools)
        self._open: str | None = None
        self._said: list[str] = []
        self._speaker = ""
        """How the next message begins."""

    def event(self, kind: str, **fields: Any) -> Json:
        """An event with the next number."""
        self.number += 1
        return {"type": kind, "sequence_number": self.number - 1, **fields}

    def take(self, events: Iterable[Event]) -> list[Json]:
        """The events for what is said next. What is neither answer, thinking nor a call of the request's tools is shown to nobody."""
        found: list[Json] = []
        for _, chunk in events:
            if chunk.content_type in ANSWER_TYPES:
                found += self._say("message", self._speaker) if self._speaker else ()
                found += self._say("message", chunk.content)
                self._speaker = ""
            elif chunk.content_type == SPEAKER:  # a message of its own
                found += self._close()
                self._speaker = f"{chunk.content}: "
            elif chunk.content_type == "thinking":
                found += self._say("reasoning", chunk.content)
            elif chunk.content_type == "tool_call":
                for text, call in self._calls.read(chunk.content):
                    self.number += len(text)
                    found += self._call(call) if call else ()
            else:
                self.number += len(chunk.content)
        return found

    def end(self, outcome: Outcome) -> list[Json]:
        """The events that complete what is open; an answer without a word is an empty message."""
        found = []
        if not self.items and outcome.run.status is RunStatus.COMPLETED:
            found = self._begin("message")
        return found + self._close("completed" if outcome.run.status is RunStatus.COMPLETED else "incomplete")

    def _say(self, kind: str, text: str) -> list[Json]:
        found = [] if self._open == kind else [*self._close(), *self._begin(kind)]
        self._said.append(text)
        self.number += len(text) - 1
        if kind == "message":
            return [*found, self.event("response.output_text.delta", **self._place(), delta=text, logprobs=[])]
        return [*found, self.event("response.reasoning_summary_text.delta", **self._place(), delta=text)]

    def _begin(self, kind: str) -> list[Json]:
        self._open, self._said = kind, []
        index = len(self.items)
        if kind == "message":
            item: Json = {"id": f"msg_{self._hex}_{index}", "type": "message", "role": "assistant", "content": []}
            added, part = (
                "response.content_part.added",
                {"type": "output_text", "text": "", "annotations": [], "logprobs": []},
            )
        else:
            item = {"id": f"rs_{self._hex}_{index}", "type": "reasoning", "summary": []}
            added, part = "response.reasoning_summary_part.added", {"type": "summary_text", "text": ""}
        self.items.append({**item, "status": "in_progress"})
        return [
            self.event("response.output_item.added", output_index=index, item=self.items[-1]),
            self.event(added, **self._place(), part=part),
        ]

    def _place(self) -> Json:
        part = "content_index" if self._open == "message" else "summary_index"
        return {"item_id": self.items[-1]["id"], "output_index": len(self.items) - 1, part: 0}

    def _close(self, status: str = "completed") -> list[Json]:
        if self._open is None:
            return []
        text, place = "".join(self._said), self._place()
        if self._open == "message":
            part: Json = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
            done = [
                self.event("response.output_text.done", **place, text=text, logprobs=[]),
                self.event("response.content_part.done", **place, part=part),
            ]
        else:
            part = {"type": "summary_text", "text": text}
            done = [
                self.event("response.reasoning_summary_text.done", **place, text=text),
                self.event("response.reasoning_summary_part.done", **place, part=part),
            ]
        name = "content" if self._open == "message" else "summary"
        self.items[-1] = {**self.items[-1], name: [part], "status": status}
        self._open = None
        return [*done, self._done()]

    def _call(self, call: Call) -> list[Json]:
        found = self._close()
        index = len(self.items)
        item = {"id": f"fc_{self._hex}_{index}", "type": "function_call", "call_id": call.id, "name": call.name}
        place = {"item_id": item["id"], "output_index": index}
        self.items.append({**item, "arguments": call.arguments, "status": "completed"})
        begun = {**item, "arguments": "", "status": "in_progress"}
        done = {**place, "name": call.name, "arguments": call.arguments}
        return [
            *found,
            self.event("response.output_item.added", output_index=index, item=begun),
            self.event("response.function_call_arguments.delta", **place, delta=call.arguments),
            self.event("response.function_call_arguments.done", **done),
            self._done(),
        ]

    def _done(self) -> Json:
        return self.event("response.output_item.done", output_index=len(self.items) - 1, item=self.items[-1])


def after(event: Json, number: int) -> Json | None:
    """What of an event follows a sequence number: a delta may be cut by it."""
    if event["sequence_number"] <= number:
        return None
    delta = event.get("delta")
    if event["type"] == "response.function_call_arguments.delta" or not isinstance(delta, str):
        return event
    return {**event, "delta": delta[-(event["sequence_number"] - number) :]}
