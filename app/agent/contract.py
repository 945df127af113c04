"""What every agent promises, tried without a server and without a key: a language model that echoes stands in."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from typing import Any, Literal

from msgspec import Struct
from pydantic import BaseModel, ConfigDict

from app.agent.chattable import Chattable
from app.agent.json_keys import KeysMissing
from app.agent.plain import plain
from app.agent.runner import Answer
from app.agent.samples import sample
from app.agent.trial import Trial
from app.agent.version import AgentVersion, Code
from app.domain import ANSWER_TYPES, Message
from app.errors import AppError
from app.journal.log import Event
from app.llm.llm import LLM
from app.tasks import Tasks

TIMEOUT = 30.0
"""Seconds an agent may take for one answer here."""
CANCEL = 2.0
"""Seconds within which a cancelled agent has ended."""
STARTED = 0.3
"""Seconds that an agent which asks no model is left to begin."""
LONG = 1000
"""Pieces of an answer that is cancelled before its end."""
PAUSE = 0.02
"""Seconds between these."""


class Finding(Struct, frozen=True):
    """One promise, and whether it is kept. `note` says what was seen, or what is wrong."""

    name: str
    status: Literal["ok", "failed", "skipped"]
    note: str = ""


class BrokenPromise(Exception):
    """The agent does not do what every agent promises."""


class Echo(LLM):
    """Says what it was asked, in pieces of `size` characters, or what fits the schema it was asked for; with `keys` as JSON."""

    def __init__(self, size: int = 3, *, endless: bool = False, keys: Sequence[str] = ()) -> None:
        self._size, self._endless, self._keys = size, endless, keys
        self.asked: list[list[dict[str, Any]]] = []
        self.begun = asyncio.Event()

    async def generate(self, messages: list[dict[str, Any]], **options: Any) -> AsyncGenerator[str, None]:
        """Answer."""
        self.asked.append(messages)
        text = _said(messages, options.get("response_format") or {}, self._keys)
        for at in range(0, len(text), self._size):
            yield text[at : at + self._size]
            await asyncio.sleep(0)
        self.begun.set()
        for _ in range(LONG if self._endless else 0):
            yield " and"
            await asyncio.sleep(PAUSE)

    async def embed(self, texts: Sequence[str], *, model: str | None = None) -> list[list[float]]:
        """Equal vectors for equal texts."""
        return [[float(len(text)), float(sum(map(ord, text)) % 1000), 1.0] for text in texts]


class Contract:
    """The promises of one agent."""

    def __init__(self, version: AgentVersion, params: Mapping[str, Any] | None = None) -> None:
        """Without `params` those that its schema asks for are made up."""
        self._version = version
        self._params = sample(version.params_schema or {}) if params is None else params
        self._keys: Sequence[str] = ()
        """What the agent takes out of its model's answers, once it has told."""

    def _echo(self, size: int = 3, *, endless: bool = False) -> Echo:
        return Echo(size, endless=endless, keys=self._keys)

    def _trial(self, llm: Echo, params: Mapping[str, Any] | None = None) -> Trial:
        params = self._params if params is None else params
        return Trial(self._version, llm, params=params, person=_person, others=_stand_in)

    async def check(self) -> list[Finding]:
        """Every promise in its turn; when the agent does not answer at all, the rest is skipped."""
        promises: dict[str, Callable[[], Coroutine[Any, Any, str]]] = {
            "answers": self._answers,
            "streamed = whole": self._streams,
            "cancel": self._cancels,
            "two sessions": self._shares_nothing,
            "serialises": self._serialises,
            "reports tokens": self._reports,
        }
        found: list[Finding] = []
        for name, promise in promises.items():
            if found and found[0].status == "failed":
                found.append(Finding(name, "skipped", "it does not answer"))
            else:
                found.append(await _finding(name, promise))
        return found

    async def _answers(self) -> str:
        begin = time.monotonic()
        try:
            await self._run("Hello")
        except KeysMissing as missing:
            self._keys = missing.keys
            await self._run("Hello")
        return f"{time.monotonic() - begin:.2f} s"

    async def _streams(self) -> str:
        """What a reader sees while it comes is what is kept, and it does not hang on how the model cut its answer."""
        trial = self._trial(self._echo())
        work = Tasks().start(trial.answer("Hello, world", timeout=TIMEOUT), name="streamed")
        read: list[Event] = []
        while not work.done():
            read += trial.log.since(read[-1].position if read else 0)
            await asyncio.sleep(PAUSE / 10)
        given = await work
        read += trial.log.since(read[-1].position if read else 0)
        live = "".join(event.chunk.content for event in read if event.chunk.content_type in ANSWER_TYPES)
        if live != given.text:
            raise BrokenPromise("what was streamed is not what was kept")
        again = (await self._run("Hello, world"))[0].text
        whole = (await self._run("Hello, world", self._echo(1_000_000)))[0].text
        if again != given.text:
            return "its answers differ from one time to the next, so pieces and whole were not compared"
        if whole != again:
            raise BrokenPromise(
                "the answer is another one when the model answers in pieces than when it answers at once"
            )
        return f"{len(read)} pieces"

    async def _cancels(self) -> str:
        llm, tasks = self._echo(endless=True), Tasks()
        trial = self._trial(llm)
        work = tasks.start(trial.answer("Hello", timeout=TIMEOUT), name="cancelled")
        begun = tasks.start(llm.begun.wait(), name="begun")
        await asyncio.wait({work, begun}, timeout=STARTED, return_when=asyncio.FIRST_COMPLETED)
        begun.cancel()
        if work.done():
            work.result()
            return "it answers at once"
        begin = time.monotonic()
        work.cancel()
        await asyncio.wait({work})
        while self._version.threads.busy and time.monotonic() - begin < CANCEL:  # noqa: ASYNC110 - a thread tells nobody
            await asyncio.sleep(0.01)
        took = time.monotonic() - begin
        if took >= CANCEL - 0.05:  # then it was abandoned
            raise BrokenPromise(f"it goes on for more than {CANCEL:g} s after it was cancelled")
        if not work.cancelled():
            work.exception()
        return f"{took:.2f} s"

    async def _shares_nothing(self) -> str:
        """Words said in one session are not heard in another, at the same time or later."""
        words = ["quartz-one", "willow-two", "copper-three"]
        first = await asyncio.gather(*(self._heard(word) for word in words[:2]))
        heard = [*first, await self._heard(words[2])]
        for word, text in zip(words, heard, strict=True):
            for other in words:
                if other != word and other in text:
                    raise BrokenPromise("what was said in one session is heard in another")
        return ""

    async def _heard(self, word: str) -> str:
        """All that comes of a session in which `word` was said."""
        llm = self._echo()
        given, trial = await self._run(f"Keep the word {word}.", llm)
        shown = [event.chunk.content for event in trial.log.events]
        return json.dumps([given.text, "".join(shown), plain(given.state), llm.asked], default=str).casefold()

    async def _serialises(self) -> str:
        version = self._version
        stored = version.validate_params(json.loads(json.dumps(plain(self._params))))
        json.dumps(version.params_schema)
        version.make_params(stored)
        given, _ = await self._run("Hello")
        if given.state is not None:
            kept = json.loads(json.dumps(given.state))
            again = version.make_state(kept)
            if again is None or plain(again) != plain(given.state):
                raise BrokenPromise("its state is another one when it is loaded again")
        before = [Message.user("Hello"), Message.assistant(given.text)]
        trial = self._trial(self._echo(), stored)
        await trial.answer("And?", state=given.state, before=before, timeout=TIMEOUT)
        has = [name for name, model in (("params", version.params_model), ("state", version.state_model)) if model]
        return ", ".join(has) or "it has neither params nor state"

    async def _reports(self) -> str:
        llm = self._echo()
        _, trial = await self._run("Hello", llm)
        if not llm.asked:
            return "it asks no language model"
        usage = trial.usage
        if usage.prompt <= 0 or usage.completion <= 0:
            raise BrokenPromise("its calls of the language model are not counted")
        return f"{usage.prompt} prompt, {usage.completion} completion"

    async def _run(self, text: str, llm: Echo | None = None) -> tuple[Answer, Trial]:
        trial = self._trial(llm or self._echo())
        return await trial.answer(text, timeout=TIMEOUT), trial


