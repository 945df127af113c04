"""What a run knows of the request of the OpenAI protocol that it answers, and what the journal keeps of it.

A request without a session brings its own history. Only its last message of the user is stored as a message; the rest is the input
of the run's first step, by the hashes of its messages. That is the smallest right way: a conversation that a client sends again with
every turn is no tree of ours, needs no search terms and no numbers, and what a relayed call records as its input are the same values,
so that they are stored once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from app.agent.request import OpenAIRequest, last_of_user, message_of
from app.domain import Message
from app.journal.recorder import Recorder
from app.store.operations import Begun

SAID = frozenset({"model", "messages", "stream", "session_id"})
"""What the run itself and its session's messages tell of a request; its step tells the rest."""


def request_of(asked: Mapping[str, Any]) -> OpenAIRequest:
    """The request as an agent sees it."""
    request = OpenAIRequest.model_validate(asked["body"])
    request.set_headers(asked["headers"])
    return request


def history_of(begun: Begun, body: Mapping[str, Any]) -> Sequence[Message]:
    """The messages of an ephemeral request; the one that is answered is the stored one."""
    history, asked = [message_of(each) for each in body["messages"]], last_of_user(body["messages"])
    if asked is not None:
        history[asked] = replace(begun.message, parts=history[asked].parts, name=history[asked].name)
    return history


def told(body: Mapping[str, Any], history: Sequence[Message]) -> Sequence[Message]:
    """What the agent is shown: the history under the instructions of the request, which are for this one answer."""
    instructions = body.get("instructions")
    return [Message.system(instructions), *history] if instructions else history


def asked_in(history: Sequence[Message]) -> Message:
    """The message to answer: the user's last."""
    return next((message for message in reversed(history) if message.role == "user"), history[-1])


def record(recorder: Recorder, body: Mapping[str, Any], history: Sequence[Message]) -> None:
    """Keep the request as a step: its options, and its messages by hash."""
    parts = [message.value for message in history]
    named = {**body, "messages": [part.digest.hex() for part in parts]}
    with recorder.step("request", body["model"], input=msgspec.json.encode(named, order="sorted"), parts=parts):
        pass
