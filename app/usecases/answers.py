"""What a run leaves of its answer: the messages that are stored, and the log that can be made of them again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from app.agent.runner import Answer
from app.domain import ANSWER_TYPES, SPEAKER, Chunk, Message, Outcome, Run, RunStatus, new_id
from app.journal.log import Log, joined
from app.llm.tokens import count


def layout(chunks: Sequence[Chunk]) -> list[tuple[str, int]] | None:
    """The types and lengths of what was said, from which the stored message gives the log back; None for text alone."""
    if all(chunk.content_type == "text" for chunk in chunks):
        return None
    return [(chunk.content_type, len(chunk.content)) for chunk in chunks]


def stored_answers(
    chunks: Sequence[Chunk],
    status: RunStatus,
    given: Answer | None = None,
    calls: Sequence[Mapping[str, Any]] = (),
) -> list[Message]:
    """The messages that a run leaves: one for each speaker's turn. How the run ended is told by the last."""
    turns: list[tuple[str | None, list[Chunk]]] = []
    for chunk in chunks:
        if chunk.content_type == SPEAKER:
            turns.append((chunk.content, []))
        else:
            turns = turns or [(None, [])]
            turns[-1][1].append(chunk)
    *earlier, (name, last) = turns or [(None, [])]
    done = [replace(_stored_answer(said, RunStatus.COMPLETED), name=speaker) for speaker, said in earlier]
    ending = _stored_answer(last, status, given, calls)
    return [*done, replace(ending, name=name) if name else ending]


def _stored_answer(
    chunks: Sequence[Chunk],
    status: RunStatus,
    given: Answer | None = None,
    calls: Sequence[Mapping[str, Any]] = (),
) -> Message:
    """One of them. What was shown beside the answer is in `additional_kwargs.asides`."""
    extra = dict(given.additional_kwargs) if given else {}
    if calls:
        extra["tool_calls"] = calls
    if asides := joined(chunk for chunk in chunks if chunk.content_type not in ANSWER_TYPES):
        extra["asides"] = [{"content_type": aside.content_type, "content": aside.content} for aside in asides]
    if status is not RunStatus.COMPLETED:
        extra["status"] = status.value
    elif given and given.finish != "stop":
        extra["finish_reason"] = given.finish
    text = "".join(chunk.content for chunk in chunks if chunk.content_type in ANSWER_TYPES)
    message = Message.assistant(text, id=new_id(), tokens=count(text), additional_kwargs=extra)
    return replace(message, parts=given.parts, name=given.name, state=given.state) if given else message


def stored_log(run: Run, answers: Iterable[Message]) -> Log:
    """The log of a run that has ended, made again from what it left: the same text at the same positions."""
    made, answers = Log(run.id), tuple(answers)
    text = "".join(message.content for message in answers)
    asides = (aside["content"] for message in answers for aside in message.additional_kwargs.get("asides", ()))
    rest = {True: text, False: "".join(asides)}
    turns = sum(content_type == SPEAKER for content_type, _ in run.layout or ())
    names = iter([message.name or "" for message in answers[len(answers) - turns :]])
    for content_type, length in run.layout or [("text", len(text))]:
        if content_type == SPEAKER:
            made.append(Chunk(next(names, ""), content_type))
            continue
        is_answer = content_type in ANSWER_TYPES
        made.append(Chunk(rest[is_answer][:length], content_type))
        rest[is_answer] = rest[is_answer][length:]
    made.close(Outcome(run, answers))
    return made
