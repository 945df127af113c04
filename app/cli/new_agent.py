"""What `chattable agents new` writes: an agent that works, and its test."""

from __future__ import annotations

import re
from pathlib import Path
from string import Template

from app.errors import SettingsError

AGENT = Template('''"""Says what it does: users read this."""

from pydantic import BaseModel, Field

from app.agent import Chattable, Message, Reply


class Params(BaseModel):
    """What a user can set for a session."""

    system_prompt: str = Field("You are brief.", max_length=100_000, description="instructions for the model")


class $cls(Chattable):
    id = "$id"
    params: Params

    async def chat(self, message: Message) -> Reply:
        return await self.llm.acall([Message.system(self.params.system_prompt), *self.history])
''')
TEST = Template('''"""What $id does, tried without a server and without a key."""

from pathlib import Path

from app.agent.testing import Scripted, answer, load

AGENT = load(Path(__file__).parents[2] / "$folder/$file")


def test_it_answers_by_its_instructions() -> None:
    llm = Scripted(["Good morning."])
    assert answer(AGENT, "Hello", params={"system_prompt": "Be kind."}, llm=llm).text == "Good morning."
    assert [message["content"] for message in llm.asked[0][0]] == ["Be kind.", "Hello"]
''')


def write(agent_id: str, folder: Path) -> list[Path]:
    """Write the agent into `folder` and its test into `tests/agents` beside that; `SettingsError` when a file is there."""
    stem = re.sub(r"\W", "_", agent_id)
    words = "".join(word.capitalize() for word in stem.split("_"))
    cls = f"{'' if words[0].isalpha() else 'Number'}{words.removesuffix('Agent')}Agent"
    agent = folder / f"{stem}.py"
    test = folder.absolute().parent / "tests" / "agents" / f"test_{stem}.py"
    names = {"id": agent_id, "cls": cls, "file": agent.name, "folder": folder.absolute().name}
    for path in (agent, folder / stem, test):
        if path.exists():
            raise SettingsError(f"{path} is there already.")
    for path, template in ((agent, AGENT), (test, TEST)):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(template.substitute(names))
    return [agent, test]
