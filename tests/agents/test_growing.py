"""The agents of growing power do what they say."""

import pytest

from app.agent.testing import Scripted, answer, call
from app.errors import PluginError
from tests.agents.growing import Forecaster, Mannered, Mirror, SyncWords, Words, Writer


def test_text_in_text_out() -> None:
    assert answer(Mirror, "hello {{you}}").text == "hello {{you}}"


def test_words_are_yielded() -> None:
    assert answer(Words, "a b c").text == answer(SyncWords, "a b c").text == "abc"


def test_parameters_come_before_the_history() -> None:
    llm = Scripted(["fine"])
    assert answer(Mannered, "hi", params={"system_prompt": "Shout."}, llm=llm).text == "fine"
    assert [message["content"] for message in llm.asked[0][0]] == ["Shout.", "hi"]


def test_tools_are_called_with_the_operators_settings_at_hand() -> None:
    llm = Scripted([call("weather", city="Oslo"), "It is sunny."])
    said = answer(Forecaster, "Rain?", settings={"AGENT_FORECASTER_WEATHER_KEY": "k"}, llm=llm)
    assert said.text == "It is sunny."
    assert llm.asked[1][0][-1]["content"] == "sunny in Oslo"
    with pytest.raises(PluginError, match="AGENT_FORECASTER_WEATHER_KEY"):
        answer(Forecaster, "Rain?", llm=llm)


def test_prompts_post_processors_and_derived_agents_work_together() -> None:
    llm = Scripted(["one", "two", 'So: {"why": "x", "sql": "SELECT sec\\u0072et"}'])
    said = answer(Writer, "names", llm=llm)
    assert said.text == "SELECT ***"
    asked = [[message["content"] for message in messages] for messages, _ in llm.asked]
    assert asked == [["A: names"], ["B: names"], ["Join one two", "names"]]
    assert [step.kind for step in said.steps].count("prompt") == 3
