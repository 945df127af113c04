"""What a recorded step costs: a message of many steps against one of none, both answered and stored as any."""

from __future__ import annotations

from dataclasses import dataclass

from bench.client import Answer, WrongAnswer
from bench.measures import AT_ONCE, Figures, Size, run
from bench.processes import Program
from bench.targets import Plan, Platform, Stage

STEPS = 50
EACH = 4
"""How many messages each caller sends, in a session of its own."""


@dataclass(frozen=True)
class Journaled:
    """The platform's agent of `bench/agents`."""

    platform: Platform

    @property
    def program(self) -> Program:
        """The platform's."""
        return self.platform.program

    async def plan(self, callers: int, each: int, content: str, *, stream: bool) -> Plan:
        """Messages in a new session for each caller."""
        sessions = await self.platform.sessions(callers, "journaled")
        return [[self.platform.send(session, content, stream=stream)] * each for session in sessions]

    def check(self, answer: Answer, chunks: int) -> None:
        """That it was answered."""
        if answer.status != 200 or b'"content":"done"' not in answer.body:
            raise WrongAnswer(answer.raw[:600].decode(errors="replace") or "no answer")


async def steps(stage: Stage, size: Size, figures: Figures) -> None:
    """CPU of one step: of the agent's call, its record, and its row in the journal."""
    target = Journaled(stage.platform)
    for steps in (0, STEPS):
        plan = await target.plan(AT_ONCE, EACH, str(steps), stream=False)
        load = await run(stage, target, plan, figures, 0)
        figures.add("steps", str(steps), load.cpu / len(load.answers) * 1e6)
