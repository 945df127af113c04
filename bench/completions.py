"""What OpenAI's protocol costs beside SendMessage: the same agent of the same server, with as many messages before it."""

from __future__ import annotations

import json
from dataclasses import dataclass

from bench.client import Answer, WrongAnswer
from bench.measures import AT_ONCE, GAP, STREAM_CHUNKS, Figures, Size, run
from bench.processes import Program
from bench.targets import SENDS, Plan, Platform, Stage, Target, check_chunks
from bench.upstream import CHUNKS

AGENT = "simple_openai_agent"
ROUND = ["ours", "in a session", "by itself"]


@dataclass(frozen=True)
class Completions:
    """The platform, asked by `/v1/chat/completions`: in sessions, or each time with all that was said before."""

    platform: Platform
    in_sessions: bool

    @property
    def program(self) -> Program:
        """The platform's."""
        return self.platform.program

    async def plan(self, callers: int, each: int, content: str, *, stream: bool) -> Plan:
        """Requests of as many messages as SendMessage's have in their sessions: one, three, five, seven."""
        per_caller = -(-each // SENDS)
        sessions = await self.platform.sessions(callers * per_caller) if self.in_sessions else []
        return [
            [
                self._request(
                    content,
                    at % SENDS,
                    sessions[number * per_caller + at // SENDS] if sessions else None,
                    stream=stream,
                )
                for at in range(each)
            ]
            for number in range(callers)
        ]

    def _request(self, content: str, turns: int, session_id: str | None, *, stream: bool) -> bytes:
        said = [{"role": "user", "content": content}, {"role": "assistant", "content": "1700000000.000000 " * CHUNKS}]
        body: dict[str, object] = {"model": AGENT, "messages": [*said * (0 if session_id else turns), said[0]]}
        if session_id:
            body["session_id"] = session_id
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return self.platform.request("POST", "/v1/chat/completions", body)

    def check(self, answer: Answer, chunks: int) -> None:
        """All chunks in order, and as many tokens as the upstream counted."""
        check_chunks(answer, chunks)
        frames = answer.body.removesuffix(b"data: [DONE]\n\n").strip()
        counts = json.loads(frames.rpartition(b"data: ")[2])["usage"]
        if counts["completion_tokens"] != chunks:
            raise WrongAnswer(f"{counts} for {chunks} chunks")


async def completions(stage: Stage, size: Size, figures: Figures) -> None:
    """CPU of one answer, whole and by the chunk, by either protocol; another goes first in every round."""
    targets: dict[str, Target] = {"ours": stage.platform}
    targets |= {name: Completions(stage.platform, name == ROUND[1]) for name in ROUND[1:]}
    turn = len(figures.values["completions"]["ours"]) % len(ROUND)
    for name in ROUND[turn:] + ROUND[:turn]:
        plan = await targets[name].plan(AT_ONCE, size.sends, "What is the time?", stream=False)
        load = await run(stage, targets[name], plan, figures, CHUNKS)
        figures.add("completions", name, load.cpu / len(load.answers) * 1e6)
        plan = await targets[name].plan(AT_ONCE, 1, f"Count. [[{STREAM_CHUNKS} {GAP}]]", stream=True)
        load = await run(stage, targets[name], plan, figures, STREAM_CHUNKS)
        figures.add("completions, streamed", name, load.cpu / (AT_ONCE * STREAM_CHUNKS) * 1e6)