async def _finding(name: str, promise: Callable[[], Coroutine[Any, Any, str]]) -> Finding:
    try:
        return Finding(name, "ok", await promise())
    except AppError as error:
        return Finding(name, "failed", error.message)
    except BrokenPromise as error:
        return Finding(name, "failed", f"{error}.")


class _Anything(BaseModel):
    model_config = ConfigDict(extra="allow")


class _Repeats(Chattable):
    """Stands in for whatever agent it is that another delegates to."""

    id = "repeats"
    params: _Anything

    def chat(self, message: Message) -> str:
        return message.content


def _stand_in(_: str) -> AgentVersion:
    return AgentVersion(_Repeats, "", Code(__name__), {})


async def _person(_: str, schema: dict[str, Any]) -> Any:
    """Answers whatever fits."""
    return sample(schema)


def _said(messages: list[dict[str, Any]], wanted: Mapping[str, Any], keys: Sequence[str]) -> str:
    if wanted.get("type") == "json_schema":
        return json.dumps(sample(wanted["json_schema"]["schema"]))
    if wanted.get("type") == "json_object":
        return "{}"
    said = "You said: " + " ".join(str(message.get("content") or "") for message in messages)
    return json.dumps(dict.fromkeys(keys, said), ensure_ascii=False) if keys else said
